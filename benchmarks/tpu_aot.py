"""What the real TPU compiler says of the kernels, without a TPU (rpt/topologies.py).

    python -m benchmarks.tpu_aot

compiles every Pallas kernel at its real shapes in bfloat16 on one device of every generation. HBM
temporaries and VMEM, that of the program's largest kernel, are the compiler's. The roofline is
arithmetic: the FLOPs and the bytes of HBM that an ideal kernel must move, over the chip's published
rates; it is no measurement. A program that the compiler refuses is a row that says why, and the
command exits with 1. Whole steps: `python -m rpt.compile`.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import cases, report
from rpt import chips, cli, hlo, topologies

_GENERATIONS = flags.DEFINE_list(
    "generations", list(topologies.GENERATIONS), "What to compile for."
)
_OPS = flags.DEFINE_list("ops", [], "Only ops whose name begins like this; all of them by default.")


def ops() -> Iterator[dict[str, Any]]:
    for generation in _GENERATIONS.value:
        device = topologies.devices(topologies.GENERATIONS[generation])[0]
        alone = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
        for case in cases.cases(jnp.bfloat16, "pallas"):
            if not case.op.startswith(tuple(_OPS.value) or ""):
                continue
            print(f"{generation}: {case.op} {case.spec}", file=sys.stderr, flush=True)
            least, bound = chips.CHIPS[generation].roofline_seconds(case.flops, case.bytes)
            yield {
                "generation": generation,
                "op": case.op,
                "spec": case.spec,
                **_compiled(case, alone),
                "GFLOP": case.flops / 1e9,
                "HBM MB": case.bytes / 1e6,
                "roofline ms": 1e3 * least,
                "bound": bound,
            }


def _compiled(case: cases.Case, alone: NamedSharding) -> dict[str, Any]:
    """What the compiler says: figures, or why not."""
    inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone), case.inputs
    )
    began = time.perf_counter()
    refused, temporaries, vmem = "", None, None
    try:
        compiled = jax.jit(case.function).lower(*inputs).compile()
    except Exception as error:
        refused = str(error).partition("\n")[0]
    else:
        temporaries = compiled.memory_analysis().temp_size_in_bytes / 1e6
        vmem = max(hlo.kernel_vmem_bytes(hlo.parse(compiled.as_text())).values()) / 2**20
    return {
        "compile s": time.perf_counter() - began,
        "HBM temporaries MB": temporaries,
        "VMEM MiB": vmem,
        "refused": refused,
    }


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)  # It is compilation that is timed.
    rows = list(ops())
    report.show("every Pallas kernel at its real shapes, one device, bfloat16", rows)
    refused = sum(bool(row["refused"]) for row in rows)
    if refused:
        raise ValueError(f"the compiler refused {refused} of {len(rows)} programs")


if __name__ == "__main__":
    cli.run(main)
