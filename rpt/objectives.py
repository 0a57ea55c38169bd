"""Losses as pure functions of log-probabilities: no model, no mesh, no IO.

Signs: every function returns something to be minimised. Averages are never taken here: each token
comes with a weight that was computed for the whole batch, so that any split of the batch into
micro-batches sums to the same loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]
# Counts of the rows given -> counts of the whole batch.
Total = Callable[[dict[str, int]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """GRPO (arXiv 2402.03300) with the variants that its users combine.

    Attributes:
      ratio_clip_low, ratio_clip_high: PPO clip range [1 - low, 1 + high]; inert on-policy.
      aggregation: token_mean (DAPO, verl), sequence_mean (GRPO), or constant_length (Dr.GRPO,
        divides by branches * constant_length_tokens).
      constant_length_tokens: the constant of constant_length.
      kl_weight: of the k3 estimate of KL(policy || reference); 0 needs no reference.
      ntp_weight: of the next-token loss on the trunk of the same step (RMT, arXiv 2509.24375).
      ntp_positions: all document tokens, or those that are not cuts (RMT's choice).
      rl_weight: of the reinforcement loss; 0 with ntp_weight 1 is plain continued training.
      count_zero_variance: whether groups without gradient count in the normaliser.
    """

    ratio_clip_low: float = 0.2
    ratio_clip_high: float = 0.2
    aggregation: Aggregation = "token_mean"
    constant_length_tokens: int = 1
    kl_weight: float = 0.0
    ntp_weight: float = 0.0
    ntp_positions: Literal["all", "non_cuts"] = "non_cuts"
    rl_weight: float = 1.0
    count_zero_variance: bool = False


class PolicyTerms(NamedTuple):
    """Weighted sums over the tokens given; add them over micro-batches."""

    loss: jax.Array
    clipped: jax.Array
    kl: jax.Array
    entropy: jax.Array
    mismatch_sum: jax.Array
    mismatch_max: jax.Array


def policy_terms(
    config: ObjectiveConfig,
    log_prob_M: jax.Array,
    behaviour_M: jax.Array,
    advantage_M: jax.Array,
    weight_M: jax.Array,
    entropy_M: jax.Array,
    reference_M: jax.Array | None,
) -> PolicyTerms:
    """PPO-clipped policy gradient, and k3 to a reference.

        loss = -sum w * min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_weight * sum w * k3
        rho  = exp(log_prob - behaviour),  k3 = exp(d) - d - 1 with d = reference - log_prob

    Args:
      config: clip range and KL weight.
      log_prob_M: of the sampled tokens under the policy; the only differentiated argument.
      behaviour_M: the sampler's log-probabilities of the same tokens.
      advantage_M: of each token's branch.
      weight_M: see `token_weights`; 0 leaves a token out.
      entropy_M: policy entropy in nats, for the metric only.
      reference_M: log-probabilities under the reference, or None.
    """
    # Tokens outside the loss may hold anything; a ratio of theirs must not overflow to NaN.
    inside = weight_M > 0
    difference = jnp.where(inside, log_prob_M - behaviour_M, 0.0)
    ratio = jnp.exp(difference)
    clipped = jnp.clip(ratio, 1 - config.ratio_clip_low, 1 + config.ratio_clip_high)
    gain = jnp.minimum(ratio * advantage_M, clipped * advantage_M)
    kl_M = jnp.zeros_like(log_prob_M)
    if reference_M is not None:
        d = jnp.where(inside, reference_M - log_prob_M, 0.0)
        kl_M = jnp.exp(d) - d - 1
    mismatch = jnp.abs(jax.lax.stop_gradient(difference))
    return PolicyTerms(
        loss=jnp.sum(weight_M * (config.kl_weight * kl_M - config.rl_weight * gain)),
        clipped=jnp.sum(weight_M * (clipped * advantage_M < ratio * advantage_M)),
        kl=jnp.sum(weight_M * kl_M),
        entropy=jnp.sum(weight_M * entropy_M),
        mismatch_sum=jnp.sum(mismatch),
        mismatch_max=jnp.max(mismatch),
    )


def token_weights(
    config: ObjectiveConfig,
    sampled_BRT: np.ndarray,
    counted_BR: np.ndarray,
    total: Total = dict,
) -> np.ndarray:
    """The weight of every token in the loss, [B, R, T] float32.

    Args:
      config: the aggregation.
      sampled_BRT: tokens that were sampled; forced tokens and padding are False.
      counted_BR: branches that count in the normaliser. Others keep the same weight per token:
        their advantage is 0, so only metrics notice.
      total: adds the counts of the batch's rows on other hosts.

    token_mean: 1 / (counted tokens). sequence_mean: 1 / (counted branches * own tokens).
    constant_length: 1 / (counted branches * constant_length_tokens).
    """
    tokens_BR = sampled_BRT.sum(axis=-1)
    counts = total({"branches": int(counted_BR.sum()), "tokens": int(tokens_BR[counted_BR].sum())})
    branches = max(counts["branches"], 1)
    if config.aggregation == "token_mean":
        weight_BR = np.full(counted_BR.shape, 1.0 / max(counts["tokens"], 1))
    elif config.aggregation == "sequence_mean":
        weight_BR = 1.0 / (branches * np.maximum(tokens_BR, 1))
    else:
        weight_BR = np.full(counted_BR.shape, 1.0 / (branches * config.constant_length_tokens))
    return (sampled_BRT * weight_BR[..., None]).astype(np.float32)


def ntp_weights(
    config: ObjectiveConfig,
    segments_BS: np.ndarray,
    header_length: int,
    cut_BC: np.ndarray,
    valid_BC: np.ndarray,
    total: Total = dict,
) -> np.ndarray:
    """The weight of every trunk token as a target [B, S] float32, summing to 1 over all hosts.

    Document tokens only, never the header; without the cuts under
    `ntp_positions='non_cuts'` (RMT's m_pos). `total` as in `token_weights`.
    """
    S = segments_BS.shape[1]
    counted_BS = (segments_BS > 0) & (np.arange(S) >= max(header_length, 1))
    if config.ntp_positions == "non_cuts":
        rows, slots = np.nonzero(valid_BC)
        counted_BS[rows, cut_BC[rows, slots]] = False
    counted = total({"tokens": int(counted_BS.sum())})["tokens"]
    return (counted_BS / max(counted, 1)).astype(np.float32)
