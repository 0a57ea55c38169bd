"""Attention of branches to a shared trunk and to themselves.

Both parts are one softmax, merged by log-sum-exp. The trunk's keys are read once per document or
block of branches, and not once per branch: the R*T*g queries of a document meet them in matrix
products shared by a key/value head. Tiles of the trunk beyond the furthest cut are skipped (in
chunked decoding once the trunk's logits do not fit at once). `chunked` holds the own logits of a
block of branches, R*T*g rows in blocks of at least T*g, in one piece: its memory grows with T*T.

    lowered for   shapes                                                   implementation=None
    TPU           float32 or bfloat16, H a multiple of 8 up to 256,        pallas
                  g*H up to 1,024
    TPU           others                                                   chunked
    CPU, GPU      all                                                      chunked

Letters: B documents, S trunk positions, R branches, T branch positions, U cached positions of a
branch, N query heads, K key/value heads, g = N/K query heads per key/value head, H head width.
"""

import functools

import jax

from kernels import dispatch
from kernels.branch_attention import cache, chunked, decode, pallas_tpu, reference

Past = cache.Past
Trunk = cache.Trunk
PAST_AXES, TRUNK_AXES = cache.PAST_AXES, cache.TRUNK_AXES
empty_past, append, extend = cache.empty_past, cache.append, cache.extend
grow, take, prepare_trunk = cache.grow, cache.take, cache.prepare_trunk


def branch_attention(
    query_BRTNH: jax.Array,
    key_BRTKH: jax.Array,
    value_BRTKH: jax.Array,
    trunk: tuple[jax.Array, jax.Array],
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    *,
    implementation: dispatch.Implementation | None = None,
) -> jax.Array:
    """Softmax attention over trunk[lo:hi] and, causally, the branch itself.

    Differentiable, in reverse mode, in everything but lo and hi. Gradients come in the dtypes of
    their arguments; those of the trunk are summed over all branches in float32.

    Args:
      query_BRTNH: rotated queries, unscaled.
      key_BRTKH: rotated keys of the same positions.
      value_BRTKH: their values.
      trunk: rotated keys and values [B, S, K, H].
      lo_BR: first visible trunk position of each branch.
      hi_BR: one past the last; hi == lo means that the branch sees nothing of the trunk.
      implementation: see the table above and kernels/dispatch.py.

    Returns:
      [B, R, T, N, H] in the query's dtype; the softmax is computed in float32.

    Raises:
      ValueError: shapes that do not fit each other or are empty, or an implementation that is
        unknown or cannot take these.
    """
    B, R, T, N, H = _rank("query", query_BRTNH, 5)
    S, K = _rank("trunk", trunk[0], 4)[1:3]
    own, shared = (B, R, T, K, H), (B, S, K, H)
    _check("own keys and values", own, key_BRTKH, value_BRTKH)
    _check("the trunk's keys and values", shared, *trunk)
    _check("lo and hi", (B, R), lo_BR, hi_BR)
    _check_heads(N, K)
    arrays = (query_BRTNH, key_BRTKH, value_BRTKH, *trunk, lo_BR, hi_BR)
    if implementation == "reference":
        return reference.branch_attention(*arrays)
    return _attend(implementation, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(implementation, *arrays) -> jax.Array:
    return _attend_forward(implementation, *arrays)[0]


def _attend_forward(implementation, *arrays):
    out, lse = dispatch.run(
        implementation,
        {"chunked": chunked.forward, "pallas": pallas_tpu.forward},
        *arrays,
        unsupported=pallas_tpu.unsupported(arrays[1].shape[3], *arrays[:5]),
    )
    return out, (arrays, out, lse)


def _attend_backward(implementation, residuals, dout):
    arrays, out, lse = residuals
    gradients = dispatch.run(
        implementation,
        {"chunked": chunked.backward, "pallas": pallas_tpu.backward},
        *(*arrays, out, lse, dout),
        unsupported=pallas_tpu.unsupported(arrays[1].shape[3], *arrays[:5]),
    )
    return *gradients, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def decode_attention(
    query_BRNH: jax.Array,
    trunk: Trunk,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    past: Past,
    length: jax.Array,
    *,
    implementation: dispatch.Implementation | None = None,
) -> jax.Array:
    """One position of every branch: softmax attention over trunk[lo:hi] and past[:length].

    Without a gradient.

    Args:
      query_BRNH: rotated queries, unscaled.
      trunk: of `prepare_trunk`.
      lo_BR, hi_BR: as in `branch_attention`.
      past: own keys and values, those of this position included, as the last.
      length: int32, how many of the past's U are written, the same for all branches; at least 1.
      implementation: see the table above and kernels/dispatch.py.

    Returns:
      [B, R, N, H] in the query's dtype; the softmax is computed in float32.

    Raises:
      ValueError: as `branch_attention`.
    """
    B, R, N, H = _rank("query", query_BRNH, 4)
    K, S = _rank("trunk", trunk.key_BKSH, 4)[1:3]
    U = past.capacity
    _check("the trunk's keys and values", (B, K, S, H), *trunk)
    _check("the past's keys", (B, R, K, H, U), past.key_BRKHU)
    _check("the past's values", (B, R, K, U, H), past.value_BRKUH)
    _check("lo and hi", (B, R), lo_BR, hi_BR)
    _check_heads(N, K)
    arrays = jax.lax.stop_gradient((query_BRNH, trunk, lo_BR, hi_BR, past, length))
    return dispatch.run(
        implementation,
        {
            "reference": reference.decode_attention,
            "chunked": decode.decode_attention,
            "pallas": pallas_tpu.decode_attention,
        },
        *arrays,
        unsupported=pallas_tpu.unsupported(K, query_BRNH, *trunk, *past),
    )


def _rank(name: str, array: jax.Array, rank: int) -> tuple[int, ...]:
    if array.ndim != rank:
        raise ValueError(f"{name} must have {rank} axes, not {array.shape}")
    return array.shape


def _check(name: str, shape: tuple[int, ...], *arrays: jax.Array) -> None:
    if 0 in shape:
        raise ValueError(f"{name} must not be empty: {shape}")
    if any(x.shape != shape for x in arrays):
        raise ValueError(f"{name} must be {shape}, not {', '.join(str(x.shape) for x in arrays)}")


def _check_heads(N: int, K: int) -> None:
    if N % K:
        raise ValueError(f"{N} query heads cannot share {K} key/value heads equally")
