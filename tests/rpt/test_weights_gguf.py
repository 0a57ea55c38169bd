"""GGUF files as llama.cpp's converter writes them, quantised, truncated or not supported."""

import dataclasses

import gguf
import gguf.quants
import jax
import numpy as np
import pytest

from rpt import weights, weights_layout
from rpt.model import config as config_lib
from rpt.model import rope
from tests.rpt import fixture_models

Q = gguf.GGMLQuantizationType


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    return (
        array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        .swapaxes(1, 2)
        .reshape(array.shape)
    )


def write_gguf(path, config, params, quantisation=Q.F32, **metadata) -> dict[str, np.ndarray]:
    """Writes a model as llama.cpp's converter would, and returns the values it holds."""
    architecture = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.rope_theta)
    match config.rope_scaling:
        case config_lib.Llama3Scaling() as scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling.original_positions)
            plain, _ = rope.frequencies(dataclasses.replace(config, rope_scaling=None))
            writer.add_tensor("rope_freqs.weight", plain / rope.frequencies(config)[0])
        case config_lib.YarnScaling() as scaling:
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(scaling.factor)
            writer.add_rope_scaling_orig_ctx_len(scaling.original_positions)
            writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
    for key, value in metadata.items():
        writer.add_uint32(key, value)
    values = {}
    tensors = dict(weights_layout.disassemble(config, params, "float32"))
    for entry in weights_layout.entries(config):
        names = weights_layout.huggingface_names(config, entry)
        for name, gguf_name in zip(names, weights_layout.gguf_names(config, entry), strict=True):
            array = tensors[name]
            kind = quantisation if array.ndim == 2 else Q.F32
            if array.shape[-1] % 32 and kind not in (Q.F32, Q.F16, Q.BF16):
                kind = Q.F16
            heads = {"query": config.num_heads, "key": config.num_kv_heads}.get(entry.path[-1])
            permute = architecture == "llama" and heads is not None
            data = gguf.quants.quantize(permuted(array, heads) if permute else array, kind)
            writer.add_tensor(gguf_name, data, raw_dtype=kind)
            # Rows are quantised one by one, so the order of rows does not change their values.
            values[name] = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("variant", fixture_models.VARIANTS)
def test_gguf_is_the_same_model(tmp_path, variant):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    write_gguf(tmp_path / "model.gguf", config, params)
    again_config, again = weights.load(tmp_path / "model.gguf")
    assert again_config == config
    fixture_models.assert_same_trees(again, params)


@pytest.mark.parametrize("quantisation", [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1])
@pytest.mark.parametrize("variant", ["llama3", "qwen3"])
def test_gguf_is_dequantised(tmp_path, variant, quantisation):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    values = write_gguf(tmp_path / "model.gguf", config, params, quantisation)
    again_config, again = weights.load(tmp_path / "model.gguf")
    read = dict(weights_layout.disassemble(again_config, again, "float32"))
    assert read.keys() == values.keys()
    for name in read:
        np.testing.assert_array_equal(read[name], values[name], err_msg=name)
    exact = dict(weights_layout.disassemble(config, params, "float32"))
    query = "model.layers.1.self_attn.q_proj.weight"
    assert 0 < np.abs(read[query] - exact[query]).max() < 0.2 * np.abs(exact[query]).max()


@pytest.mark.parametrize("keep", [0, 3, 20, 90, 700, 0.3, 0.9, -40])
def test_truncated_gguf_is_one_clear_line(tmp_path, keep):
    config, params = weights.load(fixture_models.FIXTURES / "llama3")
    write_gguf(tmp_path / "model.gguf", config, params)
    fixture_models.truncate(tmp_path / "model.gguf", keep)
    with pytest.raises(ValueError, match="is truncated or no GGUF file") as error:
        weights.load(tmp_path / "model.gguf")
    fixture_models.assert_one_line(error)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.expert_count": 8}, "experts"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count=4"),
        ({"llama.vocab_size": 99}, "vocab_size=99"),
        ({"split.count": 2}, "split GGUF"),
    ],
)
def test_unsupported_gguf_is_one_clear_line(tmp_path, metadata, message):
    config, params = weights.load(fixture_models.FIXTURES / "llama3")
    write_gguf(tmp_path / "model.gguf", config, params, **metadata)
    with pytest.raises(ValueError, match=message) as error:
        weights.load(tmp_path / "model.gguf")
    fixture_models.assert_one_line(error)


def test_gguf_that_lacks_tensors_is_one_clear_line(tmp_path):
    config, params = weights.load(fixture_models.FIXTURES / "llama3")
    fewer = dataclasses.replace(config, num_layers=1)
    layers = jax.tree.map(lambda x: x[:1], params["layers"])
    path = tmp_path / "model.gguf"
    write_gguf(path, fewer, params | {"layers": layers})
    content = path.read_bytes().replace(b"blk.0.attn_output", b"blk.0.attn_outpux")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"lacks 1 tensor\(s\).*attn_output") as error:
        weights.load(path)
    fixture_models.assert_one_line(error)


def test_gguf_with_unknown_rope_factors_is_refused(tmp_path):
    config, params = weights.load(fixture_models.FIXTURES / "llama3")
    scaling = dataclasses.replace(config.rope_scaling, high_frequency_factor=2.5)
    other = dataclasses.replace(config, rope_scaling=scaling)
    write_gguf(tmp_path / "model.gguf", other, params)
    with pytest.raises(ValueError, match="not the scaling of Llama 3"):
        weights.load(tmp_path / "model.gguf")


def test_gguf_of_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba'"):
        weights.load(tmp_path / "model.gguf")
