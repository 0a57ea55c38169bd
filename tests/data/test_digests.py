"""An edited corpus is told from the same one; a copied, moved or repacked one goes on."""

import itertools
import json
import os
import shutil

import pytest

from data import digests, pipeline, prepare, records, sources, spans, tokenizers
from tests.data import corpora

IDS = digests.of_ids(map(records.document_id, corpora.TEXTS))
EDITED = [text.replace("document 41", "document 99") for text in corpora.TEXTS]
BY_ID = ("jsonl", "jsonl_gz", "jsonl_zst", "parquet", "folder", "text", "text_blank")
BY_BYTES = ("hf", "array_record", "array_record_json")


def digests_at(folder, texts=corpora.TEXTS):
    folder.mkdir()
    specs = corpora.write_all(folder, texts)
    return {name: sources.open_source(spec).digest() for name, spec in specs.items()}


def test_an_edit_of_any_format_is_seen_and_a_copy_is_the_same(tmp_path):
    found = digests_at(tmp_path / "a")
    edited = digests_at(tmp_path / "b", EDITED)
    assert {*found} == {*BY_ID, *BY_BYTES, "text_separated"}
    assert not any(found[name] == edited[name] for name in found)
    assert {found[name] for name in (*BY_ID, "text_separated")} == {IDS}
    # Elsewhere, and written at another time.
    shutil.copytree(tmp_path / "a", tmp_path / "c", copy_function=shutil.copyfile)
    for path in (tmp_path / "c").rglob("*"):
        os.utime(path, (1, 1))
    specs = corpora.specs_of(tmp_path / "c")
    assert {name: sources.open_source(spec).digest() for name, spec in specs.items()} == found


def test_how_documents_are_dealt_to_files_is_no_matter(tmp_path):
    for number, start in enumerate(range(0, 60, 25)):
        corpora.write_jsonl(tmp_path / f"{number}.jsonl", corpora.TEXTS[start : start + 25])
    spec = f"jsonl:{tmp_path}/*.jsonl"
    assert sources.open_source(spec).digest() == IDS
    for shards in (1, 7):
        out = tmp_path / f"out{shards}"
        prepare.prepare(spec, out, shard_count=shards)
        assert sources.open_source(f"prepared:{out}").digest() == IDS
    swapped = [1, 0, *range(2, 60)]
    assert digests.of_ids(records.document_id(corpora.TEXTS[i]) for i in swapped) != IDS


def test_digests_of_parts_join_to_that_of_the_whole():
    ids = [0, 0, 5, 2**63 - 1, 0]
    whole = digests.of_ids(ids)
    for first, second in itertools.combinations(range(6), 2):
        parts = ids[:first], ids[first:second], ids[second:]
        assert digests.joined((digests.of_ids(part), len(part)) for part in parts) == whole
    assert len({digests.of_ids([0] * n) for n in range(9)}) == 9


def test_the_digest_of_a_large_file_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "_CACHED_FROM_BYTES", 100)
    corpora.write_jsonl(tmp_path / "a.jsonl")
    spec = f"jsonl:{tmp_path}/a.jsonl"
    assert sources.open_source(spec).digest() == IDS
    monkeypatch.setattr("data.files.lines", lambda *_: iter(()))
    assert sources.open_source(spec).digest() == IDS


@pytest.mark.parametrize("size", [0, 1, 2**18, 2**18 + 1, 2**22])
def test_a_sample_is_of_the_size_and_of_blocks_from_first_to_last(tmp_path, size):
    path = tmp_path / "file"

    def sample(changes=(), more=b""):
        raw = bytearray(size)
        for place in changes:
            raw[place] = 1
        path.write_bytes(bytes(raw) + more)
        return digests.sampled(path)

    found = sample()
    assert found == sample()
    assert sample(more=b"\0") != found
    if size:
        assert sample([0]) != found
        assert sample([size - 1]) != found
        assert sample([size // 2]) != found or size > 2**18
    # A run of 64 KiB (of 4 MiB) cannot hide between the blocks.
    if size == 2**22:
        assert all(sample(range(at, at + 2**16 + 4096)) != found for at in range(0, 2**21, 99_991))


def test_a_view_has_the_digest_of_what_it_shows(tmp_path):
    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.TEXTS)
    corpora.write_jsonl(tmp_path / "b.jsonl", EDITED)

    def digest(options, name="a"):
        return sources.open_source(f"jsonl:{tmp_path}/{name}.jsonl?{options}").digest()

    chains = ("min_chars=34", "min_chars=40", "unicode=NFC", "unicode=NFC&control=strip")
    splits = [f"split={name}&test=0.2" for name in ("train", "test")]
    found = [digest(options) for options in (*chains, *splits, "split=train&split_seed=1")]
    assert len({*found, IDS}) == 8
    assert digest(chains[0]) == found[0] != digest(chains[0], "b")
    # What is done about faults is no part of it.
    assert digest(splits[0] + "&on_fault=skip") == found[4]


def stream(spec):
    mixture = [pipeline.Mix(sources.open_source(spec), 1.0, "corpus")]
    tokenizer = tokenizers.ByteTokenizer()
    return pipeline.packed_batches(mixture, tokenizer, batch_size=2, seq_len=64, seed=0)


@pytest.mark.parametrize("name", ["jsonl", "hf", "array_record"])
def test_a_stream_goes_on_with_the_same_documents_only(tmp_path, name):
    for folder, texts in (("a", corpora.TEXTS), ("b", EDITED)):
        (tmp_path / folder).mkdir()
        corpora.write_all(tmp_path / folder, texts)
    own = stream(corpora.specs_of(tmp_path / "a")[name])
    next(own)
    state = json.loads(json.dumps(own.get_state()))
    with pytest.raises(ValueError, match=r"of another run: documents was .* was edited since"):
        stream(corpora.specs_of(tmp_path / "b")[name]).set_state(state)
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = stream(corpora.specs_of(tmp_path / "moved")[name])
    moved.set_state(state)
    assert (next(moved).tokens_BS == next(own).tokens_BS).all()


def test_a_preparation_goes_on_with_the_same_documents_only(tmp_path):
    """An edit of any of many documents, not only of some that are looked at."""
    texts = [f"document number {i} of many" for i in range(300)]
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    corpora.write_jsonl(path, texts)
    prepare.prepare(f"jsonl:{path}", out)
    for edited in (1, 2, 149, 298):
        corpora.write_jsonl(path, [*texts[:edited], "something else", *texts[edited + 1 :]])
        with pytest.raises(ValueError, match="was prepared with digest"):
            prepare.prepare(f"jsonl:{path}", out)
    corpora.write_jsonl(path, texts)
    assert prepare.prepare(f"jsonl:{path}", out)[1] is False
