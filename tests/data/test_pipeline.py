"""Batches: what a row holds, the order of reading, and exact resumption."""

import json
from typing import ClassVar

import numpy as np
import pytest

from data import documents, pipeline, tokenizers
from data import records as records_lib

BYTES = tokenizers.ByteTokenizer()
BOS, EOS = 256, 257


def texts(count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    letters = list("abcdefgh ")
    return [f"{i}:" + "".join(rng.choice(letters, rng.integers(1, longest))) for i in range(count)]


def one(records, name="one"):
    source = records_lib.from_texts(records) if isinstance(records, list) else records
    return [pipeline.Mix(source, 1.0, name)]


def packed(mixture, **changes):
    settings = {"batch_size": 4, "seq_len": 32, "seed": 0} | changes
    return pipeline.packed_batches(mixture, BYTES, **settings)


HEADER = np.array([BOS, 63], np.int32)


def trunk(mixture, **changes):
    settings = {"batch_size": 4, "seq_len": 32, "seed": 0, "header_ids": HEADER, "min_context": 3}
    return pipeline.trunk_batches(mixture, BYTES, **(settings | changes))


STREAMS = {"packed": packed, "trunk": trunk}


class Generated:
    """A source too large to list: every document is made from its index."""

    counts: ClassVar = {}

    def __init__(self, size=10**7, length=20):
        self.size, self.length, self.read = size, length, 0

    def __len__(self):
        return self.size

    def digest(self):
        return self.size

    def __getitem__(self, index):
        self.read += 1
        return records_lib.Record(f"{index} " + "x" * (index % self.length), index)


def same(left, right):
    for name in vars(left):
        a, b = getattr(left, name), getattr(right, name)
        if name == "documents":
            assert len(a) == len(b)
            assert all(np.array_equal(x, y) for x, y in zip(a, b))
        else:
            assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def segments(batch):
    """Every segment of a packed batch: its tokens."""
    for tokens_S, segments_S in zip(batch.tokens_BS, batch.segments_BS):
        for number in range(1, segments_S.max() + 1):
            yield tokens_S[segments_S == number]


def test_packed_rows_hold_whole_documents():
    records = texts(50, longest=20)
    wanted = sorted([BOS, *record.encode(), EOS] for record in records)
    stream = packed(one(records), epochs=1)
    batches = list(stream)
    assert sorted(s.tolist() for batch in batches for s in segments(batch)) == wanted
    assert stream.counts()["epochs/one"] == 1.0


def test_packed_positions_segments_and_mask():
    for batch in packed(one(texts(30)), epochs=2):
        for row in range(4):
            segments_S, positions_S = batch.segments_BS[row], batch.positions_BS[row]
            used = int((segments_S > 0).sum())
            assert (segments_S[used:] == 0).all()
            assert (batch.tokens_BS[row, used:] == 0).all()
            for s in range(31):
                continues = segments_S[s + 1] == segments_S[s] > 0
                assert batch.loss_mask_BS[row, s] == continues
                assert positions_S[s + 1] == (positions_S[s] + 1 if continues else 0)
        assert not batch.loss_mask_BS[:, -1].any()
        assert batch.tokens_BS.dtype == batch.positions_BS.dtype == np.int32


def test_every_token_but_the_first_is_predicted_once():
    record = "".join(map(chr, range(32, 127)))
    targets = []
    for batch in packed(one([record]), epochs=1):
        rows, places = np.nonzero(batch.loss_mask_BS)
        targets += batch.tokens_BS[rows, places + 1].tolist()
    assert sorted(targets) == [*range(32, 127), EOS]


def test_packing_is_tight():
    stream = packed(one(texts(300)), batch_size=8, seq_len=128)
    used = np.mean([(next(stream).segments_BS > 0).mean() for _ in range(20)])
    assert used > 0.95


def test_packed_without_ends():
    stream = packed(one(["abc"]), add_bos=False, add_eos=False, epochs=1, batch_size=1)
    assert next(stream).tokens_BS[0, :4].tolist() == [97, 98, 99, 0]
    bare = tokenizers.ByteTokenizer((), None, None)
    with pytest.raises(ValueError, match="no bos token: set add_bos = False"):
        pipeline.packed_batches(one(["abc"]), bare, batch_size=1, seq_len=8, seed=0)


def test_trunk_rows():
    records = {records_lib.document_id(text): text.encode() for text in texts(40)}
    stream = trunk(one([raw.decode() for raw in records.values()]), epochs=1)
    for batch in stream:
        assert batch.header_length == 2
        for row in range(4):
            length, id = batch.lengths_B[row], batch.document_ids_B[row]
            if length == 0:
                assert id == pipeline.NO_DOCUMENT
                assert not batch.segments_BS[row].any()
                continue
            rest = batch.documents[row]
            assert bytes(rest.tolist()) == records[id][batch.starts_B[row] :]
            assert length == min(32, 2 + len(rest))
            np.testing.assert_array_equal(batch.tokens_BS[row, :2], HEADER)
            np.testing.assert_array_equal(batch.tokens_BS[row, 2:length], rest[: length - 2])
            assert (batch.tokens_BS[row, length:] == 0).all()
            np.testing.assert_array_equal(batch.segments_BS[row], np.arange(32) < length)
            np.testing.assert_array_equal(batch.positions_BS[row, :length], np.arange(length))


@pytest.mark.parametrize("indexed_documents", [0, 100])
@pytest.mark.parametrize("min_context", [0, 1, 7, 29])
def test_every_token_with_context_is_in_one_window_with_context(
    min_context, indexed_documents, monkeypatch
):
    monkeypatch.setattr(documents, "INDEXED_DOCUMENTS", indexed_documents)
    records = texts(20, longest=200)
    seen = {records_lib.document_id(text): [] for text in records}
    for batch in trunk(one(records), epochs=1, min_context=min_context):
        for row in np.flatnonzero(batch.lengths_B):
            window = np.arange(batch.lengths_B[row] - 2) + batch.starts_B[row]
            seen[batch.document_ids_B[row]] += window[min_context:].tolist()
    for text in records:
        places = sorted(seen[records_lib.document_id(text)])
        assert places == list(range(min_context, len(text.encode())))


def test_short_documents_are_dropped_and_counted():
    stream = trunk(one(["ab", "abc", "abcd", "abcde"]), epochs=1)
    ids = [id for batch in stream for id in batch.document_ids_B if id >= 0]
    assert sorted(ids) == sorted(map(records_lib.document_id, ["abcd", "abcde"]))
    assert stream.counts()["dropped_documents"] == 2


def test_source_without_a_usable_document_is_an_error_not_a_loop():
    with pytest.raises(ValueError, match=r"'tiny' is long enough .*the longest has 3 tokens"):
        trunk(one(["a", "abc"], "tiny"))
    stream = trunk(one(Generated(length=1), "huge"), seq_len=64, min_context=30)
    with pytest.raises(ValueError, match=r"'huge' is long enough .*first 10000 read"):
        next(stream)


def test_generated_source_is_never_listed():
    source = Generated()
    for make in STREAMS.values():
        source.read = 0
        stream = make(one(source), seq_len=64, batch_size=8)
        next(stream), next(stream)
        assert source.read < 150
    indices = {id for _ in range(20) for id in next(stream).document_ids_B.tolist()}
    assert len(indices) == 160
    assert max(indices) - min(indices) > 10**6


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("kind", ["indexed", "generated", "mixture"])
def test_resumed_equals_uninterrupted(make, kind):
    mixture = {
        "indexed": one(texts(25, longest=90)),
        "generated": one(Generated(length=90)),
        "mixture": [*one(texts(25), "a"), *one(Generated(length=90), "b")],
    }[kind]
    whole, cut = make(mixture), make(mixture)
    for _ in range(3):
        next(whole), next(cut)
    for _ in range(6):
        state = json.loads(json.dumps(cut.get_state()))
        assert len(json.dumps(state)) < 2000
        cut = make(mixture)
        cut.set_state(state)
        same(next(whole), next(cut))
        assert whole.counts() == cut.counts()


def test_state_of_other_data_is_refused():
    state = trunk(one(texts(25))).get_state()
    for other in (
        trunk(one(texts(26))),
        trunk(one(texts(25)), seed=1),
        trunk(one(texts(25)), seq_len=16),
        trunk(one(texts(25), "two")),
        trunk(one(texts(25)), epochs=1),
        packed(one(texts(25))),
    ):
        with pytest.raises(ValueError, match="saved data state is of another run"):
            other.set_state(state)
    with pytest.raises(ValueError, match=r"shard 0 of 1, this is 0 of 2: deal .*reshard"):
        trunk(one(texts(25)), shard_count=2).set_state(state)
    # What was saved before states had versions.
    with pytest.raises(ValueError, match="another run: version was None, is 3"):
        trunk(one(texts(25))).set_state({"position": 3})


def test_batch_size_may_change_on_resume():
    whole, cut = trunk(one(texts(25))), trunk(one(texts(25)))
    first = next(whole), next(whole), next(whole)
    next(cut)
    wide = trunk(one(texts(25)), batch_size=8)
    wide.set_state(cut.get_state())
    both = np.concatenate([first[1].document_ids_B, first[2].document_ids_B])
    np.testing.assert_array_equal(next(wide).document_ids_B, both)


def ids_of(stream, batches):
    return [id for _ in range(batches) for id in next(stream).document_ids_B.tolist()]


def test_order_depends_on_the_seed_and_the_epoch():
    records = texts(24, longest=20)
    first, again, other = (ids_of(trunk(one(records), seed=s), 12) for s in (0, 0, 1))
    assert first == again != other
    assert sorted(first[:24]) == sorted(first[24:]) == sorted(other[:24])
    assert first[:24] != first[24:]


@pytest.mark.parametrize("source", [records_lib.from_texts(texts(24, longest=20)), Generated(24)])
def test_shards_part_an_epoch_among_them(source):
    read = []
    for index in range(3):
        read += ids_of(trunk(one(source), shard_index=index, shard_count=3, min_context=0), 2)
    assert sorted(read) == sorted(source[index].document_id for index in range(24))


def test_finite_shards_yield_equally_many_batches():
    records = texts(9, longest=20)
    shards = [list(trunk(one(records), epochs=1, shard_index=i, shard_count=2)) for i in range(2)]
    assert [len(shard) for shard in shards] == [2, 2]
    ids = [id for shard in shards for batch in shard for id in batch.document_ids_B if id >= 0]
    assert sorted(ids) == sorted(map(records_lib.document_id, records))
    resumed = trunk(one(records), epochs=1, shard_index=1, shard_count=2)
    next(resumed)
    state = resumed.get_state()
    resumed = trunk(one(records), epochs=1, shard_index=1, shard_count=2)
    resumed.set_state(state)
    assert len(list(resumed)) == 1
    with pytest.raises(ValueError, match="all shards end together"):
        trunk(one(Generated()), epochs=1, shard_count=2)


@pytest.mark.parametrize("shard_count", [1, 2])
def test_mixture_keeps_its_weights_in_every_shard(shard_count):
    few, many = texts(10, longest=20), texts(500, seed=1, longest=20)
    mixture = [
        pipeline.Mix(records_lib.from_texts(few), 1.0, "few"),
        pipeline.Mix(records_lib.from_texts(many), 1.0, "many"),
    ]
    own = set(map(records_lib.document_id, few))
    shards = [
        ids_of(trunk(mixture, shard_index=index, shard_count=shard_count), 25)
        for index in range(shard_count)
    ]
    for read in shards:
        assert sum(id in own for id in read) == 50
    of_many = [id for read in shards for id in read if id not in own]
    assert len(set(of_many)) == len(of_many)


def test_labels_point_at_the_token_of_the_word():
    text = " so eve is 4 , fay  is é 12 ."
    words = text.split()
    record = records_lib.Record(text, 1, labels=tuple((i, word) for i, word in enumerate(words)))
    for tokenizer in (BYTES, tokenizers.train_bpe([text], 300)):
        document = documents.Reader(tokenizer).read(record)
        assert document.is_exact
        for index, word in document.labels:
            rest = tokenizers.joined_bytes(tokenizer, document.tokens[index:]).lstrip()
            assert rest.startswith(word.encode())
    with pytest.raises(IndexError):
        documents.Reader(BYTES).read(records_lib.Record("a b", 1, labels=((2, "x"),)))


def test_labels_of_a_window_are_relative_to_it():
    record = records_lib.Record(" a" * 60, 1, labels=tuple((i, f"w{i}") for i in range(60)))
    starts = []
    for batch in trunk(one(records_lib.ListSource([record])), epochs=1):
        for row in np.flatnonzero(batch.lengths_B):
            start = batch.starts_B[row]
            starts.append(start)
            # Word i is at byte 2 i + 1; all words from the window's start to the document's end.
            expected = [(2 * i + 1 - start, f"w{i}") for i in range(60) if 2 * i + 1 >= start]
            assert list(batch.labels[row]) == expected
    assert sorted(starts) == [0, 27, 54, 81, 108]


def test_word_starts_agree_on_ascii_and_unicode():
    text = " a bc\td\n\n ef\x1cg\x0bh "
    starts = documents.word_starts(text)
    np.testing.assert_array_equal(documents.word_starts(text + "é")[:-1], starts)
    assert [text[start:].split()[0] for start in starts] == text.split()
    assert documents.word_starts("").size == 0


def test_markup_records_use_special_tokens():
    record = records_lib.Record("a<think>", 1, markup=True)
    assert documents.Reader(BYTES).read(record).tokens.tolist() == [97, 258]
    plain = records_lib.Record("a<think>", 1)
    assert len(documents.Reader(BYTES).read(plain).tokens) == 8


def test_documents_that_the_tokenizer_changes_are_counted():
    library = json.loads(tokenizers.train_bpe(["a"], 300).json_text)
    library["normalizer"] = {"type": "NFC"}
    tokenizer = tokenizers.HuggingFaceTokenizer(json.dumps(library), {})
    stream = pipeline.trunk_batches(
        one(["abcde", "e\u0301abcd"]),
        tokenizer,
        batch_size=1,
        seq_len=16,
        header_ids=HEADER,
        min_context=1,
        seed=0,
        epochs=1,
    )
    list(stream)
    assert stream.counts()["inexact_documents"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 5}, "leaves 3 document tokens"),
        ({"batch_size": 0}, "batch_size 0 must be"),
        ({"shard_index": 2, "shard_count": 2}, r"shard_index 2 is not in 0\.\.1"),
        ({"epochs": 0}, "finite number of epochs"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        trunk(one(texts(5)), **changes)


def test_impossible_mixtures():
    source = records_lib.from_texts(texts(5))
    with pytest.raises(ValueError, match="distinct names"):
        trunk([])
    with pytest.raises(ValueError, match="distinct names"):
        trunk(one(source) * 2)
    with pytest.raises(ValueError, match="weight of 'x' must be 0 or more, not -1"):
        trunk([pipeline.Mix(source, -1.0, "x")])
    with pytest.raises(ValueError, match="weights of 'x' are all 0"):
        trunk([pipeline.Mix(source, 0.0, "x")])
    with pytest.raises(ValueError, match="'x' needs on_fault=fail or skip"):
        pipeline.Mix(source, 1.0, "x", max_faults=-1)
    with pytest.raises(ValueError, match="mixture of one source"):
        trunk([*one(source, "a"), *one(source, "b")], epochs=1)
    with pytest.raises(ValueError, match="'x' is empty"):
        trunk([pipeline.Mix(records_lib.from_texts([]), 1.0, "x")])
