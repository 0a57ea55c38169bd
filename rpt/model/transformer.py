"""The two primitives over one set of layers: `trunk` and `branch`.

`trunk` runs whole documents once. `branch` runs continuations that each attend a range of a
trunk row and themselves. Parameters are an argument, so policy, EMA and reference share this
module; rollouts decode by `rpt/model/decoding.py` over a copy of the parameters.

Letters: B trunk rows, S trunk positions, R branches, T branch positions, L layers, D width, F
feed-forward, V vocabulary, N heads, K key/value heads, H head.
"""

import functools
import math
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from rpt import ops
from rpt.model import config as config_lib
from rpt.model import rope

ModelConfig = config_lib.ModelConfig
Params = Any


class KeyValues(NamedTuple):
    """Keys (rotated) and values of every layer: [L, B, S, K, H] of a trunk, or
    [L, B, R, T, K, H] of branches."""

    keys: jax.Array
    values: jax.Array


class _Trunk(NamedTuple):
    """What every trunk layer needs: who may see whom."""

    segments_BS: jax.Array


class _Branch(NamedTuple):
    """What every branch layer needs: the visible range of the trunk."""

    lo_BR: jax.Array
    hi_BR: jax.Array


@jax.named_scope("trunk")
def trunk(
    config: ModelConfig,
    params: Params,
    tokens_BS: jax.Array,
    segments_BS: jax.Array,
    positions_BS: jax.Array,
) -> tuple[jax.Array, KeyValues]:
    """Runs whole rows, causally within each segment.

    Args:
      config: static shape of the model.
      params: a parameter tree as `init` makes it, of any float dtype.
      tokens_BS: int32 token ids, right-padded.
      segments_BS: int32, 0 for padding, otherwise the document's number within its row.
      positions_BS: int32 rotary positions, counted within the document.

    Returns:
      hidden_BSD after the final norm, and the keys and values [L, B, S, K, H].
    """
    return _apply(config, params, tokens_BS, positions_BS, _Trunk(segments_BS), None)


@jax.named_scope("branch")
def branch(
    config: ModelConfig,
    params: Params,
    kv_LBSKH: KeyValues,
    tokens_BRT: jax.Array,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    start_BR: jax.Array,
) -> tuple[jax.Array, KeyValues]:
    """Runs branches: each attends trunk positions lo <= s < hi, and causally itself.

    A branch sees exactly what a separate row holding its document up to the cut and then the
    branch would see. Branches are right-padded: causality keeps padding from every real token.

    Args:
      config: static shape of the model.
      params: a parameter tree.
      kv_LBSKH: what `trunk` returned.
      tokens_BRT: int32 branch tokens.
      lo_BR: where each branch's document begins in its trunk row.
      hi_BR: its cut, exclusive.
      start_BR: rotary position of the branch's first token.

    Returns:
      hidden_BRTD after the final norm, and the branches' keys and values [L, B, R, T, K, H].
    """
    positions_BRT = start_BR[..., None] + jnp.arange(tokens_BRT.shape[-1], dtype=jnp.int32)
    inputs = _Branch(lo_BR, hi_BR)
    return _apply(config, params, tokens_BRT, positions_BRT, inputs, kv_LBSKH)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in x's dtype (arXiv 1910.07467)."""
    # Squares of bfloat16 activations lose too much: the norm is always float32.
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + epsilon)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def product(x: jax.Array, w: jax.Array, summed: int = 1) -> jax.Array:
    """The last `summed` axes of x against the first of w, as a product of two matrices.

    Of matrices, because XLA on CPU copies the weights of a sum over two axes, and in the backward
    pass writes transposed what stands between products of more: a third slower.
    """
    rows, columns = x.shape[: x.ndim - summed], w.shape[summed:]
    inner = math.prod(w.shape[:summed])
    return (x.reshape(-1, inner) @ w.reshape(inner, -1)).reshape(*rows, *columns)


def _apply(config: ModelConfig, params: Params, *inputs: Any) -> tuple[jax.Array, KeyValues]:
    # flax's type allows for mutable collections, which there are none of here.
    return cast(Any, _Transformer(config).apply({"params": params}, *inputs))


def init(config: ModelConfig, key: jax.Array) -> Params:
    """A fresh float32 parameter tree: truncated normal, residual outputs scaled by depth."""
    return nn.meta.unbox(_boxed_init(config, key))


def logical_axes(config: ModelConfig) -> Any:
    """The tree of `init` with a PartitionSpec of logical axis names at every leaf."""
    boxed = jax.eval_shape(functools.partial(_boxed_init, config), jax.random.key(0))
    return nn.get_partition_spec(boxed)


def unembedding(config: ModelConfig, params: Params) -> jax.Array:
    """The matrix [V, D] that turns hidden states into logits."""
    return params["embedding"] if config.tied_head else params["head"]


