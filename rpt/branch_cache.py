"""The cache of a rollout's branches: its sizes, and how it passes from one to the next.

Growing and compacting go layer by layer, and each layer is waited for before its old arrays are
given back: beside the new cache lives one old layer, where one program for all of them would hold
the old cache and the new one together.

Letters: B documents, R branches, U positions of the cache.
"""

import functools
from collections.abc import Callable

import jax

from kernels.branch_attention import api as branch_attention
from rpt.model import decoding

_HALVINGS = 3
# A last size that is less than this times the one before it takes its place: it would cost a
# program and a copy of the cache for a few positions.
_LEAST_GROWTH = 1.25


def ladder(first: int, last: int) -> list[int]:
    """Sizes U of the cache: doubling, and ending exactly at the longest branch."""
    sizes = []
    while first * _LEAST_GROWTH <= last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]


def width(live: int, R: int, multiple: int) -> int:
    """The smallest of R, R/2, R/4 and R/8, a program each, that holds `live` and is a multiple."""
    for _ in range(_HALVINGS):
        if R % (2 * multiple) == 0 and live <= R // 2:
            R //= 2
    return R


def grow(cache: decoding.Cache, size: int) -> decoding.Cache:
    """Room for more positions, `size` of each branch. The cache that was given is used up."""
    return _by_layer(cache, functools.partial(grow_layer, size=size))


def take(cache: decoding.Cache, order_BR: jax.Array) -> decoding.Cache:
    """The branches `order_BR` of each document. The cache that was given is used up."""
    return _by_layer(cache, functools.partial(_take_layer, order_BR=order_BR))


@functools.partial(jax.jit, static_argnames=("size",))
def grow_layer(past: branch_attention.Past, size: int) -> branch_attention.Past:
    return branch_attention.grow(past, size)


@jax.jit
def _take_layer(past: branch_attention.Past, order_BR: jax.Array) -> branch_attention.Past:
    return branch_attention.take(past, order_BR)


def _by_layer(
    cache: decoding.Cache, resized: Callable[[branch_attention.Past], branch_attention.Past]
) -> decoding.Cache:
    layers = []
    for past in cache:
        layers.append(jax.block_until_ready(resized(past)))
        # Donating would not do: no result has the old size, so the buffers would stay.
        for array in past:
            array.delete()
    return tuple(layers)
