"""One optimiser step: the trunk once, branches in micro-batches, then one trunk backward.

The gradient of a micro-batch reaches the parameters on two ways: directly through its branches, and
through the trunk's keys and values that it read. The second is accumulated in float32 as a
cotangent of the keys and values and sent through the trunk once, together with the next-token
loss's gradient (docs/architecture.md).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kernels.logprob import api as logprob
from rpt import objectives, ops
from rpt.model import config as config_lib
from rpt.model import transformer

_SUBLANES = 8
Array = Any  # numpy on the host, sharded jax arrays on their way into a program


class TrunkInputs(NamedTuple):
    """A trunk batch on its way into the loss; ntp_weight_BS is per target token."""

    tokens_BS: Array
    segments_BS: Array
    positions_BS: Array
    ntp_weight_BS: Array


class MicroBatch(NamedTuple):
    """Some branches of every document. Entry t of the [B, R, T] arrays describes token t; token 0
    is never a target. `behaviour_BRT` None means the policy itself (ratio 1, supervised warm-up);
    `threshold_BRT` None that nothing was truncated; `reference_BRT` None that there is no KL."""

    tokens_BRT: Array
    weight_BRT: Array
    behaviour_BRT: Array | None
    threshold_BRT: Array | None
    reference_BRT: Array | None
    advantage_BR: Array
    hi_BR: Array


class Gradients(NamedTuple):
    """Accumulators in float32: parameters, keys and values, and the metric terms."""

    params: Any
    kv_LBSKH: transformer.KeyValues
    terms: objectives.PolicyTerms


def micro_batches(
    arrays: MicroBatch,
    length_BR: np.ndarray,
    size: int,
    t_multiple: int,
    largest: Callable[[list[int]], list[int]] = list,
) -> list[MicroBatch]:
    """Cuts [B, R, ...] into micro-batches of `size` branches per document, longest first.

    Branches are sorted by length within each document, so each micro-batch has its own T, by
    `padded_length`. R is padded with weightless branches. `largest` makes the numbers of this host
    the largest of all hosts', so that all run the same programs; R must be the same.
    """
    B, R, T = arrays.tokens_BRT.shape
    order_BR = np.argsort(-length_BR, axis=1, kind="stable")
    more = padded_length(T, T, t_multiple) - T

    def arrange(x):
        x = np.take_along_axis(x, order_BR.reshape(B, R, *[1] * (x.ndim - 2)), axis=1)
        return np.pad(x, ((0, 0), (0, -R % size), (0, more))[: x.ndim])

    arrays, length_BR = jax.tree.map(arrange, arrays), arrange(length_BR)
    starts = range(0, R, size)
    longest_of = largest([int(length_BR[:, start : start + size].max()) for start in starts])
    batches = []
    for start, longest in zip(starts, longest_of, strict=True):
        if longest == 0:
            continue
        end = padded_length(longest, T, t_multiple)
        batches.append(
            jax.tree.map(
                lambda x, start=start, end=end: (
                    x[:, start : start + size, :end] if x.ndim == 3 else x[:, start : start + size]
                ),
                arrays,
            )
        )
    return batches


def padded_length(longest: int, T: int, t_multiple: int) -> int:
    """T of a micro-batch whose longest branch has `longest` tokens, where none can exceed T.

    Its last token is a target only. Those before it, which are run, are a multiple of `t_multiple`,
    or all that there can be: then a multiple of 8, the rows of a register of a TPU, if `t_multiple`
    is not below that.
    """

    def up(tokens: int, multiple: int) -> int:
        return 1 + -(-(tokens - 1) // multiple) * multiple

    return min(up(longest, t_multiple), up(T, min(t_multiple, _SUBLANES)))


def gradients(
    model: config_lib.ModelConfig,
    objective: objectives.ObjectiveConfig,
    temperature: float,
    params: transformer.Params,
    trunk: TrunkInputs,
    batches: list[MicroBatch],
) -> tuple[Any, dict[str, jax.Array]]:
    """The gradient of ntp_weight * NTP + policy loss, and the loss's terms as metrics.

    Args:
      model, objective, temperature: static; log-probabilities are tempered as the sampler's were.
      params: float32 parameters.
      trunk: whole documents.
      batches: of `micro_batches`; may be empty, then only the next-token loss is left.

    Returns:
      gradients like params, and {loss terms}.
    """
    ntp, kv, backward = trunk_forward(model, params, trunk)
    total = zeros(model, params, kv)
    for batch in batches:
        total = accumulate(model, objective, temperature, params, kv, batch, total)
    ntp_weight = jnp.float32(objective.ntp_weight)
    grads = trunk_backward(model, backward, total.params, total.kv_LBSKH, ntp_weight)
    metrics = {name: getattr(total.terms, name) for name in total.terms._fields}
    return grads, {"ntp": ntp, **metrics}


@functools.partial(jax.jit, static_argnames=("model",))
def ntp_gradients(model, params, trunk: TrunkInputs) -> tuple[jax.Array, Any]:
    """Next-token loss and its gradient, for plain pre-training: `trunk` alone, no branches."""

    def loss(params):
        hidden_BSD, _ = transformer.trunk(
            model, params, trunk.tokens_BS, trunk.segments_BS, trunk.positions_BS
        )
        return weighted_nll(model, params, hidden_BSD, trunk.tokens_BS, trunk.ntp_weight_BS)

    return jax.value_and_grad(loss)(params)


@functools.partial(jax.jit, static_argnames=("model",))
def trunk_forward(model, params, trunk: TrunkInputs):
    """NTP loss, keys and values, and the VJP that waits for their cotangents."""

    def forward(params):
        hidden_BSD, kv = transformer.trunk(
            model, params, trunk.tokens_BS, trunk.segments_BS, trunk.positions_BS
        )
        ntp = weighted_nll(model, params, hidden_BSD, trunk.tokens_BS, trunk.ntp_weight_BS)
        return ntp, kv

    (ntp, kv), backward = jax.vjp(forward, params)
    return ntp, kv, backward


@jax.named_scope("ntp_loss")
def weighted_nll(model, params, hidden_BSD, tokens_BS, weight_BS) -> jax.Array:
    """Sum over target tokens of weight * -log p(token | tokens before it), in nats."""
    D = hidden_BSD.shape[-1]
    result = ops.logprob(
        hidden_BSD.reshape(-1, D),
        transformer.unembedding(model, params),
        transformer.next_tokens(tokens_BS).reshape(-1),
    )
    weight_BS = jnp.pad(weight_BS[:, 1:], ((0, 0), (0, 1)))
    return -jnp.sum(weight_BS.reshape(-1) * result.log_prob_M)


@functools.partial(jax.jit, static_argnames=("model",))
def zeros(model, params, kv) -> Gradients:
    zero = functools.partial(jnp.zeros_like, dtype=jnp.float32)
    terms = objectives.PolicyTerms(*[jnp.float32(0)] * len(objectives.PolicyTerms._fields))
    return _spread(model, Gradients(jax.tree.map(zero, params), jax.tree.map(zero, kv), terms))


def _spread(model, total: Gradients) -> Gradients:
    """Laid out over the mesh as the parameters and the trunk are: zeros depend on no argument, so
    the compiler alone would put all of them on every device."""
    params = ops.split_parameters(total.params, transformer.logical_axes(model))
    return total._replace(params=params, kv_LBSKH=ops.split_key_values(total.kv_LBSKH))


@functools.partial(
    jax.jit, static_argnames=("model", "objective", "temperature"), donate_argnames=("total",)
)
def accumulate(model, objective, temperature, params, kv, batch: MicroBatch, total: Gradients):
    """Adds one micro-batch's gradients of parameters and of keys and values."""

    def loss(params, kv):
        terms = policy_loss(model, objective, temperature, params, kv, batch)
        return terms.loss, terms

    grads, terms = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, kv)
    params_sum, kv_sum = jax.tree.map(
        lambda a, b: a + b.astype(jnp.float32), (total.params, total.kv_LBSKH), grads
    )
    summed = jax.tree.map(jnp.add, total.terms, terms)
    # A maximum is the one term that does not add up.
    summed = summed._replace(mismatch_max=jnp.maximum(total.terms.mismatch_max, terms.mismatch_max))
    return _spread(model, Gradients(params_sum, kv_sum, summed))


