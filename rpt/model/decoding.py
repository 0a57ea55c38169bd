"""The sampling copy of the parameters, and the two passes of a rollout over it.

`prefill` runs the first positions of all branches at once, `step` one position of each. They
compute what `transformer.branch` computes, from parameters laid out for many short steps:

- layers are separate arrays, not slices of one stack: a slice is copied whenever it is used, which
  would read and write every weight once more per step;
- queries, keys and values are one matrix, grouped by key/value head so that the tensor axis of a
  mesh can split it; so are the gate and up matrices of the feed-forward;
- everything is cast to the compute dtype once per rollout and not once per step.

Letters: B trunk rows, S trunk positions, R branches, T branch positions, U cached positions, L
layers, D width, F feed-forward, V vocabulary, N heads, K key/value heads, g = N/K, X = g + 2 (the
queries, key and value of a key/value head), H head.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.branch_attention import api as branch_attention
from rpt import ops
from rpt.model import config as config_lib
from rpt.model import rope, transformer

ModelConfig = config_lib.ModelConfig
Cache = tuple[branch_attention.Past, ...]  # of every layer


class Layer(NamedTuple):
    """One layer's weights; those that the model does not have are None."""

    attention_norm_D: jax.Array
    qkv_DKXH: jax.Array
    qkv_bias_KXH: jax.Array | None
    query_norm_H: jax.Array | None
    key_norm_H: jax.Array | None
    output_NHD: jax.Array
    ff_norm_D: jax.Array
    gate_up_D2F: jax.Array
    down_FD: jax.Array


class SamplingCopy(NamedTuple):
    """The parameters for sampling; head_VD None means that the embedding is the head too."""

    embedding_VD: jax.Array
    head_VD: jax.Array | None
    layers: tuple[Layer, ...]
    final_norm_D: jax.Array

    @property
    def unembedding_VD(self) -> jax.Array:
        return self.embedding_VD if self.head_VD is None else self.head_VD


@functools.partial(jax.jit, static_argnames=("config",))
def sampling_copy(config: ModelConfig, params: transformer.Params) -> SamplingCopy:
    """The parameters in `config.dtype`, matrices fused and layers apart.

    Under a mesh they are split over tensor only: what is split over fsdp would be gathered again in
    every step.
    """
    params = jax.tree.map(lambda x: x.astype(config.dtype), params)
    stacked = params["layers"]
    attention, ff = stacked["attention"], stacked["ff"]
    K = config.num_kv_heads

    def fused(name: str) -> jax.Array:
        """[.., N, H], [.., K, H], [.., K, H] -> [.., K, g + 2, H]"""
        q, k, v = (attention[part + name] for part in ("query", "key", "value"))
        q = q.reshape(*q.shape[:-2], K, -1, q.shape[-1])
        return jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)

    every = Layer(
        attention_norm_D=stacked["attention_norm"]["scale"],
        qkv_DKXH=fused(""),
        qkv_bias_KXH=fused("_bias") if config.qkv_bias else None,
        query_norm_H=attention["query_norm"]["scale"] if config.qk_norm else None,
        key_norm_H=attention["key_norm"]["scale"] if config.qk_norm else None,
        output_NHD=attention["output"],
        ff_norm_D=stacked["ff_norm"]["scale"],
        gate_up_D2F=jnp.stack([ff["gate"], ff["up"]], axis=-2),
        down_FD=ff["down"],
    )

    def whole(x: jax.Array) -> jax.Array:
        return ops.split_tensor(x, None)

    def one(i: int) -> Layer:
        layer = jax.tree.map(lambda x: x[i], every)
        return jax.tree.map(whole, layer)._replace(
            qkv_DKXH=ops.split_tensor(layer.qkv_DKXH, 1),
            # Heads are split with the key/value head that they share, or not at all.
            output_NHD=ops.split_tensor(layer.output_NHD, 0, count=K),
            gate_up_D2F=ops.split_tensor(layer.gate_up_D2F, 2),
            down_FD=ops.split_tensor(layer.down_FD, 0),
        )

    return SamplingCopy(
        embedding_VD=ops.split_tensor(params["embedding"], 0),
        head_VD=None if config.tied_head else ops.split_tensor(params["head"], 0),
        layers=tuple(one(i) for i in range(config.num_layers)),
        final_norm_D=whole(params["final_norm"]["scale"]),
    )


def empty_cache(config: ModelConfig, B: int, R: int, U: int) -> Cache:
    """Room for U positions of every branch."""
    shape = (B, R, U, config.num_kv_heads, config.head_width, config.dtype)
    return tuple(branch_attention.empty_past(*shape) for _ in range(config.num_layers))


