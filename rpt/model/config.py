"""Shape and variant of a Llama-family transformer, as one hashable value."""

import dataclasses
from typing import Any, Literal

from kernels import models

Remat = Literal["none", "dots", "full"]
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Rotary frequencies of Llama 3.1 and later: long wavelengths are slowed down by `factor`."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): interpolated low frequencies and a temperature on the logits."""

    factor: float
    original_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer: Llama 3, SmolLM2, Qwen2.5 (`qkv_bias`), Qwen3 (`qk_norm`).

    Raises:
      ValueError: heads that do not group, or an odd head width.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ff_width: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | YarnScaling | None = None
    norm_epsilon: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = True
    dtype: Dtype = "float32"
    remat: Remat = "none"

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even for rotary positions")


def named(name: str, **variant: Any) -> ModelConfig:
    """The model of one of `kernels.models.MODELS`; `variant` are further fields."""
    shape = models.MODELS[name]
    return ModelConfig(
        vocab_size=shape.V,
        width=shape.D,
        num_layers=shape.L,
        num_heads=shape.N,
        num_kv_heads=shape.K,
        head_width=shape.H,
        ff_width=shape.F,
        qkv_bias=name.startswith("qwen"),
        tied_head=shape.D < 2048,
        **variant,
    )
