"""Causal attention within the segments of a row: what whole documents are run with.

    lowered for   S                  H                  dtype               implementation=None
    TPU           a multiple of 128  a multiple of 64   float32, bfloat16   splash
    TPU           others                                                    xla
    CPU, GPU      all                                                       xla

    'xla'      jax.nn.dot_product_attention with a mask: logits [B, N, S, S] in memory
    'splash'   jax.experimental.pallas.ops.tpu.splash_attention: tiles of logits in VMEM, those
               above the diagonal skipped; off TPU in Pallas' interpret mode only

Letters: B rows, S positions, N query heads, K key/value heads, H head width.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

Implementation = Literal["xla", "splash"]

# Largest square tile of logits that divides S: 1 MiB in float32. Compiled for v4, v5e, v5p, v6e and
# TPU7x; not yet timed on a chip.
_TILES = (512, 384, 256, 128)


def trunk_attention(
    query_BSNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    segments_BS: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Every position attends the positions up to itself that have its segment number.

    Differentiable, in reverse mode, in query, key and value. Only they are kept for the backward
    pass, which computes the forward pass again: the two implementations keep different things, and
    which one runs is known at lowering only. (Rematerialisation would run it again anyway.)

    Args:
      query_BSNH: rotated queries, unscaled.
      key_BSKH: rotated keys.
      value_BSKH: values.
      segments_BS: int32 numbers of the documents in a row; padding is a segment like any other.
      implementation: see the table above.

    Returns:
      [B, S, N, H] in the query's dtype; the softmax is computed in float32.

    Raises:
      ValueError: shapes that do not fit each other, or an implementation that is unknown or cannot
        take these.
    """
    shapes = query_BSNH.shape, key_BSKH.shape, value_BSKH.shape, segments_BS.shape
    B, S, N, H = query_BSNH.shape if query_BSNH.ndim == 4 else (0, 0, 0, 0)
    K = key_BSKH.shape[2] if key_BSKH.ndim == 4 else 0
    if shapes != ((B, S, N, H), (B, S, K, H), (B, S, K, H), (B, S)) or not K or N % K:
        raise ValueError(f"need shapes [B, S, N, H], twice [B, S, K, H] and [B, S]: {shapes}")
    arrays = (query_BSNH, key_BSKH, value_BSKH)
    reason = _unsupported(*arrays)
    if implementation not in (None, "xla", "splash"):
        raise ValueError(f"unknown implementation {implementation!r}; choose one of xla, splash")
    if implementation == "splash" and reason is not None:
        raise ValueError(f"splash attention cannot run here: {reason}")
    if implementation is None and reason is not None:
        implementation = "xla"
    return _attend(implementation, *arrays, segments_BS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(implementation, query_BSNH, key_BSKH, value_BSKH, segments_BS) -> jax.Array:
    arrays = (query_BSNH, key_BSKH, value_BSKH, segments_BS)
    if implementation is not None:
        return {"xla": _xla, "splash": _splash}[implementation](*arrays)
    return jax.lax.platform_dependent(*arrays, tpu=_splash, default=_xla)


def _attend_forward(implementation, *arrays):
    return _attend(implementation, *arrays), arrays


def _attend_backward(implementation, arrays, dout):
    *floats, segments_BS = arrays

    def backward(function, dout, *floats):
        _, pull = jax.vjp(lambda *floats: function(*floats, segments_BS), *floats)
        return pull(dout)

    xla, splash = (functools.partial(backward, function) for function in (_xla, _splash))
    if implementation is not None:
        gradients = {"xla": xla, "splash": splash}[implementation](dout, *floats)
    else:
        gradients = jax.lax.platform_dependent(dout, *floats, tpu=splash, default=xla)
    return *gradients, None


_attend.defvjp(_attend_forward, _attend_backward)


def _xla(query_BSNH, key_BSKH, value_BSKH, segments_BS) -> jax.Array:
    S = query_BSNH.shape[1]
    causal_SS = jnp.tril(jnp.ones((S, S), bool))
    same_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]
    mask_B1SS = (same_BSS & causal_SS)[:, None]
    return jax.nn.dot_product_attention(query_BSNH, key_BSKH, value_BSKH, mask=mask_B1SS)


def _splash(query_BSNH, key_BSKH, value_BSKH, segments_BS) -> jax.Array:
    S, N, H = query_BSNH.shape[1:]
    tile = next(tile for tile in _TILES if S % tile == 0)
    sizes = splash_attention.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((S, S))] * N)
    kernel = splash_attention.make_splash_mha_single_device(mask, block_sizes=sizes)
    query, key, value = (
        jnp.swapaxes(x, 1, 2) for x in (query_BSNH * H**-0.5, key_BSKH, value_BSKH)
    )
    segments = splash_attention.SegmentIds(segments_BS, segments_BS)
    mixed: Any = jax.vmap(kernel)(query, key, value, segments)
    return jnp.swapaxes(mixed, 1, 2)


def _unsupported(query_BSNH, key_BSKH, value_BSKH) -> str | None:
    """Why splash attention cannot take these, or None."""
    arrays = (query_BSNH, key_BSKH, value_BSKH)
    S, _, H = query_BSNH.shape[1:]
    if S == 0 or S % _TILES[-1] or H % 64:
        return f"S={S} must be a multiple of {_TILES[-1]}, and H={H} of 64"
    if any(x.dtype not in (jnp.float32, jnp.bfloat16) for x in arrays):
        return f"dtypes must be float32 or bfloat16, not {', '.join(str(x.dtype) for x in arrays)}"
    return None
