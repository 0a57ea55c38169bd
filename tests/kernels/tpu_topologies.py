"""Compiling for TPU generations on a machine that has none, for the kernels' tests."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rpt import hlo, topologies

GENERATIONS = topologies.GENERATIONS

# What a kernel may take on all of them is 16 MiB; kernels choose blocks for 14.
VMEM_OF_THE_COMPILER = 2 * 2**20

# For a module's `pytestmark`.
needs_libtpu = pytest.mark.skipif(
    topologies.library() is None, reason="libtpu is not installed: make test installs it"
)


def pairs(names: Iterable[str], widest: Iterable[str]) -> list[Any]:
    """(generation, spec) for parametrize: all. The default suite compiles every spec for v5e, and
    for every generation `widest`, which need most VMEM; the others are marked slow."""
    needed = {("v5e", name) for name in names} | set(itertools.product(GENERATIONS, widest))
    return [
        pytest.param(*pair, marks=[] if pair in needed else pytest.mark.slow)
        for pair in itertools.product(GENERATIONS, names)
    ]


@functools.cache
def _devices(generation: str) -> list[Any]:
    return topologies.devices(GENERATIONS[generation])


def mesh(generation: str, **axes: int) -> Mesh:
    """The first devices of the generation's slice; without axes, one device on axis 'x'."""
    sizes = axes or {"x": 1}
    count = int(np.prod(list(sizes.values())))
    devices = np.asarray(_devices(generation)[:count])
    return Mesh(devices.reshape(*sizes.values()), tuple(sizes))


def compile_for(generation: str, function: Callable[..., Any], *shape_structs: Any) -> Any:
    """`function` compiled for one device, or for those of the structs' shardings.

    shape_structs: trees of ShapeDtypeStructs; those without a sharding lie on one device.
    """
    alone = NamedSharding(mesh(generation), PartitionSpec())

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or alone)

    return jax.jit(function).lower(*jax.tree.map(place, shape_structs)).compile()


def vmem_bytes(compiled: Any) -> dict[str, int]:
    """By kernel, such as 'logprob_forward', whose instruction may end in a number."""
    found = hlo.kernel_vmem_bytes(hlo.parse(compiled.as_text()))
    return {name.partition(".")[0]: size for name, size in found.items()}
