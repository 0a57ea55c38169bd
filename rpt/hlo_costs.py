"""FLOPs, bytes of HBM and bytes between chips of an optimised program, per chip.

    costs = hlo_costs.count(compiled.as_text(), {"fsdp": 4, "tensor": 2}, unknown_trips=64)

XLA's own totals count the body of a loop once. Here a body counts as often as its condition says.
Where that depends on data (decoding ends when every branch has), `unknown_trips` says it for loops
that lie in no other such loop; the others count once and are named in `unknown_loops`.

- FLOPs are those of matrix products (dot and convolution) and what Pallas kernels declare.
- Bytes of HBM are what instructions read and write there, without the padding of tiles; of an array
  that is only sliced the slice, of one that is updated in place the update; of a Pallas kernel what
  it declares. An array in the memory beside the compute units costs nothing.
- Bytes between chips are what one chip receives by the best algorithm, for n chips in a group: of
  an all-gather (n - 1) times the operand, of a reduce-scatter and an all-to-all (n - 1)/n of it, of
  an all-reduce 2 (n - 1)/n, of a collective-permute the operand. An all-reduce fused with the slice
  of its result is a reduce-scatter. A collective that is spread over several fusions counts once.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from rpt import hlo, hlo_groups, hlo_loops, hlo_products

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    *("ragged-all-to-all", "collective-broadcast"),
)
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
    *(
        "conditional",
        "call",
        "copy-done",
        "slice-done",
        "async-done",
        "async-update",
        "partition-id",
    ),
    *("replica-id", "opt-barrier", "all-gather-done", "all-reduce-done", "collective-permute-done"),
    *("async-start", "call-done", "send", "recv", "send-done", "recv-done"),
}
_SLICING = {"dynamic-slice", "slice", "gather"}
# jax's splash attention declares nothing. Products of [S, H] and [H, S] that each kernel makes;
# half of their tiles lie above the diagonal and are skipped.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_NO_TRAFFIC = re.compile(
    r'custom_call_target="(Async|PrepareAsync|Allocate|Sharding|AssumeGather|Pin|Unpin)'
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction: `bytes` that a chip receives each time, `times` it runs."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: float
    arrays: tuple[hlo.Array, ...]

    @property
    def total_bytes(self) -> float:
        return self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one run of a program on one chip. `undeclared` are Pallas kernels that say no costs, whose
    FLOPs are missing; `unknown_loops` run nobody knows how often and are counted once."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()
    undeclared: tuple[str, ...] = ()
    unknown_loops: tuple[str, ...] = ()

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(
            self.flops + other.flops,
            self.hbm_bytes + other.hbm_bytes,
            self.collectives + other.collectives,
            tuple(sorted({*self.undeclared, *other.undeclared})),
            tuple(sorted({*self.unknown_loops, *other.unknown_loops})),
        )

    def times(self, n: float) -> "Costs":
        repeated = tuple(dataclasses.replace(c, times=c.times * n) for c in self.collectives)
        return dataclasses.replace(
            self, flops=self.flops * n, hbm_bytes=self.hbm_bytes * n, collectives=repeated
        )

    def by_kind_and_axis(self) -> dict[tuple[str, str], float]:
        """Bytes received, under (kind, 'fsdp' or 'fsdp+tensor')."""
        found: dict[tuple[str, str], float] = {}
        for each in self.collectives:
            key = (each.kind, "+".join(each.axes))
            found[key] = found.get(key, 0.0) + each.total_bytes
        return dict(sorted(found.items()))


def count(text: str, mesh: Mapping[str, int], *, unknown_trips: float | None = None) -> Costs:
    """Counts one program.

    Args:
      text: of `jax.stages.Compiled.as_text()`.
      mesh: devices per axis, in the order in which the program's devices are numbered.
      unknown_trips: how often a loop runs whose condition is not a comparison with a constant, if
        it lies in no other such loop; None where no such loop is expected.

    Raises:
      ValueError: groups of devices, or a text, that are not understood.
    """
    module = hlo.parse(text)
    return _Counter(module, dict(mesh), unknown_trips).computation(module.entry)


class _Counter:
    """Counts each computation once and multiplies."""

    def __init__(self, module: hlo.Module, mesh: dict[str, int], unknown_trips: float | None):
        self.module = module
        self.mesh = mesh
        self.unknown_trips = unknown_trips
        self.known: dict[str, Costs] = {}

    def computation(self, computation: hlo.Computation) -> Costs:
        if computation.name not in self.known:
            total, channels = Costs(), set()
            for instruction in computation.instructions.values():
                total += self._instruction(computation, instruction, channels)
            self.known[computation.name] = total
        return self.known[computation.name]

    def _called(self, name: str) -> Costs:
        return self.computation(self.module.computations[name])

    def _instruction(self, where, instruction: hlo.Instruction, channels: set[str]) -> Costs:
        op, called = instruction.opcode, instruction.called
        kind = op.removesuffix("-start")
        if op == "while":
            return self._loop(where, instruction)
        if op == "conditional":
            branches = [self._called(name) for name in called.values()]
            return max(branches, key=lambda costs: (costs.flops, costs.hbm_bytes))
        if op in ("call", "call-start", "async-start"):
            return self._called(called.get("calls") or called["to_apply"])
        if op == "fusion":
            inside = self._fused(self.module.computations[called["calls"]], channels)
            return inside + Costs(hbm_bytes=self._fusion_bytes(where, instruction))
        if op == "custom-call":
            return self._kernel(where, instruction)
        found = Costs(hbm_bytes=self._bytes(where, instruction))
        if kind in COLLECTIVES:
            found += Costs(collectives=(self._collective(where, instruction, kind),))
        return found + Costs(flops=hlo_products.flops(where, instruction))

    def _loop(self, where: hlo.Computation, loop: hlo.Instruction) -> Costs:
        trips, inside, unknown = hlo_loops.trip_count(self.module, where, loop), self, ()
        if trips is None:
            # What is said is said of this loop and of none inside of it.
            inside = _Counter(self.module, self.mesh, None)
            trips = self.unknown_trips
        if trips is None:
            trips, unknown = 1, (loop.name,)
        body = inside._called(loop.called["body"]) + inside._called(loop.called["condition"])
        return body.times(trips) + Costs(unknown_loops=unknown)

    def _fused(self, inner: hlo.Computation, channels: set[str]) -> Costs:
        """Products and collectives inside of a fusion; the parts of one collective that is spread
        over fusions share a channel."""
        total = Costs()
        for each in inner.instructions.values():
            if each.opcode == "fusion":
                total += self._fused(self.module.computations[each.called["calls"]], channels)
            elif each.opcode in COLLECTIVES:
                spread = '"async_collective_fusion_config"' in each.attributes
                channel = each.attribute("channel_id") if spread else None
                if channel is None or channel not in channels:
                    channels.add(channel or "")
                    scattered = inner.name.startswith("all-reduce-scatter")
                    kind = "reduce-scatter" if scattered else each.opcode
                    total += Costs(collectives=(self._collective(inner, each, kind),))
            else:
                total += Costs(flops=hlo_products.flops(inner, each))
        return total

    def _collective(self, where, instruction: hlo.Instruction, kind: str) -> Collective:
        arrays = tuple(a for name in instruction.operands for a in where.instructions[name].arrays)
        size = sum(a.bytes for a in arrays)
        if kind == "collective-permute":
            groups = hlo_groups.pairs_of(instruction)
            factor = 1.0 if (groups[:, 0] != groups[:, 1]).any() else 0.0
        else:
            groups = hlo_groups.groups_of(instruction, math.prod(self.mesh.values()))
            n = groups.shape[1]
            factor = {
                "all-gather": n - 1.0,
                "all-reduce": 2 * (n - 1) / n,
            }.get(kind, (n - 1) / n)
        return Collective(kind, self._axes(groups), size * factor, 1, arrays)

    def _axes(self, groups: np.ndarray) -> tuple[str, ...]:
        """The mesh axes along which the devices of a group differ."""
        places = np.unravel_index(groups, tuple(self.mesh.values()))
        return tuple(
            name
            for name, place in zip(self.mesh, places, strict=True)
            if (place != place[:, :1]).any()
        )

    def _kernel(self, where, instruction: hlo.Instruction) -> Costs:
        if _NO_TRAFFIC.search(instruction.attributes):
            return Costs()
        if 'custom_call_target="tpu_custom_call"' not in instruction.attributes:
            return Costs(hbm_bytes=self._bytes(where, instruction))
        found = re.search(r'"cost_estimate":\{([^}]*)\}', instruction.attributes)
        stated = dict(re.findall(r'"(\w+)":"?(\d+)', found[1])) if found else {}
        if not int(stated.get("flops", 0)):
            traffic = Costs(hbm_bytes=self._bytes(where, instruction))
            products = [n for name, n in _SPLASH.items() if instruction.name.startswith(name)]
            if not products:
                return traffic + Costs(undeclared=(instruction.name.split(".")[0],))
            arrays = [where.instructions[name].array for name in instruction.operands]
            query = next(a for a in arrays if len(a.shape) == 4 and a.dtype in ("bf16", "f32"))
            # [B, N, S, H], each with S keys
            return traffic + Costs(products[0] * math.prod(query.shape) * float(query.shape[2]))
        return Costs(float(stated["flops"]), float(stated.get("bytes_accessed", 0)))

    def _bytes(self, where, instruction: hlo.Instruction) -> float:
        """HBM that an instruction outside of fusions reads and writes."""
        op, arrays = instruction.opcode, instruction.arrays
        if op in _FREE:
            return 0.0
        operands = [where.instructions[name] for name in instruction.operands]
        if op in _SLICING:
            source = operands[0].array
            return arrays[0].bytes * (source.in_hbm + arrays[0].in_hbm)
        if op == "slice-start":
            source, result = arrays[0], arrays[1]
            return result.bytes * (source.in_hbm + result.in_hbm)
        if op == "copy-start":
            return _in_hbm(arrays[:2])
        if op in ("dynamic-update-slice", "scatter"):
            update = operands[1 if op[0] == "d" else -1].array
            return update.bytes * (update.in_hbm + arrays[0].in_hbm)
        # The start of an asynchronous collective names its operands first, then its results; that
        # of an all-reduce its results alone.
        results = arrays
        if op.endswith("-start") and op != "all-reduce-start":
            n = sum(len(each.arrays) for each in operands)
            results = arrays[n : 2 * n]
        return _in_hbm(results) + sum(_in_hbm(each.arrays) for each in operands)

    def _fusion_bytes(self, where, fusion: hlo.Instruction) -> float:
        inner = self.module.computations[fusion.called["calls"]]
        # Buffers that are handed through the parts of a collective that is spread over fusions.
        handed = fusion.attributes.partition("output_to_operand_aliasing=")[2]
        aliases = re.findall(r"\{(\d*)\}: \((\d+)", handed)
        held_in = {int(operand) for _, operand in aliases}
        held_out = {int(output or 0) for output, _ in aliases}
        total = 0.0
        for i, name in enumerate(fusion.operands):
            arrays = where.instructions[name].arrays
            if len(arrays) == 1 and arrays[0].in_hbm and i not in held_in:
                total += self._read(inner, inner.parameter(i), arrays[0].bytes)
        roots = self._roots(inner)
        for i, array in enumerate(fusion.arrays):
            root = roots[i] if len(roots) == len(fusion.arrays) else None
            if root is not None and root.opcode == "dynamic-update-slice":
                total += inner.instructions[root.operands[1]].array.bytes * array.in_hbm
            elif i not in held_out:
                total += _in_hbm((array,))
        return total

    def _roots(self, inner: hlo.Computation) -> list[hlo.Instruction]:
        root = inner.instructions[inner.root]
        found = [root]
        if root.opcode == "tuple":
            found = [inner.instructions[name] for name in root.operands]
        return [_behind(inner, each) for each in found]

    def _read(self, inner: hlo.Computation, array: hlo.Instruction, whole: float) -> float:
        """What a fusion reads of one operand: all, or only slices of it."""
        total = 0.0
        for user in inner.users(array.name):
            if user.opcode in _SLICING and user.operands[0] == array.name:
                total += user.array.bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == array.name:
                continue
            elif user.opcode == "bitcast":
                total += self._read(inner, user, whole)
            elif user.opcode == "fusion":
                nested = self.module.computations[user.called["calls"]]
                inside = nested.parameter(user.operands.index(array.name))
                # A fusion may hand the operand on as another shape and do nothing else.
                handed_on = _behind(nested, nested.instructions[nested.root]) is inside
                read_by = (inner, user) if handed_on else (nested, inside)
                total += self._read(*read_by, whole)
            else:
                return whole
        return min(total, whole)


def _behind(inner: hlo.Computation, instruction: hlo.Instruction) -> hlo.Instruction:
    while instruction.opcode == "bitcast" and instruction.operands:
        instruction = inner.instructions[instruction.operands[0]]
    return instruction


def _in_hbm(arrays: tuple[hlo.Array, ...]) -> float:
    return float(sum(a.bytes for a in arrays if a.in_hbm))
