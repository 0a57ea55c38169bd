"""The TPU kernels of logprob go through the TPU compiler of every generation."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kernels.logprob import api, pallas_tpu, specs
from tests.kernels import tpu_topologies

pytestmark = tpu_topologies.needs_libtpu


def gradients(implementation, soft_cap, hidden, unembedding, labels, threshold, vocab_axis=None):
    """Forward and backward, through all three results."""

    def total(hidden, unembedding):
        result = api.logprob(
            hidden,
            unembedding,
            labels,
            threshold_M=threshold,
            soft_cap=soft_cap,
            vocab_axis=vocab_axis,
            implementation=implementation,
        )
        return sum(jnp.sum(x) for x in result)

    return jax.grad(total, argnums=(0, 1))(hidden, unembedding)


def compiled(generation, spec, dtype=jnp.bfloat16, implementation=None):
    call = functools.partial(gradients, implementation, spec.soft_cap)
    return tpu_topologies.compile_for(generation, call, *spec.inputs(dtype))


def kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize(
    ("generation", "name"), tpu_topologies.pairs(specs.REAL, widest=["qwen2.5_14b"])
)
def test_real_shapes(generation, name):
    """bfloat16 states and float32 parameters, as in training; the default is the kernels. They need
    the VMEM that the arithmetic that chooses their blocks says, and no more than is left for the
    compiler."""
    spec = specs.REAL[name]
    found = tpu_topologies.vmem_bytes(compiled(generation, spec))
    hidden, unembedding, *_ = spec.inputs(jnp.bfloat16)
    expected = {}
    for kernel in ("forward", "dhidden", "dhead"):
        blocks = pallas_tpu._blocks(kernel, hidden, unembedding)
        D = -(-spec.D // pallas_tpu._LANES) * pallas_tpu._LANES
        expected[f"logprob_{kernel}"] = pallas_tpu._vmem_bytes(kernel, blocks, D, 2, 4)
    assert found.keys() == expected.keys()
    for kernel, most in expected.items():
        assert 0 < found[kernel] <= most + tpu_topologies.VMEM_OF_THE_COMPILER, kernel


def test_float32_states_of_the_widest_model():
    """On the generation with the least VMEM."""
    assert kernels(compiled("v4", specs.REAL["qwen2.5_14b"], jnp.float32)) == 3


def test_scores():
    """Which have no kernel: through XLA's loop."""
    call = functools.partial(api.score, top=16)
    spec = specs.REAL["smollm2_135m"]
    found = tpu_topologies.compile_for("v5e", call, *spec.inputs(jnp.bfloat16)[:3])
    assert found.memory_analysis().temp_size_in_bytes < 0.2 * (4 * spec.M * spec.V)


@pytest.mark.parametrize("name", specs.TINY)
def test_small_shapes(name):
    assert kernels(compiled("v5e", specs.TINY[name])) == 3


def test_memory_is_a_small_part_of_what_the_logits_need():
    spec = specs.REAL["qwen2.5_1.5b"]
    assert (spec.M, spec.D, spec.V) == (4096, 1536, 151936)
    found = compiled("v5e", spec, implementation="pallas").memory_analysis()
    # The reference needs as much as its logits: 2,489,512,960 bytes, in 11 s of compilation.
    assert found.temp_size_in_bytes < 0.05 * (4 * spec.M * spec.V)


def test_the_vocabulary_split_over_devices():
    """Only rows are exchanged, and no device holds more of the head than its part."""
    spec = specs.REAL["qwen2.5_1.5b"]
    mesh = tpu_topologies.mesh("v5e", tensor=4)
    layouts = (PartitionSpec(), PartitionSpec("tensor"), PartitionSpec())
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, layout))
        for x, layout in zip(spec.inputs(jnp.bfloat16), layouts, strict=False)
    ]

    def total(hidden, unembedding, labels):
        split = jax.shard_map(
            functools.partial(api.logprob, vocab_axis="tensor"),
            mesh=mesh,
            in_specs=layouts,
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        return sum(jnp.sum(x) for x in split(hidden, unembedding, labels))

    found = tpu_topologies.compile_for("v5e", jax.grad(total, argnums=(0, 1)), *shapes)
    assert kernels(found) == 3
    assert "all-gather" not in found.as_text()
    assert found.memory_analysis().temp_size_in_bytes < 4 * spec.M * spec.D * 4
