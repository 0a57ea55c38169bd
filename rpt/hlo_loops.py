"""How often a while loop of optimised HLO runs, read from its text.

A counter begins at a constant, a step is added to it in the body, and the condition compares it
with a constant: what scan and fori_loop make, in steps of 1, and the compiler of them, in steps of
2 where it puts two turns into one body.
"""

import re
from collections.abc import Callable

from rpt import hlo

# What an instruction is: some number, or the loop's counter plus some number; None if it is not
# that simple.
_Value = tuple[bool, int] | None
# Inside of a fusion: what its operand at a place is.
_Given = Callable[[int], _Value]


def trip_count(module: hlo.Module, where: hlo.Computation, loop: hlo.Instruction) -> int | None:
    """How often a while loop of the computation `where` runs; None where its text does not tell."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.called["condition"]]
    body = module.computations[loop.called["body"]]
    for place in _counters(condition):
        bound = _bound(module, condition, place)
        step = _element(module, body, place, place, None)
        begin = _operand(module, where, loop.operands[0], place)
        if bound is None or begin is None or step is None or not step[0] or step[1] <= 0:
            continue
        return max(0, -(-(bound - begin) // step[1]))
    return None


def _operand(module: hlo.Module, where: hlo.Computation, name: str, place: int) -> int | None:
    """The number at a place of the tuple that a loop begins with."""
    given = where.instructions[name]
    if given.opcode != "tuple":
        return None
    found = _read(module, where, given.operands[place], -1, None)
    return found[1] if found is not None and not found[0] else None


def _counters(condition: hlo.Computation) -> list[int]:
    """Places in the loop's tuple of the scalars that its condition looks at."""
    looked_at = condition.instructions.values()
    return [int(str(i.attribute("index"))) for i in looked_at if i.opcode == "get-tuple-element"]


def _bound(module: hlo.Module, condition: hlo.Computation, counter: int) -> int | None:
    """The number below which the counter must be."""
    root, where, given = condition.instructions[condition.root], condition, None
    if root.opcode == "fusion":
        given = _operands(module, condition, root, counter, None)
        where = module.computations[root.called["calls"]]
        root = where.instructions[where.root]
    if root.opcode != "compare" or root.attribute("direction") != "LT":
        return None
    left, right = (_read(module, where, name, counter, given) for name in root.operands)
    if left is None or right is None or not left[0] or right[0]:
        return None
    return right[1] - left[1]


def _read(
    module: hlo.Module, where: hlo.Computation, name: str, counter: int, given: _Given | None
) -> _Value:
    """What an instruction is.

    Args:
      where: the instruction's computation.
      counter: its place in the tuple that a body or a condition is given.
      given: None in a body or condition itself.
    """
    found = where.instructions[name]
    match found.opcode:
        case "constant" if found.arguments.isdigit():
            return False, int(found.arguments)
        case "parameter" if given is not None:
            return given(int(found.arguments))
        case "copy" | "bitcast":
            return _read(module, where, found.operands[0], counter, given)
        case "fusion":
            return _fused(module, where, found, 0, counter, given)
        case "get-tuple-element":
            place = int(str(found.attribute("index")))
            source = where.instructions[found.operands[0]]
            if source.opcode == "fusion":
                return _fused(module, where, source, place, counter, given)
            whole = source.opcode == "parameter" and given is None
            return (True, 0) if whole and place == counter else None
        case "add":
            left, right = (_read(module, where, each, counter, given) for each in found.operands)
            if left is not None and right is not None and not (left[0] and right[0]):
                return left[0] or right[0], left[1] + right[1]
    return None


def _element(module, where: hlo.Computation, place: int, counter: int, given) -> _Value:
    """What a computation returns at a place of its tuple."""
    root = where.instructions[where.root]
    names = root.operands if root.opcode == "tuple" else (where.root,)
    return _read(module, where, names[place], counter, given) if place < len(names) else None


def _fused(module, where, fusion: hlo.Instruction, place: int, counter: int, given) -> _Value:
    inner = module.computations[fusion.called["calls"]]
    return _element(module, inner, place, counter, _operands(module, where, fusion, counter, given))


def _operands(module, where, fusion: hlo.Instruction, counter: int, given) -> _Given:
    return lambda place: _read(module, where, fusion.operands[place], counter, given)
