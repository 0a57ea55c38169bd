"""Sharded over 8 devices == on one device. Run by test_eight_devices.py.

Letters: B documents, S trunk positions, R branches per document, T branch positions, C cuts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kernels.logprob import api as logprob
from kernels.sample import noise
from rpt import formats, objectives, optimizers, phases, rollout, sharding, update
from rpt.model import transformer

B, S, R, T = 8, 8, 2, 6
MESHES = {
    "fsdp4_tensor2": sharding.MeshConfig(fsdp=4, tensor=2),
    "replica2_fsdp4": sharding.MeshConfig(replica=2, fsdp=4),
}
OBJECTIVE = objectives.ObjectiveConfig(ntp_weight=0.5)


@pytest.fixture(scope="module", params=MESHES)
def mesh(request):
    return sharding.make_mesh(MESHES[request.param], B)


def place(mesh, model, params):
    return jax.device_put(
        params, sharding.parameter_shardings(mesh, transformer.logical_axes(model), params)
    )


@pytest.fixture(scope="module")
def batch() -> tuple[update.TrunkInputs, update.MicroBatch]:
    rng = np.random.default_rng(0)
    trunk = update.TrunkInputs(
        rng.integers(0, 40, (B, S)).astype(np.int32),
        np.ones((B, S), np.int32),
        np.tile(np.arange(S, dtype=np.int32), (B, 1)),
        rng.uniform(0, 1 / (B * S), (B, S)).astype(np.float32),
    )
    micro = update.MicroBatch(
        tokens_BRT=rng.integers(0, 40, (B, R, T)).astype(np.int32),
        weight_BRT=rng.uniform(0, 1 / (B * R * T), (B, R, T)).astype(np.float32),
        behaviour_BRT=rng.uniform(-5, -1, (B, R, T)).astype(np.float32),
        threshold_BRT=None,
        reference_BRT=None,
        advantage_BR=rng.normal(size=(B, R)).astype(np.float32),
        hi_BR=rng.integers(0, S + 1, (B, R)).astype(np.int32),
    )
    return trunk, micro


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(model, params, trunk, micro):
    hidden_BSD, kv = transformer.trunk(model, params, *trunk[:3])
    hi_BR = micro.hi_BR
    hidden_BRTD, _ = transformer.branch(
        model, params, kv, micro.tokens_BRT, jnp.zeros_like(hi_BR), hi_BR, hi_BR
    )
    return hidden_BSD, hidden_BRTD


@pytest.fixture(scope="module")
def alone(tiny_model, tiny_params, batch):
    """Gradients and metrics on one device."""
    trunk, micro = batch
    return update.gradients(tiny_model, OBJECTIVE, 1.0, tiny_params, trunk, [micro])


def assert_close(found, expected, tolerance):
    """Relative to the largest entry of each leaf."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        x, y = np.asarray(x), np.asarray(y)
        scale = np.abs(y).max()
        assert scale > 0, path
        np.testing.assert_allclose(x / scale, y / scale, atol=tolerance, err_msg=str(path))


def test_parameters_are_spread_as_the_table_says(mesh, tiny_model, tiny_params):
    """No device holds a whole matrix; the shards are those of the table."""
    placed = place(mesh, tiny_model, tiny_params)
    tensor = mesh.shape["tensor"] > 1
    query = placed["layers"]["attention"]["query"]
    assert query.addressable_shards[0].data.shape == (2, 4, 2 if tensor else 4, 8)
    shard = placed["embedding"].addressable_shards[0].data
    assert shard.shape == (20 if tensor else 40, 4)


