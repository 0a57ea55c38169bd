"""The schedule's three parts, clipping, and which parameters Muon takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rpt import optimizers

CONFIG = optimizers.OptimizerConfig(warmup_steps=4, decay_steps=10, final_fraction=0.1)


@pytest.mark.parametrize(
    ("step", "decay_start", "expected"),
    [
        (0, None, 0.25),
        (1, None, 0.5),
        (3, None, 1.0),
        (100, None, 1.0),
        (19, 20, 1.0),
        (20, 20, 0.91),
        (24, 20, 0.55),
        (29, 20, 0.1),
        (1000, 20, 0.1),
        (1, 0, 0.5 * (1 - 0.2 * 0.9)),  # a decay that begins within the warm-up multiplies
    ],
)
def test_factor(step, decay_start, expected):
    np.testing.assert_allclose(optimizers.factor(CONFIG, step, decay_start), expected)


def test_without_decay_steps_the_rate_stays():
    config = optimizers.OptimizerConfig(warmup_steps=0, decay_steps=0)
    assert [optimizers.factor(config, step, 5) for step in (0, 5, 50)] == [1.0, 1.0, 1.0]


MATRICES = {"query", "key", "value", "output", "gate", "up", "down"}


@pytest.fixture(scope="module")
def gradients(tiny_params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tiny_params)


def first_updates(optimizer, grads, params) -> dict:
    """The first updates, by path."""

    @jax.jit
    def run(grads, params):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    return dict(jax.tree_util.tree_leaves_with_path(run(grads, params)))


@pytest.fixture(scope="module")
def muon_updates(gradients, tiny_params):
    config = optimizers.OptimizerConfig(
        kind="muon", learning_rate=0.01, muon_learning_rate=0.1, weight_decay=0.5, grad_norm_clip=0
    )
    return first_updates(optimizers.make(config), gradients, tiny_params)


def test_muon_touches_the_matrices_of_the_layers_only(muon_updates, gradients, tiny_params):
    """The rest is AdamW's, weight decay included."""
    adamw = optax.adamw(0.01, b1=0.9, b2=0.98, weight_decay=0.5, nesterov=True)
    expected = first_updates(adamw, gradients, tiny_params)
    names = set()
    for path, update in muon_updates.items():
        names.add(path[-1].key)
        if path[-1].key in MATRICES:
            assert np.abs(update - expected[path]).max() > 1e-2, path
        else:
            np.testing.assert_allclose(update, expected[path], atol=1e-6, err_msg=str(path))
    assert names == MATRICES | {"embedding", "scale", "query_bias", "key_bias", "value_bias"}


def test_muon_updates_are_near_orthogonal_for_each_layer(muon_updates, gradients, tiny_params):
    """Over D on one side and all heads and widths on the other, the layer axis apart."""
    params = dict(jax.tree_util.tree_leaves_with_path(tiny_params))
    grads = dict(jax.tree_util.tree_leaves_with_path(gradients))
    for path, update in muon_updates.items():
        if path[-1].key in MATRICES:
            undecayed = update + 0.1 * 0.5 * params[path]
            assert spread(path, undecayed) < 1.8, path
            assert spread(path, grads[path]) > 2, path


def spread(path, x) -> float:
    """The largest singular value over the lower quartile, the worst of all layers.

    The quartile, because Newton-Schulz lifts the very smallest ones only in part.
    """
    rows = x.shape[1] * x.shape[2] if path[-1].key == "output" else x.shape[1]
    singular = np.linalg.svd(np.asarray(x).reshape(x.shape[0], rows, -1), compute_uv=False)
    return float(np.max(singular.max(-1) / np.quantile(singular, 0.25, axis=-1)))


def test_clipping_is_by_the_global_norm():
    """AdamW forgets the scale of a constant gradient, so the clip is seen in its moments."""
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    grads = {"a": jnp.full(3, 3.0), "b": jnp.full(4, 4.0)}  # norm sqrt(27 + 64)
    moments = {}
    for clip in (0.0, 1.0):
        optimizer = optimizers.make(optimizers.OptimizerConfig(grad_norm_clip=clip, b1=0.0))
        _, state = optimizer.update(grads, optimizer.init(params), params)
        moments[clip] = next(x for x in jax.tree.leaves(state) if x.shape == (3,))
    np.testing.assert_allclose(moments[0.0], 3.0)
    np.testing.assert_allclose(moments[1.0], 3.0 / np.sqrt(91), rtol=1e-5)