def next_tokens(tokens: jax.Array) -> jax.Array:
    """The token that each position [..., t] predicts; -1 for the last, which predicts none.

    Losses run over all positions with these for labels, and not over all but the last: a hidden
    state of an odd number of rows would be moved row by row between the registers of a TPU.
    """
    return jnp.pad(tokens[..., 1:], ((0, 0),) * (tokens.ndim - 1) + ((0, 1),), constant_values=-1)


def num_parameters(config: ModelConfig) -> int:
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _boxed_init(config: ModelConfig, key: jax.Array) -> Params:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return _Transformer(config).init(key, tokens, tokens, _Trunk(tokens), None)["params"]


def _normal(scale: float, axes: tuple[str, ...]):
    """Truncated normal with standard deviation `scale`, carrying its logical axes."""
    return nn.with_logical_partitioning(nn.initializers.truncated_normal(scale), axes)


def _weight(
    module: nn.Module, name: str, scale: float, axes: tuple[str, ...], shape: tuple[int, ...], dtype
) -> jax.Array:
    """A matrix of a layer as it is multiplied: cast, and whole along fsdp."""
    return ops.gathered(_parameter(module, name, _normal(scale, axes), shape), axes, dtype)


def _parameter(module: nn.Module, name: str, initialiser, shape: tuple[int, ...]) -> jax.Array:
    # flax hands it over without its box of logical axes, but its type does not say so.
    return cast(jax.Array, module.param(name, initialiser, shape))


class _RMSNorm(nn.Module):
    epsilon: float
    axis: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        return rms_norm(x, _parameter(self, "scale", ones, (x.shape[-1],)), self.epsilon)


class _Attention(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x, rotation, inputs, trunk):
        config, dtype = self.config, self.config.dtype
        D, N, K, H = config.width, config.num_heads, config.num_kv_heads, config.head_width

        def project(name: str, heads: int, axis: str):
            axes = ("embed", axis, "head")
            y = product(x, _weight(self, name, D**-0.5, axes, (D, heads, H), dtype))
            if config.qkv_bias:
                zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axis, "head"))
                y += _parameter(self, f"{name}_bias", zeros, (heads, H)).astype(dtype)
            return y

        q = project("query", N, "heads")
        k = project("key", K, "kv_heads")
        v = project("value", K, "kv_heads")
        if config.qk_norm:
            q = _RMSNorm(config.norm_epsilon, "head", name="query_norm")(q)
            k = _RMSNorm(config.norm_epsilon, "head", name="key_norm")(k)
        q, k = rope.rotate(q, *rotation), rope.rotate(k, *rotation)
        if isinstance(inputs, _Trunk):
            mixed = ops.trunk_attention(q, k, v, inputs.segments_BS)
        else:
            mixed = ops.branch_attention(q, k, v, tuple(trunk), inputs.lo_BR, inputs.hi_BR)
        scale = (N * H * 2 * config.num_layers) ** -0.5
        out = _weight(self, "output", scale, ("heads", "head", "embed"), (N, H, D), dtype)
        return product(mixed, out, summed=2), KeyValues(k, v)


class _FeedForward(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        dtype, D, F = self.config.dtype, self.config.width, self.config.ff_width
        gate = _weight(self, "gate", D**-0.5, ("embed", "ff"), (D, F), dtype)
        up = _weight(self, "up", D**-0.5, ("embed", "ff"), (D, F), dtype)
        h = jax.nn.silu(product(x, gate)) * product(x, up)
        scale = (F * 2 * self.config.num_layers) ** -0.5
        down = _weight(self, "down", scale, ("ff", "embed"), (F, D), dtype)
        return product(h, down)


class _Layer(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x, trunk, rotation, inputs):
        epsilon = self.config.norm_epsilon
        h = _RMSNorm(epsilon, "embed", name="attention_norm")(x)
        mixed, kv = _Attention(self.config, name="attention")(h, rotation, inputs, trunk)
        x = x + mixed
        h = _RMSNorm(epsilon, "embed", name="ff_norm")(x)
        return x + _FeedForward(self.config, name="ff")(h), kv


_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class _Transformer(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, tokens, positions, inputs, trunk):
        config = self.config
        V, D = config.vocab_size, config.width
        embedding = _parameter(self, "embedding", _normal(0.02, ("vocab", "embed")), (V, D))
        if not config.tied_head:
            _parameter(self, "head", _normal(0.02, ("vocab", "embed")), (V, D))
        x = jnp.take(embedding, tokens, axis=0).astype(config.dtype)
        layer = _Layer
        if config.remat != "none":
            # prevent_cse is needless under scan and would keep XLA from fusing.
            layer = nn.remat(_Layer, policy=_REMAT_POLICIES[config.remat], prevent_cse=False)
        in_axes: Any = (0, nn.broadcast, nn.broadcast)  # of trunk, rotation, inputs
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=in_axes,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, name="layers")
        rotation = rope.rotation(config, positions)
        x, kv = layers(x, trunk, rotation, inputs)
        return _RMSNorm(config.norm_epsilon, "embed", name="final_norm")(x), kv
