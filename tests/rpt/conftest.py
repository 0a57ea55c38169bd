"""One tiny model for the suite: its programs are compiled once and shared by the tests of a file.

It has everything that the variants differ in: grouped queries, biases on queries, keys and values,
norms on queries and keys, a tied head.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpt.model import config as config_lib
from rpt.model import transformer


@pytest.fixture(scope="session")
def tiny_model() -> config_lib.ModelConfig:
    return config_lib.ModelConfig(
        vocab_size=40,
        width=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_width=8,
        ff_width=32,
        qkv_bias=True,
        qk_norm=True,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_model) -> transformer.Params:
    """Random everywhere: a fresh model's zero biases and unit norms would hide their misuse."""
    shapes = jax.eval_shape(lambda: transformer.init(tiny_model, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def one(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.3, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)
