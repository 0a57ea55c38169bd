"""The TPU kernel of sample goes through the TPU compiler of every generation."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kernels.sample import api, pallas_tpu, result, specs
from tests.kernels import tpu_topologies

pytestmark = tpu_topologies.needs_libtpu


def compiled(generation, spec, dtype=jnp.bfloat16, parameter_dtype=None):
    call = functools.partial(api.sample, **spec.options)
    return tpu_topologies.compile_for(generation, call, *spec.inputs(dtype, parameter_dtype))


def kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize(
    ("generation", "name"),
    tpu_topologies.pairs(specs.REAL, widest=["qwen2.5_14b", "qwen2.5_14b_truncated"]),
)
def test_the_kernel_of_real_shapes(generation, name):
    """With truncation only the kernel: what follows it is XLA's, see below. It needs the VMEM
    that the arithmetic that chooses its blocks says, and no more than is left for the compiler."""
    spec, request = specs.REAL[name], result.Request(**specs.REAL[name].options)
    inputs = spec.inputs(jnp.bfloat16)
    call = functools.partial(pallas_tpu.streamed, request)
    found = tpu_topologies.vmem_bytes(tpu_topologies.compile_for(generation, call, *inputs))
    D = -(-spec.D // pallas_tpu._LANES) * pallas_tpu._LANES
    blocks = pallas_tpu._blocks(request, *inputs[:2])
    most = pallas_tpu._vmem_bytes(request, blocks, D, 2, 2)
    assert found.keys() == {"sample"}
    assert 0 < found["sample"] <= most + tpu_topologies.VMEM_OF_THE_COMPILER


def test_the_whole_of_truncated_sampling():
    """Kernel, proof and bisection; the default is the kernel, which is there once."""
    assert kernels(compiled("v5e", specs.REAL["smollm2_135m_truncated"])) == 1


def test_float32_states_of_the_widest_model():
    """On the generation with the least VMEM."""
    assert kernels(compiled("v4", specs.REAL["qwen2.5_14b"], jnp.float32)) == 1


def test_float32_parameters():
    assert kernels(compiled("v5e", specs.REAL["qwen2.5_14b"], parameter_dtype=jnp.float32)) == 1


@pytest.mark.parametrize("name", ["one_block", "beyond_blocks", "top_k", "greedy"])
def test_small_shapes(name):
    assert kernels(compiled("v5e", specs.TINY[name])) == 1


@pytest.mark.parametrize("options", [{}, {"top_k": 50, "top_p": 0.95}])
def test_nothing_is_as_large_as_the_logits(options):
    spec = specs.Spec(M=4096, D=1536, V=151936, **options)
    memory = compiled("v5e", spec).memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * 4 * spec.M * spec.V


def test_a_vocabulary_split_over_four_devices():
    """The shards exchange vectors of rows: no logits."""
    mesh = tpu_topologies.mesh("v5e", tensor=4)
    spec = specs.REAL["smollm2_135m"]
    hidden, unembedding, keys = spec.inputs(jnp.bfloat16)
    sharding = NamedSharding(mesh, PartitionSpec("tensor"))
    unembedding = jax.ShapeDtypeStruct(unembedding.shape, unembedding.dtype, sharding=sharding)
    whole = NamedSharding(mesh, PartitionSpec())
    hidden, keys = (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in (hidden, keys))
    call = jax.shard_map(
        functools.partial(api.sample, vocab_axis="tensor", **spec.options),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("tensor"), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    text = tpu_topologies.compile_for("v5e", call, hidden, unembedding, keys).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert "all-gather" not in text
