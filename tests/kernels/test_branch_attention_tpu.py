"""The TPU kernels of branch attention go through the TPU compiler of every generation."""

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


def kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


def train(generation, spec, dtype=jnp.bfloat16):
    inputs = spec.inputs(dtype)
    return tpu_topologies.compile_for(generation, gradients, *inputs, inputs[0])


@pytest.mark.parametrize("generation", tpu_topologies.GENERATIONS)
@pytest.mark.parametrize("name", specs.TRAINING)
def test_training(generation, name):
    """Forward, queries' and keys' gradients, of the trunk and of the branches themselves."""
    assert kernels(train(generation, specs.TRAINING[name])) == 6


@pytest.mark.parametrize("generation", tpu_topologies.GENERATIONS)
@pytest.mark.parametrize("name", specs.DECODE)
def test_decoding(generation, name):
    inputs = specs.DECODE[name].inputs(jnp.bfloat16)
    assert kernels(tpu_topologies.compile_for(generation, api.decode_attention, *inputs)) == 1


def test_float32_of_the_widest_heads():
    """On the generation with the least VMEM."""
    assert kernels(train("v4", specs.TRAINING["qwen2.5_1.5b"], jnp.float32)) == 6


def test_small_shapes():
    assert kernels(train("v5e", specs.TINY["one_block"])) == 6


def test_no_logits_of_all_rows_in_memory():
    spec = specs.TRAINING["llama3.1_8b"]
    rows = spec.R * spec.T * spec.N
    found = train("v5e", spec).memory_analysis().temp_size_in_bytes
    # Queries, results and their gradients in float32, a few times.
    assert found < 8 * rows * spec.H * 4 < 0.6 * rows * spec.S * 4
