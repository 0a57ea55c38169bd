"""Shards: together the corpus, each document once an epoch, through any change of their number."""

import collections
import functools
import itertools
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import documents, pipeline, records, resharding, tokenizers

BYTES = tokenizers.ByteTokenizer()
SHARD_COUNTS = [1, 2, 4, 8]


class Generated:
    """Documents made from their index, with few windows or many; the shortest are dropped."""

    def __init__(self, size):
        self.size, self.counts = size, {}

    def __len__(self):
        return self.size

    def digest(self):
        return self.size

    def __getitem__(self, index):
        return records.Record("".join(f"{index:03d}.{part} " for part in range(index % 9)), index)


# Small sources are indexed by window, large ones are not.
SMALL, LARGE = Generated(23), Generated(300)


@pytest.fixture(autouse=True, scope="module")
def indexed():
    """Sets how many documents a small source has; 100 in between."""
    with pytest.MonkeyPatch.context() as patch:

        def choose(most=100):
            patch.setattr(documents, "INDEXED_DOCUMENTS", most)

        choose()
        yield choose


def mixes(*named):
    return [pipeline.Mix(source, weight, name) for name, source, weight in named]


def trunks(mixture, count, **changes):
    options = {"batch_size": 2, "seq_len": 16, "header_ids": [256], "min_context": 5, "seed": 3}
    options |= changes
    return [
        pipeline.trunk_batches(mixture, BYTES, shard_index=i, shard_count=count, **options)
        for i in range(count)
    ]


def packs(mixture, count, **changes):
    options = {"batch_size": 2, "seq_len": 24, "seed": 3} | changes
    return [
        pipeline.packed_batches(mixture, BYTES, shard_index=i, shard_count=count, **options)
        for i in range(count)
    ]


def trunk_windows(batch):
    """(document, start) of every row with one."""
    pairs = zip(batch.document_ids_B.tolist(), batch.starts_B.tolist())
    return [pair for pair in pairs if pair[0] != pipeline.NO_DOCUMENT]


def packed_windows(batch):
    """The tokens of every piece."""
    return [
        tuple(tokens_S[segments_S == number].tolist())
        for tokens_S, segments_S in zip(batch.tokens_BS, batch.segments_BS)
        for number in range(1, segments_S.max() + 1)
    ]


KINDS = {"trunk": (trunks, trunk_windows), "packed": (packs, packed_windows)}


def take(stream, windows, batches):
    """The windows of some batches, or of all that are left."""
    return [w for batch in itertools.islice(stream, batches) for w in windows(batch)]


@functools.cache
def corpus(kind):
    """Every window of an epoch of SMALL, by one shard."""
    make, windows = KINDS[kind]
    (stream,) = make(mixes(("one", SMALL, 1)), 1, epochs=1)
    return collections.Counter(take(stream, windows, None))


def restored(make, mixture, states, **changes):
    streams = make(mixture, len(states), **changes)
    for stream, state in zip(streams, states):
        stream.set_state(json.loads(json.dumps(state)))
    return streams


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", SHARD_COUNTS)
def test_shards_are_the_corpus_once_an_epoch(kind, count):
    make, windows = KINDS[kind]
    found = [take(s, windows, None) for s in make(mixes(("one", SMALL, 1)), count, epochs=2)]
    wanted = corpus(kind)
    assert collections.Counter(itertools.chain(*found)) == wanted + wanted
    assert sum(wanted.values()) > 30


@pytest.mark.parametrize("count", SHARD_COUNTS)
def test_shards_of_a_large_source_are_the_corpus(count):
    found = [
        take(stream, packed_windows, None)
        for stream in packs(mixes(("one", LARGE, 1)), count, epochs=1, seq_len=96)
    ]
    seen = sorted(int(bytes(w[1:4])) for w in itertools.chain(*found) if len(w) > 2)
    assert seen == [index for index in range(len(LARGE)) if index % 9]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(KINDS)), small=st.booleans())
def test_resharded_shards_finish_the_epoch(indexed, data, kind, small):
    """Stopped, each at its own moment, and dealt anew, twice, also within documents."""
    make, windows = KINDS[kind]
    assume(small or kind == "packed")  # trunks of a large source pass by themselves alone
    indexed(100 if small else 0)
    mixture = mixes(("one", SMALL, 1))
    counts = [4, data.draw(st.sampled_from(SHARD_COUNTS)), data.draw(st.sampled_from([2, 8, 3]))]
    streams, found = make(mixture, counts[0], epochs=2), []
    for count in counts[1:]:
        for stream in streams:
            found += take(stream, windows, data.draw(st.integers(0, 5)))
        states = resharding.reshard([stream.get_state() for stream in streams], count)
        streams = restored(make, mixture, states, epochs=2)
    ends = [list(stream) for stream in streams]
    found += [w for batches in ends for batch in batches for w in windows(batch)]
    indexed()
    wanted = corpus(kind)
    assert collections.Counter(found) == wanted + wanted
    if kind == "trunk":
        assert len({len(batches) for batches in ends}) == 1


