"""Hugging Face folders: config.json to and from `ModelConfig`, and safetensors files."""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from rpt import weights_layout
from rpt.model import config as config_lib
from rpt.model import transformer

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Old checkpoints store the frequencies that every reader computes anyway.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"


def load(
    folder: pathlib.Path, dtype: config_lib.Dtype
) -> tuple[config_lib.ModelConfig, transformer.Params]:
    """As `weights.load`, for a folder."""
    config_path = folder / CONFIG_FILE
    try:
        config = config_from_json(_read_json(config_path), dtype)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from error
    with contextlib.ExitStack() as stack:
        files = {}
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            except safetensors.SafetensorError as error:
                raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
            files.update((name, file) for name in file.keys())  # noqa: SIM118 (not a dict)
        files = {name: file for name, file in files.items() if not name.endswith(_IGNORED_SUFFIX)}
        shapes = {}
        for name, file in files.items():
            tensor = file.get_slice(name)
            if tensor.get_dtype() not in _FLOATS:
                raise ValueError(
                    f"{folder}: {name} is {tensor.get_dtype()}; only {', '.join(_FLOATS)} are read"
                )
            shapes[name] = tuple(tensor.get_shape())
        if config.tied_head and shapes.pop(_HEAD, None) is not None:
            _check_same_head(folder, files)
        params = weights_layout.assemble(
            config,
            weights_layout.huggingface_names,
            shapes,
            lambda name, entry: files[name].get_tensor(name),
            where=str(folder),
            dtype=dtype,
        )
    return config, params


def config_from_json(raw: Mapping[str, Any], dtype: config_lib.Dtype) -> config_lib.ModelConfig:
    """The model of a config.json, with `transformers`' defaults for absent keys.

    Raises:
      ValueError: an architecture or variant that the model does not have.
    """
    kind = raw.get("model_type")
    if kind not in _ARCHITECTURES:
        raise ValueError(
            f"model_type {kind!r} is not supported; supported: {', '.join(_ARCHITECTURES)}"
        )
    _refuse_variants(raw)
    width, num_heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    if raw.get("head_dim") is not None:
        head_width = _integer(raw, "head_dim")
    else:
        head_width = 128 if kind == "qwen3" else width // num_heads
    has_kv_heads = raw.get("num_key_value_heads") is not None
    rope = _rope_parameters(raw)
    return config_lib.ModelConfig(
        vocab_size=_integer(raw, "vocab_size"),
        width=width,
        num_layers=_integer(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(raw, "num_key_value_heads") if has_kv_heads else num_heads,
        head_width=head_width,
        ff_width=_integer(raw, "intermediate_size"),
        rope_theta=_number(rope, "rope_theta", 10_000.0),
        rope_scaling=_rope_scaling(rope, raw),
        norm_epsilon=_number(raw, "rms_norm_eps", 1e-6),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied_head=bool(raw.get("tie_word_embeddings", False)),
        dtype=dtype,
    )


def config_to_json(
    config: config_lib.ModelConfig, *, max_positions: int, bos_id: int | None, eos_id: int | None
) -> dict[str, Any]:
    """A config.json for `transformers` 4 and 5 (5 understands 4's rope keys too).

    Raises:
      ValueError: a combination of variants that no architecture of `transformers` has.
    """
    if config.qk_norm and config.qkv_bias:
        raise ValueError("no supported transformers architecture has both qk_norm and qkv_bias")
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if kind == "llama" and config.width % config.num_heads:
        raise ValueError(
            f"transformers' Llama needs width={config.width} to be a multiple of "
            f"num_heads={config.num_heads}"
        )
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.ff_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_to_json(config.rope_scaling),
        "max_position_embeddings": max_positions,
        "attention_bias": config.qkv_bias,
        "use_sliding_window": False,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
    }


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """model.safetensors, or the shards that the index names."""
    whole, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise FileNotFoundError(
            f"no {WEIGHTS_FILE} or {INDEX_FILE} in {folder} (pickled .bin weights are not read)"
        )
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(x, str) for x in shards.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    paths = [folder / name for name in sorted(set(shards.values()))]
    for path in paths:
        if path.parent != folder:
            raise ValueError(f"{index} names a file outside its folder: {path}")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {INDEX_FILE} names it as a shard")
    return paths


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is truncated or no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _check_same_head(folder: pathlib.Path, files: Mapping[str, Any]) -> None:
    head, embedding = files[_HEAD].get_tensor(_HEAD), files.get(_EMBEDDING)
    if embedding is None or not np.array_equal(head, embedding.get_tensor(_EMBEDDING)):
        raise ValueError(
            f"{folder} says tie_word_embeddings, but its {_HEAD} differs from its {_EMBEDDING}"
        )


