"""The mesh, and one table from logical axes to mesh axes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")

# Training layout: parameters over fsdp along their width, heads and vocabulary over tensor.
RULES = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "ff": "tensor",
    "layers": None,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; fsdp=-1 takes all that are left."""

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1


def make_mesh(config: MeshConfig, batch_size: int) -> Mesh:
    """The mesh over all devices.

    Raises:
      ValueError: the axes do not multiply to the number of devices, or the batch does not
        divide over them.
    """
    shape = mesh_shape(config, jax.device_count())
    rows = shape[0] * shape[1]
    if batch_size % rows:
        raise ValueError(
            f"batch of {batch_size} rows does not divide over replica*fsdp={rows} devices; "
            f"make it a multiple of {rows} or change config.mesh"
        )
    return arranged(jax.devices(), shape)


def arranged(devices: Sequence[Any], shape: tuple[int, int, int]) -> Mesh:
    """A mesh of so many devices per axis of MESH_AXES: chips that exchange most are neighbours, and
    several slices, which only the data center's network connects, lie along replica.

    Raises:
      ValueError: replica is no multiple of the number of slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    replica, *inner = shape
    if replica % slices:
        raise ValueError(
            f"replica={replica} does not divide over {slices} slices; set config.mesh.replica to a "
            f"multiple of {slices}"
        )
    # An axis of the mesh may take part of an axis of the torus: 2 of tensor on a 4x4.
    if slices > 1:
        found = mesh_utils.create_hybrid_device_mesh(
            (replica // slices, *inner),
            (slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        found = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(found, MESH_AXES)


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int, int]:
    """Devices per axis of MESH_AXES, for `count` devices.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    if min(config.replica, config.tensor) < 1 or (config.fsdp < 1 and config.fsdp != -1):
        raise ValueError("config.mesh: axes must be at least 1 (fsdp=-1 takes all devices left)")
    fixed = config.replica * config.tensor
    fsdp = count // fixed if config.fsdp == -1 else config.fsdp
    if fixed * fsdp != count:
        raise ValueError(
            f"mesh replica={config.replica} x fsdp={config.fsdp} x tensor={config.tensor} does not "
            f"use the {count} device(s) exactly; set config.mesh to axes whose product is {count}"
        )
    return config.replica, fsdp, config.tensor


def parameter_shardings(mesh: Mesh | AbstractMesh, logical_axes: Any, shapes: Any) -> Any:
    """A NamedSharding per parameter; an axis that does not divide is replicated."""

    def one(axes: PartitionSpec, shape) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(mesh, tuple(axes), shape.shape))

    return jax.tree.map(one, logical_axes, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def parameter_spec(
    mesh: Mesh | AbstractMesh, logical_axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> PartitionSpec:
    """Of one parameter."""
    names = [
        RULES[axis]
        if axis is not None and _size(mesh, axis) > 1 and size % _size(mesh, axis) == 0
        else None
        for axis, size in zip(logical_axes, shape, strict=True)
    ]
    # As jit writes the shardings of its results: equal layouts that are written differently would
    # compile every program of the second step again.
    while names and names[-1] is None:
        names.pop()
    return PartitionSpec(*names)


def _size(mesh: Mesh | AbstractMesh, logical_axis: str) -> int:
    rule = RULES[logical_axis]
    return 1 if rule is None else mesh.shape[rule]


def shard_rows(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays whose first axis is B onto the mesh, split over replica and fsdp."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
