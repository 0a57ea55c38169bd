"""data.prepare: what it writes, interrupted and resumed, run twice, refused."""

import hashlib
import json
import pathlib

import pytest

from data import prepare, records, shards, sources, tokenizers
from tests.data import corpora


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture
def spec(tmp_path):
    corpora.write_jsonl(tmp_path / "a.jsonl", [*corpora.TEXTS, " ", "last"])
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b"{nonsense\n")
    return f"jsonl:{tmp_path}/a.jsonl?on_fault=skip"


def test_manifest_and_what_is_read_back(spec, tmp_path):
    out = tmp_path / "out"
    manifest, written = prepare.prepare(spec, out, shard_count=4, license="mine", tokenizer="bytes")
    texts = [*corpora.TEXTS, "last"]
    size = sum(len(text.encode()) for text in texts)
    assert written
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert (manifest["source"], manifest["license"]) == (spec, "mine")
    assert manifest["documents"] == 61
    assert manifest["text_bytes"] == manifest["tokens"] == size
    assert manifest["tokenizer_digest"] == tokenizers.ByteTokenizer().digest()
    assert manifest["skipped"] == {"empty": 1, "fault/not_json": 1}
    ((reason, where, message),) = manifest["faults"]
    assert (reason, where) == ("not_json", f"{tmp_path}/a.jsonl:63")
    assert "is not JSON" in message
    assert [shard["documents"] for shard in manifest["shards"]] == [15, 15, 15, 16]
    for shard in manifest["shards"]:
        raw = (out / shard["file"]).read_bytes()
        assert len(raw) == shard["bytes"]
        assert hashlib.sha256(raw).hexdigest() == shard["sha256"]
    source = sources.open_source(f"prepared:{out}")
    assert corpora.texts_of(source) == texts
    assert source.counts == manifest["skipped"]
    assert source[3] == records.of_text(corpora.TEXTS[3])


def test_everything_of_a_record_is_kept(tmp_path):
    spec = "miniature:?split=train&kind=worked&size=20"
    prepare.prepare(spec, tmp_path / "out")
    wanted, found = sources.open_source(spec), sources.open_source(f"prepared:{tmp_path}/out")
    assert [found[i] for i in range(20)] == [wanted[i] for i in range(20)]
    assert found[0].markup
    assert found[0].labels