@settings(max_examples=25, deadline=None)
@given(
    stops=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    count=st.sampled_from([1, 2, 8]),
    kind=st.sampled_from(list(KINDS)),
)
def test_an_endless_mixture_loses_and_repeats_nothing(stops, count, kind):
    """Of a small and a large source: windows come as often as epochs of it were begun."""
    make, windows = KINDS[kind]
    mixture = mixes(("small", SMALL, 1), ("large", LARGE, 2))
    old = make(mixture, 4)
    found = [w for stream, stop in zip(old, stops) for w in take(stream, windows, stop)]
    states = resharding.reshard([stream.get_state() for stream in old], count)
    before = [stream.counts() for stream in old]
    new = restored(make, mixture, states)
    after = [stream.counts() for stream in new]
    for name in ("windows", "windows/small", "windows/large"):
        assert sum(c[name] for c in before) == sum(c[name] for c in after)
    found += [w for stream in new for w in take(stream, windows, 96 // count)]
    seen = collections.Counter(window for window in found if is_unique(kind, window))
    for number, source in enumerate((SMALL, LARGE)):
        ends = [stream.get_state()["shares"][number]["next"] for stream in new]
        epochs = -(-max(ends) // new[0].get_state()["identity"]["elements"][number])
        times = [n for w, n in seen.items() if (index_of(kind, w) < 23) == (source is SMALL)]
        assert len(times) > 20
        assert max(times) <= epochs + (source is SMALL)  # SMALL's documents are in LARGE, too
    if kind == "trunk":
        # What comes first in the order comes first in any number of shards.
        (whole,) = make(mixture, 1)
        assert not collections.Counter(take(whole, windows, 10)) - collections.Counter(found)


def is_unique(kind, window):
    """A piece of a packed row shows its document and place if it is long enough."""
    return kind == "trunk" or len(window) >= 14


def index_of(kind, window):
    text = window if kind == "trunk" else bytes(token for token in window if token < 256).decode()
    return text[0] if kind == "trunk" else int(text[text.index(".") - 3 : text.index(".")])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_ordinal_is_dealt_once_and_evenly(data):
    """The deal alone: any numbers of shards, any progress, any number of times, read in part."""
    total = data.draw(st.one_of(st.none(), st.integers(1, 60)))
    count = data.draw(st.integers(1, 5))
    shares = [resharding.Share(index, count) for index in range(count)]
    done, windows = [], {}
    for _ in range(data.draw(st.integers(1, 4))):
        for share in shares:
            for _ in range(data.draw(st.integers(0, 12))):
                if (place := share.peek(total)) is None:
                    break
                ordinal, window = place
                assert window == windows.get(ordinal, 0)
                if data.draw(st.booleans()):
                    windows[ordinal] = window + 1
                    share.advance(window + 1)
                else:
                    done.append(ordinal)
                    share.advance(None)
        shares = resharding.deal(shares, total, data.draw(st.integers(1, 5)))
        shares = [resharding.Share.from_state(json_trip(share.get_state())) for share in shares]
        horizon = 400 if total is None else total
        left = [share.remaining(horizon) for share in shares]
        assert max(left) - min(left) <= 1
    for share in shares:
        while (place := share.peek(horizon)) is not None:
            assert place[1] == windows.get(place[0], 0)
            done.append(place[0])
            share.advance(None)
    assert sorted(done) == list(range(horizon))


def json_trip(value):
    return json.loads(json.dumps(value))


def test_shards_that_stopped_far_apart_keep_small_states():
    shares = [resharding.Share(index, 4) for index in range(4)]
    shares[2].next += 4 * 10**9
    dealt = resharding.deal(shares, None, 8)
    assert len(json.dumps([share.get_state() for share in dealt])) < 2000
    assert sum(share.remaining(shares[2].next) for share in dealt) == 3 * 10**9 + 2


def states_of(count, batches=2, **changes):
    streams = trunks(mixes(("one", SMALL, 1)), count, **changes)
    for stream in streams:
        take(stream, trunk_windows, batches)
    return [stream.get_state() for stream in streams]


def test_states_that_do_not_belong_together_are_refused():
    four = states_of(4)
    again = resharding.reshard(four, 2)
    other_past = resharding.reshard(states_of(4, batches=3), 2)
    for states, message in (
        ([], "states of all shards"),
        (four[:3], r"not of 0 of 4, 1 of 4, 2 of 4"),
        (four[::-1], "in their order"),
        ([four[0]] * 4, "in their order"),
        ([{}], "states of all shards"),
        ([*four[:3], states_of(4, seed=4)[3]], "seed is 3 in shard 0 and 4 in shard 3"),
        ([again[0], states_of(2)[1]], "another resharding"),
        ([again[0], other_past[1]], "another resharding"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            resharding.reshard(states, 2)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least 1"):
        resharding.reshard(four, 0)


def test_weights_go_with_the_states():
    mixture = mixes(("a", SMALL, 1), ("b", LARGE, 1))
    streams = trunks(mixture, 4)
    for stream in streams:
        take(stream, trunk_windows, 3)
        stream.set_weights({"a": 3})
        take(stream, trunk_windows, 3)
    states = resharding.reshard([stream.get_state() for stream in streams], 2)
    for stream in restored(trunks, mixture, states):
        assert list(stream.events) == [(0, {"a": 1, "b": 1}), (12, {"a": 3, "b": 1})]
        before = stream.counts()["windows/a"]
        take(stream, trunk_windows, 40)
        assert stream.counts()["windows/a"] - before == 60
    streams[0].set_weights({"a": 4})
    with pytest.raises(ValueError, match="different histories of mixture weights"):
        resharding.reshard([stream.get_state() for stream in streams], 2)
