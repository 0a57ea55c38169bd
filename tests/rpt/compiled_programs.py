"""The programs of a small step by the TPU compiler, for two slices, and the golden summary of them.

    python -m tests.rpt.compiled_programs

writes tests/rpt/fixtures/compiled_programs.json anew: run it where a change of memory or of what is
exchanged is meant, and look at the difference.
"""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
from typing import Any

import jax

from configs import mini
from rpt import aot, programs, sharding, topologies
from rpt import config as config_lib
from rpt.model import config as model_config

GOLDEN = pathlib.Path(__file__).parent / "fixtures" / "compiled_programs.json"

# V is no product of other sizes, and more than one tile of logits for every program's rows. D and
# its shards are no number of rows (of decoding, of a micro-batch, of a trunk), so that logits are
# told from matrices of the head.
V, D, ROWS = 40_960 + 2_048, 384, {64, 128, 256, 512}
MODEL = model_config.ModelConfig(
    vocab_size=V, width=D, num_layers=2, num_heads=4, num_kv_heads=2, head_width=64, ff_width=512,
    dtype="bfloat16", remat="full",
)  # fmt: skip
TAIL = CLOSE = 4
SLICES = {
    "v5e:2x4": sharding.MeshConfig(fsdp=4, tensor=2),
    "v5p:2x2x1": sharding.MeshConfig(replica=2, tensor=2),
}


def config_of(name: str) -> config_lib.Config:
    """What is compiled for one slice."""
    config = config_lib.from_config_dict(mini.get_config())
    train = dataclasses.replace(config.train, batch_size=8, seq_len=256, micro_branches=16)
    # The second slice samples truncated, and its cache has one size.
    cut = {"top_k": 50, "top_p": 0.95, "chunk_tokens": 32} if name.startswith("v5p") else {}
    sampler = dataclasses.replace(config.rollout, **cut)
    return dataclasses.replace(config, train=train, rollout=sampler)


@functools.cache
def compiled(name: str) -> dict[str, jax.stages.Compiled]:
    """Every program of a step, for one slice."""
    tables = programs.table_shapes(V, tail=TAIL, close=CLOSE)
    mesh = topologies.mesh(name, SLICES[name])
    return programs.compile_step(config_of(name), MODEL, tables, mesh, branch_length=33)


def summary(name: str) -> dict[str, Any]:
    """Per program: bytes of HBM, and bytes that a chip receives by kind and axis."""
    sizes = dict(topologies.mesh(name, SLICES[name]).shape)
    return {
        program: aot.summary(each.memory_analysis(), each.as_text() or "", sizes)
        for program, each in compiled(name).items()
    }


def version() -> str:
    """Of the compiler: another one may lay out the same programs differently."""
    return f"jax {jax.__version__}, libtpu {_libtpu()}"


def _libtpu() -> str:
    folder = pathlib.Path(topologies.library() or "").parent.parent
    found = list(importlib.metadata.distributions(name="libtpu", path=[str(folder)]))
    return found[0].version if found else "unknown"


def write() -> None:
    golden = {"version": version(), **{name: summary(name) for name in SLICES}}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write()
