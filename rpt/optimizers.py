"""Optimisers from optax: AdamW, and Muon on matrices with AdamW on the rest."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, muon


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Peak learning rates; `factor` scales them over time.

    Attributes:
      kind: adamw, or muon (arXiv 2502.16982) for the layers' matrices; Muon and the AdamW beside
        it have Nesterov momentum.
      learning_rate: AdamW's, also for what Muon leaves over (embeddings, norms, biases).
      muon_learning_rate: for the matrices under muon.
      warmup_steps: linear from 0.
      decay_steps: linear to final_fraction over the last steps; 0 keeps the rate constant.
      final_fraction: of the peak, at the end of the decay.
      grad_norm_clip: global norm; 0 does not clip.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 1e-2
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    warmup_steps: int = 10
    decay_steps: int = 0
    final_fraction: float = 0.1
    grad_norm_clip: float = 1.0


@functools.cache
def make(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimiser at its peak rate; multiply its updates by `factor`.

    One object per config, because programs are compiled per object.
    """
    if config.kind == "muon":
        inner = muon(
            config.muon_learning_rate,
            adam_learning_rate=config.learning_rate,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        inner = optax.adamw(
            config.learning_rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay
        )
    if config.grad_norm_clip:
        return optax.chain(optax.clip_by_global_norm(config.grad_norm_clip), inner)
    return inner


def init_state(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """The optimiser's state, laid out as the parameters are; what is no moment is replicated.

    Not under jit: zeros depend on no argument, so jit would put all of them on one device.
    """
    state = optimizer.init(params)
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return state
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(lambda x: x if x.committed else jax.device_put(x, replicated), state)


def factor(config: OptimizerConfig, step: int, decay_start: int | None) -> float:
    """The share of the peak rate at a step counted from 0.

    `decay_start` is None as long as the end is not known (a gate decides when stage 0 may end).
    """
    share = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if decay_start is None or config.decay_steps == 0 or step < decay_start:
        return share
    done = min(1.0, (step + 1 - decay_start) / config.decay_steps)
    return share * (1 - done * (1 - config.final_fraction))


def _matrices(params: Any) -> Any:
    """Which parameters Muon orthogonalises, as stacked matrices [L, in..., out...]."""
    numbers = {
        **dict.fromkeys(("query", "key", "value"), MuonDimensionNumbers(1, (2, 3))),
        "output": MuonDimensionNumbers((1, 2), 3),
        **dict.fromkeys(("gate", "up", "down"), MuonDimensionNumbers(1, 2)),
    }

    def of(path, leaf) -> MuonDimensionNumbers | None:
        return numbers.get(path[-1].key) if leaf.ndim > 1 else None

    return jax.tree_util.tree_map_with_path(of, params)
