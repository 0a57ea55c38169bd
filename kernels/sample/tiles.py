"""A pass over the vocabulary in tiles of tempered logits, and what is reduced from one.

Letters: M rows, D width, V vocabulary (of this shard), v vocabulary of a tile.

Tiles lie vocabulary-major, [v, M]: XLA's CPU matrix product is quicker that way round for few
rows, its reductions over v run along M in vector registers, and the dynamic slice of the
unembedding that a loop needs costs nothing measurable while it fits the cache (2 cores, D 576,
V 49152, M 32 and 128: tiles of 512 to 2048 cost what the one product of everything costs; a
Python loop over static slices twice that).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from kernels.sample import noise
from kernels.sample.result import NEVER, Request

# Bytes of the unembedding's slice, which is copied and has to stay in the cache.
_SLICE_BYTES = 2**22
_MIN_TILE, _MAX_TILE = 256, 1024
# The search for a maximum's id looks into one block of the tile only.
_BLOCK = 32

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Rows and this shard of the head: `fold` streams their logits, `size` ids at a time."""

    request: Request
    hidden_MD: jax.Array
    unembedding_VD: jax.Array
    keys_M2: jax.Array
    size: int

    @property
    def count(self) -> int:
        return -(-self.unembedding_VD.shape[0] // self.size)

    def local_id(self, tile: jax.Array, place: jax.Array) -> jax.Array:
        """Id within the shard; the last tile overlaps the one before rather than end outside."""
        return jnp.minimum(tile * self.size, self.unembedding_VD.shape[0] - self.size) + place

    def global_id(self, local: jax.Array) -> jax.Array:
        axis = self.request.vocab_axis
        if axis is None:
            return local
        return local + jax.lax.axis_index(axis) * self.unembedding_VD.shape[0]

    def logits(self, tile: jax.Array) -> jax.Array:
        """Tempered logits [v, M] in float32; -inf for ids that an earlier tile had."""
        V = self.unembedding_VD.shape[0]
        start = self.local_id(tile, jnp.int32(0))
        slice_vD = jax.lax.dynamic_slice_in_dim(self.unembedding_VD, start, self.size)
        z_vM = self.request.tempering(
            jnp.einsum(
                "vD,MD->vM",
                slice_vD.astype(self.hidden_MD.dtype),
                self.hidden_MD,
                preferred_element_type=jnp.float32,
            )
        )
        if V % self.size:
            repeated_v = start + jnp.arange(self.size) < tile * self.size
            z_vM = jnp.where(repeated_v[:, None], NEVER, z_vM)
        return z_vM

    def gumbel(self, tile: jax.Array) -> jax.Array:
        """The noise [v, M] of a tile."""
        ids_v = self.global_id(self.local_id(tile, jnp.arange(self.size)))
        return noise.gumbel_at(self.keys_M2[:, 0], self.keys_M2[:, 1], ids_v[:, None])

    def fold(
        self,
        step: Callable[[T, jax.Array, jax.Array], T],
        state: T,
        first: jax.Array | int = 0,
        stride: int = 1,
    ) -> T:
        """`step(state, tile, z_vM)` over the tiles first, first + stride, ... in this order."""

        def body(i: jax.Array, state: T) -> T:
            tile = first + i * stride
            return step(state, tile, self.logits(tile))

        return jax.lax.fori_loop(0, (self.count - first + stride - 1) // stride, body, state)


def stream(
    request: Request, hidden_MD: jax.Array, unembedding_VD: jax.Array, keys_M2: jax.Array
) -> Tiles:
    """Tiles whose slice of the unembedding fits: a power of two, or all of a small vocabulary."""
    V, D = unembedding_VD.shape
    fitting = _SLICE_BYTES // (D * unembedding_VD.dtype.itemsize)
    fitting = max(_MIN_TILE, min(_MAX_TILE, fitting))
    size = min(V, 1 << (fitting.bit_length() - 1))
    return Tiles(request, hidden_MD, unembedding_VD, keys_M2, size)


class Winner(NamedTuple):
    """The running best by (score, lowest id), all [M]; z is its tempered logit."""

    score_M: jax.Array
    id_M: jax.Array
    z_M: jax.Array


def nobody(rows: int) -> Winner:
    lowest = jnp.full(rows, NEVER, jnp.float32)
    return Winner(lowest, jnp.zeros(rows, jnp.int32), lowest)


def first_max(x_vM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest value of each row and the first place that has it."""
    v, M = x_vM.shape
    block = next(b for b in range(_BLOCK, 0, -1) if v % b == 0)
    blocks = x_vM.reshape(v // block, block, M)
    largest = blocks.max(axis=1)
    value_M = largest.max(axis=0)
    which_M = _first(largest == value_M)
    column = jnp.take_along_axis(blocks, which_M[None, None, :], axis=0)[0]
    return value_M, which_M * block + _first(column == value_M)


def _first(true_nM: jax.Array) -> jax.Array:
    """Index of the first truth of each column; the last index if there is none (NaN)."""
    n = true_nM.shape[0]
    return jnp.min(jnp.where(true_nM, jnp.arange(n)[:, None], n - 1), axis=0)


def race(tiles: Tiles, winner: Winner, tile: jax.Array, z_vM: jax.Array) -> Winner:
    """Gumbel-max: the winner after one more tile."""
    score_M, place_M = first_max(z_vM + tiles.gumbel(tile))
    z_M = jnp.take_along_axis(z_vM, place_M[None, :], axis=0)[0]
    id_M = tiles.global_id(tiles.local_id(tile, place_M))
    # Tiles come in the order of ids: on equal scores the earlier winner stays.
    better_M = score_M > winner.score_M
    return jax.tree.map(
        lambda new, old: jnp.where(better_M, new, old), Winner(score_M, id_M, z_M), winner
    )


def add_mass(
    z_vM: jax.Array, peak_M: jax.Array, mass_M: jax.Array, tile_peak_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Running maximum, and the running sum of exp(z - maximum), after one more tile."""
    new_M = jnp.maximum(peak_M, tile_peak_M)
    added_M = jnp.sum(jnp.exp(z_vM - new_M), axis=0)
    return new_M, mass_M * jnp.exp(peak_M - new_M) + added_M


# Over the vocabulary's shards: vectors [M] only.


def combine_peak(axis: str | None, peak_M: jax.Array) -> jax.Array:
    return peak_M if axis is None else jax.lax.pmax(peak_M, axis)


def combine_sum(axis: str | None, x: jax.Array) -> jax.Array:
    return x if axis is None else jax.lax.psum(x, axis)


def combine_mass(
    axis: str | None, peak_M: jax.Array, mass_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Maximum and sum of exp(z - maximum) of all shards."""
    all_M = combine_peak(axis, peak_M)
    return all_M, combine_sum(axis, mass_M * jnp.exp(peak_M - all_M))


def combine_winner(axis: str | None, winner: Winner) -> Winner:
    """By (score, lowest id), as if there were one shard."""
    if axis is None:
        return winner
    score_M = jax.lax.pmax(winner.score_M, axis)
    mine_M = winner.score_M == score_M
    id_M = jax.lax.pmin(jnp.where(mine_M, winner.id_M, jnp.iinfo(jnp.int32).max), axis)
    z_M = jax.lax.pmax(jnp.where(mine_M & (winner.id_M == id_M), winner.z_M, NEVER), axis)
    return Winner(score_M, id_M, z_M)
