"""The work that steps and decoding are measured on: SmolLM2-135M's shape, no early end."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpt import formats, loading, phases, rollout
from rpt.model import config as model_config
from rpt.model import transformer

TEMPLATE = formats.parse_template("{{document}}<think>{{thought}}</think>{{answer}}")


@dataclasses.dataclass(frozen=True)
class Workload:
    """One document of `trunk` tokens, `group` thoughts of `new_tokens` at each of `cuts`."""

    trunk: int
    cuts: tuple[int, ...]
    group: int
    new_tokens: int

    def __str__(self) -> str:
        return (
            f"1 document of {self.trunk} tokens, cuts at {self.cuts}, G = {self.group}, "
            f"T = {self.new_tokens} new tokens each"
        )


WORKLOADS = {
    "W1": Workload(trunk=512, cuts=(128, 256, 384, 511), group=8, new_tokens=32),
    "W2": Workload(
        trunk=1024, cuts=(128, 256, 384, 512, 640, 768, 896, 1023), group=8, new_tokens=64
    ),
    "tiny": Workload(trunk=32, cuts=(8, 31), group=2, new_tokens=4),
}


def load(weights: str, dtype: model_config.Dtype) -> tuple[model_config.ModelConfig, Any]:
    """A checkpoint ('fetch:smollm2' or a path), or random weights of its shape for ''."""
    if weights:
        loaded = loading.load_any(weights)
        model, params = loaded.model, jax.tree.map(jnp.asarray, loaded.params)
    else:
        model = model_config.named("smollm2_135m", rope_theta=100_000.0)
        params = jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0))
    return dataclasses.replace(model, dtype=dtype), params


def document(model: model_config.ModelConfig, length: int) -> np.ndarray:
    """Random ids: what is computed does not depend on them."""
    return np.random.default_rng(0).integers(3, model.vocab_size, length).astype(np.int32)


def settings(workload: Workload, group: int) -> rollout.RolloutConfig:
    """Thoughts are closed by the budget, so that every branch has all its tokens: one forced, one
    answer, the others thought."""
    return rollout.RolloutConfig(group_size=group, think_tokens=workload.new_tokens - 2)


def tables(model: model_config.ModelConfig) -> phases.Tables:
    """One token of tail, one of close; no token ends a thought or an answer."""
    V, states = model.vocab_size, len(formats.MARKER) + 1
    return phases.Tables(
        tail_ids=jnp.array([1]),
        forced_ids=jnp.array([2]),
        close_length=jnp.int32(1),
        automaton_VS=jnp.zeros((V, states), jnp.uint8),
        straddles_VS=jnp.zeros((V, states), bool),
        stop_V=jnp.zeros(V, bool),
    )