def test_hidden_states_and_gradients(mesh, tiny_model, tiny_params, batch, alone):
    placed = place(mesh, tiny_model, tiny_params)
    trunk, micro = (sharding.shard_rows(mesh, part) for part in batch)
    assert len(trunk.tokens_BS.sharding.device_set) == 8
    with jax.set_mesh(mesh):
        hidden = hidden_states(tiny_model, placed, trunk, micro)
        grads, metrics = update.gradients(tiny_model, OBJECTIVE, 1.0, placed, trunk, [micro])
    assert_close(hidden, hidden_states(tiny_model, tiny_params, *batch), 1e-5)
    # Accumulated in the parameters' layout: no device holds a whole gradient.
    for gradient, parameter in zip(jax.tree.leaves(grads), jax.tree.leaves(placed), strict=True):
        assert gradient.sharding == parameter.sharding
    assert_close(grads, alone[0], 1e-5)
    for name, value in alone[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_what_is_summed_over_micro_batches_lies_as_what_it_is_added_to(
    mesh, tiny_model, tiny_params, batch
):
    """Keys' and values' gradients as keys and values, over tensor too: nothing is gathered, and the
    accumulator is updated where it is. rpt.compile takes it for granted."""
    placed = place(mesh, tiny_model, tiny_params)
    trunk, micro = (sharding.shard_rows(mesh, part) for part in batch)
    with jax.set_mesh(mesh):
        _, kv, _ = update.trunk_forward(tiny_model, placed, trunk)
        total = update.zeros(tiny_model, placed, kv)
        added = update.accumulate(tiny_model, OBJECTIVE, 1.0, placed, kv, micro, total)
    for one in (total, added):
        for x, like in zip(
            jax.tree.leaves((one.params, one.kv_LBSKH)), jax.tree.leaves((placed, kv)), strict=True
        ):
            assert x.sharding.is_equivalent_to(like.sharding, x.ndim), (x.sharding, like.sharding)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_one_optimiser_step(mesh, tiny_model, tiny_params, alone, kind):
    """From the same gradient, so that Adam's sign of a rounding error is no difference."""
    optimizer = optimizers.make(optimizers.OptimizerConfig(kind=kind, learning_rate=0.1))
    state = optimizers.init_state(optimizer, tiny_params)
    expected, _, expected_norm = update.apply(optimizer, tiny_params, state, alone[0], 0.5)
    placed, grads = (place(mesh, tiny_model, tree) for tree in (tiny_params, alone[0]))
    state = optimizers.init_state(optimizer, placed)
    assert_spread_like(placed["layers"]["attention"]["query"], state)
    found, state, norm = update.apply(optimizer, placed, state, grads, 0.5)
    assert_close(found, expected, 1e-4)
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-5)
    assert np.abs(np.asarray(found["embedding"]) - tiny_params["embedding"]).max() > 1e-2
    # Parameters and state keep their layout, so that the next step runs the same program.
    assert_spread_like(placed["layers"]["attention"]["query"], state)
    compiled = update.apply._cache_size()
    update.apply(optimizer, found, state, grads, 0.5)
    assert update.apply._cache_size() == compiled


def assert_spread_like(matrix, state):
    """Every moment of the matrix lies as the matrix does, and the rest on all devices."""
    moments = [x for x in jax.tree.leaves(state) if x.shape == matrix.shape]
    assert moments
    assert all(x.sharding == matrix.sharding for x in moments)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(state))


