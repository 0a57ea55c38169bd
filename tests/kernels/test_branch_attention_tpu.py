"""The TPU kernels of branch attention go through the TPU compiler of every generation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from kernels.branch_attention import api, specs
from tests.kernels import tpu_topologies

pytestmark = tpu_topologies.needs_libtpu


def gradients(query, key, value, trunk, lo_BR, hi_BR, dout):
    def attend(query, key, value, trunk):
        return api.branch_attention(query, key, value, trunk, lo_BR, hi_BR)

    _, pull = jax.vjp(attend, query, key, value, trunk)
    return pull(dout)


@functools.cache
def compiled(generation, name, dtype):
    if name.startswith("decode/"):
        inputs = specs.DECODE[name.removeprefix("decode/")].inputs(dtype)
        return tpu_topologies.compile_for(generation, api.decode_attention, *inputs)
    inputs = specs.TRAINING[name].inputs(dtype)
    return tpu_topologies.compile_for(generation, gradients, *inputs, inputs[0])


def kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


# Blocks are as large as they get in all specs: what differs between them is g and H. All of them go
# through the compilers of all generations in benchmarks/tpu_aot.py.
@pytest.mark.parametrize(
    ("generation", "name", "dtype"),
    [
        ("v4", "qwen2.5_1.5b", jnp.float32),  # the largest blocks
        ("v5e", "llama3.1_8b", jnp.bfloat16),
    ],
)
def test_training(generation, name, dtype):
    """Forward, queries' and keys' gradients, of the trunk and of the branches themselves."""
    assert kernels(compiled(generation, name, dtype)) == 6


@pytest.mark.parametrize("generation", tpu_topologies.GENERATIONS)
def test_training_in_bfloat16(generation):
    """One block and one tile, which compile in a fifth of the time: what a generation can do."""
    spec = dataclasses.replace(specs.TRAINING["smollm2_135m"], S=128, R=4)
    inputs = spec.inputs(jnp.bfloat16)
    assert kernels(tpu_topologies.compile_for(generation, gradients, *inputs, inputs[0])) == 6


@pytest.mark.parametrize("generation", tpu_topologies.GENERATIONS)
def test_decoding(generation):
    assert kernels(compiled(generation, "decode/smollm2_135m", jnp.bfloat16)) == 1


def test_decoding_with_many_branches():
    assert kernels(compiled("v5e", "decode/qwen2.5_14b", jnp.bfloat16)) == 1


def test_no_logits_of_all_rows_in_memory():
    spec = specs.TRAINING["llama3.1_8b"]
    rows = spec.R * spec.T * spec.N
    found = compiled("v5e", "llama3.1_8b", jnp.bfloat16).memory_analysis().temp_size_in_bytes
    # Queries, results and their gradients in float32, a few times.
    assert found < 8 * rows * spec.H * 4 < 0.6 * rows * spec.S * 4