@jax.named_scope("policy_loss")
def policy_loss(
    model, objective, temperature, params, kv, batch: MicroBatch
) -> objectives.PolicyTerms:
    """The policy terms of one micro-batch, as a function of parameters and keys and values."""
    result = branch_log_probs(model, temperature, params, kv, batch)

    def targets(x):
        return x[:, :, 1:].reshape(-1)

    advantage_BRT = jnp.broadcast_to(batch.advantage_BR[..., None], batch.tokens_BRT.shape)
    own = jax.lax.stop_gradient(result.log_prob_M)
    return objectives.policy_terms(
        objective,
        result.log_prob_M,
        own if batch.behaviour_BRT is None else targets(batch.behaviour_BRT),
        targets(advantage_BRT),
        targets(batch.weight_BRT),
        jax.lax.stop_gradient(result.entropy_M),
        None if batch.reference_BRT is None else targets(batch.reference_BRT),
    )


def branch_log_probs(model, temperature, params, kv, batch: MicroBatch) -> logprob.LogProb:
    """Log-probabilities of branch tokens 1..T-1, flattened to [B * R * (T - 1)]."""
    hi_BR = batch.hi_BR
    lo_BR = jnp.zeros_like(hi_BR)
    # The last token is a target only, so it is not run.
    hidden, _ = transformer.branch(
        model, params, kv, batch.tokens_BRT[:, :, :-1], lo_BR, hi_BR, hi_BR - lo_BR
    )
    threshold = batch.threshold_BRT
    return ops.logprob(
        hidden.reshape(-1, hidden.shape[-1]),
        transformer.unembedding(model, params),
        batch.tokens_BRT[:, :, 1:].reshape(-1),
        temperature=temperature,
        threshold_M=None if threshold is None else threshold[:, :, 1:].reshape(-1),
    )


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def _reference(model, temperature, params, kv, batch: MicroBatch) -> jax.Array:
    B, R, T = batch.tokens_BRT.shape
    result = branch_log_probs(model, temperature, params, kv, batch)
    return jnp.pad(result.log_prob_M.reshape(B, R, T - 1), ((0, 0), (0, 0), (1, 0)))


