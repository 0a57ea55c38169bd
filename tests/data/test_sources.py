"""Sources: what a spec opens, and what a mistake is called."""

import json

import numpy as np
import pytest

from data import documents, pipeline, records, sources, tokenizers
from tests.data import corpora


def texts_of(source):
    return [source[index].text for index in range(len(source))]


def test_text_file_whole_and_separated(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone é\ntwo\n\n \nthree\n---\nfour".encode())
    assert texts_of(sources.open_source(f"text:{path}")) == ["one é\ntwo\n\n \nthree\n---\nfour"]
    blank = sources.open_source(f"text:{path}?separator=blank")
    assert texts_of(blank) == ["one é\ntwo", "three\n---\nfour"]
    dashes = sources.open_source(f"text:{path}?separator=%5Cn---%5Cn")
    assert texts_of(dashes)[1] == "four"


def test_separated_pieces_are_checked_like_other_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one--<>--two--<>-- \n--<>--" + "x" * 50 + "--<>--last--<>--")
    # A group in the expression gives no documents.
    spec = f"text:{path}?separator=--(<>)--"
    source = sources.open_source(spec)
    assert texts_of(source) == ["one", "two", "x" * 50, "last"]
    assert source.counts == {"empty": 2}
    with pytest.raises(records.Fault, match=r"a\.txt: piece 4 is a record of 50 bytes"):
        sources.open_source(f"{spec}&max_bytes=40")
    skipping = sources.open_source(f"{spec}&max_bytes=40&on_fault=skip")
    assert texts_of(skipping) == ["one", "two", "last"]
    assert skipping.counts == {"empty": 2, "fault/too_long": 1}


def test_folder_is_sorted_recursive_and_skips_hidden_and_empty(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/y.md", ".git/x.txt", "a/.hidden"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    (tmp_path / "empty.txt").write_text(" \n")
    assert texts_of(sources.open_source(f"folder:{tmp_path}")) == ["a/y.md", "a/z.txt", "b.txt"]
    only = sources.open_source(f"folder:{tmp_path}?pattern=*.txt")
    assert texts_of(only) == ["a/z.txt", "b.txt"]


def test_jsonl_reads_any_line(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        json.dumps({"text": f"é {i}", "body": f"b{i}"}, ensure_ascii=i % 2 == 0) for i in range(5)
    ]
    path.write_text("\r\n".join([*lines[:2], "", *lines[2:]]), encoding="utf-8", newline="")
    assert texts_of(sources.open_source(f"jsonl:{path}")) == [f"é {i}" for i in range(5)]
    assert sources.open_source(f"jsonl:{path}", field="body")[3].text == "b3"


def test_document_ids_are_of_the_content_and_63_bits():
    first, second = records.from_texts(["a", "b"]), records.from_texts(["b", "a"])
    assert first[0].document_id == second[1].document_id != first[1].document_id
    # A stored number: the id must not change between versions or processes.
    assert first[0].document_id == 0xCA978112CA1BBDCA >> 1
    assert np.int64(first[0].document_id) > 0


def test_pydoc_sections():
    source = sources.open_source("pydoc")
    texts = texts_of(source)
    assert len(source) > 100
    assert len(set(texts)) == len(texts)
    assert any("yield" in text for text in texts)


def test_split_option_partitions_the_source(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"document {i} " + f"w{i} " * 20 for i in range(40)))
    spec = f"text:{path}?separator=blank&validation=0.25&test=0.25"
    parts = [texts_of(sources.open_source(spec, split=s)) for s in ("train", "validation", "test")]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == sorted(
        texts_of(sources.open_source(f"text:{path}?separator=blank"))
    )
    assert 8 <= len(parts[1]) <= 13
    assert 8 <= len(parts[2]) <= 13
    assert parts[0] != texts_of(sources.open_source(spec, split="train", split_seed="1"))


@pytest.mark.parametrize(
    ("content", "offset"), [(b"ab\0c", "NUL byte at byte 2"), (b"abc\xff", "at byte 3")]
)
def test_binary_file_is_named_with_the_byte(tmp_path, content, offset):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    for spec in (f"text:{path}", f"folder:{tmp_path}"):
        with pytest.raises(ValueError, match=offset) as caught:
            sources.open_source(spec)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"a\.jsonl:2 has no string field 'text' \(fields: body\)"),
        ('{"text": 3}', r"a\.jsonl:2 has no string field 'text'"),
        ("[1]", r"a\.jsonl:2 has no string field"),
        ("{nonsense", r"a\.jsonl:2 is not JSON"),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        sources.open_source(f"jsonl:{path}")


def test_missing_and_empty(tmp_path):
    for name in ("text", "folder", "jsonl"):
        with pytest.raises(FileNotFoundError, match="there is no"):
            sources.open_source(f"{name}:{tmp_path}/absent")
        with pytest.raises(ValueError, match="needs a path"):
            sources.open_source(name)
    with pytest.raises(ValueError, match="is empty"):
        sources.open_source(f"folder:{tmp_path}")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        sources.open_source(f"text:{tmp_path}/a.txt")
    with pytest.raises(ValueError, match="is a folder"):
        sources.open_source(f"text:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("parquett:/x", "unknown source 'parquett'"),
        ("pydoc?spilt=train", "unknown option 'spilt'"),
        ("pydoc?split=valid", "needs split=train, validation or test, not 'valid'"),
        ("pydoc?split_seed=1", "needs split="),
        ("pydoc?split=train&split_seed=x", "must be whole"),
        ("pydoc?split=train&test=0.95", "fractions must be"),
        ("pydoc?split", "must be key=value"),
        ("pydoc?split=train&split=test", "given twice"),
        ("pydoc:/x", "takes no path"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        sources.open_source(spec)


@pytest.mark.parametrize("make_stream", [pipeline.packed_batches, pipeline.trunk_batches])
@pytest.mark.parametrize("indexed_documents", [0, documents.INDEXED_DOCUMENTS])
def test_a_stream_obeys_the_policy_of_its_spec(
    tmp_path, monkeypatch, make_stream, indexed_documents
):
    """Bad records of a file that is not read through when opened, so met by the stream."""
    monkeypatch.setattr(documents, "INDEXED_DOCUMENTS", indexed_documents)
    path = tmp_path / "a.array_record"
    raws = [text.encode() for text in corpora.TEXTS]
    corpora.write_array_record(path, [b"\xff", *raws, b"\xfe"])
    trunks_only = {"header_ids": np.zeros(0, np.int32), "min_context": 1}

    def counts_after_a_pass(options):
        mixture = [sources.open_mix(f"array_record:{path}{options}", 1.0, "corpus")]
        stream = make_stream(
            mixture,
            tokenizers.load("bytes"),
            batch_size=2,
            seq_len=128,
            seed=0,
            epochs=1,
            **(trunks_only if make_stream is pipeline.trunk_batches else {}),
        )
        for _ in stream:
            pass
        return stream.counts()

    for options in ("", "?on_fault=fail"):
        with pytest.raises(records.Fault, match=r"a\.array_record: record \d+ is not UTF-8"):
            counts_after_a_pass(options)
    counts = counts_after_a_pass("?on_fault=skip&max_faults=2")
    assert (counts["windows"], counts["skipped_faults"]) == (60, 2)
    with pytest.raises(ValueError, match="'corpus' has more than max_faults=1 records"):
        counts_after_a_pass("?on_fault=skip&max_faults=1")
