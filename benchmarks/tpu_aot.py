"""What the real TPU compiler says of the kernels, without a TPU (rpt/topologies.py).

    python -m benchmarks.tpu_aot

compiles every Pallas kernel at its real shapes in bfloat16 on one device of every generation. HBM
temporaries are the compiler's. The roofline is arithmetic: the FLOPs and the bytes of HBM that an
ideal kernel must move, over the chip's published rates; it is no measurement. Whole steps:
`python -m rpt.compile`.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import cases, report
from rpt import chips, cli, topologies

_GENERATIONS = flags.DEFINE_list(
    "generations", list(topologies.GENERATIONS), "What to compile for."
)


def ops() -> Iterator[dict[str, Any]]:
    for generation in _GENERATIONS.value:
        device = topologies.devices(topologies.GENERATIONS[generation])[0]
        alone = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
        for case in cases.cases(jnp.bfloat16, "pallas"):
            inputs = jax.tree.map(
                lambda x, alone=alone: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone),
                case.inputs,
            )
            began = time.perf_counter()
            compiled = jax.jit(case.function).lower(*inputs).compile()
            seconds = time.perf_counter() - began
            least, bound = chips.CHIPS[generation].roofline_seconds(case.flops, case.bytes)
            yield {
                "generation": generation,
                "op": case.op,
                "spec": case.spec,
                "compile s": seconds,
                "HBM temporaries MB": compiled.memory_analysis().temp_size_in_bytes / 1e6,
                "GFLOP": case.flops / 1e9,
                "HBM MB": case.bytes / 1e6,
                "roofline ms": 1e3 * least,
                "bound": bound,
            }


def main(argv: list[str]) -> None:
    del argv
    report.show("every Pallas kernel at its real shapes, one device, bfloat16", list(ops()))


if __name__ == "__main__":
    cli.run(main)
