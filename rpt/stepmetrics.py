"""What a training step logs; docs/metrics.md explains every name."""

import codecs
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import pipeline
from rpt import advantages, experience, ledger, rewards, scoring, sharding


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
    """Rewards, answers, thoughts, and the no-think accuracy at the very same cuts, of all hosts."""
    sums = task.hosts.total(
        _sums_of_groups(lived) | _sums_of_branches(batch, lived) | _no_think(task, scores, lived)
    )

    def mean(name: str, of: str) -> float:
        return sums[name] / max(sums[of], 1)

    return {
        "reward": mean("reward", "branches"),
        "accuracy": mean("right", "branches"),
        "no_think_accuracy": mean("no_think_right", "targets"),
        "groups_mixed": mean("mixed", "groups"),
        "groups_all_right": mean("all_right", "groups"),
        "groups_all_wrong": mean("all_wrong", "groups"),
        "groups_trained": float(sums["trained"]),
        "rounds": float(lived.rounds),
        "cuts": float(sums["groups"]),
        "cut_entropy_nats": mean("entropy_nats", "groups"),
        "answer_rate": mean("answers", "branches"),
        "over_budget_rate": mean("over_budget", "branches"),
        "thought_tokens": mean("thought_tokens", "branches"),
        "branch_tokens": mean("branch_tokens", "branches"),
        "gold_in_thought_rate": mean("gold_in_thought", "branches"),
        **{f"answers_{x}": mean(f"answers_{x}", "answers_read") for x in rewards.CATEGORIES},
    }


def _sums_of_groups(lived: experience.Experience) -> dict[str, float]:
    """Rewards and the kinds of groups, of the rows of this host."""
    valid_BC = lived.valid_BC
    groups = int(valid_BC.sum())
    fractions = advantages.group_fractions(lived.right_BCG, valid_BC)
    return {
        "groups": groups,
        "reward": float(lived.reward_BCG[valid_BC].sum()),
        "right": float(lived.right_BCG[valid_BC].sum()),
        "mixed": round(fractions.mixed * groups),
        "all_right": round(fractions.all_right * groups),
        "all_wrong": round(fractions.all_wrong * groups),
        "trained": int(lived.trained_BC.sum()),
    }


def _sums_of_branches(batch: pipeline.TrunkBatch, lived: experience.Experience) -> dict[str, float]:
    """Answers and thoughts, of the rows of this host."""
    valid_BC, result = lived.valid_BC, lived.result
    G = lived.reward_BCG.shape[2]
    valid_BR = np.repeat(valid_BC, G, axis=1)
    tail, T = result.tail_length, result.tokens_BRT.shape[2]
    thought_end_BR = np.where(result.answer_start_BR < 0, result.length_BR, result.answer_start_BR)
    thought_BRT = result.sampled_BRT & (np.arange(T) < thought_end_BR[..., None])
    target_BC = np.take_along_axis(batch.tokens_BS, lived.cut_BC, axis=1)
    target_BR = np.repeat(target_BC, G, axis=1)
    gold_BR = ((result.tokens_BRT == target_BR[..., None]) & thought_BRT).any(axis=-1)
    read = rewards.RewardBatch(lived.predictions, lived.targets, lived.reward_BCG.shape)
    return {
        "branches": int(valid_BR.sum()),
        "answers": sum(p.answer is not None for p in lived.predictions),
        "over_budget": int(result.over_budget_BR[valid_BR].sum()),
        "thought_tokens": int(thought_BRT[valid_BR].sum()),
        "branch_tokens": int((result.length_BR[valid_BR] - tail).sum()),
        "gold_in_thought": int(gold_BR[valid_BR].sum()),
        **{f"answers_{name}": count for name, count in rewards.diagnosis_counts(read).items()},
    }


def _no_think(
    task: experience.Task, scores: scoring.TrunkScores, lived: experience.Experience
) -> dict[str, float]:
    """What the trunk says at the cuts; its prediction passes the same reward as a thought's."""
    best_BS, entropy_BS = sharding.own_rows((scores.best_BS, scores.entropy_BS))
    best_BC = np.take_along_axis(best_BS, lived.cut_BC, axis=1)
    entropy_BC = np.take_along_axis(entropy_BS, lived.cut_BC, axis=1)
    right = [
        rewards.prefix_match(b"" if best in task.stop_ids else task.token_bytes[best], target)
        for best, target in zip(best_BC.ravel().tolist(), lived.targets, strict=True)
        if target is not None
    ]
    return {
        "targets": len(right),
        "no_think_right": float(np.sum(right)),
        "entropy_nats": float(entropy_BC[lived.valid_BC].sum()),
    }


