"""FLOPs of the products in a program: dots, and the convolutions that the TPU compiler makes."""

import math
import re

import numpy as np

from rpt import hlo


def flops(where: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Two per multiply-add of a dot or a convolution; of anything else none."""
    if instruction.opcode == "dot":
        left = where.instructions[instruction.operands[0]].array.shape
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        inner = math.prod(left[i] for i in hlo.ints(summed[1])) if summed else 1
        return 2.0 * math.prod(instruction.array.shape) * inner
    if instruction.opcode == "convolution":
        operands = [where.instructions[name].array.shape for name in instruction.operands]
        return _convolution(instruction, operands[0], operands[1])
    return 0.0


def _convolution(instruction: hlo.Instruction, left, right) -> float:
    """The TPU compiler writes every product as a convolution; an axis that both sides share becomes
    a window whose other places are padding, which does not count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    lhs, rhs, out = labels[1], labels[2], labels[3]
    batch = left[lhs.index("b")]
    features, outputs = right[rhs.index("i")], right[rhs.index("o")]
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    flops = 2.0 * batch * features * outputs / (int(groups[1]) if groups else 1)
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(item.split("=") for item in window[1].split()) if window else {}
    for i in range(sum(letter.isdigit() for letter in lhs)):
        digit = str(i)
        flops *= _met(
            left[lhs.index(digit)],
            right[rhs.index(digit)],
            instruction.array.shape[out.index(digit)],
            {name: text.split("x")[i] for name, text in fields.items()},
        )
    return flops


def _met(size: int, window: int, out: int, fields: dict[str, str]) -> int:
    """Pairs of output place and window place that meet a real element of the input."""
    low = int(fields.get("pad", "0_0").split("_")[0])
    stride, dilate = int(fields.get("stride", 1)), int(fields.get("lhs_dilate", 1))
    step = int(fields.get("rhs_dilate", 1))
    places = np.arange(out)[:, None] * stride + np.arange(window)[None] * step - low
    return int(((places >= 0) & (places < (size - 1) * dilate + 1) & (places % dilate == 0)).sum())
