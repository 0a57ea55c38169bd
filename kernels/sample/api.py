"""One token per row by Gumbel-max, with the log-probability of what was really sampled from.

    z         = softcap(logit_scale * hidden @ unembedding.T) / temperature       tempered logits
    softcap(x) = soft_cap * tanh(x / soft_cap)
    token     = argmax over the ids kept of z + Gumbel noise(row's key, id)

Nothing of size [M, V] is held by chunked and pallas. Logits are float32 whatever the operands, to
whose dtype (hidden's) the unembedding is cast tile by tile. Defaults (implementation=None):

    lowered for   shapes                                                      implementation
    TPU           hidden and unembedding float32 or bfloat16, D <= 5,120      pallas
    TPU           others                                                      chunked
    CPU, GPU      all                                                         chunked

The token depends on the row's key, its logits and the vocabulary ids only, never on batch, tile,
shard or implementation, except where the two best candidates are closer than the rounding error
of logits and logarithms (a TPU's log1p errs by up to 1.4e-4 of its result).

Truncation first keeps the top_k largest logits, then of these, renormalised, the fewest with mass
top_p; what equals the last logit kept stays too, since the trainer masks by z >= threshold. It is
exact for any top_k and top_p: `candidates` proves the common case from one pass over the
vocabulary, `bisection` takes several passes for the rest (top_p of flat distributions, which
keeps hundreds of tokens).

Letters: M rows, D width, V vocabulary (of this shard, with vocab_axis).
"""

import functools

import jax
import jax.numpy as jnp

from kernels import dispatch
from kernels.sample import chunked, pallas_tpu, reference, result

Sample = result.Sample


def sample(
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    keys_M2: jax.Array,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    logit_scale: float = 1.0,
    soft_cap: float | None = None,
    vocab_axis: str | None = None,
    implementation: dispatch.Implementation | None = None,
) -> Sample:
    """Not differentiable.

    Args:
      hidden_MD: final hidden states.
      unembedding_VD: the head. With vocab_axis this shard's slice of it, the shards in order.
      keys_M2: uint32 key per row, of everything that identifies the token to be drawn.
      temperature: divides the logits; 0 takes the most probable token, with log-probability 0.
      top_k: how many of the largest logits stay; 0 keeps all.
      top_p: the smallest set of largest probabilities whose mass reaches p stays; 1 keeps all.
      logit_scale: multiplies the logits before the cap.
      soft_cap: None for none.
      vocab_axis: the mesh axis over which the vocabulary is split, when called inside of
        jax.shard_map(..., check_vma=False); all but the unembedding are the same along it.
        Vectors [M] are exchanged, and with truncation each shard's few largest logits.
      implementation: see the table above and kernels/dispatch.py.

    Returns:
      a `Sample` (see kernels/sample/result.py); equal logits are ordered by the lower id.

    Raises:
      ValueError: shapes that do not fit each other, an option out of its range, or an
        implementation that is unknown or cannot take these shapes.
    """
    _check(hidden_MD, unembedding_VD, keys_M2)
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or (soft_cap or 1) <= 0:
        raise ValueError(
            f"temperature={temperature} and top_k={top_k} must not be negative, top_p={top_p} "
            f"must be above 0 and at most 1, soft_cap={soft_cap} positive"
        )
    V = unembedding_VD.shape[0]
    if vocab_axis is not None:
        V *= jax.lax.axis_size(vocab_axis)
    top_k = 0 if top_k >= V else top_k
    request = result.Request(temperature, top_k, top_p, logit_scale, soft_cap, vocab_axis)
    return dispatch.run(
        implementation,
        {
            "reference": functools.partial(reference.sample, request),
            "chunked": functools.partial(chunked.sample, request),
            "pallas": functools.partial(pallas_tpu.sample, request),
        },
        *(hidden_MD, unembedding_VD, keys_M2),
        unsupported=pallas_tpu.unsupported(request, hidden_MD, unembedding_VD),
    )


def _check(hidden_MD: jax.Array, unembedding_VD: jax.Array, keys_M2: jax.Array) -> None:
    shapes = hidden_MD.shape, unembedding_VD.shape, keys_M2.shape
    fits = (
        hidden_MD.ndim == unembedding_VD.ndim == 2
        and hidden_MD.shape[1] == unembedding_VD.shape[1]
        and keys_M2.shape == (hidden_MD.shape[0], 2)
        and unembedding_VD.shape[0] > 0
    )
    if not fits:
        raise ValueError(f"expected hidden [M, D], unembedding [V, D], keys [M, 2], not {shapes}")
    if keys_M2.dtype != jnp.uint32:
        raise ValueError(f"keys must be uint32 (noise.fold makes them), not {keys_M2.dtype}")
