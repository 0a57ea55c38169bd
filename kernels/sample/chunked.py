"""Streaming Gumbel-max in plain XLA, in bounded memory. Letters: M rows, D width, V vocabulary,
v vocabulary of a tile, N candidates.

Rows are taken in blocks and the vocabulary in tiles; what is carried from tile to tile is per row
(maximum, sum of exponentials, winner) and, with truncation, the candidates of `candidates`: the
place in an eighth of the tile is the bin. Every row block streams the unembedding once; the rows
whose candidates prove nothing make their block stream it again in `bisection`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernels.sample import bisection, candidates, tiles
from kernels.sample.result import NEVER, Request, Sample, greedy

# These sizes are arithmetic, not the best of a search; what they reach is in docs/performance.md,
# measured on 2 cores of an AMD EPYC with AVX2, 2026-11-21.
# A row block reuses each slice of the unembedding often enough to be bound by the products.
_ROWS = 256
# Logits that are little anyway: more rows of a small vocabulary.
_SMALL = 2**18
# Bins, and candidates of each: rows that keep up to about 200 tokens find their proof (at 150
# kept, one row in 30,000 has five of them in one bin).
_BINS = 2048
_DEPTH = 4
# Logits of a tile that fall into one bin: the lists, which lie outside the fast caches, are read
# and written once for all of them.
_FOLDS = 8


def sample(
    request: Request, hidden_MD: jax.Array, unembedding_VD: jax.Array, keys_M2: jax.Array
) -> Sample:
    """See `api.sample`."""
    one = functools.partial(_rows, request, unembedding_VD)
    limit = max(_ROWS, _SMALL // unembedding_VD.shape[0])
    return by_rows(one, limit, hidden_MD, keys_M2)


def by_rows(function: Callable[..., Sample], limit: int, *arrays: jax.Array) -> Sample:
    """`function` of at most `limit` rows of the arrays [M, ...] at a time."""
    M = arrays[0].shape[0]
    count = -(-M // limit)
    if count <= 1:
        return function(*arrays)
    rows = -(-M // count)
    blocks = [jnp.pad(x, ((0, count * rows - M), (0, 0))).reshape(count, rows, -1) for x in arrays]
    drawn = jax.lax.map(lambda block: function(*block), tuple(blocks))
    return jax.tree.map(lambda x: x.reshape(-1)[:M], drawn)


def _rows(
    request: Request, unembedding_VD: jax.Array, hidden_MD: jax.Array, keys_M2: jax.Array
) -> Sample:
    stream = tiles.stream(request, hidden_MD, unembedding_VD, keys_M2)
    if request.temperature == 0:
        return greedy(_best(stream))
    if not request.truncates:
        return _plain(stream)
    found = _candidates(stream)
    drawn, proven_M, peak_M, mass_M = candidates.sample(request, found, keys_M2)
    return complete(stream, drawn, proven_M, peak_M, mass_M)


def complete(
    stream: tiles.Tiles,
    drawn: Sample,
    proven_M: jax.Array,
    peak_M: jax.Array,
    mass_M: jax.Array,
) -> Sample:
    """Rows without proof are sampled by bisection, if there are any."""

    def bisect() -> Sample:
        exact = bisection.sample(stream, drawn.best_M, peak_M, mass_M)
        return jax.tree.map(lambda x, y: jnp.where(proven_M, x, y), drawn, exact)

    return jax.lax.cond(jnp.all(proven_M), lambda: drawn, bisect)


def _best(stream: tiles.Tiles) -> jax.Array:
    def step(winner: tiles.Winner, tile: jax.Array, z_vM: jax.Array) -> tiles.Winner:
        z_M, place_M = tiles.first_max(z_vM)
        better_M = z_M > winner.z_M
        id_M = stream.global_id(stream.local_id(tile, place_M))
        new_M = jnp.where(better_M, z_M, winner.z_M)
        return tiles.Winner(new_M, jnp.where(better_M, id_M, winner.id_M), new_M)

    winner = stream.fold(step, tiles.nobody(stream.hidden_MD.shape[0]))
    return tiles.combine_winner(stream.request.vocab_axis, winner).id_M


def _plain(stream: tiles.Tiles) -> Sample:
    """One pass: log-sum-exp, most probable token and Gumbel-max side by side."""
    axis = stream.request.vocab_axis

    def step(state, tile, z_vM):
        best, mass_M, winner = state
        z_M, place_M = tiles.first_max(z_vM)
        peak_M, mass_M = tiles.add_mass(z_vM, best.z_M, mass_M, z_M)
        id_M = stream.global_id(stream.local_id(tile, place_M))
        id_M = jnp.where(z_M > best.z_M, id_M, best.id_M)
        return tiles.Winner(peak_M, id_M, peak_M), mass_M, tiles.race(stream, winner, tile, z_vM)

    nobody = tiles.nobody(stream.hidden_MD.shape[0])
    best, mass_M, winner = stream.fold(step, (nobody, jnp.zeros_like(nobody.z_M), nobody))
    peak_M, mass_M = tiles.combine_mass(axis, best.z_M, mass_M)
    best_M = tiles.combine_winner(axis, best).id_M
    drawn = tiles.combine_winner(axis, winner)
    whole_M = jnp.full_like(peak_M, NEVER)
    return candidates.finish(drawn, best_M, whole_M, peak_M, mass_M, mass_M)


def _candidates(stream: tiles.Tiles) -> candidates.Candidates:
    """The largest logits of each bin. Groups of interleaved tiles multiply the bins of a tile:
    frequent tokens, whose ids are neighbours, fall into different bins."""
    rows = stream.hidden_MD.shape[0]
    folds = next(f for f in (_FOLDS, 4, 2, 1) if stream.size % f == 0 or f == 1)
    bins = stream.size // folds
    groups = min(-(-_BINS // bins), stream.count)
    seen = folds * -(-stream.count // groups)
    depth = min(_DEPTH, seen)
    empty = (
        [jnp.full((bins, rows), NEVER, jnp.float32)] * depth,
        [jnp.zeros((bins, rows), jnp.int32)] * depth,
    )

    def step(state, tile, z_vM):
        z, turn_of, forgotten_M, peak_M, mass_M = state
        peak_M, mass_M = tiles.add_mass(z_vM, peak_M, mass_M, jnp.max(z_vM, axis=0))
        for fold, new in enumerate(z_vM.reshape(folds, bins, rows)):
            turn = jnp.broadcast_to(tile * folds + fold, new.shape)
            z, turn_of, left = _insert(z, turn_of, new, turn)
            forgotten_M = jnp.maximum(forgotten_M, jnp.max(left, axis=0))
        return z, turn_of, forgotten_M, peak_M, mass_M

    def group(state, first):
        z, turn_of, *state = stream.fold(step, (*empty, *state), first, groups)
        z, turn = jnp.stack(z), jnp.stack(turn_of)
        place = turn % folds * bins + jnp.arange(bins)[:, None]
        ids = stream.global_id(stream.local_id(turn // folds, place))
        return tuple(state), (z, ids)

    lowest_M = jnp.full(rows, NEVER, jnp.float32)
    start = (lowest_M, lowest_M, jnp.zeros(rows, jnp.float32))
    sums, (z, ids) = jax.lax.scan(group, start, jnp.arange(groups))
    forgotten_M, peak_M, mass_M = sums
    return candidates.Candidates(
        z.reshape(-1, rows), ids.reshape(-1, rows), forgotten_M, peak_M, mass_M
    )


def _insert(
    z: list, turn_of: list, new: jax.Array, turn: jax.Array
) -> tuple[list, list, jax.Array]:
    """Sorted lists [bins, M] after one more logit of each bin; on equal ones the earlier turn
    stays first. Last: what each list has no place for."""
    z, turn_of = list(z), list(turn_of)
    for place, (old, old_turn) in enumerate(zip(z, turn_of)):
        up = new > old
        z[place] = jnp.where(up, new, old)
        turn_of[place] = jnp.where(up, turn, old_turn)
        new = jnp.where(up, old, new)
        turn = jnp.where(up, old_turn, turn)
    return z, turn_of, new
