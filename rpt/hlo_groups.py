"""Which devices exchange with each other in a collective, as HLO writes it."""

import math
import re

import numpy as np

from rpt import hlo


def pairs_of(instruction: hlo.Instruction) -> np.ndarray:
    """(source, target) of every exchange of a collective-permute: [pairs, 2].

    Raises:
      ValueError: a way to write them that is not known.
    """
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", instruction.attributes)
    if found is None:
        raise ValueError(f"pairs that this reader does not know: {instruction.attributes[:200]}")
    return np.array(re.findall(r"(\d+),(\d+)", found[1]), int)


def groups_of(instruction: hlo.Instruction, devices: int) -> np.ndarray:
    """The devices that exchange with each other: [groups, devices of a group].

    Raises:
      ValueError: a way to write them that is not known.
    """
    text = instruction.attributes
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found:
        shape, dims = (hlo.ints(part) for part in (found[1], found[2]))
        order = hlo.ints(found[3]) if found[3] else list(range(len(dims)))
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return ids.reshape(shape)
    found = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))?"
        r"\s*\{([^}]*)\}",
        text,
    )
    if found:
        dims = hlo.ints(found[2]) if found[2] else [devices]
        order = hlo.ints(found[3]) if found[3] else [0]
        ids = np.arange(devices).reshape(dims).transpose(order).reshape(-1)
        return ids[_mesh_groups(found[1], found[4])]
    found = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text)
    if found:
        lists = [hlo.ints(part) for part in re.findall(r"\{([\d,]*)\}", found[1])]
        return np.array(lists if any(lists) else [list(range(devices))])
    raise ValueError(f"groups of devices that this reader does not know: {text[:200]}")


def _mesh_groups(axes: str, among: str) -> np.ndarray:
    """Of mesh['a'=4,'b'=2] {'a'}; an axis may be named in part: 'a':(2)2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts: dict[str, list[int]] = {name: [size] for name, size in sizes.items()}
    chosen: dict[str, int] = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", among):
        if size:
            rest = sizes[name] // (int(before) * int(size))
            parts[name] = [int(before), int(size), rest]
        chosen[name] = 1 if size else 0
    dims, moved = [], []
    for name, pieces in parts.items():
        if name in chosen:
            moved.append(len(dims) + chosen[name])
        dims += pieces
    ids = np.arange(math.prod(dims)).reshape(dims)
    ids = np.moveaxis(ids, moved, range(ids.ndim - len(moved), ids.ndim))
    return ids.reshape(-1, math.prod(dims[i] for i in moved))
