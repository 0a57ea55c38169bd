"""Optimised HLO as text, read into computations and instructions.

    module = hlo.parse(compiled.as_text())
    for instruction in module.entry.instructions: instruction.opcode, instruction.operands

Only what counting needs is understood (`rpt/hlo_costs.py`). Arrays carry the memory they live in: a
layout that ends in S(1) is on the chip beside the compute units, S(2) and further are flags and
scalars; no S is HBM.
"""

import dataclasses
import math
import re

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "token": 0,
}  # fmt: skip

_ARRAY = re.compile(r"\b([a-z]+[a-z0-9]*)\[([\d,<=]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_SCOPED = re.compile(r'"used_scoped_memory_configs":\[([^\]]*)\]')
_IN_VMEM = re.compile(r'\{"memory_space":"1","offset":"\d+","size":"(\d+)"\}')
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a type: 'bf16', its axes, and whether it lives in HBM."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> int:
        """Without the padding of tiles."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `arrays` are the leaves of its type in order, `attributes` all after its operands
    and `called` the computations in them by attribute."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    called: dict[str, str]

    @property
    def array(self) -> Array:
        return self.arrays[0]

    def attribute(self, name: str) -> str | None:
        """The value up to the next comma, such as window={...} or channel_id=3."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return None if found is None else found[1]


@dataclasses.dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    def parameter(self, index: int) -> Instruction:
        return next(
            i
            for i in self.instructions.values()
            if i.opcode == "parameter" and i.arguments == str(index)
        )

    def users(self, name: str) -> list[Instruction]:
        return [i for i in self.instructions.values() if name in i.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """The module of `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: text that is no HLO module.
    """
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = Computation(header[2])
                entry = current if header[1] else entry
        elif line == "}" or line.startswith("}, "):
            current = None
        elif " = " in line:
            instruction = _instruction(line)
            current.instructions[instruction.name] = instruction
            if line.lstrip().startswith("ROOT "):
                current.root = instruction.name
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def kernel_vmem_bytes(module: Module) -> dict[str, int]:
    """What each Pallas kernel of a TPU program holds in VMEM, by the name of its instruction.

    Blocks, scratch and what the compiler spills; a kernel is refused where this exceeds the limit,
    which is 16 MiB unless it asks for another.
    """
    found = {}
    for computation in module.computations.values():
        for name, instruction in computation.instructions.items():
            if 'custom_call_target="tpu_custom_call"' in instruction.attributes:
                scoped = _SCOPED.search(instruction.attributes)
                sizes = _IN_VMEM.findall(scoped[1]) if scoped else []
                found[name] = sum(map(int, sizes))
    return found


def arrays_of(type_: str) -> tuple[Array, ...]:
    """The leaves of a type as HLO writes it."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(type_):
        if dtype in BITS:
            shape = tuple(int(n.strip("<=")) for n in dims.split(",") if n)
            space = re.search(r"S\((\d+)\)", layout)
            found.append(Array(dtype, shape, space is None or space[1] == "0"))
    return tuple(found)


def ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments, attributes = rest[opening + 1 : closing], rest[closing + 1 :]
    called = dict(_CALLED.findall(attributes)) if "=" in attributes else {}
    branches = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    if branches:
        called |= {f"branch_{i}": n for i, n in enumerate(_NAME.findall(branches[1]))}
    return Instruction(
        name=name.lstrip("%"),
        opcode=rest[:opening],
        arrays=arrays_of(type_),
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=attributes,
        called=called,
    )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"this is no HLO: a parenthesis is never closed in {text[:80]!r}")
