"""Losses against numbers worked out by hand, and the weights' sums.

Letters: M tokens; B documents, R branches, T branch positions, S trunk positions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpt import objectives

CLIP = objectives.ObjectiveConfig(ratio_clip_low=0.2, ratio_clip_high=0.28, kl_weight=0.5)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(config, log_prob, behaviour, advantage, weight, reference=None):
    def loss(log_prob):
        terms = objectives.policy_terms(
            config, log_prob, behaviour, advantage, weight, jnp.ones_like(log_prob), reference
        )
        return terms.loss, terms

    gradient, terms = jax.grad(loss, has_aux=True)(log_prob)
    return terms, gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "slope", "clipped"),
    [
        (1.5, 2.0, 2.56, 0.0, 1),  # above the high clip: 1.28 * 2, no gradient
        (1.1, 2.0, 2.2, 2.2, 0),  # inside: rho A, and d(rho A)/d log p = rho A
        (0.5, 2.0, 1.0, 1.0, 0),  # below, but the pessimistic side is the unclipped one
        (1.5, -2.0, -3.0, -3.0, 0),  # above with A < 0: unclipped
        (0.9, -2.0, -1.8, -1.8, 0),
        (0.5, -2.0, -1.6, 0.0, 1),  # below the low clip: 0.8 * -2, no gradient
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, gain, slope, clipped):
    behaviour = jnp.asarray([-1.0])
    log_prob = behaviour + np.log(ratio)
    weight = jnp.asarray([0.25])
    terms, gradient = value_and_gradient(
        CLIP, log_prob, behaviour, jnp.asarray([advantage]), weight
    )
    np.testing.assert_allclose(terms.loss, -0.25 * gain, rtol=1e-5)
    np.testing.assert_allclose(gradient, [-0.25 * slope], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(terms.clipped, 0.25 * clipped)
    np.testing.assert_allclose(terms.mismatch_max, abs(np.log(ratio)), rtol=1e-5)


def test_on_policy_gradient_is_minus_advantage_times_weight():
    """At ratio 1 the clip is inert: d loss = -A w d log p, whatever the clip range."""
    rng = np.random.default_rng(0)
    log_prob, advantage = -rng.exponential(size=9), rng.normal(size=9)
    weight = rng.uniform(size=9) * (np.arange(9) != 4)
    config = objectives.ObjectiveConfig(rl_weight=0.5)
    terms, gradient = value_and_gradient(config, log_prob, log_prob, advantage, weight)
    np.testing.assert_allclose(gradient, -0.5 * advantage * weight, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, -0.5 * np.sum(advantage * weight), rtol=1e-5)
    np.testing.assert_allclose(terms.entropy, weight.sum(), rtol=1e-5)
    assert terms.clipped == 0
    assert terms.mismatch_max == 0


def test_k3_by_hand():
    """p_ref / p = 2 and 1/2: k3 = 2 - ln 2 - 1 and 1/2 + ln 2 - 1; its slope is 1 - p_ref / p."""
    log_prob, weight = jnp.asarray([-1.0, -1.0]), jnp.asarray([0.5, 0.25])
    reference = log_prob + np.log([2.0, 0.5])
    terms, gradient = value_and_gradient(CLIP, log_prob, log_prob, jnp.zeros(2), weight, reference)
    k3 = np.array([1 - np.log(2), np.log(2) - 0.5])
    np.testing.assert_allclose(terms.kl, np.sum([0.5, 0.25] * k3), rtol=1e-5)
    np.testing.assert_allclose(terms.loss, 0.5 * np.sum([0.5, 0.25] * k3), rtol=1e-5)
    np.testing.assert_allclose(gradient, 0.5 * np.array([0.5 * -1, 0.25 * 0.5]), rtol=1e-5)


def test_tokens_outside_the_loss_may_hold_anything():
    log_prob = jnp.asarray([-1.0, -1e30, 0.0, -jnp.inf])
    behaviour = jnp.asarray([-1.0, 0.0, -1e30, 0.0])
    weight = jnp.asarray([1.0, 0.0, 0.0, 0.0])
    terms, gradient = value_and_gradient(CLIP, log_prob, behaviour, jnp.ones(4), weight, behaviour)
    np.testing.assert_allclose(terms.loss, -1.0)
    np.testing.assert_array_equal(gradient, [-1, 0, 0, 0])
    assert terms.mismatch_max == 0


SAMPLED_BRT = np.array([[[0, 1, 1, 1], [0, 1, 0, 0]], [[0, 1, 1, 0], [0, 0, 0, 0]]], bool)
COUNTED_BR = np.array([[True, True], [False, False]])  # document 1 has a zero-variance group


@pytest.mark.parametrize(
    ("aggregation", "weight_BR"),
    [
        ("token_mean", [[1 / 4, 1 / 4], [1 / 4, 0]]),
        ("sequence_mean", [[1 / 6, 1 / 2], [1 / 4, 0]]),
        ("constant_length", [[1 / 20, 1 / 20], [1 / 20, 0]]),
    ],
)
def test_token_weights_by_hand(aggregation, weight_BR):
    config = objectives.ObjectiveConfig(aggregation=aggregation, constant_length_tokens=10)
    found = objectives.token_weights(config, SAMPLED_BRT, COUNTED_BR)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, SAMPLED_BRT * np.asarray(weight_BR)[..., None], rtol=1e-6)


def test_weights_of_the_counted_branches_sum_to_one():
    rng = np.random.default_rng(1)
    for seed in range(20):
        sampled = rng.uniform(size=(3, 4, 6)) < 0.5
        sampled[..., 1] = True  # every branch samples at least once
        counted = rng.uniform(size=(3, 4)) < 0.5
        counted[0, 0] = True
        for aggregation in ("token_mean", "sequence_mean"):
            config = objectives.ObjectiveConfig(aggregation=aggregation)
            weight = objectives.token_weights(config, sampled, counted)
            np.testing.assert_allclose(weight[counted].sum(), 1, rtol=1e-5, err_msg=str(seed))


def test_nothing_counted_gives_finite_weights():
    none = np.zeros((2, 2), bool)
    for aggregation in ("token_mean", "sequence_mean", "constant_length"):
        config = objectives.ObjectiveConfig(aggregation=aggregation)
        for sampled in (SAMPLED_BRT, np.zeros_like(SAMPLED_BRT)):
            assert np.isfinite(objectives.token_weights(config, sampled, none)).all()


@pytest.mark.parametrize(
    ("positions", "expected"),
    [("all", [[2, 3, 4, 5], [2, 3]]), ("non_cuts", [[2, 4], [2]])],
)
def test_ntp_weights_exclude_header_cuts_and_padding(positions, expected):
    """Header of 2; row 0 is cut at 3 and 5, row 1 (4 tokens) at 3, its slot for 2 is empty."""
    config = objectives.ObjectiveConfig(ntp_positions=positions)
    segments_BS = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    cut_BC, valid_BC = np.array([[3, 5], [3, 2]]), np.array([[True, True], [True, False]])
    weight = objectives.ntp_weights(config, segments_BS, 2, cut_BC, valid_BC)
    assert [np.flatnonzero(row).tolist() for row in weight] == expected
    np.testing.assert_allclose(weight[weight > 0], 1 / sum(map(len, expected)), rtol=1e-6)


def test_the_first_token_is_never_a_target():
    """Without a header too: nothing stands before token 0."""
    config = objectives.ObjectiveConfig(ntp_positions="all")
    weight = objectives.ntp_weights(
        config, np.ones((1, 4)), 0, np.zeros((1, 1), int), np.zeros((1, 1), bool)
    )
    assert np.flatnonzero(weight).tolist() == [1, 2, 3]
