"""What a training step logs; docs/metrics.md explains every name."""

import codecs
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import pipeline
from rpt import advantages, experience, ledger, rewards, scoring


class Clock:
    """Seconds between laps of one step."""

    def __init__(self):
        self._began = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[f"seconds_{name}"] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "seconds_step": time.monotonic() - self._began}


def of_data(counts: Mapping[str, float]) -> dict[str, float]:
    """What the data pipeline left out so far: nothing is skipped silently."""
    return {
        "dropped_documents": counts["dropped_documents"],
        "skipped_faults": counts["skipped_faults"],
    }


def of_experience(
    task: experience.Task,
    batch: pipeline.TrunkBatch,
    scores: scoring.TrunkScores,
    lived: experience.Experience,
) -> dict[str, float]:
    """Rewards, answers, thoughts, and the no-think accuracy at the very same cuts."""
    valid_BC, result = lived.valid_BC, lived.result
    G = task.config.rollout.group_size
    valid_BR = np.repeat(valid_BC, G, axis=1)
    branches = max(int(valid_BR.sum()), 1)
    shares = rewards.diagnosis_shares(_reward_batch(lived))
    fractions = advantages.group_fractions(lived.right_BCG, valid_BC)
    tail, T = result.tail_length, result.tokens_BRT.shape[2]
    thought_end_BR = np.where(result.answer_start_BR < 0, result.length_BR, result.answer_start_BR)
    thought_BRT = result.sampled_BRT & (np.arange(T) < thought_end_BR[..., None])
    target_BC = np.take_along_axis(batch.tokens_BS, lived.cut_BC, axis=1)
    target_BR = np.repeat(target_BC, G, axis=1)
    gold_BR = ((result.tokens_BRT == target_BR[..., None]) & thought_BRT).any(axis=-1)
    best_BC = np.take_along_axis(np.asarray(scores.best_BS), lived.cut_BC, axis=1)
    # The direct prediction passes the same reward as the thought's.
    no_think_BC = [
        rewards.prefix_match(b"" if best in task.stop_ids else task.token_bytes[best], target)
        for best, target in zip(best_BC.ravel().tolist(), lived.targets, strict=True)
        if target is not None
    ]
    entropy_BC = np.take_along_axis(np.asarray(scores.entropy_BS), lived.cut_BC, axis=1)
    return {
        "reward": float(lived.reward_BCG[valid_BC].mean()) if valid_BC.any() else 0.0,
        "accuracy": float(lived.right_BCG[valid_BC].mean()) if valid_BC.any() else 0.0,
        "no_think_accuracy": float(np.mean(no_think_BC)) if no_think_BC else 0.0,
        "groups_mixed": fractions.mixed,
        "groups_all_right": fractions.all_right,
        "groups_all_wrong": fractions.all_wrong,
        "groups_trained": float(lived.trained_BC.sum()),
        "rounds": float(lived.rounds),
        "cuts": float(valid_BC.sum()),
        "cut_entropy_nats": float(entropy_BC[valid_BC].mean()) if valid_BC.any() else 0.0,
        "answer_rate": sum(p.answer is not None for p in lived.predictions) / branches,
        "over_budget_rate": float(result.over_budget_BR[valid_BR].sum() / branches),
        "thought_tokens": float(thought_BRT[valid_BR].sum() / branches),
        "branch_tokens": float((result.length_BR[valid_BR] - tail).sum() / branches),
        "gold_in_thought_rate": float(gold_BR[valid_BR].sum() / branches),
        **{f"answers_{name}": share for name, share in shares.items()},
    }


def of_update(
    lived: experience.Experience, terms: dict[str, Any], weight: float
) -> dict[str, float]:
    """The loss's terms; means over trained tokens, weighted as the loss is.

    Args:
      lived: the step's experience.
      terms: of `update.gradients`, sums over weighted tokens.
      weight: the sum of these weights: 1, or less where untrained branches count as well.
    """
    weight = weight or 1.0
    G = lived.reward_BCG.shape[2]
    trained_BR = np.repeat(lived.trained_BC, G, axis=1)
    tokens = max(int(lived.result.sampled_BRT[trained_BR].sum()), 1)
    return {
        "policy_loss": float(terms["loss"]),
        "ntp_nats": float(terms["ntp"]),
        "clip_fraction": float(terms["clipped"]) / weight,
        "kl_nats": float(terms["kl"]) / weight,
        "policy_entropy_nats": float(terms["entropy"]) / weight,
        "mismatch_mean_nats": float(terms["mismatch_sum"]) / tokens,
        "mismatch_max_nats": float(terms["mismatch_max"]),
        "trained_tokens": float(tokens if lived.trained_BC.any() else 0),
    }


