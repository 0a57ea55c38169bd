"""Formats: the same documents whatever they are stored in, at random, and at the next start."""

import os
import random

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from data import cache, extras, records, shards, sources, spans
from tests.data import corpora

FORMATS = (
    *("jsonl", "jsonl_gz", "jsonl_zst", "parquet", "hf", "array_record", "array_record_json"),
    *("folder", "text_blank"),
)


def texts_at(spec):
    return corpora.texts_of(sources.open_source(spec))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpora.write_all(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_documents_in_any_order(corpus, name):
    source = sources.open_source(corpus[name])
    assert corpora.texts_of(source) == corpora.TEXTS
    assert not source.counts
    order = random.Random(0).sample(range(60), 60)
    assert [source[i] for i in order] == [records.of_text(corpora.TEXTS[i]) for i in order]
    assert texts_at(corpus[name]) == corpora.TEXTS


def test_patterns_and_folders_are_files_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    corpora.write_jsonl(tmp_path / "b.jsonl", ["b"])
    corpora.write_jsonl(tmp_path / "a.jsonl.gz", ["a1", "a2"])
    corpora.write_jsonl(tmp_path / "deep" / "c.jsonl.zst", ["c"])
    assert texts_at(f"jsonl:{tmp_path}") == ["a1", "a2", "b", "c"]
    assert corpora.texts_of(sources.open_source(f"jsonl:{tmp_path}/[a-z].jsonl")) == ["b"]
    assert texts_at(f"jsonl:{tmp_path}/**/*.zst") == ["c"]
    (tmp_path / "also").symlink_to(tmp_path / "deep")
    assert texts_at(f"jsonl:{tmp_path}/*/*.zst") == ["c"]
    with pytest.raises(FileNotFoundError, match="there is no"):
        sources.open_source(f"jsonl:{tmp_path}/*.nothing")


def test_several_fields_are_joined(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "1 + 1?", "solution": "2"}\n')
    assert sources.open_source(f"jsonl:{path}?field=problem,solution")[0].text == "1 + 1?\n\n2"
    assert sources.open_source(f"jsonl:{path}?field=solution,problem&join=%20")[0].text == (
        "2 1 + 1?"
    )


def test_a_large_file_is_scanned_once(tmp_path, monkeypatch, cache_folder):
    monkeypatch.setattr(spans, "_CACHED_FROM_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(corpora.json_lines() + b'{"text": " "}\n')
    first = sources.open_source(f"jsonl:{path}")
    assert corpora.texts_of(first) == corpora.TEXTS
    assert first.counts == {"empty": 1}
    parsed = []
    monkeypatch.setattr("data.files.lines", lambda *_: parsed.append(1) or iter(()))
    again = sources.open_source(f"jsonl:{path}")
    assert corpora.texts_of(again) == corpora.TEXTS
    assert again.counts == {"empty": 1}
    assert not parsed
    # Mapped, not read.
    base = again.source.spans_N3
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    monkeypatch.undo()
    monkeypatch.setenv("RPT_CACHE", str(cache_folder))
    monkeypatch.setattr(spans, "_CACHED_FROM_BYTES", 100)
    # Another content has another index.
    path.write_bytes(corpora.json_lines(corpora.TEXTS[:7]))
    assert texts_at(f"jsonl:{path}") == corpora.TEXTS[:7]


def test_compressed_files_are_prepared_once(tmp_path, monkeypatch, cache_folder):
    corpora.write_jsonl(tmp_path / "a.jsonl.gz")
    spec = f"jsonl:{tmp_path}/a.jsonl.gz"
    sources.open_source(spec)
    assert len(list(cache_folder.glob("prepared/*/manifest.json"))) == 1
    monkeypatch.setattr(shards, "write", None)
    assert texts_at(spec) == corpora.TEXTS


def test_remote_files_are_copied_once(cache_folder):
    remote = fsspec.filesystem("memory")
    remote.pipe("/corpus/a.jsonl", corpora.json_lines(corpora.TEXTS[:3]))
    remote.pipe("/corpus/deep/b.jsonl", corpora.json_lines(corpora.TEXTS[3:5]))
    remote.pipe("/corpus/c.txt", b"text")
    assert texts_at("jsonl:memory://corpus") == corpora.TEXTS[:5]
    assert texts_at("jsonl:memory://corpus/*.jsonl") == corpora.TEXTS[:3]
    assert texts_at("folder:memory://corpus?pattern=*.txt") == ["text"]
    copies = len(list(cache_folder.glob("remote/*/[!.]*")))
    assert copies == 3
    sources.open_source("jsonl:memory://corpus")
    assert len(list(cache_folder.glob("remote/*/[!.]*"))) == copies
    remote.pipe("/corpus/a.jsonl", corpora.json_lines(corpora.TEXTS[:1]))
    assert texts_at("jsonl:memory://corpus/a.jsonl") == corpora.TEXTS[:1]
    with pytest.raises(FileNotFoundError, match="there is no memory://corpus/absent"):
        sources.open_source("jsonl:memory://corpus/absent")
    with pytest.raises(ValueError, match="cannot open nonsense://x"):
        sources.open_source("jsonl:nonsense://x")


def test_a_remote_folder_is_copied_once_for_every_version(cache_folder):
    remote = fsspec.filesystem("memory")
    remote.pipe("/model/config.json", b"{}")
    remote.pipe("/model/deep/of_another", b"")
    found = cache.fetch("memory://model")
    assert (found.name, os.listdir(found)) == ("model", ["config.json"])
    remote.pipe("/model/weights", b"1")
    newer = cache.fetch("memory://model")
    assert sorted(os.listdir(newer)) == ["config.json", "weights"]
    assert os.listdir(found) == ["config.json"]
    assert cache.fetch("memory://model") == newer
    # A copy that was killed half way is made anew.
    newer.rename(newer.with_name(".partial"))
    (newer.with_name(".partial") / "of_before").write_text("")
    assert sorted(os.listdir(cache.fetch("memory://model"))) == ["config.json", "weights"]


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number, raw):
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def example(**features):
    """A serialised tf.train.Example, written out by hand."""
    entries = [
        field(1, field(1, name.encode()) + field(2, field(1, field(1, value))))
        for name, value in features.items()
    ]
    return field(1, b"".join(entries))


def test_array_record_of_examples(tmp_path):
    raws = [example(url=b"u", text=text.encode() * 40) for text in corpora.TEXTS]
    path = tmp_path / "a.array_record"
    corpora.write_array_record(path, raws)
    source = sources.open_source(f"array_record:{path}?form=example")
    assert corpora.texts_of(source) == [text * 40 for text in corpora.TEXTS]
    corpora.write_array_record(path, [b"\xff\xff nonsense"])
    with pytest.raises(records.Fault, match="record 0 is no tf"):
        sources.open_source(f"array_record:{path}?form=example")[0]


def test_saved_dataset_dict(tmp_path):
    corpora.write_hf(tmp_path / "train")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert texts_at(f"hf:{tmp_path}?subset=train") == corpora.TEXTS
    with pytest.raises(ValueError, match=r"set subset= to one of \['train'\]"):
        sources.open_source(f"hf:{tmp_path}")
    with pytest.raises(ValueError, match="leave out subset=x"):
        sources.open_source(f"hf:{tmp_path}/train?subset=x")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="was not written by save_to_disk"):
        sources.open_source(f"hf:{tmp_path}/other")


def test_arrow_file_format(tmp_path):
    table = pa.table({"text": corpora.TEXTS})
    path = str(tmp_path / "a.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    assert texts_at(f"hf:{tmp_path}") == corpora.TEXTS


def test_records_survive_their_encoding():
    for record in (
        records.of_text("é\0 漢"),
        records.Record("x", 2**63 - 1, markup=True),
        records.Record(" a b", 5, labels=((0, "answer/1"), (1, "é"))),
    ):
        assert shards.decode(shards.encode(record)) == record
    with pytest.raises(ValueError, match="no record"):
        shards.decode(b"{}")


def test_cache_folder_rule(monkeypatch, tmp_path):
    assert cache.root("/x").as_posix() == "/x"
    monkeypatch.setenv("RPT_CACHE", str(tmp_path))
    assert cache.root() == tmp_path
    monkeypatch.setenv("RPT_CACHE", "")
    assert cache.root() == cache.pathlib.Path(os.path.expanduser("~/.cache/rpt"))


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(ValueError, match=r"needs no_such: pip install 'rpt-jax\[tfds\]'"):
        extras.load("no_such.module", "tfds")
