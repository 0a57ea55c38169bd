"""Streams: stopped anywhere and restored, they go on; faults are obeyed; memory stays flat."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import documents, pipeline, records, resharding, tokenizers
from tests.data import restoring

BYTES = tokenizers.ByteTokenizer()
flat = restoring.flat
LARGE = 10**6


class Generated:
    """Documents made from their index, with 0 to 9 windows; some indices can be faulty."""

    def __init__(self, size, faulty=lambda index: False, counts=None):
        self.size, self.faulty, self.counts = size, faulty, counts or {}

    def __len__(self):
        return self.size

    def digest(self):
        return self.size

    def __getitem__(self, index):
        if self.faulty(index):
            raise records.Fault("vanished", f"/corpus/{index}.txt", "is gone")
        return records.Record(f"{index} " + "abcdefg" * (index * 7 % 23), index)


def packed(mixture, **changes):
    options = {"batch_size": 2, "seq_len": 32, "seed": 1} | changes
    return pipeline.packed_batches(mixture, BYTES, **options)


def trunk(mixture, **changes):
    options = {"batch_size": 2, "seq_len": 32, "seed": 1, "header_ids": [256], "min_context": 6}
    return pipeline.trunk_batches(mixture, BYTES, **(options | changes))


STREAMS = {"packed": packed, "trunk": trunk}


def mixtures():
    small, large = Generated(30), Generated(LARGE)
    return {
        "small": [pipeline.Mix(small, 1.0, "small")],
        "large": [pipeline.Mix(large, 1.0, "large")],
        "several": [
            pipeline.Mix(small, 1.0, "small"),
            pipeline.Mix(large, 3.5, "large"),
            pipeline.Mix(Generated(LARGE - 1), 0.3, "rare"),
        ],
    }


@pytest.fixture(scope="module")
def recorded():
    """Of every kind: the states before each of 60 batches, the batches, and what is counted."""

    def record(make, kind, epochs):
        stream, states, batches, counts = make(mixtures()[kind], epochs=epochs), [], [], []
        for _ in range(60):
            states.append(json.dumps(stream.get_state(), sort_keys=True))
            counts.append(stream.counts())
            if (batch := next(stream, None)) is None:
                break
            batches.append(flat(batch))
        return states, batches, counts

    return {
        (name, kind, epochs): record(make, kind, epochs)
        for name, make in STREAMS.items()
        for kind in mixtures()
        for epochs in ([None, 1] if kind == "small" else [None])
    }


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(
    ("kind", "epochs"), [("small", None), ("small", 1), ("large", None), ("several", None)]
)
def test_restored_anywhere_gives_exactly_the_remaining_stream(recorded, name, kind, epochs):
    """At 50 random moments; equal states and equal batches, hence equal for ever."""
    states, batches, counts = recorded[name, kind, epochs]
    assert len(batches) >= 40

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, len(states) - 1), st.integers(0, 6))
    def check(stop, ahead):
        stream = STREAMS[name](mixtures()[kind], epochs=epochs)
        for _ in range(ahead):  # wherever the stream was before
            next(stream)
        stream.set_state(json.loads(states[stop]))
        for now in range(stop, min(stop + 3, len(states))):
            assert json.dumps(stream.get_state(), sort_keys=True) == states[now]
            assert stream.counts() == counts[now]
            batch = next(stream, None)
            assert (None if batch is None else flat(batch)) == (batches[now : now + 1] or [None])[0]

    check()


@pytest.mark.parametrize("name", STREAMS)
def test_weights_set_while_running_are_kept_and_restored(name):
    make, mixture = STREAMS[name], mixtures()["several"]
    whole = make(mixture, batch_size=8)
    next(whole)
    whole.set_weights({"large": 0, "rare": 1})
    state = json.loads(json.dumps(whole.get_state()))
    before = whole.counts()
    cut = make(mixture, batch_size=8)
    cut.set_state(state)
    for _ in range(10):
        assert flat(next(whole)) == flat(next(cut))
    after = cut.counts()
    assert after["windows/large"] == before["windows/large"] > 0
    read = [after[f"windows/{n}"] - before[f"windows/{n}"] for n in ("small", "rare")]
    assert abs(read[0] - read[1]) <= 3
    assert read[0] > 25
    assert after["weight_changes"] == len(cut.events) - 1 == 1
    assert (after["weight/small"], after["weight/large"]) == (0.5, 0)
    # Another config at the restart: an event, from there on.
    other = make([pipeline.Mix(m.source, float(m.name == "large"), m.name) for m in mixture])
    other.set_state(state)
    assert other.events[:-1] == whole.events
    assert other.events[-1] == (before["windows"], {"small": 0.0, "large": 1.0, "rare": 0.0})


def test_a_resume_takes_as_long_at_any_position_and_states_stay_small():
    reads = []
    source = Generated(2**40)
    for ordinal in (0, 10**6, 10**12):
        stream = packed([pipeline.Mix(source, 1.0, "huge")], seq_len=64)
        next(stream)
        state = stream.get_state()
        state["shares"][0]["next"] += ordinal
        state["waiting"] = []
        stream = packed([pipeline.Mix(source, 1.0, "huge")], seq_len=64)
        count = []
        source.faulty = lambda index, count=count: count.append(index)
        stream.set_state(state)
        next(stream)
        reads.append(len(count))
        assert len(json.dumps(stream.get_state())) < 2000
    assert max(reads) < 30


def test_memory_is_flat_over_a_large_source():
    stream = packed([pipeline.Mix(Generated(10**9), 1.0, "huge")], batch_size=8)
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(4):
            for _ in range(60):
                next(stream)
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes[1:]) - min(sizes[1:]) < 100_000


# ---- faults --------------------------------------------------------------------------------------


def third(index):
    return index % 3 == 0


@pytest.mark.parametrize("size", [60, LARGE])
def test_a_fault_fails_by_default_in_one_line(size):
    mixture = [pipeline.Mix(Generated(size, third), 1.0, "corpus")]

    def read():
        stream = trunk(mixture)
        for _ in range(9):
            next(stream)

    with pytest.raises(records.Fault, match=r"^/corpus/\d+\.txt is gone$"):
        read()


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_stream_that_failed_goes_on_where_it_was(make, batch_size):
    """The file comes back: nothing is lost, of the batch that was begun neither."""
    source = Generated(LARGE, lambda index: index % 50 == 0)
    stream = make([pipeline.Mix(source, 1.0, "corpus")], batch_size=batch_size)
    whole = make([pipeline.Mix(Generated(LARGE), 1.0, "corpus")], batch_size=batch_size)
    while True:
        missed = flat(next(whole))
        try:
            assert flat(next(stream)) == missed
        except records.Fault:
            break
    with pytest.raises(records.Fault):
        next(stream)
    source.faulty = lambda index: False
    restored = make([pipeline.Mix(source, 1.0, "corpus")], batch_size=batch_size)
    restored.set_state(stream.get_state())
    assert flat(next(restored)) == flat(next(stream)) == missed


@pytest.mark.parametrize("large", [False, True])
def test_skipped_faults_are_counted_exactly(large, monkeypatch):
    if large:
        monkeypatch.setattr(documents, "INDEXED_DOCUMENTS", 0)
    source = Generated(60, third, {"fault/truncated": 2, "too_short": 5, "noted/x": 3})
    stream = trunk([pipeline.Mix(source, 1.0, "corpus", "skip", 22)], epochs=1)
    seen = {id for batch in stream for id in batch.document_ids_B.tolist() if id >= 0}
    long_enough = {i for i in range(60) if len(f"{i} ") + i * 7 % 23 * 7 > 6}
    assert seen == {index for index in long_enough if index % 3}
    counts = stream.counts()
    assert counts["skipped_faults"] == 22
    assert counts["left_out/corpus/fault/truncated"] == 2
    assert counts["left_out/corpus/too_short"] == 5
    assert counts["noted/corpus/x"] == 3
    assert "left_out/corpus/noted/x" not in counts
    with pytest.raises(ValueError, match=r"'corpus' has more than max_faults=21 .* is gone"):
        list(trunk([pipeline.Mix(source, 1.0, "corpus", "skip", 21)], epochs=1))


def epochs_of(stream, count):
    while stream.counts()["epochs/corpus"] < count:
        next(stream)


def test_a_record_that_cannot_be_used_counts_once_however_often_it_is_met(monkeypatch):
    """20 of 60, over epochs, with and without a restart."""
    monkeypatch.setattr(documents, "INDEXED_DOCUMENTS", 0)
    source = Generated(60, third)

    def stream(max_faults):
        return trunk([pipeline.Mix(source, 1.0, "corpus", "skip", max_faults)])

    first = stream(20)
    epochs_of(first, 2.5)
    assert first.counts()["skipped_faults"] == 20
    state = json.loads(json.dumps(first.get_state()))
    assert state["faulty"] == [list(range(0, 60, 3))]
    restored = stream(20)
    restored.set_state(state)
    epochs_of(restored, 5)
    assert restored.counts()["skipped_faults"] == 20
    with pytest.raises(ValueError, match=r"more than max_faults=19 records .* is gone"):
        epochs_of(stream(19), 1)


def test_each_shard_counts_the_records_that_it_met(monkeypatch):
    monkeypatch.setattr(documents, "INDEXED_DOCUMENTS", 0)
    mixture = [pipeline.Mix(Generated(60, third), 1.0, "corpus", "skip", 20)]

    def shards(count):
        return [trunk(mixture, shard_index=i, shard_count=count) for i in range(count)]

    four = shards(4)
    for shard in four:
        epochs_of(shard, 1)
    found = [shard.get_state()["faulty"][0] for shard in four]
    assert sorted({place for places in found for place in places}) == list(range(0, 60, 3))
    assert all(len(places) < 20 for places in found)
    # Dealt anew, no record stands twice, and one shard for all of them has the exact number.
    for count in (1, 2, 8):
        states = resharding.reshard([shard.get_state() for shard in four], count)
        dealt = [place for state in states for place in state["faulty"][0]]
        assert sorted(dealt) == list(range(0, 60, 3))
    (one,) = shards(1)
    one.set_state(resharding.reshard([shard.get_state() for shard in four], 1)[0])
    epochs_of(one, 4)
    assert one.counts()["skipped_faults"] == 20


def test_a_source_of_which_nothing_can_be_read_ends_whatever_its_bound():
    mixture = [pipeline.Mix(Generated(20_000, lambda index: True), 1.0, "corpus", "skip", 30_000)]
    with pytest.raises(ValueError, match="'corpus' is long enough"):
        next(trunk(mixture))


def test_counted_faults_are_in_the_state():
    mixture = [pipeline.Mix(Generated(LARGE, third), 1.0, "corpus", "skip")]
    stream = trunk(mixture)
    for _ in range(8):
        next(stream)
    restored = trunk(mixture)
    restored.set_state(stream.get_state())
    assert restored.counts()["skipped_faults"] == stream.counts()["skipped_faults"] > 0


def test_a_waiting_window_that_vanished_is_a_fault():
    source = Generated(LARGE)
    stream = packed([pipeline.Mix(source, 1.0, "corpus")])
    while not stream.get_state()["waiting"]:
        next(stream)
    state = stream.get_state()
    waiting = {ordinal for _, ordinal, _ in state["waiting"]}
    source.faulty = lambda index: True
    with pytest.raises(records.Fault, match="is gone"):
        packed([pipeline.Mix(source, 1.0, "corpus")]).set_state(state)
    skipping = packed([pipeline.Mix(source, 1.0, "corpus", "skip")])
    skipping.set_state(state)
    assert skipping.counts()["skipped_faults"] == len(waiting) > 1


def test_a_document_that_became_shorter_is_a_fault():
    source = Generated(LARGE)
    stream = trunk([pipeline.Mix(source, 1.0, "corpus")], batch_size=1)
    while not any(window for _, window in stream.get_state()["shares"][0]["holes"]):
        next(stream)
    state = stream.get_state()
    state["shares"][0]["holes"][0][1] = 50
    stream.set_state(state)
    with pytest.raises(records.Fault, match=r"'corpus' has changed .* was read up to 50"):
        next(stream)


def test_a_source_of_which_everything_was_left_out():
    with pytest.raises(ValueError, match="'corpus' is empty; left out before: 3 too_short"):
        trunk([pipeline.Mix(Generated(0, counts={"too_short": 3}), 1.0, "corpus")])
    gone = Generated(5, lambda index: True)
    with pytest.raises(ValueError, match=r"no document of the source 'corpus' .*5 faults"):
        trunk([pipeline.Mix(gone, 1.0, "corpus", "skip")])
