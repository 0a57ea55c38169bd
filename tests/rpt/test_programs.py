"""The whole step as the TPU compiler makes it: what is exchanged and what is in memory.

Letters: B documents, S trunk positions, V vocabulary, D width.
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import mini
from kernels.logprob import api as logprob
from kernels.logprob import chunked
from rpt import config as config_lib
from rpt import programs, sharding, topologies
from rpt.model import config as model_config

pytestmark = pytest.mark.skipif(
    topologies.library() is None, reason="libtpu is not installed: make test installs it"
)

# V is no product of other sizes, and more than one tile of logits for every program's rows. D and
# its shards are no number of rows (of decoding, of a micro-batch, of a trunk), so that logits are
# told from matrices of the head.
V, D, ROWS = 40_960 + 2_048, 384, {64, 128, 256, 512}
MODEL = model_config.ModelConfig(
    vocab_size=V, width=D, num_layers=2, num_heads=4, num_kv_heads=2, head_width=64, ff_width=512,
    dtype="bfloat16", remat="full",
)  # fmt: skip
SLICES = {
    "v5e:2x4": sharding.MeshConfig(fsdp=4, tensor=2),
    "v5p:2x2x1": sharding.MeshConfig(replica=2, tensor=2),
}
HEAD = {D, D // 2, D // 4}
COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
SHAPE = re.compile(r"\b(f32|bf16)\[([\d,]+)\]")


@functools.cache
def compiled(name: str) -> dict[str, str]:
    """The optimised HLO of every program of a step, for one slice."""
    config = config_lib.from_config_dict(mini.get_config())
    train = dataclasses.replace(config.train, batch_size=8, seq_len=256, micro_branches=16)
    # The second slice samples truncated.
    cut = {"top_k": 50, "top_p": 0.95} if name.startswith("v5p") else {}
    sampler = dataclasses.replace(config.rollout, **cut)
    config = dataclasses.replace(config, train=train, rollout=sampler)
    mesh = topologies.mesh(name, SLICES[name])
    found = programs.compile_step(
        config, MODEL, programs.table_shapes(V, tail=4, close=4), mesh, branch_length=32
    )
    return {program: each.as_text() for program, each in found.items()}


def logit_shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Arrays with an axis of the vocabulary (or a shard of it) that are no matrix of the head."""
    found = []
    for dtype, dims in SHAPE.findall(text):
        shape = tuple(map(int, dims.split(",")))
        rest = [n for n in shape if n not in (V, V // 2)]
        if len(rest) < len(shape) and not HEAD & set(rest):
            found.append((dtype, shape))
    return found


@pytest.mark.parametrize("name", SLICES)
def test_every_program_of_a_step_compiles(name):
    assert set(compiled(name)) == {
        "score", "sampling_copy", "prepare_trunk", "start", "prefill", "decode", "trunk_forward",
        "accumulate", "trunk_backward", "optimizer",
    }  # fmt: skip


@pytest.mark.parametrize("name", SLICES)
def test_the_kernels_are_those_for_tpu(name):
    for program in ("decode", "trunk_forward", "accumulate", "trunk_backward"):
        assert "tpu_custom_call" in compiled(name)[program], program


def test_logits_would_be_seen():
    """The test's own eyes: of the reference, at the numbers of rows that decoding has."""
    assert not HEAD & ROWS
    device = topologies.devices(topologies.GENERATIONS["v5e"])[0]
    whole = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    for M in (128, 256):
        hidden, head, labels = (
            jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
            for shape, dtype in (((M, D), "bfloat16"), ((V, D), "bfloat16"), ((M,), "int32"))
        )
        call = functools.partial(logprob.logprob, implementation="reference")
        text = jax.jit(call).lower(hidden, head, labels).compile().as_text()
        assert ("f32", (M, V)) in logit_shapes(text)


@pytest.mark.parametrize("name", SLICES)
def test_no_logits_travel(name):
    for program, text in compiled(name).items():
        for line in text.splitlines():
            if COLLECTIVE.search(line):
                assert not logit_shapes(line.split("metadata")[0]), (program, line)


@pytest.mark.parametrize("name", SLICES)
def test_no_array_of_logits_is_larger_than_a_tile(name):
    for program, text in compiled(name).items():
        for dtype, shape in logit_shapes(text):
            size = 1
            for n in shape:
                size *= n
            # A vector of ids or masks over the vocabulary is no array of logits.
            assert size <= max(chunked.TILE_LOGITS, V), (program, dtype, shape)


def test_decoding_moves_no_weights():
    """The sampling copy is gathered once, before: in a decode step only activations travel."""
    for line in compiled("v5e:2x4")["decode"].splitlines():
        if re.search(r" (all-gather|collective-permute|all-to-all)(-start)?\(", line):
            for _, dims in SHAPE.findall(line.split("metadata")[0]):
                shape = tuple(map(int, dims.split(",")))
                assert not {512, V // 2} & set(shape), line