def with_reference(
    model, temperature: float, params, trunk: TrunkInputs, batches: list[MicroBatch]
) -> list[MicroBatch]:
    """The batches with log-probabilities of their tokens under the reference parameters."""
    _, kv, _ = trunk_forward(model, params, trunk)
    return [
        batch._replace(reference_BRT=_reference(model, temperature, params, kv, batch))
        for batch in batches
    ]


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("direct",))
def trunk_backward(model, backward, direct, kv_cotangent, ntp_weight):
    # Summed in float32; a VJP takes cotangents of its outputs' own type only.
    kv_cotangent = jax.tree.map(lambda x: x.astype(model.dtype), kv_cotangent)
    (through_trunk,) = backward((ntp_weight, kv_cotangent))
    grads = jax.tree.map(jnp.add, direct, through_trunk)
    return ops.split_parameters(grads, transformer.logical_axes(model))


@functools.partial(jax.jit, static_argnames=("optimizer",), donate_argnames=("opt_state",))
def apply(optimizer: optax.GradientTransformation, params, opt_state, grads, factor, loss=0.0):
    """One optimiser step at `factor` of the peak rate: params, opt_state, global gradient norm.

    Where the norm or `loss` is not finite the step is skipped: both come back as they were.
    """
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, new_state = optimizer.update(grads, opt_state, params)
    updates = jax.tree.map(lambda u: u * factor, updates)
    new = (optax.apply_updates(params, updates), new_state)
    params, opt_state = jax.tree.map(
        lambda x, old: jnp.where(finite, x, old), new, (params, opt_state)
    )
    return params, opt_state, norm
