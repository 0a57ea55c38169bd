"""Truncated sampling from a short list of the largest logits, with proof that the list suffices.

Letters: M rows, N candidates, K the longest of them.

A pass over the vocabulary sees it as bins and keeps the d largest logits of each bin, N
candidates, and the largest logit that some list had no place for: `forgotten`. So every logit
outside the list is at most `forgotten`.

Proof that the list suffices. Let c_1 >= c_2 >= ... be the candidates and let top-k and top-p,
applied to them alone, keep those down to some value and drop x = c_j as the largest below it.
If forgotten <= x, no logit outside the list is above x, so c_1 .. c_{j-1} are exactly the logits
above x of the whole vocabulary, in order, ties included. Top-p's verdict on each of them reads
the masses of the ones before it and the mass that it is a share of: that of everything (summed
on the way) or, after top-k, that of c_1 .. c_k, which are the k largest of the vocabulary if
there are k candidates and forgotten <= c_k, or if nothing was forgotten. So the set kept is the
right one, and x is the largest logit dropped, since what was forgotten is no larger. If nothing is
dropped and nothing was forgotten (forgotten = -inf), the list is the vocabulary. Rows without proof
go to `bisection`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.sample import noise, reference, tiles
from kernels.sample.result import NEVER, Request, Sample

# How many candidates are sorted: for top-p alone, and beyond k for ties with the last kept.
_NUCLEUS = 512
_TIES = 16


class Candidates(NamedTuple):
    """A shard's list. z, forgotten and peak are tempered logits, -inf where there is none; id is
    global; mass is the sum of exp(z - peak) over the shard's whole vocabulary."""

    z_NM: jax.Array
    id_NM: jax.Array
    forgotten_M: jax.Array
    peak_M: jax.Array
    mass_M: jax.Array


def sample(
    request: Request, found: Candidates, keys_M2: jax.Array
) -> tuple[Sample, jax.Array, jax.Array, jax.Array]:
    """The sample, whether it is proven [M], and the peak and mass of all shards [M]."""
    axis = request.vocab_axis
    peak_M, mass_M = tiles.combine_mass(axis, found.peak_M, found.mass_M)
    first_MN = jnp.where(found.z_NM == peak_M, found.id_NM, jnp.iinfo(jnp.int32).max)
    best_M = jnp.min(first_MN, axis=0)
    best_M = best_M if axis is None else jax.lax.pmin(best_M, axis)
    z_MK, id_MK, forgotten_M = _longest(request, found)
    last_M, first_M, proven_M = _cut(request, z_MK, forgotten_M, peak_M, mass_M)
    kept_MK = z_MK >= last_M[:, None]
    gumbel_MK = noise.gumbel_at(keys_M2[:, :1], keys_M2[:, 1:], id_MK)
    score_MK = jnp.where(kept_MK, z_MK + gumbel_MK, NEVER)
    winning_M = jnp.max(score_MK, axis=1)
    # One id in K: the lowest of those with the winning score.
    won_MK = score_MK == winning_M[:, None]
    token_M = jnp.min(jnp.where(won_MK, id_MK, jnp.iinfo(jnp.int32).max), axis=1)
    z_M = jnp.max(jnp.where(won_MK & (id_MK == token_M[:, None]), z_MK, NEVER), axis=1)
    kept_mass_M = jnp.sum(jnp.where(kept_MK, jnp.exp(z_MK - peak_M[:, None]), 0), axis=1)
    threshold_M = reference.halfway(last_M, first_M)
    drawn = tiles.Winner(winning_M, token_M, z_M)
    return (
        finish(drawn, best_M, threshold_M, peak_M, kept_mass_M, mass_M),
        proven_M,
        peak_M,
        mass_M,
    )


def finish(
    drawn: tiles.Winner,
    best_M: jax.Array,
    threshold_M: jax.Array,
    peak_M: jax.Array,
    kept_mass_M: jax.Array,
    mass_M: jax.Array,
) -> Sample:
    """Masses are sums of exp(z - peak). The rare noise of -inf never wins: where it is all that
    is left, the most probable token is taken."""
    some_M = drawn.score_M > NEVER
    z_M = jnp.where(some_M, drawn.z_M, peak_M)
    log_kept_M = jnp.log(kept_mass_M)
    return Sample(
        jnp.where(some_M, drawn.id_M, best_M),
        z_M - peak_M - log_kept_M,
        threshold_M,
        jnp.minimum(log_kept_M - jnp.log(mass_M), 0),
        best_M,
    )


def _longest(request: Request, found: Candidates) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The K largest candidates of all shards in descending order, their ids, and the bound."""
    wanted = request.top_k + _TIES if request.top_k else _NUCLEUS
    z_MK, id_MK, forgotten_M = _largest(found.z_NM.T, found.id_NM, wanted, found.forgotten_M)
    if request.vocab_axis is None:
        return z_MK, id_MK, forgotten_M
    z_MN, id_MN = (
        jax.lax.all_gather(x, request.vocab_axis, axis=1, tiled=True) for x in (z_MK, id_MK)
    )
    forgotten_M = jax.lax.pmax(forgotten_M, request.vocab_axis)
    return _largest(z_MN, id_MN.T, wanted, forgotten_M)


def _largest(
    z_MN: jax.Array, id_NM: jax.Array, wanted: int, forgotten_M: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    N = z_MN.shape[1]
    z_MK, place_MK = jax.lax.top_k(z_MN, min(wanted, N))
    id_MK = jnp.take_along_axis(id_NM, place_MK.T, axis=0).T
    if wanted < N:
        # Not z_MK[:, -1]: XLA's CPU backend would take a slice of the result for one of a whole
        # sort, which takes 30 times as long.
        forgotten_M = jnp.maximum(forgotten_M, jnp.min(z_MK, axis=1))
    return z_MK, id_MK, forgotten_M


def _cut(
    request: Request,
    z_MK: jax.Array,
    forgotten_M: jax.Array,
    peak_M: jax.Array,
    mass_M: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Last kept and largest dropped logit, and whether they are proven, all [M]."""
    K = z_MK.shape[1]
    k = min(request.top_k or K, K)
    kept_MK = within_MK = (jnp.arange(K) < k) & (z_MK > NEVER)
    proven_M = jnp.full(z_MK.shape[:1], True)
    if request.top_p < 1:
        e_MK = jnp.exp(z_MK - peak_M[:, None])
        sums_MK = jnp.cumsum(jnp.where(kept_MK, e_MK, 0), axis=1)
        if request.top_k:
            mass_M = jnp.max(sums_MK, axis=1)
            kth_M = jnp.min(jnp.where(within_MK, z_MK, jnp.inf), axis=1)
            proven_M = forgotten_M <= (kth_M if request.top_k <= K else NEVER)
        before_MK = jnp.pad(sums_MK[:, :-1], ((0, 0), (1, 0)))
        kept_MK = within_MK & (before_MK < request.top_p * mass_M[:, None])
    last_M = jnp.min(jnp.where(kept_MK, z_MK, jnp.inf), axis=1)
    first_M = jnp.max(jnp.where(z_MK < last_M[:, None], z_MK, NEVER), axis=1)
    return last_M, first_M, proven_M & (forgotten_M <= first_M)
