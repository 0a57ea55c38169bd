"""Micro-batches over one trunk pass equal one batch and plain differentiation of one function.

Letters: B documents, S trunk positions, R branches per document, T branch positions.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rpt import objectives, optimizers, update
from rpt.model import transformer

B, S, R, T = 2, 10, 5, 8
TEMPERATURE = 0.8
OBJECTIVE = objectives.ObjectiveConfig(
    ratio_clip_low=0.3, ratio_clip_high=0.4, kl_weight=0.1, ntp_weight=0.7, rl_weight=1.5
)
LENGTH_BR = np.array([[8, 3, 5, 0, 4], [2, 4, 3, 4, 2]], np.int32)


@pytest.fixture(scope="module")
def trunk() -> update.TrunkInputs:
    rng = np.random.default_rng(0)
    weight = rng.uniform(size=(B, S)).astype(np.float32)
    return update.TrunkInputs(
        tokens_BS=rng.integers(0, 40, (B, S)).astype(np.int32),
        segments_BS=(np.arange(S) < np.array([[S], [S - 2]])).astype(np.int32),
        positions_BS=np.tile(np.arange(S, dtype=np.int32), (B, 1)),
        ntp_weight_BS=weight / weight.sum(),
    )


@pytest.fixture(scope="module")
def arrays(tiny_model, tiny_params, trunk) -> update.MicroBatch:
    """Branches whose behaviour policy is near the policy: some tokens are clipped, most not."""
    rng = np.random.default_rng(1)
    sampled = (np.arange(T) >= 1) & (np.arange(T) < LENGTH_BR[..., None])
    batch = update.MicroBatch(
        tokens_BRT=rng.integers(0, 40, (B, R, T)).astype(np.int32),
        weight_BRT=(sampled / sampled.sum()).astype(np.float32),
        behaviour_BRT=np.zeros((B, R, T), np.float32),
        threshold_BRT=rng.normal(-1, 0.5, (B, R, T)).astype(np.float32),
        reference_BRT=np.zeros((B, R, T), np.float32),
        advantage_BR=rng.normal(size=(B, R)).astype(np.float32),
        hi_BR=rng.integers(0, S - 1, (B, R)).astype(np.int32),
    )

    @jax.jit
    def log_probs(params, batch):
        _, kv = transformer.trunk(tiny_model, params, *trunk[:3])
        return update.branch_log_probs(tiny_model, TEMPERATURE, params, kv, batch).log_prob_M

    near = np.asarray(log_probs(tiny_params, batch)).reshape(B, R, T - 1)
    noise = rng.normal(0, 0.3, (2, B, R, T - 1)).astype(np.float32)
    batch.behaviour_BRT[:, :, 1:] = near + noise[0]
    batch.reference_BRT[:, :, 1:] = near + noise[1]
    return batch


@pytest.fixture(scope="module")
def joint(tiny_model, tiny_params, trunk, arrays):
    """Full automatic differentiation of one function of the parameters, in one batch."""

    @jax.jit
    def run(params):
        def loss(params):
            hidden, kv = transformer.trunk(tiny_model, params, *trunk[:3])
            ntp = update.weighted_nll(
                tiny_model, params, hidden, trunk.tokens_BS, trunk.ntp_weight_BS
            )
            terms = update.policy_loss(tiny_model, OBJECTIVE, TEMPERATURE, params, kv, arrays)
            return OBJECTIVE.ntp_weight * ntp + terms.loss, (ntp, terms)

        return jax.grad(loss, has_aux=True)(params)

    grads, (ntp, terms) = run(tiny_params)
    return grads, {"ntp": ntp, **terms._asdict()}


def relative_error(grads, expected) -> float:
    """The norm of the difference over the norm."""
    difference = optax.tree.sub(grads, expected)
    return float(optax.tree.norm(difference) / optax.tree.norm(expected))


@pytest.mark.parametrize(("size", "t_multiple"), [(R, T), (2, 4)])
def test_micro_batches_are_one_batch(
    tiny_model, tiny_params, trunk, arrays, joint, size, t_multiple
):
    """Gradients and every metric, next-token loss included."""
    batches = update.micro_batches(arrays, LENGTH_BR, size, t_multiple)
    grads, metrics = update.gradients(
        tiny_model, OBJECTIVE, TEMPERATURE, tiny_params, trunk, batches
    )
    expected_grads, expected = joint
    assert relative_error(grads, expected_grads) < 1e-6
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
    assert 0.02 < metrics["clipped"] < 0.9
    assert metrics["kl"] > 0


def test_every_part_of_the_gradient_is_noticed(tiny_model, tiny_params, joint, trunk, arrays):
    """What the test above would say without the keys' and values' cotangent, or a part of it,
    or without the next-token loss."""
    whole = update.micro_batches(arrays, LENGTH_BR, R, T)
    _ntp, kv, backward = update.trunk_forward(tiny_model, tiny_params, trunk)
    total = update.zeros(tiny_model, tiny_params, kv)
    total = update.accumulate(tiny_model, OBJECTIVE, TEMPERATURE, tiny_params, kv, whole[0], total)
    zero = jax.tree.map(jnp.zeros_like, total.kv_LBSKH)
    weight = jnp.float32(OBJECTIVE.ntp_weight)
    parts = {
        "all": (total.kv_LBSKH, weight),
        "no keys or values": (zero, weight),
        "no keys": (total.kv_LBSKH._replace(keys=zero.keys), weight),
        "no values": (total.kv_LBSKH._replace(values=zero.values), weight),
        "no next-token loss": (total.kv_LBSKH, jnp.float32(0)),
    }
    error = {}
    for name, (cotangent, ntp_weight) in parts.items():
        direct = jax.tree.map(jnp.copy, total.params)  # the argument is donated
        grads = update.trunk_backward(tiny_model, backward, direct, cotangent, ntp_weight)
        error[name] = relative_error(grads, joint[0])
    assert error.pop("all") < 1e-6
    assert min(error.values()) > 1e-2, error
    assert error["no keys or values"] > 0.1


def test_rematerialised_bfloat16_gradients_are_near(tiny_model, tiny_params, trunk, arrays, joint):
    """The types of real runs: accumulators and results stay float32."""
    model = dataclasses.replace(tiny_model, dtype="bfloat16", remat="full")
    batches = update.micro_batches(arrays, LENGTH_BR, R, T)
    grads, _ = update.gradients(model, OBJECTIVE, TEMPERATURE, tiny_params, trunk, batches)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert relative_error(grads, joint[0]) < 0.1


def test_rematerialised_gradients_are_the_same(tiny_model, tiny_params, trunk):
    expected = update.ntp_gradients(tiny_model, tiny_params, trunk)
    for remat in ("dots", "full"):
        model = dataclasses.replace(tiny_model, remat=remat)
        loss, grads = update.ntp_gradients(model, tiny_params, trunk)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        assert relative_error(grads, expected[1]) < 1e-6


def test_reference_is_the_log_probability_of_the_same_token(tiny_model, tiny_params, trunk, arrays):
    """Under the policy itself it leaves no KL, token by token."""
    batches = update.micro_batches(arrays._replace(reference_BRT=None), LENGTH_BR, R, T)
    (batch,) = update.with_reference(tiny_model, TEMPERATURE, tiny_params, trunk, batches)
    assert (np.asarray(batch.reference_BRT[:, :, 1:]) < 0).all()
    metrics = update.gradients(tiny_model, OBJECTIVE, TEMPERATURE, tiny_params, trunk, [batch])[1]
    np.testing.assert_allclose(metrics["kl"], 0, atol=1e-7)
    policy = batch._replace(behaviour_BRT=batch.reference_BRT)
    metrics = update.gradients(tiny_model, OBJECTIVE, TEMPERATURE, tiny_params, trunk, [policy])[1]
    assert metrics["mismatch_max"] < 1e-5


def test_without_branches_only_the_next_token_loss_is_left(tiny_model, tiny_params, trunk):
    objective = objectives.ObjectiveConfig(ntp_weight=0.5)
    grads, metrics = update.gradients(tiny_model, objective, 1.0, tiny_params, trunk, [])
    loss, expected = update.ntp_gradients(tiny_model, tiny_params, trunk)
    assert relative_error(grads, jax.tree.map(lambda x: 0.5 * x, expected)) < 1e-6
    np.testing.assert_allclose(metrics["ntp"], loss, rtol=1e-6)
    assert metrics["loss"] == 0


def test_next_token_loss_is_of_the_token_after(tiny_model, tiny_params, trunk):
    """Against log-softmax of the logits, position by position in numpy."""
    hidden, _ = jax.jit(transformer.trunk, static_argnums=0)(tiny_model, tiny_params, *trunk[:3])
    logits = np.asarray(hidden, np.float64) @ np.asarray(tiny_params["embedding"], np.float64).T
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = 0.0
    for b in range(B):
        for s in range(1, S):
            nll -= trunk.ntp_weight_BS[b, s] * log_p[b, s - 1, trunk.tokens_BS[b, s]]
    loss, _ = update.ntp_gradients(tiny_model, tiny_params, trunk)
    np.testing.assert_allclose(loss, nll, rtol=1e-5)


@pytest.mark.parametrize(
    ("longest", "T", "t_multiple", "padded"),
    [
        (257, 1039, 256, 257),
        (258, 1039, 256, 513),
        (1030, 1039, 256, 1041),  # 1,280 positions would be more than there can be
        (2, 1039, 256, 257),
        (8, 8, 1, 8),
        (5, 8, 3, 7),
        (8, 8, 3, 10),
    ],
)
def test_a_micro_batch_runs_whole_registers_and_no_more_than_there_can_be(
    longest, T, t_multiple, padded
):
    assert update.padded_length(longest, T, t_multiple) == padded
    assert (padded - 1) % min(8, t_multiple) == 0


def test_micro_batches_are_sorted_padded_and_lose_nothing(arrays):
    batches = update.micro_batches(arrays, LENGTH_BR, 2, 3)
    # Sorted, document 0 has lengths 8 5 | 4 3 | 0 and document 1 has 4 4 | 3 2 | 2.
    # One target more than the multiple of 3 that is run.
    assert [batch.tokens_BRT.shape for batch in batches] == [(B, 2, 10), (B, 2, 4), (B, 2, 4)]
    kept = [sorted(zip(*map(np.ravel, key), strict=True)) for key in (
        (arrays.advantage_BR, arrays.hi_BR, arrays.weight_BRT.sum(-1)),
        [np.concatenate(x, axis=1) for x in zip(
            *[(b.advantage_BR, b.hi_BR, b.weight_BRT.sum(-1)) for b in batches], strict=True
        )],
    )]  # fmt: skip
    # R = 5 was padded to 6: one weightless branch per document.
    assert [row for row in kept[1] if row[2] > 0] == [row for row in kept[0] if row[2] > 0]
    assert len(kept[1]) == len(kept[0]) + B
    np.testing.assert_array_equal(batches[0].tokens_BRT[0, 0, :T], arrays.tokens_BRT[0, 0])
    np.testing.assert_array_equal(batches[0].tokens_BRT[0, 1, :T], arrays.tokens_BRT[0, 2])
    np.testing.assert_array_equal(batches[1].tokens_BRT[1, 0], arrays.tokens_BRT[1, 2, :4])
    empty = update.micro_batches(arrays._replace(reference_BRT=None), LENGTH_BR * 0, 2, 3)
    assert empty == []


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_apply_scales_the_update_by_the_factor(factor):
    optimizer = optimizers.make(optimizers.OptimizerConfig(learning_rate=0.1, grad_norm_clip=1.0))
    params = {"w": jnp.asarray([1.0, 2.0, 3.0])}
    grads = {"w": jnp.asarray([3.0, -4.0, 0.0])}
    state = optimizer.init(params)
    params, _, norm = update.apply(optimizer, params, state, grads, factor)
    # Adam's first step is the sign of the gradient; the norm is reported before clipping.
    expected = [1 - 0.1 * factor, 2 + 0.1 * factor, 3]
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(norm, 5.0, rtol=1e-6)
