"""Rotary positions (arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rpt.model import config as config_lib


def rotation(config: config_lib.ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [..., H/2] in float32 of positions [...], counted within the document."""
    frequencies_H, scale = frequencies(config)
    angles = positions[..., None].astype(jnp.float32) * frequencies_H
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [..., heads, H]; cos and sin [..., H/2] are shared by the heads."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def frequencies(config: config_lib.ModelConfig) -> tuple[np.ndarray, float]:
    """Angular frequencies [H/2], and the factor on cosines and sines (1 except for YaRN)."""
    half = config.head_width // 2
    plain = config.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    match config.rope_scaling:
        case None:
            return plain.astype(np.float32), 1.0
        case config_lib.Llama3Scaling() as scaling:
            return _llama3(plain, scaling).astype(np.float32), 1.0
        case config_lib.YarnScaling() as scaling:
            factor = scaling.attention_factor
            if factor is None:
                factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
            return _yarn(plain, config, scaling).astype(np.float32), factor


def _llama3(plain: np.ndarray, scaling: config_lib.Llama3Scaling) -> np.ndarray:
    """Keeps short wavelengths, divides long ones by the factor, and blends in between."""
    turns = scaling.original_positions * plain / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * keep + plain / scaling.factor * (1 - keep)


def _yarn(
    plain: np.ndarray, config: config_lib.ModelConfig, scaling: config_lib.YarnScaling
) -> np.ndarray:
    """Interpolates the frequencies that turn rarely within the original context (paper, eq. 23)."""

    def dimension_of(turns: float) -> float:
        wavelength = scaling.original_positions / (turns * 2 * math.pi)
        return config.head_width * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), config.head_width - 1)
    # Equal ends would divide by zero; the small width is the reference implementation's.
    width = max(high - low, 1e-3)
    interpolate = np.clip((np.arange(len(plain)) - low) / width, 0.0, 1.0)
    return plain * (1 - interpolate) + plain / scaling.factor * interpolate
