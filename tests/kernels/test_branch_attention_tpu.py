"""The TPU kernels of branch attention go through the TPU compiler of every generation."""

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
def compiled(generation, name, dtype=jnp.bfloat16):
    if name.startswith("decode/"):
        inputs = specs.DECODE[name.removeprefix("decode/")].inputs(dtype)
        return tpu_topologies.compile_for(generation, api.decode_attention, *inputs)
    inputs = specs.TRAINING[name].inputs(dtype)
    return tpu_topologies.compile_for(generation, gradients, *inputs, inputs[0])


def kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


# Blocks are as large as they get in all of them: what differs is g and H.
@pytest.mark.parametrize("name", specs.TRAINING)
def test_training(name):
    """Forward, queries' and keys' gradients, of the trunk and of the branches themselves."""
    assert kernels(compiled("v5e", name)) == 6


@pytest.mark.parametrize("name", specs.DECODE)
def test_decoding(name):
    assert kernels(compiled("v5e", f"decode/{name}")) == 1


@pytest.mark.parametrize("generation", sorted(set(tpu_topologies.GENERATIONS) - {"v5e"}))
@pytest.mark.parametrize("name", ["qwen2.5_1.5b", "decode/smollm2_135m"])
def test_generations(generation, name):
    """The most query heads per key/value head, in training, and the narrowest, in decoding;
    benchmarks/tpu_aot.py compiles everything for every generation."""
    assert kernels(compiled(generation, name)) == (1 if "decode" in name else 6)


def test_float32_on_the_generation_with_the_least_vmem():
    assert kernels(compiled("v4", "qwen2.5_1.5b", jnp.float32)) == 6


def test_no_logits_of_all_rows_in_memory():
    spec = specs.TRAINING["llama3.1_8b"]
    rows = spec.R * spec.T * spec.N
    found = compiled("v5e", "llama3.1_8b").memory_analysis().temp_size_in_bytes
    # Queries, results and their gradients in float32, a few times.
    assert found < 8 * rows * spec.H * 4 < 0.6 * rows * spec.S * 4
