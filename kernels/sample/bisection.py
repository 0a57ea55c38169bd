"""Truncated sampling by bisection on the bits of the threshold: exact for any top-k and top-p.

Letters: M rows, P pivots, v vocabulary of a tile.

A logit z is kept iff fewer than k logits are above it, and these have less than top_p of the
mass that top-k leaves. Both grow as z falls, so with

    keeps(x) = count{z > x} < k  and  mass{z > x} < top_p * (mass of the k largest)

the last one kept is the least logit with keeps(z). Per row the search holds low < high with
keeps(high) and not keeps(low), as integers that are ordered like the floats. A pass over the
vocabulary counts and weighs the logits above P pivots and so divides the bracket by P + 1. It
ends when at most one logit is left in (low, high]: the largest logit there has the same logits
above it as `high`, hence is kept, and everything up to `low` is dropped. Where equal logits keep
the bracket full it ends with high = low + 1: they are all equal to `high`, and kept together.
So {z > low} is the set kept, ties included. 32 bits need 11 passes at 3 bits each; a first pass
with pivots near the peak, where the cut usually is, saves most of them. A last pass samples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.sample import candidates, reference, tiles
from kernels.sample.result import NEVER, Sample

_PIVOTS = 7
# First pivots, in nats below the peak.
_NEAR = (1.0, 2.0, 4.0, 6.0, 8.0, 11.0, 16.0)


class Bracket(NamedTuple):
    """Keys (see `_key`) and what is above each: count and sum of exp(z - peak). All [M]."""

    low_M: jax.Array
    low_count_M: jax.Array
    low_mass_M: jax.Array
    high_M: jax.Array
    high_count_M: jax.Array
    high_mass_M: jax.Array


def sample(stream: tiles.Tiles, best_M: jax.Array, peak_M: jax.Array, mass_M: jax.Array) -> Sample:
    """Peak, mass and best are those of all shards."""
    request = stream.request
    V = stream.unembedding_VD.shape[0]
    if request.vocab_axis is not None:
        V *= jax.lax.axis_size(request.vocab_axis)
    k = min(request.top_k or V, V)
    start = Bracket(
        jnp.zeros_like(best_M, jnp.uint32) + _key(jnp.float32(NEVER)),
        jnp.full_like(best_M, V),
        mass_M,
        _key(peak_M),
        jnp.zeros_like(best_M),
        jnp.zeros_like(mass_M),
    )

    def find(_, state: tuple[Bracket, jax.Array]) -> tuple[Bracket, jax.Array]:
        found = _search(stream, peak_M, start, k, state[1])
        # Logits equal to the k-th stay, but top-p's share is of k logits exactly.
        surplus_M = (found.low_count_M - k).astype(jnp.float32)
        spare_M = jnp.where(surplus_M > 0, surplus_M * jnp.exp(_value(found.high_M) - peak_M), 0)
        return found, request.top_p * (found.low_mass_M - spare_M)

    # With both, the first search leaves the mass of the k largest, the second decides.
    passes = 2 if request.top_k and request.top_p < 1 else 1
    share_M = request.top_p * mass_M
    if request.top_k:
        share_M = jnp.full_like(mass_M, jnp.inf)
    found, _ = jax.lax.fori_loop(0, passes, find, (start, share_M))
    return _draw(stream, found, best_M, peak_M, mass_M)


def _search(
    stream: tiles.Tiles, peak_M: jax.Array, start: Bracket, k: int, share_M: jax.Array
) -> Bracket:
    def unresolved(state: tuple[Bracket, jax.Array]) -> jax.Array:
        bracket, _ = state
        many_M = bracket.low_count_M - bracket.high_count_M > 1
        return jnp.any(many_M & (bracket.high_M - bracket.low_M > 1))

    def narrow(state: tuple[Bracket, jax.Array]) -> tuple[Bracket, jax.Array]:
        bracket, pivot_PM = state
        count_PM, mass_PM = _above(stream, _value(pivot_PM), peak_M)
        keeps_PM = (count_PM < k) & (mass_PM < share_M)
        inside_PM = (pivot_PM > bracket.low_M) & (pivot_PM < bracket.high_M)
        low_PM, high_PM = inside_PM & ~keeps_PM, inside_PM & keeps_PM
        # The nearest pivot on either side has the least above it, or the most.
        bracket = Bracket(
            jnp.maximum(bracket.low_M, jnp.max(jnp.where(low_PM, pivot_PM, 0), axis=0)),
            _least(low_PM, count_PM, bracket.low_count_M),
            _least(low_PM, mass_PM, bracket.low_mass_M),
            _least(high_PM, pivot_PM, bracket.high_M),
            jnp.maximum(bracket.high_count_M, jnp.max(jnp.where(high_PM, count_PM, 0), axis=0)),
            jnp.maximum(bracket.high_mass_M, jnp.max(jnp.where(high_PM, mass_PM, 0), axis=0)),
        )
        width_M = bracket.high_M - bracket.low_M
        step_M = width_M // (_PIVOTS + 1)
        part_P1 = jnp.arange(1, _PIVOTS + 1, dtype=jnp.uint32)[:, None]
        # A bracket of fewer keys than pivots is halved.
        offset_PM = jnp.where(step_M > 0, step_M * part_P1, width_M // 2)
        return bracket, bracket.low_M + offset_PM

    near_PM = _key(peak_M - jnp.asarray(_NEAR, jnp.float32)[:, None])
    return jax.lax.while_loop(unresolved, narrow, (start, near_PM))[0]


def _least(where_PM: jax.Array, x_PM: jax.Array, x_M: jax.Array) -> jax.Array:
    return jnp.min(jnp.where(where_PM, x_PM, x_M), axis=0)


def _above(
    stream: tiles.Tiles, pivot_PM: jax.Array, peak_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Count and mass of the logits above each pivot, [P, M], of all shards."""

    def step(state, tile, z_vM):
        del tile
        e_vM = jnp.exp(z_vM - peak_M)
        above_PvM = z_vM > pivot_PM[:, None, :]
        count_PM, mass_PM = state
        return (
            count_PM + jnp.sum(above_PvM, axis=1, dtype=jnp.int32),
            mass_PM + jnp.sum(jnp.where(above_PvM, e_vM, 0), axis=1),
        )

    zero_PM = jnp.zeros(pivot_PM.shape, jnp.float32)
    count_PM, mass_PM = stream.fold(step, (zero_PM.astype(jnp.int32), zero_PM))
    axis = stream.request.vocab_axis
    return tiles.combine_sum(axis, count_PM), tiles.combine_sum(axis, mass_PM)