def prefill(
    config: ModelConfig,
    copy: SamplingCopy,
    kv_LBSKH: transformer.KeyValues,
    past: Cache,
    tokens_BRT: jax.Array,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    start_BR: jax.Array,
) -> Cache:
    """Writes the keys and values of the branches' first T tokens into the empty caches.

    Args:
      config, copy: of `sampling_copy`.
      kv_LBSKH: what `transformer.trunk` returned.
      past: one cache per layer, of at least T positions.
      tokens_BRT, lo_BR, hi_BR, start_BR: as in `transformer.branch`.
    """
    T = tokens_BRT.shape[-1]
    rotation = rope.rotation(config, start_BR[..., None] + jnp.arange(T, dtype=jnp.int32))
    x = jnp.take(copy.embedding_VD, tokens_BRT, axis=0)
    written = []
    for i, layer in enumerate(copy.layers):
        trunk = (kv_LBSKH.keys[i], kv_LBSKH.values[i])

        def attend(q, k, v, i=i, trunk=trunk):
            written.append(branch_attention.extend(past[i], k, v, 0))
            return ops.branch_attention(q, k, v, trunk, lo_BR, hi_BR)

        x = _layer(config, layer, x, rotation, attend)
    return tuple(written)


def step(
    config: ModelConfig,
    copy: SamplingCopy,
    trunk: tuple[branch_attention.Trunk, ...],
    past: Cache,
    token_BR: jax.Array,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    start_BR: jax.Array,
    t: jax.Array,
    rotations: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, Cache]:
    """One position of every branch.

    Args:
      config, copy: of `sampling_copy`.
      trunk: of `prepare_trunk`, per layer.
      past: the caches, of which the first t positions are filled; position t is written.
      token_BR: the tokens at position t.
      lo_BR, hi_BR, start_BR: as in `transformer.branch`.
      t: int32, the same for all branches.
      rotations: `rope.rotation` of positions 0, 1, ..., made outside of the loop over t: inside,
        XLA would compute cosines once more for every head of every layer.

    Returns:
      hidden_BRD after the final norm, and the caches.
    """
    cos_BRH, sin_BRH = (jnp.take(table, start_BR + t, axis=0) for table in rotations)
    x = jnp.take(copy.embedding_VD, token_BR, axis=0)
    written = []
    for layer, trunk_layer, past_layer in zip(copy.layers, trunk, past, strict=True):

        def attend(q, k, v, trunk_layer=trunk_layer, past_layer=past_layer):
            filled = branch_attention.append(past_layer, k, v, t)
            written.append(filled)
            return ops.decode_attention(q, trunk_layer, lo_BR, hi_BR, filled, t + 1)

        x = _layer(config, layer, x, (cos_BRH, sin_BRH), attend)
    return transformer.rms_norm(x, copy.final_norm_D, config.norm_epsilon), tuple(written)


@functools.partial(jax.jit, static_argnames=("config",))
def prepare_trunk(
    config: ModelConfig, kv_LBSKH: transformer.KeyValues
) -> tuple[branch_attention.Trunk, ...]:
    """The trunk's keys and values of every layer as `step` wants them, once per rollout."""
    return tuple(
        branch_attention.prepare_trunk(
            kv_LBSKH.keys[i].astype(config.dtype), kv_LBSKH.values[i].astype(config.dtype)
        )
        for i in range(config.num_layers)
    )


def rotations(
    config: ModelConfig, trunk: tuple[branch_attention.Trunk, ...], length: int
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [S + length, H/2] of all positions that a branch can reach."""
    S = trunk[0][0].shape[branch_attention.TRUNK_AXES[0].index("S")]
    return rope.rotation(config, jnp.arange(S + length))


Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _layer(
    config: ModelConfig,
    layer: Layer,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
) -> jax.Array:
    """x [..., D] -> [..., D]; `attend` maps rotated queries, keys and values to their mix."""
    with jax.named_scope("attention"):
        x = x + _attention(config, layer, x, rotation, attend)
    with jax.named_scope("ff"):
        h = transformer.rms_norm(x, layer.ff_norm_D, config.norm_epsilon)
        gate_up = jnp.einsum("...D,DjF->...jF", h, layer.gate_up_D2F)
        h = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
        return x + transformer.product(h, layer.down_FD)


def _attention(
    config: ModelConfig,
    layer: Layer,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
) -> jax.Array:
    h = transformer.rms_norm(x, layer.attention_norm_D, config.norm_epsilon)
    qkv = jnp.einsum("...D,DKXH->...KXH", h, layer.qkv_DKXH)
    if layer.qkv_bias_KXH is not None:
        qkv += layer.qkv_bias_KXH
    q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
    q = q.reshape(*q.shape[:-3], config.num_heads, config.head_width)
    if layer.query_norm_H is not None and layer.key_norm_H is not None:
        q = transformer.rms_norm(q, layer.query_norm_H, config.norm_epsilon)
        k = transformer.rms_norm(k, layer.key_norm_H, config.norm_epsilon)
    mixed = attend(rope.rotate(q, *rotation), rope.rotate(k, *rotation), v)
    return transformer.product(mixed, layer.output_NHD, summed=2)
