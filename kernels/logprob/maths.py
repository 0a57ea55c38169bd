"""What every implementation computes for a tile of logits: partial sums, and one gradient formula.

With z = softcap(logit_scale * h @ W.T) / temperature over the tokens kept, L = log sum exp z,
p = exp(z - L), H = -sum p log p:

    d log p_y / dz_j = 1[j = y] - p_j       dL / dz_j = p_j       dH / dz_j = -p_j (log p_j + H)

so that cotangents a, b, c of (log p_y, L, H) give

    dz_j = a 1[j = y] + p_j (b - a - c H - c (z_j - L))

M rows, V vocabulary. Tiles lie either way round, so functions take `axis`, that of the vocabulary,
and row vectors that broadcast against the tile.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Below every logit, and finite so that differences of two of them are not NaN.
LOWEST = -1e30


class LogProb(NamedTuple):
    """All [M] in float32: log-probability of the label, log-sum-exp of the tempered logits, and
    entropy in nats of the (truncated) distribution."""

    log_prob_M: jax.Array
    log_sum_exp_M: jax.Array
    entropy_M: jax.Array


class Partial(NamedTuple):
    """What a part of the vocabulary adds to a row: the greatest z; the sums of exp(z - max) and of
    exp(z - max) (z - max), whose terms do not cancel as those of exp(z) z do; the label's z (0
    where the label is elsewhere)."""

    max_M: jax.Array
    sum_M: jax.Array
    excess_M: jax.Array
    label_M: jax.Array


class Pull(NamedTuple):
    """Per row, what turns z into its cotangent: dz = label 1[j = y] + p (base - entropy (z - L)).

    A row whose cotangents are all zero holds zeros, so that its dz is exactly 0.
    """

    log_sum_exp_M: jax.Array
    label_M: jax.Array
    base_M: jax.Array
    entropy_M: jax.Array


@dataclasses.dataclass(frozen=True)
class Tempering:
    """From products of hidden and unembedding to tempered logits."""

    temperature: float = 1.0
    logit_scale: float = 1.0
    soft_cap: float | None = None

    @property
    def factor(self) -> float:
        """Slope of the tempered logit at 0."""
        return self.logit_scale / self.temperature

    def __call__(self, products: jax.Array) -> jax.Array:
        if self.soft_cap is None:
            return products * self.factor if self.factor != 1.0 else products
        capped = jnp.tanh(products * (self.logit_scale / self.soft_cap))
        return capped * (self.soft_cap / self.temperature)

    def bend(self, logits: jax.Array, dlogits: jax.Array) -> jax.Array:
        """dlogits through the soft cap; the factor is the caller's."""
        if self.soft_cap is None:
            return dlogits
        tanh = logits * (self.temperature / self.soft_cap)
        return dlogits * (1.0 - tanh * tanh)


def kept(
    logits: jax.Array,
    threshold: jax.Array | None,
    is_label: jax.Array,
    exists: jax.Array | None = None,
) -> jax.Array | None:
    """Which logits belong to the distribution; None if all do. exists: where the tile does not
    reach beyond the vocabulary."""
    if threshold is None:
        return exists
    above = (logits >= threshold) | is_label
    return above if exists is None else above & exists


def partial_sums(
    logits: jax.Array, kept: jax.Array | None, axis: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """max, sum and excess (see Partial) of one tile, with `axis` kept at size 1."""
    if kept is not None:
        logits = jnp.where(kept, logits, LOWEST)
    greatest = jnp.max(logits, axis=axis, keepdims=True)
    shifted = logits - greatest
    weight = jnp.exp(shifted)
    if kept is not None:
        # Where nothing is kept, all are as great as the greatest.
        weight = jnp.where(kept, weight, 0.0)
    return (
        greatest,
        jnp.sum(weight, axis=axis, keepdims=True),
        jnp.sum(weight * shifted, axis=axis, keepdims=True),
    )


def nothing(shape: tuple[int, ...]) -> Partial:
    """Of no vocabulary at all."""
    zeros = jnp.zeros(shape, jnp.float32)
    return Partial(jnp.full(shape, LOWEST, jnp.float32), zeros, zeros, zeros)


def merge(a: Partial, b: Partial) -> Partial:
    """Of two parts of the vocabulary that do not overlap."""
    greatest = jnp.maximum(a.max_M, b.max_M)
    a_sum, a_excess = _rebase(a, greatest)
    b_sum, b_excess = _rebase(b, greatest)
    return Partial(greatest, a_sum + b_sum, a_excess + b_excess, a.label_M + b.label_M)


def combine(part: Partial, vocab_axis: str | None) -> Partial:
    """Of the shards of the vocabulary along a mesh axis: reductions of row vectors only."""
    if vocab_axis is None:
        return part
    greatest = jax.lax.pmax(part.max_M, vocab_axis)
    sums = (*_rebase(part, greatest), part.label_M)
    return Partial(greatest, *jax.lax.psum(sums, vocab_axis))


def _rebase(part: Partial, greatest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum and excess counted from a greater maximum."""
    lower = part.max_M - greatest
    shrink = jnp.exp(lower)
    return shrink * part.sum_M, shrink * (part.excess_M + lower * part.sum_M)


def finish(part: Partial) -> LogProb:
    """Finite even where nothing was kept."""
    total_M = jnp.where(part.sum_M > 0, part.sum_M, 1.0)
    log_total_M = jnp.log(total_M)
    log_sum_exp_M = part.max_M + log_total_M
    entropy_M = log_total_M - part.excess_M / total_M
    return LogProb(part.label_M - log_sum_exp_M, log_sum_exp_M, entropy_M)


def pull(cotangent: LogProb, log_sum_exp_M, entropy_M, factor: float) -> tuple[Pull, jax.Array]:
    """The rows' coefficients, times `factor`, and which rows have any."""
    a_M, b_M, c_M = cotangent
    live_M = (a_M != 0) | (b_M != 0) | (c_M != 0)
    rows = Pull(log_sum_exp_M, a_M * factor, (b_M - a_M - c_M * entropy_M) * factor, c_M * factor)
    # Not by multiplication: what a dead row computed may be infinite.
    return jax.tree.map(lambda x: jnp.where(live_M, x, 0.0), rows), live_M


def pull_back(
    tempering: Tempering,
    rows: Pull,
    logits: jax.Array,
    is_label: jax.Array,
    kept: jax.Array | None,
) -> jax.Array:
    """The cotangent of a tile of products (before scale and cap)."""
    log_probs = logits - rows.log_sum_exp_M
    dlogits = jnp.exp(log_probs) * (rows.base_M - rows.entropy_M * log_probs)
    if kept is not None:
        dlogits = jnp.where(kept, dlogits, 0.0)
    dlogits += jnp.where(is_label, rows.label_M, 0.0)
    return tempering.bend(logits, dlogits)
