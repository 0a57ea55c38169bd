"""GGUF files: metadata to `ModelConfig`, and (quantised) tensors to float.

llama.cpp rotates neighbouring pairs in its `llama` architecture, so files of that architecture
hold the rows of the query and key projections in another order than Hugging Face (and we) do;
`_unpermuted` undoes it. Files of `qwen2` and `qwen3` are in our order.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import gguf.quants
import numpy as np

from rpt import weights_layout
from rpt.model import config as config_lib
from rpt.model import rope, transformer

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1, 3.2 and 3.3, whose converters write only the resulting factors.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS = 1.0, 4.0, 8192


def load(
    path: pathlib.Path, dtype: config_lib.Dtype
) -> tuple[config_lib.ModelConfig, transformer.Params]:
    """As `weights.load`, for a GGUF file."""
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if _plain(field)}
    # What the library raises on files cut at one place or another.
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is truncated or no GGUF file: {error}") from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = tensors.pop(_ROPE_FACTORS, None)
    try:
        config = _config(fields, tensors, None if factors is None else factors.data, dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    permuted = fields["general.architecture"] == "llama"

    def read(name: str, entry: weights_layout.Entry) -> np.ndarray:
        tensor = tensors[name]
        try:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{path}: {name} is quantised as {tensor.tensor_type.name}, which the gguf "
                "library cannot read; use a Q8_0, Q4_K or F16 file"
            ) from error
        if permuted and entry.path[-1] in ("query", "query_bias"):
            return _unpermuted(array, config.num_heads)
        if permuted and entry.path[-1] in ("key", "key_bias"):
            return _unpermuted(array, config.num_kv_heads)
        return array

    params = weights_layout.assemble(
        config,
        weights_layout.gguf_names,
        {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in tensors.items()},
        read,
        where=str(path),
        dtype=dtype,
    )
    return config, params


def _plain(field: gguf.ReaderField) -> bool:
    """Vocabulary and merges are large, and the tokenizer's business."""
    return not field.name.startswith("tokenizer.")


def _unpermuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads, H/2, 2] of the file in the order [heads, 2, H/2] of half-split rotation."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _config(
    fields: Mapping[str, Any],
    tensors: Mapping[str, gguf.ReaderTensor],
    rope_factors: np.ndarray | None,
    dtype: config_lib.Dtype,
) -> config_lib.ModelConfig:
    architecture = fields.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"architecture {architecture!r} is not supported; supported: "
            + ", ".join(_ARCHITECTURES)
        )
    prefix = f"{architecture}."
    keys = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
    if fields.get("split.count", 1) > 1:
        raise ValueError("this is one part of a split GGUF; join the parts with gguf-split --merge")
    if keys.get("expert_count", 0) > 0:
        raise ValueError("mixtures of experts are not supported")
    if "token_embd.weight" not in tensors:
        raise ValueError("the tensor token_embd.weight is missing")
    width, num_heads = _integer(keys, "embedding_length"), _integer(keys, "attention.head_count")
    head_width = keys.get("attention.key_length", width // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head_width) != head_width:
            raise ValueError(f"{key}={keys[key]} differs from the head width {head_width}")
    vocab_size = int(tensors["token_embd.weight"].shape[1])
    if keys.get("vocab_size", vocab_size) != vocab_size:
        raise ValueError(
            f"vocab_size={keys['vocab_size']}, but token_embd.weight has {vocab_size} rows"
        )
    kv_heads_key = "attention.head_count_kv"
    num_kv_heads = _integer(keys, kv_heads_key) if kv_heads_key in keys else num_heads
    config = config_lib.ModelConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=_integer(keys, "block_count"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_width=head_width,
        ff_width=_integer(keys, "feed_forward_length"),
        rope_theta=float(keys.get("rope.freq_base", 10_000.0)),
        norm_epsilon=_decimal(keys, "attention.layer_norm_rms_epsilon"),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied_head="output.weight" not in tensors,
        dtype=dtype,
    )
    return dataclasses.replace(config, rope_scaling=_rope_scaling(keys, rope_factors, config))


def _rope_scaling(
    keys: Mapping[str, Any], factors: np.ndarray | None, plain: config_lib.ModelConfig
) -> config_lib.Llama3Scaling | config_lib.YarnScaling | None:
    kind = keys.get("rope.scaling.type", "none")
    factor = float(keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0)))
    original = keys.get("rope.scaling.original_context_length")
    if kind == "yarn":
        if factors is not None:
            raise ValueError(f"YaRN together with {_ROPE_FACTORS} is not supported")
        if "rope.scaling.yarn_log_multiplier" in keys:
            raise ValueError("rope.scaling.yarn_log_multiplier is not supported")
        return _yarn(keys, factor)
    if kind not in ("none", "linear") or factor != 1.0:
        raise ValueError(f"rope scaling {kind!r} by {factor} is not supported, only yarn is")
    if factors is None or np.all(factors == 1.0):
        return None
    scaling = config_lib.Llama3Scaling(
        float(np.max(factors)), _LLAMA3_LOW, _LLAMA3_HIGH, int(original or _LLAMA3_POSITIONS)
    )
    frequencies, _ = rope.frequencies(plain)
    scaled, _ = rope.frequencies(dataclasses.replace(plain, rope_scaling=scaling))
    if factors.shape != frequencies.shape or not np.allclose(
        frequencies / factors, scaled, rtol=1e-4, atol=0
    ):
        raise ValueError(
            f"{_ROPE_FACTORS} is not the scaling of Llama 3, nothing else is supported"
        )
    return scaling


def _yarn(keys: Mapping[str, Any], factor: float) -> config_lib.YarnScaling:
    attention = float(
        keys.get("rope.scaling.yarn_attn_factor", keys.get("rope.scaling.attn_factor", 1.0))
    )
    if attention != 1.0:
        raise ValueError("an attention factor of YaRN in a GGUF is not supported")
    return config_lib.YarnScaling(
        factor,
        _integer(keys, "rope.scaling.original_context_length"),
        beta_fast=float(keys.get("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(keys.get("rope.scaling.yarn_beta_slow", 1.0)),
    )


def _integer(keys: Mapping[str, Any], key: str) -> int:
    value = keys.get(key)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"the metadata key {key} must be one positive integer, not {value!r}")
    return value


def _decimal(keys: Mapping[str, Any], key: str) -> float:
    """Stored in float32: the shortest decimal of it is the number that was meant (1e-5)."""
    value = keys.get(key)
    if not isinstance(value, float):
        raise ValueError(f"the metadata key {key} must be a number, not {value!r}")
    return float(str(np.float32(value)))
