"""What the real TPU compiler says, without a TPU (rpt/topologies.py).

    python -m benchmarks.tpu_aot --what=ops
    python -m benchmarks.tpu_aot --what=step --config=configs/smollm2_pydoc.py \\
        --model=smollm2_135m --topology=v5e:2x2

`ops` compiles every Pallas kernel at its real shapes in bfloat16 on one device of every generation.
`step` compiles all programs of one training step with the sections train, positions and rollout of
--config over the shape of --model. HBM is the compiler's: arguments, results that alias none, and
temporaries. The roofline is arithmetic: the FLOPs and the bytes of HBM that an ideal kernel must
move, over the chip's published rates; it is no measurement.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import cases, chips, report, workloads
from kernels import models
from rpt import cli, programs, sharding, topologies
from rpt import config as config_lib

_WHAT = flags.DEFINE_enum("what", "ops", ["ops", "step"], "Kernels, or a whole step.")
_GENERATIONS = flags.DEFINE_list("generations", list(topologies.GENERATIONS), "For ops.")
_MODEL = flags.DEFINE_enum("model", "smollm2_135m", list(models.MODELS), "For step.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "For step: the slice.")
_FSDP = flags.DEFINE_integer("fsdp", -1, "For step: devices along fsdp, -1 for the rest.")
_TENSOR = flags.DEFINE_integer("tensor", 1, "For step: devices along tensor.")


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


def step(config: config_lib.Config) -> Iterator[dict[str, Any]]:
    model = workloads.model_of(_MODEL.value, dtype="bfloat16", remat="full")
    mesh = topologies.mesh(
        _TOPOLOGY.value, sharding.MeshConfig(fsdp=_FSDP.value, tensor=_TENSOR.value)
    )
    chip = chips.CHIPS[_TOPOLOGY.value.partition(":")[0]]
    tables = programs.table_shapes(model.vocab_size, tail=8, close=8)
    for name, compiled in programs.compile_step(config, model, tables, mesh).items():
        memory = compiled.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
        yield {
            "program": name,
            "arguments GB": memory.argument_size_in_bytes / 1e9,
            "results GB": results / 1e9,
            "temporaries GB": memory.temp_size_in_bytes / 1e9,
            "HBM share": total / chip.hbm_bytes,
        }


def main(argv: list[str]) -> None:
    del argv
    if _WHAT.value == "ops":
        report.show("every Pallas kernel at its real shapes, one device, bfloat16", list(ops()))
        return
    if _CONFIG.value is None:
        raise ValueError("--what=step needs a --config, such as configs/paper_rpt.py")
    config = config_lib.from_config_dict(_CONFIG.value)
    began = time.perf_counter()
    rows = list(step(config))
    settings = dataclasses.asdict(config.train) | dataclasses.asdict(config.rollout)
    told = ("batch_size", "seq_len", "micro_branches", "group_size", "think_tokens")
    title = ", ".join(f"{name} {settings[name]}" for name in told)
    report.show(
        f"{_MODEL.value} on {_TOPOLOGY.value}, fsdp {_FSDP.value} x tensor {_TENSOR.value}, "
        f"{title}; compiled in {time.perf_counter() - began:.0f} s",
        rows,
    )


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    cli.run(main)
