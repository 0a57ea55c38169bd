"""One batch of several shards: its order is that of the shards, whoever reads them."""

import dataclasses
import json

import numpy as np
import pytest

from data import documents, joined, pipeline, records, tokenizers

BYTES = tokenizers.ByteTokenizer()
SHARDS = 4


class Numbered:
    """Documents of several windows each."""

    def __init__(self, size):
        self.size, self.counts = size, {}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return records.Record(f"{index:03d}. " * (1 + index % 7), index)

    def digest(self):
        return self.size


@pytest.fixture(autouse=True)
def indexed(monkeypatch):
    monkeypatch.setattr(documents, "INDEXED_DOCUMENTS", 50)


# A small source, tokenised at the start, and a large one.
MIXTURE = [
    pipeline.Mix(Numbered(23), 1.0, "small"),
    pipeline.Mix(Numbered(90), 3.0, "large"),
]


def stream(kind, indices, count=SHARDS):
    options = {"batch_size": 2, "seq_len": 16, "seed": 3}
    options |= {"shard_index": indices[0], "shard_count": count}
    if kind == "packed":
        first = pipeline.packed_batches(MIXTURE, BYTES, **options)
    else:
        options |= {"header_ids": np.array([256]), "min_context": 4}
        first = pipeline.trunk_batches(MIXTURE, BYTES, **options)
    return joined.Joined(first, indices, count)


def fields(batch):
    return [getattr(batch, field.name) for field in dataclasses.fields(batch)]


def assert_equal(one, other):
    assert type(one) is type(other)
    for x, y in zip(fields(one), fields(other), strict=True):
        if isinstance(x, tuple):
            assert [np.asarray(a).tolist() for a in x] == [np.asarray(b).tolist() for b in y]
        else:
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", ["packed", "trunk"])
def test_the_order_does_not_depend_on_who_reads(kind):
    whole = stream(kind, range(SHARDS))
    halves = [stream(kind, range(2)), stream(kind, range(2, 4))]
    for _ in range(30):
        assert_equal(next(whole), joined._stacked([next(half) for half in halves]))
    counts = [each for half in halves for each in half.counts()]
    assert whole.merged(counts) == whole.merged(whole.counts())


@pytest.mark.parametrize("kind", ["packed", "trunk"])
def test_states_go_on_with_other_readers(kind):
    whole = stream(kind, range(SHARDS))
    for _ in range(7):
        next(whole)
    states = json.loads(json.dumps(whole.get_states()))
    halves = [stream(kind, range(2)), stream(kind, range(2, 4))]
    for half in halves:
        half.set_states(states)
    for _ in range(10):
        assert_equal(next(whole), joined._stacked([next(half) for half in halves]))


def test_another_number_of_shards_reads_what_is_left_once():
    whole = stream("trunk", range(SHARDS))
    batches = [next(whole) for _ in range(3)]
    fewer = stream("trunk", range(2), count=2)
    fewer.set_states(whole.get_states())
    batches += [next(fewer) for _ in range(4)]
    read = [
        (int(id), int(start))
        for batch in batches
        for id, start in zip(batch.document_ids_B, batch.starts_B, strict=True)
    ]
    # Both sources number their documents from 0, so that a pair may stand for one of each.
    assert max(read.count(pair) for pair in set(read)) <= 2
    counts = fewer.merged(fewer.counts())
    assert counts["windows"] == len(read) == 40


def test_a_batch_has_the_mixtures_proportions():
    """Shards are at different points of one sequence; each keeps to the weights by itself."""
    whole = stream("trunk", range(SHARDS))
    before = whole.counts()
    for _ in range(8):
        next(whole)
        now = whole.counts()
        drawn = [a["windows/small"] - b["windows/small"] for a, b in zip(now, before)]
        assert sum(drawn) == 2  # of 8 rows
        before = now
    assert [each["windows/small"] for each in before] == [4] * SHARDS


def test_documents_of_a_small_source_are_tokenised_once(monkeypatch):
    calls = []
    encode = tokenizers.ByteTokenizer.encode

    def counted(self, text):
        calls.append(text)
        return encode(self, text)

    monkeypatch.setattr(tokenizers.ByteTokenizer, "encode", counted)
    mixture = MIXTURE[:1]
    first = pipeline.packed_batches(mixture, BYTES, batch_size=2, seq_len=16, seed=3, shard_count=4)
    whole = joined.Joined(first, range(SHARDS), SHARDS)
    for _ in range(5):
        next(whole)
    assert len(calls) == 23