def diagnosis(task: experience.Task, lived: experience.Experience, steps: int) -> str:
    """Why there was no reward."""
    shares = rewards.diagnosis_shares(_reward_batch(lived))
    line = rewards.diagnosis_line(shares, task.config.rollout.answer_format)
    return f"no reward for {steps} steps; {line}; see docs/troubleshooting.md"


def samples(
    task: experience.Task,
    params: Any,
    batch: pipeline.TrunkBatch,
    scores: scoring.TrunkScores,
    kv_LBSKH: Any,
    lived: experience.Experience,
    step: int,
    documents: int = 4,
) -> tuple[list[dict[str, Any]], tuple[int, int]]:
    """The first documents with their cuts, thoughts and rewards, for people.

    Returns:
      lines of samples.jsonl (its fields: docs/metrics.md), and the tokens and FLOPs of measuring
      the target's probability after each thought, under the parameters that had the thoughts.
    """
    B, G = min(documents, len(batch.lengths_B)), task.config.rollout.group_size
    cut_BC = lived.cut_BC[:B]
    target_BC = np.take_along_axis(batch.tokens_BS[:B], cut_BC, axis=1)
    before_BC = np.exp(
        np.take_along_axis(np.asarray(scores.target_log_prob_BS)[:B], cut_BC, axis=1)
    )
    shape = (*cut_BC.shape, G)
    tokens_BCGT = lived.result.tokens_BRT[:B].reshape(*shape, -1)
    start_BCG = lived.result.answer_start_BR[:B].reshape(shape)
    after_BCG = np.asarray(
        scoring.probs_after_thoughts(
            task.model, params, kv_LBSKH, tokens_BCGT, cut_BC, start_BCG, target_BC
        )
    )
    S, T = batch.tokens_BS.shape[1], tokens_BCGT.shape[-1]
    spent = ledger.forward_flops(task.model, tokens_BCGT.size, S + T)
    found = []
    for b in range(B):
        pieces = [task.token_bytes[i] for i in batch.documents[b].tolist()]
        cuts = []
        for c in np.flatnonzero(lived.valid_BC[b]):
            cut = int(cut_BC[b, c]) - batch.header_length
            thoughts = [
                _thought(task, lived, b, int(c), g, float(after_BCG[b, c, g])) for g in range(G)
            ]
            cuts.append(
                {
                    "cut": cut,
                    "offset": len(_decoded(pieces[:cut], final=False)),
                    "target": _text(task.token_bytes[target_BC[b, c]]),
                    "no_think_prob": float(before_BC[b, c]),
                    "thoughts": thoughts,
                }
            )
        found.append(
            {
                "step": step,
                "document_id": int(batch.document_ids_B[b]),
                "start": int(batch.starts_B[b]),
                "text": _decoded(pieces, final=True),
                "cuts": cuts,
            }
        )
    return found, (tokens_BCGT.size, spent)


def _thought(
    task: experience.Task, lived: experience.Experience, b: int, c: int, g: int, prob: float
) -> dict[str, Any]:
    """One thought; its probability is null where it came to no answer."""
    C, G = lived.cut_BC.shape[1], task.config.rollout.group_size
    r, result = c * G + g, lived.result
    ids = result.tokens_BRT[b, r, : result.length_BR[b, r]]
    begun = result.answer_start_BR[b, r] >= 0
    return {
        "text": task.tokenizer.decode(ids[ids < task.tokenizer.vocab_size]),
        "answer": _text(lived.predictions[(b * C + c) * G + g].answer),
        "reward": float(lived.reward_BCG[b, c, g]),
        "prob": prob if begun else None,
    }


def _decoded(pieces: Sequence[bytes], *, final: bool) -> str:
    """Text of tokens; without `final` a character whose last bytes are missing is held back."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(pieces), final)


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")


def _reward_batch(lived: experience.Experience) -> rewards.RewardBatch:
    return rewards.RewardBatch(lived.predictions, lived.targets, lived.reward_BCG.shape)
