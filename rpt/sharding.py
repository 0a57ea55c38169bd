"""The mesh, and one table from logical axes to mesh axes."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")
# Of a parameter that is brought to every host at once.
_BLOCK_BYTES = 1 << 28

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
    if jax.local_device_count() % shape[2]:
        raise ValueError(
            f"config.mesh.tensor={shape[2]} does not divide the {jax.local_device_count()} devices "
            "of a host: the rows of a batch are a host's own"
        )
    rows = shape[0] * shape[1]
    if batch_size % rows:
        raise ValueError(
            f"batch of {batch_size} rows does not divide over replica*fsdp={rows} devices; "
            f"make it a multiple of {rows} or change config.mesh"
        )
    arrange = arranged if jax.process_count() == 1 else host_by_host
    return arrange(jax.devices(), shape)


def host_by_host(devices: Sequence[Any], shape: tuple[int, int, int]) -> Mesh:
    """As `arranged`, but whatever the torus: each host holds neighbouring rows (`own_block`).

    Raises:
      ValueError: replica is no multiple of the number of slices; or the hosts are not numbered one
        slice after another, as jax does.
    """
    slices = _count_slices(devices, shape)
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    of_slice = np.reshape([_slice_of(device) for device in ordered], (slices, -1))
    if (of_slice != of_slice[:, :1]).any():
        raise ValueError(
            "the processes of one slice are not numbered one after another, so slices cannot lie "
            "along replica; use --hosts=auto, or number them so"
        )
    return Mesh(np.asarray(ordered).reshape(shape), MESH_AXES)


def arranged(devices: Sequence[Any], shape: tuple[int, int, int]) -> Mesh:
    """A mesh of so many devices per axis of MESH_AXES: chips that exchange most are neighbours, and
    several slices, which only the data center's network connects, lie along replica.

    Raises:
      ValueError: replica is no multiple of the number of slices.
    """
    slices = _count_slices(devices, shape)
    replica, *inner = shape
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


def _slice_of(device: Any) -> int:
    """Elsewhere than on TPUs the word has other meanings."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _count_slices(devices: Sequence[Any], shape: tuple[int, int, int]) -> int:
    """How many there are; ValueError as in `arranged`."""
    slices, replica = len(set(map(_slice_of, devices))), shape[0]
    if replica % slices:
        raise ValueError(
            f"replica={replica} does not divide over {slices} slices; set config.mesh.replica to a "
            f"multiple of {slices}"
        )
    return slices


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
    """Puts arrays whose first axis is B onto the mesh, split over replica and fsdp.

    Each of several processes gives its own rows (`own_block`) and gets the whole batch.
    """
    by_row = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    if jax.process_count() == 1:
        return jax.device_put(tree, by_row)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_row, x), tree)


def put_rows(tree: Any) -> Any:
    """As `shard_rows`, onto the mesh in force; one process leaves the layout to the programs."""
    if jax.process_count() == 1:
        return jax.tree.map(jnp.asarray, tree)
    return shard_rows(jax.sharding.get_mesh(), tree)


def own_rows(tree: Any) -> Any:
    """Arrays on the devices whose first axis is B, as numpy: this process's rows of them."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    by_row = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(BATCH_AXES))

    def one(x: jax.Array) -> np.ndarray:
        # Devices of one tensor group hold the same rows.
        blocks = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(blocks[start]) for start in sorted(blocks)])

    return jax.tree.map(one, jax.device_put(tree, by_row))


def own_block(count: int) -> range:
    """Which of `count` things that are dealt to the processes in equal runs are this one's."""
    each = count // jax.process_count()
    return range(jax.process_index() * each, (jax.process_index() + 1) * each)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, as the shardings say."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)


def whole_blocks(x: Any) -> Iterator[np.ndarray]:
    """An array of any layout as numpy, in blocks along its first axis, one after another."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.ndim == 0:
        yield np.asarray(x)
        return
    replicated = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    rows = max(1, _BLOCK_BYTES // max(x.nbytes // len(x), 1))
    for start in range(0, len(x), rows):
        stop = min(start + rows, len(x))
        yield np.asarray(_block(x, start, stop, replicated))


@functools.partial(jax.jit, static_argnames=("start", "stop", "layout"))
def _block(x, start, stop, layout):
    return jax.lax.with_sharding_constraint(x[start:stop], layout)