def _draw(
    stream: tiles.Tiles, found: Bracket, best_M: jax.Array, peak_M: jax.Array, mass_M: jax.Array
) -> Sample:
    """The last pass: Gumbel-max above `low`, and the logits on both sides of it."""
    low_M = _value(found.low_M)

    def step(state, tile, z_vM):
        winner, last_M, first_M, kept_mass_M = state
        kept_vM = z_vM > low_M
        return (
            tiles.race(stream, winner, tile, jnp.where(kept_vM, z_vM, NEVER)),
            jnp.minimum(last_M, jnp.min(jnp.where(kept_vM, z_vM, jnp.inf), axis=0)),
            jnp.maximum(first_M, jnp.max(jnp.where(kept_vM, NEVER, z_vM), axis=0)),
            kept_mass_M + jnp.sum(jnp.where(kept_vM, jnp.exp(z_vM - peak_M), 0), axis=0),
        )

    rows = peak_M.shape[0]
    edge_M = jnp.full_like(peak_M, jnp.inf)
    start = (tiles.nobody(rows), edge_M, -edge_M, jnp.zeros_like(peak_M))
    winner, last_M, first_M, kept_mass_M = stream.fold(step, start)
    axis = stream.request.vocab_axis
    last_M = -tiles.combine_peak(axis, -last_M)
    first_M = tiles.combine_peak(axis, first_M)
    return candidates.finish(
        tiles.combine_winner(axis, winner),
        best_M,
        reference.halfway(last_M, first_M),
        peak_M,
        tiles.combine_sum(axis, kept_mass_M),
        mass_M,
    )


_SIGN = np.uint32(0x80000000)


def _key(z: jax.Array) -> jax.Array:
    """uint32 in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(z, jnp.uint32)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _value(key: jax.Array) -> jax.Array:
    """The float of a key."""
    bits = jnp.where(key >= _SIGN, key & ~_SIGN, ~key)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
