"""Log-probabilities, log-sum-exp and entropies of labels without the logits [M, V] in memory.

    tempered logits = softcap(logit_scale * hidden @ unembedding.T) / temperature
    softcap(x)      = soft_cap * tanh(x / soft_cap)

Logits are float32 whatever the operands; the operands of the matmuls have hidden's dtype, to which
the unembedding is cast tile by tile. Defaults (implementation=None):

    op        lowered for       shapes                                  implementation
    logprob   TPU               hidden float32 or bfloat16, D <= 5,120  pallas
    logprob   TPU               others                                  chunked
    logprob   CPU, GPU          all                                     chunked
    score     all, TPU too      all                                     chunked (no Pallas kernel)

M rows, D width, V vocabulary (of this shard, with vocab_axis), K the largest logits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels import dispatch
from kernels.logprob import chunked, maths, pallas_tpu, reference

LogProb = maths.LogProb


class Scores(NamedTuple):
    """float32 [M]: log-probability of the label, entropy in nats; [M, K]: the largest logits in
    descending order, and their int32 ids, equal logits by lowest id."""

    log_prob_M: jax.Array
    entropy_M: jax.Array
    top_logits_MK: jax.Array
    top_ids_MK: jax.Array


def logprob(
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    *,
    temperature: float = 1.0,
    threshold_M: jax.Array | None = None,
    logit_scale: float = 1.0,
    soft_cap: float | None = None,
    vocab_axis: str | None = None,
    implementation: dispatch.Implementation | None = None,
) -> LogProb:
    """Differentiable, in reverse mode, in hidden and unembedding through all three results.

    Gradients come in the dtype of their argument and are accumulated in float32. A row whose
    three cotangents are zero adds exactly 0 to both (chunked and pallas), whatever it holds.

    Args:
      hidden_MD: final hidden states.
      unembedding_VD: the head. With vocab_axis this shard's slice of it, the shards in order.
      labels_M: int32 ids (of the whole vocabulary). One outside of it, such as -1 for a row that
        does not count, has 0 for its logit: its log-probability is finite and means nothing.
      temperature: divides the logits.
      threshold_M: where the sampler truncated: tempered logits below it leave the distribution
        (the label itself always stays). The renormaliser is differentiated, the threshold not.
      logit_scale: multiplies the logits before the cap.
      soft_cap: None for none.
      vocab_axis: the mesh axis over which the vocabulary is split, when called inside of
        jax.shard_map(..., check_vma=False); all but the unembedding are the same along it. To be
        differentiated from outside of that shard_map. Only vectors [M] are exchanged.
      implementation: see the table above and kernels/dispatch.py.

    Raises:
      ValueError: shapes that do not fit each other, a temperature or cap that is not positive, or
        an implementation that is unknown or cannot take these shapes.
    """
    _check(hidden_MD, unembedding_VD, labels_M, threshold_M)
    if temperature <= 0 or (soft_cap is not None and soft_cap <= 0):
        raise ValueError(
            f"temperature={temperature} and soft_cap={soft_cap} must be positive (or no cap)"
        )
    tempering = maths.Tempering(temperature, logit_scale, soft_cap)
    labels_M = labels_M - _first_id(unembedding_VD, vocab_axis)
    if implementation == "reference":
        return reference.logprob(
            tempering, vocab_axis, hidden_MD, unembedding_VD, labels_M, threshold_M
        )
    return _logprob(
        tempering, vocab_axis, implementation, hidden_MD, unembedding_VD, labels_M, threshold_M
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _logprob(
    tempering, vocab_axis, implementation, hidden_MD, unembedding_VD, labels_M, threshold_M
) -> LogProb:
    part = dispatch.run(
        implementation,
        {
            "chunked": functools.partial(chunked.forward, tempering),
            "pallas": functools.partial(pallas_tpu.forward, tempering),
        },
        *(hidden_MD, unembedding_VD, labels_M, threshold_M),
        unsupported=pallas_tpu.unsupported(hidden_MD, unembedding_VD),
    )
    return maths.finish(maths.combine(part, vocab_axis))


def _logprob_forward(tempering, vocab_axis, implementation, *arrays):
    result: LogProb = _logprob(tempering, vocab_axis, implementation, *arrays)
    return result, (arrays, result.log_sum_exp_M, result.entropy_M)


def _logprob_backward(tempering, vocab_axis, implementation, residuals, cotangent):
    (hidden_MD, unembedding_VD, labels_M, threshold_M), log_sum_exp_M, entropy_M = residuals
    if vocab_axis is not None:
        # shard_map hands each shard an equal part of the cotangent of what is the same on all.
        cotangent = jax.lax.psum(cotangent, vocab_axis)
    pull, live_M = maths.pull(cotangent, log_sum_exp_M, entropy_M, tempering.factor)
    # 0 times a dead row's infinity would be NaN.
    hidden_MD = jnp.where(live_M[:, None], hidden_MD, 0)
    dhidden_MD, dunembedding_VD = dispatch.run(
        implementation,
        {
            "chunked": functools.partial(chunked.backward, tempering),
            "pallas": functools.partial(pallas_tpu.backward, tempering),
        },
        *(hidden_MD, unembedding_VD, labels_M, threshold_M, pull),
        unsupported=pallas_tpu.unsupported(hidden_MD, unembedding_VD),
    )
    return dhidden_MD, dunembedding_VD, None, None


_logprob.defvjp(_logprob_forward, _logprob_backward)


def score(
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    *,
    top: int,
    vocab_axis: str | None = None,
    implementation: dispatch.Implementation | None = None,
) -> Scores:
    """Untempered, without a gradient, in one pass over the head.

    With vocab_axis (see logprob) each shard finds its own `top` and only those are exchanged.

    Raises:
      ValueError: shapes that do not fit each other, more `top` than vocabulary, or an
        implementation that does not exist ('pallas' neither).
    """
    _check(hidden_MD, unembedding_VD, labels_M, None)
    V = unembedding_VD.shape[0]
    shards = 1 if vocab_axis is None else jax.lax.axis_size(vocab_axis)
    if not 1 <= top <= V * shards:
        raise ValueError(f"top={top} must be between 1 and the vocabulary of {V * shards}")
    first_id = _first_id(unembedding_VD, vocab_axis)
    functions: dict[dispatch.Implementation, Callable[..., Any]] = {
        "reference": functools.partial(reference.score, min(top, V)),
        "chunked": functools.partial(chunked.score, min(top, V)),
    }
    arrays = jax.lax.stop_gradient((hidden_MD, unembedding_VD, labels_M - first_id))
    part, best_MK, ids_MK = dispatch.run(implementation or "chunked", functions, *arrays)
    ids_MK = ids_MK + first_id
    if vocab_axis is not None:
        # Side by side in the order of the shards, so equal logits stay in that of their ids.
        best_MK, ids_MK = (
            jax.lax.all_gather(x, vocab_axis, axis=1, tiled=True) for x in (best_MK, ids_MK)
        )
        best_MK, where_MK = jax.lax.top_k(best_MK, top)
        ids_MK = jnp.take_along_axis(ids_MK, where_MK, axis=1)
    result = maths.finish(maths.combine(part, vocab_axis))
    return Scores(result.log_prob_M, result.entropy_M, best_MK, ids_MK)


def logits(hidden_MD: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
    """Float32 logits [M, V] of a few rows; operands stay in hidden's dtype. Any leading axes."""
    return jnp.einsum(
        "...D,VD->...V",
        hidden_MD,
        unembedding_VD.astype(hidden_MD.dtype),
        preferred_element_type=jnp.float32,
    )


def _first_id(unembedding_VD: jax.Array, vocab_axis: str | None) -> jax.Array | int:
    """The id of this shard's first row."""
    return 0 if vocab_axis is None else jax.lax.axis_index(vocab_axis) * unembedding_VD.shape[0]


def _check(hidden_MD, unembedding_VD, labels_M, threshold_M) -> None:
    M, D = hidden_MD.shape if hidden_MD.ndim == 2 else (-1, -1)
    rows = (labels_M,) if threshold_M is None else (labels_M, threshold_M)
    heads = unembedding_VD.ndim == 2 and unembedding_VD.shape[1] == D
    if not heads or any(x.shape != (M,) for x in rows):
        shapes = ", ".join(str(x.shape) for x in (hidden_MD, unembedding_VD, *rows))
        raise ValueError(f"need shapes [M, D], [V, D], [M] (and [M] for a threshold): {shapes}")
