"""Mixtures: weights are kept at every moment, and may change while a stream runs."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import mixtures, pipeline, records, tokenizers

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


def drawn(mixture, count):
    found = []
    for _ in range(count):
        found.append(mixture.pick())
        mixture.draw(found[-1])
    return found


def named(weights):
    return {f"s{k}": weight for k, weight in enumerate(weights)}


@settings(max_examples=60, deadline=None)
@given(WEIGHTS)
def test_shares_keep_to_the_weights_at_every_moment(weights):
    mixture, total = mixtures.Mixture(named(weights)), sum(weights)
    counts = [0] * len(weights)
    for step in range(1, 201):
        (k,) = drawn(mixture, 1)
        counts[k] += 1
        for weight, count in zip(weights, counts):
            assert abs(weight / total * step - count) < len(weights)


def test_ties_go_to_the_first():
    assert drawn(mixtures.Mixture({"a": 2, "b": 2}), 4) == [0, 1, 0, 1]
    assert drawn(mixtures.Mixture({"a": 1, "b": 2}), 6) == [1, 0, 1, 1, 0, 1]


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, WEIGHTS, st.integers(0, 30), st.integers(0, 30))
def test_restored_equals_uninterrupted(first, second, before, after):
    first, second = (named((weights * 6)[:3]) for weights in (first, second))
    whole = mixtures.Mixture(first)
    drawn(whole, before)
    whole.set_weights(second)
    drawn(whole, after)
    restored = mixtures.Mixture(first)
    restored.set_state(json.loads(json.dumps(whole.get_state(), sort_keys=True)))
    assert restored.get_state() == whole.get_state()
    assert drawn(restored, 50) == drawn(whole, 50)


def test_weights_that_change_all_the_time_give_a_rare_source_its_due():
    mixture, count = mixtures.Mixture({"a": 1, "b": 1}), 0
    for step in range(500):
        mixture.set_weights({"a": 0.95 + 0.01 * (step % 2), "b": 0.05})
        count += sum(drawn(mixture, 4))
    assert 97 <= count <= 101  # 5% of 2000
    assert mixture.changes == 500
    assert len(mixture.get_state()["events"]) == 100


def test_weight_0_turns_a_source_off_and_on_again():
    mixture = mixtures.Mixture({"a": 1, "b": 0, "c": 1})
    assert set(drawn(mixture, 50)) == {0, 2}
    mixture.set_weights({"a": 0})
    assert set(drawn(mixture, 50)) == {2}
    mixture.set_weights({"a": 1, "b": 2})
    assert sorted(drawn(mixture, 40)) == [0] * 10 + [1] * 20 + [2] * 10
    assert mixture.events == [
        (0, {"a": 1, "b": 0, "c": 1}),
        (50, {"a": 0, "b": 0, "c": 1}),
        (100, {"a": 1, "b": 2, "c": 1}),
    ]


def test_the_same_weights_are_no_event():
    mixture = mixtures.Mixture({"a": 1, "b": 3})
    drawn(mixture, 3)
    before = mixture.get_state()
    mixture.set_weights({"a": 2, "b": 6})
    assert mixture.get_state() == before


def test_weights_of_another_config_are_an_event_those_of_the_run_stay():
    mixture = mixtures.Mixture({"a": 1, "b": 1})
    drawn(mixture, 5)
    mixture.set_weights({"a": 3})
    state = json.loads(json.dumps(mixture.get_state()))
    same, other = mixtures.Mixture({"a": 2, "b": 2}), mixtures.Mixture({"a": 1, "b": 9})
    same.set_state(state)
    assert same.weights == {"a": 0.75, "b": 0.25}
    other.set_state(state)
    assert other.events == [*mixture.events, (5, {"a": 1, "b": 9})]
    # The change is of this state on: a second restart with the same config adds none.
    again = mixtures.Mixture({"a": 1, "b": 9})
    again.set_state(other.get_state())
    assert again.events == other.events


def test_temperature_levels_weights():
    sizes = {"a": 8.0, "b": 1.0, "c": 0.0}
    assert mixtures.tempered(sizes, 1) == pytest.approx({"a": 8 / 9, "b": 1 / 9, "c": 0})
    assert mixtures.tempered(sizes, 3) == pytest.approx({"a": 2 / 3, "b": 1 / 3, "c": 0})
    assert mixtures.tempered(sizes, 1e9) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0})
    assert mixtures.tempered({"a": 1e300, "b": 1e299}, 0.01) == pytest.approx({"a": 1, "b": 0})
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            mixtures.tempered(sizes, wrong)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": 1}, r"given for 'c', which is no source of the mixture \('a', 'b'\)"),
        ({"a": -1}, "weight of 'a' must be 0 or more, not -1"),
        ({"a": float("nan")}, "weight of 'a' must be 0 or more, not nan"),
        ({"a": float("inf")}, "weight of 'a' must be 0 or more, not inf"),
        ({"a": 0, "b": 0}, "weights of 'a', 'b' are all 0"),
    ],
)
def test_impossible_weights_change_nothing(weights, message):
    sources = {name: records.from_texts([f"{name} text"]) for name in ("a", "b")}
    stream = pipeline.packed_batches(
        [pipeline.Mix(source, 1.0, name) for name, source in sources.items()],
        tokenizers.ByteTokenizer(),
        batch_size=1,
        seq_len=16,
        seed=0,
    )
    next(stream)
    before = stream.get_state()
    with pytest.raises(ValueError, match=message) as caught:
        stream.set_weights(weights)
    assert "\n" not in str(caught.value)
    assert stream.get_state() == before