def _refuse_variants(raw: Mapping[str, Any]) -> None:
    kind = raw["model_type"]
    if raw.get("quantization_config") is not None:
        raise ValueError("quantized weights (quantization_config) are not supported; use GGUF")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
    if raw.get("mlp_bias", False):
        raise ValueError("mlp_bias is not supported")
    # In Llama and Qwen3 this also means an output bias; Qwen2 ignores the key.
    if raw.get("attention_bias", False) and kind != "qwen2":
        raise ValueError(f"attention_bias is not supported for model_type {kind!r}")
    if kind == "llama":
        return
    layer_types = raw.get("layer_types")
    if layer_types is None:
        first_sliding = raw.get("max_window_layers", 28)
        windowed = raw.get("use_sliding_window", False) and raw.get("sliding_window") is not None
        sliding = windowed and first_sliding < _integer(raw, "num_hidden_layers")
    else:
        sliding = any(layer_type != "full_attention" for layer_type in layer_types)
    if sliding:
        raise ValueError("sliding-window attention is not supported")


def _rope_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 has one dict `rope_parameters`, 4 had rope_theta and rope_scaling."""
    found: dict[str, Any] = {}
    for source in (
        {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if key in raw},
        raw.get("rope_parameters") or {},
        raw.get("rope_scaling") or {},
    ):
        if not isinstance(source, dict):
            raise ValueError(f"rope_parameters and rope_scaling must be objects, not {source!r}")
        found.update({key: value for key, value in source.items() if value is not None})
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not supported: all of a head must rotate")
    return found


def _rope_scaling(
    rope: Mapping[str, Any], raw: Mapping[str, Any]
) -> config_lib.Llama3Scaling | config_lib.YarnScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("llama3", "yarn"):
        raise ValueError(f"rope_type {kind!r} is not supported; supported: default, llama3, yarn")
    key = "original_max_position_embeddings"
    original = _integer(rope if key in rope else {key: raw.get("max_position_embeddings")}, key)
    factor = _number(rope, "factor")
    if kind == "llama3":
        return config_lib.Llama3Scaling(
            factor, _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor"), original
        )
    for name in ("mscale", "mscale_all_dim"):
        if name in rope:
            raise ValueError(f"{name} of YaRN is not supported; give attention_factor")
    if not rope.get("truncate", True):
        raise ValueError("truncate=false of YaRN is not supported")
    return config_lib.YarnScaling(
        factor,
        original,
        beta_fast=_number(rope, "beta_fast", 32.0),
        beta_slow=_number(rope, "beta_slow", 1.0),
        attention_factor=_number(rope, "attention_factor") if "attention_factor" in rope else None,
    )


def _rope_scaling_to_json(
    scaling: config_lib.Llama3Scaling | config_lib.YarnScaling | None,
) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case config_lib.Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_positions,
            }
        case config_lib.YarnScaling():
            given = scaling.attention_factor
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_positions,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                **({} if given is None else {"attention_factor": given}),
            }


def _integer(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} must be a positive integer, not {value!r}")
    return value


def _number(raw: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = raw.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key} must be a number, not {value!r}")
    return float(value)
