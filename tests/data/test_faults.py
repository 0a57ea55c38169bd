"""Faults, one by one: a line that names file and record, or skipped and counted exactly."""

import gzip
import hashlib
import json
import os
import pathlib
import shutil
import tracemalloc

import array_record.python.array_record_module as array_record
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard

from data import arrayrecords, files, prepare, records, sources, spans
from tests.data import corpora

GOOD = corpora.json_lines(corpora.TEXTS[:3]).splitlines(keepends=True)


def fails(spec, reason, *parts):
    """Opening or reading fails with one line that has all the parts."""
    with pytest.raises(records.Fault) as caught:
        corpora.texts_of(sources.open_source(spec))
    message = str(caught.value)
    assert caught.value.reason == reason
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def skipping(spec, **extra):
    return sources.open_source(spec, on_fault="skip", **extra)


LINES = {
    "invalid_utf8": (b'{"text": "\xff"}\n', "is not UTF-8 text: invalid start byte at byte 10"),
    "not_json": (b"{nonsense\n", "is not JSON"),
    "missing_field": (b'{"body": "x"}\n', "has no string field 'text' (fields: body)"),
    "too_long": (b'{"text": "' + b"x" * 5000 + b'"}\n', "is a record of 5013 bytes"),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("reason", LINES)
def test_bad_line(tmp_path, monkeypatch, reason, suffix, cached):
    if cached:
        monkeypatch.setattr(spans, "_CACHED_FROM_BYTES", 0)
    line, message = LINES[reason]
    path = tmp_path / f"a.jsonl{suffix}"
    raw = b"".join([GOOD[0], b"\n", line, *GOOD[1:], line])
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    spec = f"jsonl:{path}?max_bytes=4096"
    for _ in range(2):
        fails(spec, reason, f"{path}:3 ", message)
        source = skipping(spec)
        assert corpora.texts_of(source) == corpora.TEXTS[:3]
        assert source.counts == {f"fault/{reason}": 2}
    bounded = fails(f"{spec}&on_fault=skip&max_faults=1", reason, f"{path}:6 ", "max_faults=1")
    assert "1 faults before it were skipped" in bounded
    assert len(skipping(spec, max_faults="2")) == 3


def test_half_a_surrogate_pair(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD[0] + b'{"text": "ab\\ud800"}\n')
    fails(f"jsonl:{path}", "invalid_utf8", f"{path}:2", "half a surrogate pair at character 2")
    assert skipping(f"jsonl:{path}").counts == {"fault/invalid_utf8": 1}


def test_a_line_of_200_megabytes_is_never_held(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD[0] + b'{"text": "')
        # A hole: zeros that need no disk.
        file.seek(200 * 2**20, 1)
        file.write(b'"}\n' + GOOD[1])
    size = path.stat().st_size - len(GOOD[0]) - len(GOOD[1])
    tracemalloc.start()
    fails(f"jsonl:{path}", "too_long", f"{path}:2 ", f"{size} bytes", "max_bytes=16777216")
    source = skipping(f"jsonl:{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert corpora.texts_of(source) == corpora.TEXTS[:2]
    assert source.counts == {"fault/too_long": 1}
    assert peak < 64 * 2**20


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_compressed_file(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    corpora.write_jsonl(path)
    path.write_bytes(path.read_bytes()[:-60])
    message = fails(f"jsonl:{path}", "truncated", str(path), "is cut off", "after line ")
    kept = int(message.split("after line ")[1].split(",")[0])
    source = skipping(f"jsonl:{path}")
    assert corpora.texts_of(source) == corpora.TEXTS[:kept]
    assert source.counts == {"fault/truncated": 1}
    assert 0 < kept < 60


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_is_not_compressed(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(corpora.json_lines())
    fails(f"jsonl:{path}", "unreadable", str(path), "after line 0", "is no good compressed file")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.array_record"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    kind = "array_record" if name.endswith("record") else name.split(".")[1]
    fails(f"{kind}:{tmp_path}/{name}", "empty_file", f"{name} is an empty file of 0 bytes")
    with pytest.raises(ValueError, match=r"is empty.*left out: 1 fault/empty_file"):
        skipping(f"{kind}:{tmp_path}/{name}")


def test_empty_text_is_counted_under_any_policy(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_text("")
    assert sources.open_source(f"folder:{tmp_path}").counts == {"empty": 2}


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_bytes(b"b\xff")
    (tmp_path / "c.txt").write_bytes(b"c\0")
    (tmp_path / "d.txt").write_bytes(b"d" * 100)
    fails(f"folder:{tmp_path}", "invalid_utf8", "b.txt is not UTF-8")
    source = skipping(f"folder:{tmp_path}?max_bytes=99")
    assert corpora.texts_of(source) == ["a"]
    assert source.counts == dict.fromkeys(
        ("fault/invalid_utf8", "fault/not_text", "fault/too_long"), 1
    )


def test_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\n" + b"x" * 50 + b"\n\nbad \xff\nrest\n\n \ntwo\nlines\n\nnul \0\n")
    fails(f"text:{path}?separator=blank", "invalid_utf8", f"{path}:5 ")
    source = skipping(f"text:{path}?separator=blank&max_bytes=20")
    assert corpora.texts_of(source) == ["one", "two\nlines"]
    assert source.counts == dict.fromkeys(
        ("fault/invalid_utf8", "fault/not_text", "fault/too_long"), 1
    )


def test_a_paragraph_that_is_too_long_is_one_fault(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\n" + "long line\n" * 4 + "\n\n \n\ntwo\n")
    source = skipping(f"text:{path}?separator=blank&max_bytes=20")
    assert corpora.texts_of(source) == ["one", "two"]
    assert source.counts == {"fault/too_long": 1}


def test_truncated_parquet(tmp_path):
    corpora.write_parquet(tmp_path / "a.parquet")
    corpora.write_parquet(tmp_path / "b.parquet", corpora.TEXTS[:5])
    path = tmp_path / "a.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    fails(f"parquet:{tmp_path}", "truncated", f"{path} is cut off")
    source = skipping(f"parquet:{tmp_path}")
    assert corpora.texts_of(source) == corpora.TEXTS[:5]
    assert source.counts == {"fault/truncated": 1}


def test_damaged_parquet_page(tmp_path):
    path = tmp_path / "a.parquet"
    corpora.write_parquet(path)
    raw = bytearray(path.read_bytes())
    chunk = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    fails(f"parquet:{path}", "unreadable", f"{path}: row 16 (row group 1)")
    source = skipping(f"parquet:{path}")
    assert corpora.texts_of(source) == corpora.TEXTS[:16] + corpora.TEXTS[32:]
    assert source.counts == {"fault/unreadable": 16}


def test_parquet_values(tmp_path):
    path = tmp_path / "a.parquet"
    raw = pa.array([b"good", b"\xff", None, b"x" * 99, b" "], pa.binary())
    parquet.write_table(pa.table({"text": raw, "n": range(5)}), path)
    spec = f"parquet:{path}?max_bytes=50"
    fails(spec, "invalid_utf8", f"{path}: row 1 is not UTF-8")
    source = skipping(spec)
    assert corpora.texts_of(source) == ["good"]
    kinds = ("fault/invalid_utf8", "fault/missing_field", "fault/too_long", "empty")
    assert source.counts == dict.fromkeys(kinds, 1)
    fails(f"parquet:{path}?field=body", "missing_field", "no text column 'body' (columns: text: b")
    fails(f"parquet:{path}?field=n", "missing_field", "no text column 'n'")


def test_saved_dataset_values_and_cuts(tmp_path):
    folder = tmp_path / "saved"
    corpora.write_hf(folder, [*corpora.TEXTS[:20], None, " ", "x" * 999, *corpora.TEXTS[23:]])
    spec = f"hf:{folder}?max_bytes=500"
    first = folder / "data-00000-of-00002.arrow"
    fails(spec, "missing_field", f"{first}: row 20 has a null")
    source = skipping(spec)
    assert corpora.texts_of(source) == corpora.TEXTS[:20] + corpora.TEXTS[23:]
    assert source.counts == {"fault/missing_field": 1, "fault/too_long": 1, "empty": 1}
    whole = first.read_bytes()
    for cut in (8, 9, 300, len(whole) // 2):
        first.write_bytes(whole[:-cut])
        fails(spec, "truncated", f"{first} is cut off")
    source = skipping(spec)
    assert corpora.texts_of(source) == corpora.TEXTS[30:]
    assert source.counts == {"fault/truncated": 1}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_saved_rows_of_white_space_are_empty_and_bytes_are_checked(tmp_path, kind):
    rows = [b"good", b" \n", b"", "\u3000".encode(), b"x"]
    bad = [b"\xff"] if kind == pa.binary() else []
    batch = pa.record_batch({"text": pa.array([*rows, *bad]).cast(kind), "n": range(5 + len(bad))})
    path = str(tmp_path / "a.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    source = skipping(f"hf:{tmp_path}")
    assert corpora.texts_of(source) == ["good", "x"]
    assert source.counts == {"empty": 3, **({"fault/invalid_utf8": 1} if bad else {})}


def test_half_written_array_record(tmp_path):
    good, bad = tmp_path / "a.array_record", tmp_path / "b.array_record"
    raws = [text.encode() for text in corpora.TEXTS]
    corpora.write_array_record(good, raws)
    bad.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    fails(f"array_record:{tmp_path}", "truncated", f"{bad} is no whole ArrayRecord file")
    source = skipping(f"array_record:{tmp_path}")
    assert corpora.texts_of(source) == corpora.TEXTS
    assert source.counts == {"fault/truncated": 1}
    # A writer that is still at it, or was killed.
    writer = array_record.ArrayRecordWriter(str(bad), "group_size:1")
    for number in range(10_000):
        writer.write(hashlib.sha512(b"%d" % number).digest())
    with pytest.raises(records.Fault, match=r"no whole ArrayRecord|is an empty file"):
        sources.open_source(f"array_record:{bad}")
    writer.close()


def test_damaged_array_record_is_met_when_read(tmp_path):
    path = tmp_path / "a.array_record"
    corpora.write_array_record(path, [text.encode() for text in corpora.TEXTS] + [b"\xff"])
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\x28\xb5\x2f\xfd", 1000)
    raw[at : at + 30] = bytes(30)
    path.write_bytes(raw)
    source = sources.open_source(f"array_record:{path}")

    def read(index):
        try:
            return source[index].text
        except records.Fault as fault:
            return str(fault)

    found = list(map(read, range(61)))
    bad = [index for index in range(60) if found[index] != corpora.TEXTS[index]]
    # One group of compressed records is lost, no more.
    assert len(bad) == 4
    assert all(f"{path}: record {index} cannot be read" in found[index] for index in bad)
    assert f"{path}: record 60 is not UTF-8" in found[60]
    fails(f"array_record:{path}?max_bytes=20", "too_long", "record 0 is a record of")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_vanished_and_changed_while_in_use(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(GOOD[0])
    source = sources.open_source(f"jsonl:{path}" if name == "a.jsonl" else f"folder:{tmp_path}")
    kept = source[0]
    path.write_bytes(GOOD[0] + GOOD[1])
    with pytest.raises(records.Fault, match="has changed since") as caught:
        source[0]
    assert (caught.value.reason, str(path) in str(caught.value)) == ("changed", True)
    path.unlink()
    with pytest.raises(records.Fault, match="is gone") as caught:
        source[0]
    assert (caught.value.reason, str(path) in str(caught.value)) == ("vanished", True)
    assert kept.text


def test_prepared_shards_vanished_or_cut(tmp_path, cache_folder):
    corpora.write_jsonl(tmp_path / "a.jsonl")
    prepare.prepare(f"jsonl:{tmp_path}/a.jsonl", tmp_path / "out", shard_count=3)
    spec = f"prepared:{tmp_path}/out"
    shard = tmp_path / "out" / "shard-00001.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    fails(spec, "truncated", str(shard))
    shard.unlink()
    fails(spec, "vanished", str(shard))
    source = skipping(spec)
    assert corpora.texts_of(source) == corpora.TEXTS[:20] + corpora.TEXTS[40:]
    assert source.counts == {"fault/vanished": 1}
    shutil.rmtree(cache_folder)


def test_nothing_left_is_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"is empty.*\(left out: 1 empty, 1 fault/missing_field\)"):
        skipping(f"jsonl:{path}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("on_fault=ignore", "need on_fault=fail or skip"),
        ("max_faults=x", "max_faults='x' must be a whole number"),
        ("max_bytes=0", "max_bytes >= 1"),
        ("field=", "names an empty field"),
    ],
)
def test_impossible_policies(tmp_path, options, message):
    corpora.write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=message):
        sources.open_source(f"jsonl:{tmp_path}/a.jsonl?{options}")


def test_faults_keep_their_parts():
    fault = records.Fault("truncated", "a.gz", "is cut off")
    assert json.dumps([fault.reason, fault.where, str(fault)]) == json.dumps(
        ["truncated", "a.gz", "a.gz is cut off"]
    )
    guard = records.Guard("skip", 1)
    guard.meet(fault)
    with pytest.raises(records.Fault, match="max_faults=1 allows no more"):
        guard.meet(fault)


@pytest.mark.parametrize("state", ["", '{"_data_fi', "[]", "{}", '{"_data_files": [{}]}'])
def test_a_saved_dataset_with_a_damaged_state(tmp_path, state):
    corpora.write_hf(tmp_path / "c", ["one text", "another"])
    (tmp_path / "c" / "state.json").write_text(state)
    with pytest.raises(records.Fault, match=r"state\.json does not say"):
        sources.open_source(f"hf:{tmp_path}/c")


def test_an_arrow_file_whose_values_lie_nowhere(tmp_path):
    """pyarrow ends the process where such a value is read."""
    corpora.write_hf(tmp_path / "c", ["one text", "another one"])
    path = tmp_path / "c" / "data-00000-of-00002.arrow"
    raw, ends = path.read_bytes(), np.array([0, 8, 19], "<i4").tobytes()
    assert raw.count(ends) == 1
    path.write_bytes(raw.replace(ends, np.array([0, 2**30, 19], "<i4").tobytes()))
    with pytest.raises(records.Fault, match=r"00000-of-00002\.arrow is cut off or damaged"):
        sources.open_source(f"hf:{tmp_path}/c")


def test_an_array_record_file_that_was_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(arrayrecords, "_MOST_OPEN", 1)
    for name in ("a", "b"):
        corpora.write_array_record(tmp_path / f"{name}.array_record", [b"old", b"text"])
    source = sources.open_source(f"array_record:{tmp_path}")
    corpora.write_array_record(tmp_path / "new", [b"something", b"else"])
    (tmp_path / "new").replace(tmp_path / "a.array_record")
    assert source[2].text == "old"
    with pytest.raises(records.Fault, match=r"a\.array_record has changed since"):
        source[0]


def opened_array_records(monkeypatch) -> list[str]:
    """The files that the library opens from now on, as often as it does."""
    library, opened = array_record.ArrayRecordReader, []

    def counted(path, options):
        opened.append(path)
        return library(path, options=options)

    monkeypatch.setattr(array_record, "ArrayRecordReader", counted)
    return opened


def test_many_array_record_files_are_read_at_random_without_opening_one_twice(
    tmp_path, monkeypatch
):
    """20 GB are 75 shards."""
    for name in range(100):
        corpora.write_array_record(tmp_path / f"{name:03}.array_record", [b"a", b"b", b"c"])
    opened = opened_array_records(monkeypatch)
    source = sources.open_source(f"array_record:{tmp_path}")
    order = np.random.default_rng(0).permutation(len(source))
    assert sorted(source[int(index)].text for index in order) == sorted("abc" * 100)
    assert len(opened) == 100


def test_more_array_record_files_than_a_process_may_open(tmp_path, monkeypatch):
    monkeypatch.setattr(arrayrecords.resource, "getrlimit", lambda which: (40, 40))
    monkeypatch.setattr(arrayrecords, "_OPEN", arrayrecords._OpenFiles())
    for folder in ("x", "y"):
        for name in range(15):
            path = tmp_path / folder / f"{name:02}.array_record"
            path.parent.mkdir(exist_ok=True)
            corpora.write_array_record(path, [name.to_bytes() + folder.encode()])

    def still_open() -> int:
        found = (path for path in pathlib.Path("/proc/self/fd").iterdir() if path.is_symlink())
        return sum(str(tmp_path) in os.readlink(path) for path in found)

    both = [sources.open_source(f"array_record:{tmp_path}/{folder}") for folder in ("x", "y")]
    for index in range(15):
        for folder, source in zip("xy", both):
            assert source[index].text == chr(index) + folder
    assert 0 < still_open() <= 10


def test_a_record_that_is_not_there_is_no_fault(tmp_path):
    """It is a mistake of the caller's, which no policy may count as damaged data."""
    path = tmp_path / "a.array_record"
    corpora.write_array_record(path, [b"a", b"b"])
    reader = arrayrecords.Reader([path])
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"record {index} of 2"):
            reader.read(0, index)
    assert reader.read(0, 1) == b"b"


def test_a_long_line_of_zstandard_is_not_held(tmp_path):
    with zstandard.open(tmp_path / "a.jsonl.zst", "wb") as file:
        for _ in range(200):
            file.write(b"a" * 2**20)
    largest = 0
    with files.opened_stream(tmp_path / "a.jsonl.zst") as stream:
        while stream.readline(2**20):
            largest = max(largest, len(stream.raw._ready))
    assert largest < 2**26
