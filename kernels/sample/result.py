"""What a sampler returns and what it is asked for. Letters: M rows, D width, V vocabulary."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.logprob import maths

NEVER = float("-inf")


class Sample(NamedTuple):
    """All [M]. token and best (the most probable token) are int32 ids, the rest float32.

    log_prob: of the token, in nats, under the truncated and tempered distribution.
    threshold: tempered logits below it were cut away; -inf if none was. It lies halfway between
      the last logit kept and the largest one dropped, so that a trainer whose logits differ by a
      rounding error masks the same tokens by z >= threshold.
    log_mass: log of the untruncated tempered probability that was kept; 0 without truncation.
    """

    token_M: jax.Array
    log_prob_M: jax.Array
    threshold_M: jax.Array
    log_mass_M: jax.Array
    best_M: jax.Array


@dataclasses.dataclass(frozen=True)
class Request:
    """How to sample: `api.sample` documents each field."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    logit_scale: float = 1.0
    soft_cap: float | None = None
    vocab_axis: str | None = None

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1

    @property
    def tempering(self) -> maths.Tempering:
        """From products to tempered logits, as the trainer has it; untempered at temperature 0."""
        return maths.Tempering(self.temperature or 1.0, self.logit_scale, self.soft_cap)


def greedy(best_M: jax.Array) -> Sample:
    """What temperature 0 returns."""
    zero_M = jnp.zeros(best_M.shape, jnp.float32)
    return Sample(best_M, zero_M, jnp.full_like(zero_M, NEVER), zero_M, best_M)