def test_without_a_number_shards_end_by_size(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 500)
    manifest, _ = prepare.prepare(spec, tmp_path / "out")
    sizes = [shard["text_bytes"] for shard in manifest["shards"]]
    assert all(500 <= size < 600 for size in sizes[:-1])
    assert len(sizes) == -(-manifest["text_bytes"] // 550) or len(sizes) > 2
    assert corpora.texts_of(sources.open_source(f"prepared:{tmp_path}/out")) == [
        *corpora.TEXTS,
        "last",
    ]


@pytest.mark.parametrize("stop_at", [0, 1, 14, 15, 16, 31, 60])
@pytest.mark.parametrize("how", [KeyboardInterrupt, "kill"])
def test_interrupted_and_resumed_is_the_same(spec, tmp_path, monkeypatch, stop_at, how):
    whole, out = tmp_path / "whole", tmp_path / "out"
    prepare.prepare(spec, whole, shard_count=4)
    encoded = []
    encode, unlink = shards.encode, pathlib.Path.unlink

    def encode_until(record):
        if len(encoded) == stop_at:
            raise KeyboardInterrupt
        encoded.append(record.text)
        return encode(record)

    monkeypatch.setattr(shards, "encode", encode_until)
    if how == "kill":
        # Nothing tidies up after a kill.
        monkeypatch.setattr(pathlib.Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(spec, out, shard_count=4)
    monkeypatch.setattr(pathlib.Path, "unlink", unlink)
    left = files_of(out)
    assert any(name.startswith(".partial-") for name in left) == (how == "kill")
    assert "manifest.json" not in left
    if stop_at >= 15:
        with pytest.raises(FileNotFoundError, match=r"is not finished: run data\.prepare again"):
            sources.open_source(f"prepared:{out}")
    encoded.clear()
    monkeypatch.setattr(shards, "encode", lambda record: encoded.append(1) or encode(record))
    _, written = prepare.prepare(spec, out, shard_count=4)
    assert written
    assert files_of(out) == files_of(whole)
    # Only what was not finished is done again.
    assert len(encoded) == 61 - min(stop_at // 15, 3) * 15


def test_resume_of_a_compressed_file(tmp_path, monkeypatch):
    corpora.write_jsonl(tmp_path / "a.jsonl.gz")
    raw = (tmp_path / "a.jsonl.gz").read_bytes()
    monkeypatch.setattr(shards, "SHARD_BYTES", 500)
    encode, count = shards.encode, []

    def encode_until(record):
        count.append(1)
        if len(count) == 40:
            raise KeyboardInterrupt
        return encode(record)

    monkeypatch.setattr(shards, "encode", encode_until)
    spec = f"jsonl:{tmp_path}/a.jsonl.gz"
    with pytest.raises(KeyboardInterrupt):
        sources.open_source(spec)
    source = sources.open_source(spec)
    assert corpora.texts_of(source) == corpora.TEXTS
    assert 60 < len(count) < 80
    assert (tmp_path / "a.jsonl.gz").read_bytes() == raw


def test_what_was_left_out_before_an_interruption_is_counted(tmp_path, monkeypatch):
    path = tmp_path / "a.array_record"
    raws = [text.encode() for text in corpora.TEXTS]
    corpora.write_array_record(path, [*raws[:5], b"\xff", b" ", *raws[5:]])
    spec = f"array_record:{path}?on_fault=skip"
    encode, count = shards.encode, []

    def encode_until(record):
        count.append(1)
        if len(count) == 40:
            raise KeyboardInterrupt
        return encode(record)

    monkeypatch.setattr(shards, "encode", encode_until)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(spec, tmp_path / "out", shard_count=4)
    manifest, _ = prepare.prepare(spec, tmp_path / "out", shard_count=4)
    assert manifest["skipped"] == {"fault/invalid_utf8": 1, "empty": 1}
    assert [fault[0] for fault in manifest["faults"]] == ["invalid_utf8"]
    whole, _ = prepare.prepare(spec, tmp_path / "whole", shard_count=4)
    assert manifest == whole


def test_a_second_run_verifies(spec, tmp_path):
    out = tmp_path / "out"
    first, _ = prepare.prepare(spec, out, shard_count=2)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    again, written = prepare.prepare(spec, out, shard_count=2)
    assert (again, written) == (first, False)
    assert before.keys() == {file.name for file in out.iterdir()}
    shard = out / "shard-00001.array_record"
    assert shard.stat().st_mtime_ns == before[shard.name]
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(records.Fault, match=r"shard-00001\.array_record is not what its manifest"):
        prepare.prepare(spec, out, shard_count=2)


def test_another_source_is_refused(spec, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(spec, out)
    before = files_of(out)
    with pytest.raises(ValueError, match="was prepared with shard_count None, not 2"):
        prepare.prepare(spec, out, shard_count=2)
    with pytest.raises(ValueError, match="was prepared with tokenizer_digest None"):
        prepare.prepare(spec, out, tokenizer="bytes")
    with pytest.raises(ValueError, match="was prepared with digest"):
        prepare.prepare("pydoc", out)
    # The same spec, but the file has changed.
    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.TEXTS[:5])
    with pytest.raises(ValueError, match="was prepared with digest"):
        prepare.prepare(spec, out)
    assert files_of(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds other files \(thesis\.txt\)"):
        prepare.prepare(spec, tmp_path / "other")


def test_fault_then_skip_goes_on(tmp_path):
    path = tmp_path / "a.array_record"
    raws = [text.encode() for text in corpora.TEXTS]
    corpora.write_array_record(path, [*raws[:40], b"\xff", *raws[40:]])
    spec, out = f"array_record:{path}", tmp_path / "out"
    with pytest.raises(records.Fault, match="record 40 is not UTF-8"):
        prepare.prepare(spec, out, shard_count=4)
    assert len(list(out.glob("shard-*"))) == 2
    manifest, _ = prepare.prepare(f"{spec}?on_fault=skip", out, shard_count=4)
    assert manifest["skipped"] == {"fault/invalid_utf8": 1}
    assert manifest["faults"][0][1] == f"{path}: record 40"
    assert corpora.texts_of(sources.open_source(f"prepared:{out}")) == corpora.TEXTS


def test_faults_of_opening_and_of_writing_stand_in_the_manifest_and_share_a_bound(tmp_path):
    good, bad = tmp_path / "a.array_record", tmp_path / "b.array_record"
    raws = [text.encode() for text in corpora.TEXTS]
    corpora.write_array_record(good, [*raws, b"\xff", b"\xfe"])
    bad.write_bytes(good.read_bytes()[:100])
    spec = f"array_record:{tmp_path}/*.array_record?on_fault=skip&max_faults="
    with pytest.raises(records.Fault, match=r"record 61 .*2 faults before it were skipped"):
        prepare.prepare(f"{spec}2", tmp_path / "out")
    manifest, _ = prepare.prepare(f"{spec}3", tmp_path / "out")
    assert manifest["skipped"] == {"fault/truncated": 1, "fault/invalid_utf8": 2}
    places = [where for _, where, _ in manifest["faults"]]
    assert places == [str(bad), f"{good}: record 60", f"{good}: record 61"]


def test_what_is_noted_is_not_left_out(tmp_path, capsys):
    corpora.write_jsonl(tmp_path / "a.jsonl", ["cafe\u0301 au lait", "plain text", ""])
    spec, out = f"jsonl:{tmp_path}/a.jsonl?unicode=NFC", tmp_path / "out"
    assert prepare.main([f"--source={spec}", f"--out={out}"]) == 0
    assert "; left out: 1 empty; noted: 1 rewritten\n" in capsys.readouterr().out
    manifest = shards.read_manifest(out)
    assert (manifest["skipped"], manifest["noted"]) == ({"empty": 1}, {"rewritten": 1})
    assert sources.open_source(f"prepared:{out}").counts == {"empty": 1, "noted/rewritten": 1}


def test_command(spec, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert prepare.main([f"--source={spec}", f"--out={out}", "--shards=2"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: written: 61 documents" in printed
    assert "in 2 shards; left out: 1 empty, 1 fault/not_json" in printed
    assert prepare.main([f"--source={spec}", f"--out={out}", "--shards=2"]) == 0
    assert "already prepared, verified" in capsys.readouterr().out
    assert prepare.main(["--source=jsonl:/absent", f"--out={out}"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no /absent")
    assert prepare.main([f"--source={spec}", f"--out={out}2", "--shards=99"]) == 1
    assert "cannot make 99 shards of 61 documents" in capsys.readouterr().err
    assert prepare.main(["--recipe=nothing", f"--out={out}"]) == 1
    assert "unknown recipe 'nothing'; known: pydoc" in capsys.readouterr().err


def test_the_bar_knows_the_total_and_the_position(spec, tmp_path, monkeypatch, capsys):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(prepare, "_RECORDS_BETWEEN_UPDATES", 10)
    with prepare._shown_progress() as begin:
        show = begin(40)
        for position in range(1, 12):
            show(position - 1, 2**20, position)
    half = capsys.readouterr().err
    # The 10th was the last to be shown; the elements of a line are coloured.
    assert "9 documents, 1.0 MiB of text" in half
    assert " 25%" in half
    assert prepare.main([f"--source={spec}", f"--out={tmp_path}/out"]) == 0
    whole = capsys.readouterr().err
    assert "61 documents" in whole
    assert "100%" in whole


def test_plain_lines_tell_the_share(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(prepare, "_SECONDS_BETWEEN_LINES", 0.0)
    assert prepare.main([f"--source={spec}", f"--out={tmp_path}/out"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 61
    assert lines[30].startswith("51%: 31 documents, ")
    assert lines[-1].startswith("100%: 61 documents, ")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be used"), ('{"version": 9}', "it has version 9"), ("[]", "cannot be used")],
)
def test_damaged_manifest(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        sources.open_source(f"prepared:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="no folder"):
        sources.open_source(f"prepared:{tmp_path}/absent")
