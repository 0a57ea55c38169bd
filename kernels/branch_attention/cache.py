"""What decoding keeps of a branch's past and of its trunk, in the layouts that its sums run along.

The past has one key per branch, so no matrix product is shared between branches: its sums are over
H for logits and over U for the mix, and both run fastest with the other axis innermost. The trunk
is one matrix per document and key/value head.

Letters: kernels/branch_attention/api.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Past(NamedTuple):
    """Keys and values of the branches' own positions; those not written yet are finite."""

    key_BRKHU: jax.Array
    value_BRKUH: jax.Array

    @property
    def capacity(self) -> int:
        """U"""
        return self.key_BRKHU.shape[4]


class Trunk(NamedTuple):
    """Keys and values of whole documents."""

    key_BKSH: jax.Array
    value_BKSH: jax.Array


# The letters of the axes, for whoever splits them over a mesh.
PAST_AXES = ("BRKHU", "BRKUH")
TRUNK_AXES = ("BKSH", "BKSH")


def empty_past(B: int, R: int, U: int, K: int, H: int, dtype) -> Past:
    """Room for U positions of every branch."""
    return Past(jnp.zeros((B, R, K, H, U), dtype), jnp.zeros((B, R, K, U, H), dtype))


def append(past: Past, key_BRKH: jax.Array, value_BRKH: jax.Array, index: jax.Array | int) -> Past:
    """The past with one position written at `index`; in place where the past is donated."""
    return extend(past, key_BRKH[:, :, None], value_BRKH[:, :, None], index)


def extend(
    past: Past, key_BRTKH: jax.Array, value_BRTKH: jax.Array, index: jax.Array | int
) -> Past:
    """The past with T positions written from `index` on, such as those of a prefill."""
    key, value = past
    new_key = jnp.transpose(key_BRTKH, (0, 1, 3, 4, 2)).astype(key.dtype)
    new_value = jnp.swapaxes(value_BRTKH, 2, 3).astype(value.dtype)
    return Past(
        jax.lax.dynamic_update_slice_in_dim(key, new_key, index, axis=4),
        jax.lax.dynamic_update_slice_in_dim(value, new_value, index, axis=3),
    )


def grow(past: Past, U: int) -> Past:
    """The past with room for U positions, at least as many as it has."""
    more = U - past.capacity
    if more < 0:
        raise ValueError(f"a past of {past.capacity} positions cannot be cut to {U}")
    key = jnp.pad(past.key_BRKHU, ((0, 0),) * 4 + ((0, more),))
    return Past(key, jnp.pad(past.value_BRKUH, ((0, 0),) * 3 + ((0, more), (0, 0))))


def take(past: Past, order_BR: jax.Array) -> Past:
    """The branches `order_BR` of each document, in that order; R may become smaller."""
    return jax.tree.map(lambda x: jax.vmap(lambda row, order: row[order])(x, order_BR), past)


def prepare_trunk(key_BSKH: jax.Array, value_BSKH: jax.Array) -> Trunk:
    """The trunk as decoding reads it; made once and not per step."""
    return Trunk(jnp.swapaxes(key_BSKH, 1, 2), jnp.swapaxes(value_BSKH, 1, 2))


def plain_past(past: Past) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, R, U, K, H]."""
    return jnp.transpose(past.key_BRKHU, (0, 1, 4, 2, 3)), jnp.swapaxes(past.value_BRKUH, 2, 3)


def plain_trunk(trunk: Trunk) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, S, K, H]."""
    return jnp.swapaxes(trunk.key_BKSH, 1, 2), jnp.swapaxes(trunk.value_BKSH, 1, 2)
