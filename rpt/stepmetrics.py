"""What a training step logs; docs/metrics.md explains every name."""

import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from data import pipeline
from rpt import advantages, experience, rewards, scoring, sharding


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
    batch: pipeline.TrunkBatch,
    lived: experience.Experience,
    step: int,
    documents: int = 4,
) -> list[dict[str, Any]]:
    """The first documents of the batch with their cuts, thoughts and rewards, for people."""
    G = task.config.rollout.group_size

    def decode(ids: np.ndarray) -> str:
        return task.tokenizer.decode(ids[ids < task.tokenizer.vocab_size])

    found = []
    # Of the rows that come first on this host those that come first in the batch.
    before = task.hosts.index * len(batch.lengths_B)
    for b in range(min(max(documents - before, 0), len(batch.lengths_B))):
        cuts = []
        for c in np.flatnonzero(lived.valid_BC[b]):
            thoughts = []
            for g in range(G):
                r = c * G + g
                read = lived.predictions[(b * lived.cut_BC.shape[1] + c) * G + g]
                ids = lived.result.tokens_BRT[b, r, : lived.result.length_BR[b, r]]
                thoughts.append(
                    {
                        "text": decode(ids),
                        "answer": _text(read.answer),
                        "reward": float(lived.reward_BCG[b, c, g]),
                    }
                )
            cut = int(lived.cut_BC[b, c]) - batch.header_length
            target = int(batch.tokens_BS[b, lived.cut_BC[b, c]])
            cuts.append(
                {"cut": cut, "target": _text(task.token_bytes[target]), "thoughts": thoughts}
            )
        text = decode(batch.documents[b])
        document_id = int(batch.document_ids_B[b])
        found.append(
            {
                "step": step,
                "document_id": document_id,
                "start": int(batch.starts_B[b]),
                "text": text,
                "cuts": cuts,
            }
        )
    return list(itertools.chain.from_iterable(task.hosts.gather(found)))


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")