def of_update(
    task: experience.Task, lived: experience.Experience, terms: dict[str, Any], weight: float
) -> dict[str, float]:
    """The loss's terms; means over trained tokens, weighted as the loss is.

    Args:
      task: for the other hosts.
      lived: the step's experience.
      terms: of `update.gradients`, sums over weighted tokens.
      weight: the sum of this host's weights: over all 1, or less where untrained branches count.
    """
    G = lived.reward_BCG.shape[2]
    trained_BR = np.repeat(lived.trained_BC, G, axis=1)
    sums = task.hosts.total(
        {"tokens": int(lived.result.sampled_BRT[trained_BR].sum()), "weight": weight}
    )
    tokens, weight = max(sums["tokens"], 1), sums["weight"] or 1.0
    return {
        "policy_loss": float(terms["loss"]),
        "ntp_nats": float(terms["ntp"]),
        "clip_fraction": float(terms["clipped"]) / weight,
        "kl_nats": float(terms["kl"]) / weight,
        "policy_entropy_nats": float(terms["entropy"]) / weight,
        "mismatch_mean_nats": float(terms["mismatch_sum"]) / tokens,
        "mismatch_max_nats": float(terms["mismatch_max"]),
        "trained_tokens": float(sums["tokens"]),
    }


def diagnosis(task: experience.Task, metrics: Mapping[str, float], steps: int) -> str:
    """Why there was no reward, by the metrics of `of_experience`."""
    shares = {name: metrics[f"answers_{name}"] for name in rewards.CATEGORIES}
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
    """The first documents of the batch with their cuts, thoughts and rewards, for people.

    Returns:
      lines of samples.jsonl (its fields: docs/metrics.md), and the tokens and FLOPs of measuring
      the target's probability after each thought, under the parameters that had the thoughts. It
      is not measured where several processes share the trunk.
    """
    # Of the rows that come first on this host those that come first in the batch.
    earlier = task.hosts.index * len(batch.lengths_B)
    B, G = min(max(documents - earlier, 0), len(batch.lengths_B)), task.config.rollout.group_size
    cut_BC = lived.cut_BC[:B]
    log_prob_BS = sharding.own_rows(scores.target_log_prob_BS)[:B]
    before_BC = np.exp(np.take_along_axis(log_prob_BS, cut_BC, axis=1))
    after_BCG, spent = None, (0, 0)
    if task.hosts.count == 1:
        after_BCG, spent = _after_thoughts(task, params, batch, kv_LBSKH, lived, B)
    found = []
    for b in range(B):
        pieces = [task.token_bytes[i] for i in batch.documents[b].tolist()]
        cuts = []
        for c in np.flatnonzero(lived.valid_BC[b]):
            cut = int(cut_BC[b, c]) - batch.header_length
            prob_G = [None] * G if after_BCG is None else after_BCG[b, c].tolist()
            cuts.append(
                {
                    "cut": cut,
                    "offset": len(_decoded(pieces[:cut], final=False)),
                    "target": _text(pieces[cut]),
                    "no_think_prob": float(before_BC[b, c]),
                    "thoughts": [_thought(task, lived, b, int(c), g, prob_G[g]) for g in range(G)],
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
    return list(itertools.chain.from_iterable(task.hosts.gather(found))), spent


def _after_thoughts(
    task: experience.Task,
    params: Any,
    batch: pipeline.TrunkBatch,
    kv_LBSKH: Any,
    lived: experience.Experience,
    B: int,
) -> tuple[np.ndarray, tuple[int, int]]:
    """P(target | thought) [B, C, G] of the first B documents; tokens and FLOPs of measuring it."""
    cut_BC = lived.cut_BC[:B]
    shape = (*cut_BC.shape, task.config.rollout.group_size)
    tokens_BCGT = lived.result.tokens_BRT[:B].reshape(*shape, -1)
    prob_BCG = scoring.probs_after_thoughts(
        task.model,
        params,
        kv_LBSKH,
        tokens_BCGT,
        cut_BC,
        lived.result.answer_start_BR[:B].reshape(shape),
        np.take_along_axis(batch.tokens_BS[:B], cut_BC, axis=1),
    )
    S, T = batch.tokens_BS.shape[1], tokens_BCGT.shape[-1]
    flops = ledger.forward_flops(task.model, tokens_BCGT.size, S + T)
    return np.asarray(prob_BCG), (tokens_BCGT.size, flops)


def _thought(
    task: experience.Task,
    lived: experience.Experience,
    b: int,
    c: int,
    g: int,
    prob: float | None,
) -> dict[str, Any]:
    """One thought; its probability is null where it came to no answer, or was not measured."""
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
