"""Group advantages: hand-computed numbers, exact zeros, and the choice of groups."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as numpy_strategies

from rpt import advantages


def grpo(reward_BCG, **changes):
    options = {"normalise": "std", "ddof": 1, "epsilon": 1e-6, "leave_one_out": False}
    return advantages.group_advantages(np.asarray(reward_BCG), **{**options, **changes})


def binary_group(right: int, size: int = 8) -> np.ndarray:
    return (np.arange(size) < right).astype(np.float32)[None, None]


@pytest.mark.parametrize(
    ("right", "up", "down"),
    [
        (1, 2.4749, -0.3536),
        (2, 1.6202, -0.5401),
        (3, 1.2076, -0.7246),
        (4, 0.9354, -0.9354),
        (5, 0.7246, -1.2076),
        (6, 0.5401, -1.6202),
        (7, 0.3536, -2.4749),
    ],
)
def test_groups_of_eight_with_unbiased_deviation(right, up, down):
    advantage_G = grpo(binary_group(right))[0, 0]
    np.testing.assert_allclose(advantage_G[:right], up, atol=5e-5)
    np.testing.assert_allclose(advantage_G[right:], down, atol=5e-5)
    assert advantage_G.dtype == np.float32


def test_groups_of_eight_with_population_deviation():
    np.testing.assert_allclose(
        grpo(binary_group(1), ddof=0)[0, 0, :2], [2.6457, -0.3780], atol=5e-5
    )
    np.testing.assert_allclose(np.abs(grpo(binary_group(4), ddof=0)), 1.0, atol=5e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -0.7, 1e8, 1 / 3])
@pytest.mark.parametrize("size", [1, 3, 8, 10])
@pytest.mark.parametrize("normalise", ["std", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rewards_give_exactly_zero(value, size, normalise, dtype):
    reward_BCG = np.full((2, 3, size), value, dtype)
    for leave_one_out in (False, True):
        advantage_BCG = grpo(
            reward_BCG, normalise=normalise, epsilon=0.0, leave_one_out=leave_one_out
        )
        assert (advantage_BCG == 0).all()


def test_nearly_equal_rewards_are_not_zero():
    reward_G = np.array([0.1, 0.1, np.nextafter(np.float32(0.1), np.float32(1))], np.float32)
    assert (grpo(reward_G[None, None], epsilon=0.0) != 0).all()


def test_without_normalisation_it_is_reward_minus_mean():
    np.testing.assert_allclose(grpo([[[1.0, 0, 0, 0]]], normalise="none")[0, 0, 0], 0.75)


rewards_BCG = numpy_strategies.arrays(
    np.float32,
    strategies.tuples(*[strategies.integers(1, 4)] * 2, strategies.integers(2, 9)),
    elements=strategies.floats(-4, 4, width=32),
)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(rewards_BCG)
def test_leave_one_out_subtracts_the_mean_of_the_others(reward_BCG):
    advantage_BCG = grpo(reward_BCG, normalise="none", leave_one_out=True)
    size = reward_BCG.shape[-1]
    for index in range(size):
        others_BC = np.delete(reward_BCG.astype(np.float64), index, axis=-1).mean(axis=-1)
        expected_BC = reward_BCG[..., index] - others_BC
        np.testing.assert_allclose(advantage_BCG[..., index], expected_BC, atol=1e-5)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(rewards_BCG, strategies.randoms(use_true_random=False), strategies.booleans())
def test_a_thought_that_does_not_count_is_as_if_absent(reward_BCG, random, leave_one_out):
    size = reward_BCG.shape[-1]
    kept = sorted(random.sample(range(size), random.randint(1, size)))
    valid_BCG = np.zeros(reward_BCG.shape, bool)
    valid_BCG[..., kept] = True
    poisoned_BCG = np.where(valid_BCG, reward_BCG, np.nan)
    advantage_BCG = grpo(poisoned_BCG, valid_BCG=valid_BCG, leave_one_out=leave_one_out)
    alone_BCG = grpo(reward_BCG[..., kept], leave_one_out=leave_one_out)
    np.testing.assert_allclose(advantage_BCG[..., kept], alone_BCG, rtol=1e-5, atol=1e-6)
    assert (advantage_BCG[~valid_BCG] == 0).all()


def test_groups_do_not_mix():
    reward_BCG = np.random.default_rng(0).random((3, 2, 5), np.float32)
    advantage_BCG = grpo(reward_BCG)
    np.testing.assert_array_equal(grpo(reward_BCG[1:2, 1:])[0, 0], advantage_BCG[1, 1])
    np.testing.assert_allclose(advantage_BCG.sum(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(advantage_BCG.std(axis=-1, ddof=1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalise": "mad"}, "normalise"),
        ({"ddof": 2}, "ddof"),
        ({"reward_BCG": [[[np.nan, 1.0]]]}, "finite"),
        ({"reward_BCG": [[1.0, 0.0]]}, "B, C, G"),
        ({"valid_BCG": np.ones((1, 1, 3))}, "valid_BCG"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        grpo(**{"reward_BCG": [[[1.0, 0.0]]], **changes})


@pytest.mark.parametrize("size", [7, 8])
def test_selection_ranks_by_variance_and_ties_keep_document_order(size):
    # Shuffled members and the mirrored counts k and G - k must tie exactly.
    generator = np.random.default_rng(1)
    counts = np.array([[0, 1, 3], [size, size - 1, 4], [1, 3, 0]])
    reward_BCG = np.stack([[binary_group(k, size)[0, 0] for k in row] for row in counts])
    reward_BCG = generator.permuted(reward_BCG, axis=-1)
    flat = counts.reshape(-1)
    variance = flat * (size - flat)
    expected = [i for i in np.argsort(-variance, kind="stable") if variance[i]]
    assert advantages.select_groups(reward_BCG).tolist() == expected
    assert advantages.select_groups(reward_BCG, max_groups=2).tolist() == expected[:2]
    valid_BC = np.ones((3, 3), bool)
    valid_BC[1, 2] = False
    assert advantages.select_groups(reward_BCG, valid_BC).tolist() == [
        i for i in expected if i != 5
    ]


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(rewards_BCG)
def test_selected_groups_are_exactly_those_with_a_gradient(reward_BCG):
    chosen = advantages.select_groups(reward_BCG)
    advantage = grpo(reward_BCG, normalise="none").reshape(-1, reward_BCG.shape[-1])
    dropped = np.setdiff1d(np.arange(len(advantage)), chosen)
    assert (advantage[dropped] == 0).all()
    groups = reward_BCG.astype(np.float64).reshape(advantage.shape)
    assert (np.ptp(groups[chosen], axis=-1) > 0).all()
    assert (np.diff(groups[chosen].var(axis=-1)) <= 1e-9).all()
    zero = advantages.zero_variance_fraction(reward_BCG)
    assert zero == pytest.approx(len(dropped) / len(advantage))


def test_no_group_with_a_gradient():
    assert advantages.select_groups(np.ones((2, 2, 4))).shape == (0,)
    with pytest.raises(ValueError, match="max_groups"):
        advantages.select_groups(np.ones((2, 2, 4)), max_groups=-1)
    with pytest.raises(ValueError, match="valid_BC"):
        advantages.select_groups(np.ones((2, 2, 4)), np.ones((2, 3), bool))


def test_group_fractions():
    right_BCG = np.stack([[binary_group(k, 4)[0, 0] for k in row] for row in [[0, 2], [4, 1]]])
    assert advantages.group_fractions(right_BCG) == advantages.GroupFractions(0.25, 0.5, 0.25)
    valid_BC = np.array([[True, False], [False, False]])
    only_wrong = advantages.group_fractions(right_BCG == 1, valid_BC)
    assert only_wrong == advantages.GroupFractions(1.0, 0.0, 0.0)
    assert advantages.zero_variance_fraction(right_BCG) == 0.5
    none = np.zeros((2, 2), bool)
    assert advantages.group_fractions(right_BCG, none) == advantages.GroupFractions(0.0, 0.0, 0.0)
    assert advantages.zero_variance_fraction(right_BCG, none) == 0.0
    with pytest.raises(ValueError, match="graded"):
        advantages.group_fractions(right_BCG * 0.5)