def test_fewer_key_value_heads_than_tensor_shards_are_replicated(tiny_model, tiny_params, batch):
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2, tensor=4), B)
    placed = place(mesh, tiny_model, tiny_params)
    attention = placed["layers"]["attention"]
    assert attention["query"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert attention["key"].sharding.spec == PartitionSpec(None, "fsdp")
    assert attention["value_bias"].sharding.spec == PartitionSpec()
    trunk, micro = (sharding.shard_rows(mesh, part) for part in batch)
    with jax.set_mesh(mesh):
        hidden = hidden_states(tiny_model, placed, trunk, micro)
    assert_close(hidden, hidden_states(tiny_model, tiny_params, *batch), 1e-5)


def test_what_does_not_divide_is_replicated(tiny_model):
    """41 tokens over 2 tensor shards, 18 of width over 4."""
    mesh = sharding.make_mesh(MESHES["fsdp4_tensor2"], B)
    model = dataclasses.replace(tiny_model, vocab_size=41, width=18)
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    shardings = sharding.parameter_shardings(mesh, transformer.logical_axes(model), shapes)
    assert shardings["embedding"].spec == PartitionSpec()
    assert shardings["layers"]["ff"]["up"].spec == PartitionSpec(None, None, "tensor")


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        (sharding.MeshConfig(), 12, "does not divide over replica\\*fsdp=8"),
        (sharding.MeshConfig(replica=2, fsdp=2, tensor=2), 6, "multiple of 4"),
        (sharding.MeshConfig(fsdp=4), 8, "does not use the 8 device"),
        (sharding.MeshConfig(tensor=3), 8, "does not use the 8 device"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_in_one_line(config, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        sharding.make_mesh(config, rows)
    assert "\n" not in str(error.value)


def test_noise_is_the_same_bit_for_bit(mesh):
    """Rows over replica and fsdp, vocabulary over tensor: what XLA does with the noise in jit."""
    rows, vocabulary = 16, 48
    words_M = jnp.arange(rows) * 7919
    ids_V = jnp.arange(vocabulary)

    def gumbel(words_M, ids_V):
        return noise.gumbel(noise.fold(noise.root_keys(5, rows), words_M), ids_V)

    expected = np.asarray(jax.jit(gumbel)(words_M, ids_V))
    by_row = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    by_id = NamedSharding(mesh, PartitionSpec("tensor"))
    spread = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES, "tensor"))
    found = jax.jit(gumbel, out_shardings=spread)(
        jax.device_put(words_M, by_row), jax.device_put(ids_V, by_id)
    )
    assert len(found.sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_rollouts_keep_their_noise(tiny_model, tiny_params, batch):
    """The tokens are the same, except where two candidates are closer than rounding."""
    mesh = sharding.make_mesh(MESHES["fsdp4_tensor2"], B)
    trunk, _ = batch
    raw = [bytes((97 + i % 26,)) for i in range(38)] + [b"</think>", b"<eos>"]
    tables = phases.Tables(
        jnp.asarray([3, 4]),
        jnp.asarray([38, 5]),
        jnp.int32(1),
        *[jnp.asarray(table) for table in formats.marker_automaton(raw)],
        jnp.arange(40) == 39,
    )
    config = rollout.RolloutConfig(group_size=R, think_tokens=6, chunk_tokens=32)
    document_ids_B = np.arange(B) + 2**33
    cut_BC = np.full((B, 1), S)
    run = functools.partial(
        rollout.rollout, tiny_model, config, seed=1, step=2, document_ids_B=document_ids_B
    )

    def sampler(params, trunk):
        kv = jax.jit(transformer.trunk, static_argnums=0)(tiny_model, params, *trunk[:3])[1]
        return rollout.make_sampler(tiny_model, params, kv)

    valid_BC = np.ones((B, 1), bool)
    expected = run(sampler(tiny_params, trunk), tables, cut_BC, valid_BC)
    placed = place(mesh, tiny_model, tiny_params)
    rows = sharding.shard_rows(mesh, trunk)
    with jax.set_mesh(mesh):
        found = run(sampler(placed, rows), tables, cut_BC, valid_BC)

    different = found.tokens_BRT != expected.tokens_BRT
    same_BR = ~different.any(-1)
    assert same_BR.mean() > 0.5
    for b, r in np.argwhere(~same_BR):
        t = int(np.argmax(different[b, r]))
        gap = _gap(tiny_model, tiny_params, trunk, expected, cut_BC, document_ids_B, (b, r, t))
        assert gap < 1e-5, (b, r, t)
    np.testing.assert_allclose(
        found.log_prob_BRT[same_BR], expected.log_prob_BRT[same_BR], atol=1e-5
    )
    np.testing.assert_array_equal(found.length_BR[same_BR], expected.length_BR[same_BR])


def _gap(model, params, trunk, out, cut_BC, document_ids_B, place) -> float:
    """Between the two best noisy logits of one token."""
    b, r, t = place
    hi_BR = np.repeat(cut_BC, R, axis=1)
    _, kv = transformer.trunk(model, params, *trunk[:3])
    hidden, _ = transformer.branch(
        model, params, kv, out.tokens_BRT, jnp.zeros_like(hi_BR), hi_BR, hi_BR
    )
    logits = logprob.logits(hidden[b, r, t - 1], transformer.unembedding(model, params))
    keys = rollout.branch_keys(1, 2, 0, document_ids_B, hi_BR, R)[b, r][None]
    gumbel = rollout.noise.gumbel(rollout.noise.fold(keys, jnp.array([t])), jnp.arange(40))
    best = np.sort(np.asarray(logits + gumbel[0]))
    return float(best[-1] - best[-2])
