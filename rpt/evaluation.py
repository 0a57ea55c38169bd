"""The tables of an evaluation: pure functions of what was measured.

Accuracies are byte rewards. Intervals are percentile intervals of a bootstrap over documents
(rpt/statistics.py). Everything here can be recomputed from predictions.jsonl.

Letters: P positions, G thoughts per position.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from rpt import evaluation_positions, ledger, rewards, statistics
from rpt.model import config as model_config

ALL, GATE = evaluation_positions.ALL, evaluation_positions.GATE
ASKED = "asked"  # no bin of the positions file: `in_bin` makes it of the labels
Mode = Literal[
    "no_think", "no_think_raw", "no_think_header", "thought_sample", "thought_argmax",
    "target_probability",
]  # fmt: skip
ABLATION = "ablation_"  # and the name of one: the mode of the answers behind its thoughts
# At the reported threshold at least this share of the positions must think; it is chosen
# with a margin, because the share on test differs a little from that on validation.
LEAST_SHARE, _LEAST_SHARE_CHOSEN = 0.1, 0.12
_CURVE_SHARES = (
    *(0.0, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3),
    *(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
# The miniature's noise is a uniform digit: no guess is right more often.
NOISE_LABEL, NOISE_GUESS = "noise", 0.1
ANSWERED = [rewards.CATEGORIES.index(c) for c in rewards.CATEGORIES[3:]]
_NOT_CLOSED = rewards.CATEGORIES.index("not_closed")


class Ablated(NamedTuple):
    """Answers behind altered thoughts, at the positions of the hard bin; zero elsewhere."""

    reward_PG: np.ndarray
    target_prob_PG: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Everything the tables need, per position of the positions file and in its order.

    Arrays [P, G] hold zeros where `thought_P` is False. raw and header are the two no-think
    contexts: bos and document, without and with the template's header. `ablations` go by name
    (rpt/evaluation_ablations.py).
    """

    part_P: np.ndarray
    document_id_P: np.ndarray
    cut_P: np.ndarray
    bins: Mapping[str, np.ndarray]
    gate_entropy_P: np.ndarray
    raw_reward_P: np.ndarray
    raw_prob_P: np.ndarray
    header_reward_P: np.ndarray
    header_prob_P: np.ndarray
    thought_P: np.ndarray
    sampled_reward_PG: np.ndarray
    argmax_reward_PG: np.ndarray
    target_prob_PG: np.ndarray
    diagnosis_PG: np.ndarray
    over_budget_PG: np.ndarray
    thought_tokens_PG: np.ndarray
    branch_tokens_PG: np.ndarray
    ablations: Mapping[str, Ablated] = dataclasses.field(default_factory=dict)

    @property
    def hard_bin(self) -> str:
        return evaluation_positions.hardest(self.bins)

    @property
    def document_P(self) -> np.ndarray:
        """What the bootstrap resamples: a number per (part, document)."""
        part_P = np.unique(self.part_P, return_inverse=True)[1]
        pairs_P2 = np.stack([part_P, self.document_id_P], axis=1)
        return np.unique(pairs_P2, axis=0, return_inverse=True)[1].reshape(-1)

    def in_part(self, part: str) -> np.ndarray:
        """bool [P]; 'all' is every part."""
        return np.ones(len(self.part_P), bool) if part == ALL else self.part_P == part

    def parts(self) -> list[str]:
        return [ALL, *dict.fromkeys(self.part_P.tolist())]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What inference FLOPs are counted from: per predicted token, without any padding.

    Attributes:
      model: its shape.
      raw_prefix, header_prefix: tokens before a document in the two contexts.
      window: mean document tokens of a row; the prefix is shared by that many predictions.
    """

    model: model_config.ModelConfig
    raw_prefix: int
    header_prefix: int
    window: float

    def no_think(self, context: str) -> int:
        length = (self.raw_prefix if context == "raw" else self.header_prefix) + self.window
        return int(ledger.forward_flops(self.model, 1, length / 2) * length / self.window)

    def thought(self, branch_tokens: float) -> int:
        """The trunk's share and one branch of that many tokens on average."""
        context = self.header_prefix + self.window / 2 + branch_tokens / 2
        one = ledger.forward_flops(self.model, 1, context)
        return self.no_think("header") + int(branch_tokens * one)


def in_bin(measured: Measured, bin: str) -> np.ndarray:
    """bool [P]: what a bin holds; ASKED every label but noise, and an unknown one nothing."""
    nothing_P = np.zeros(len(measured.part_P), bool)
    if bin != ASKED:
        return measured.bins.get(bin, nothing_P)
    labels = [name for name in measured.bins if name.startswith("label:")]
    asked = [measured.bins[name] for name in labels if name != f"label:{NOISE_LABEL}"]
    return np.logical_or.reduce([nothing_P, *asked])


def baseline(measured: Measured, mask_P: np.ndarray) -> str:
    """The no-think context with the higher accuracy there: 'raw' or 'header'."""
    raw, header = measured.raw_reward_P[mask_P].sum(), measured.header_reward_P[mask_P].sum()
    return "raw" if raw >= header else "header"


def values(
    measured: Measured, mask_P: np.ndarray, mode: str, threshold: float | None = None
) -> np.ndarray:
    """The quantity of a mode at the masked positions, thoughts averaged.

    'no_think' is the better context there. With a threshold, thoughts are used only where
    gate_entropy lies above it, and the better no-think context elsewhere.

    Raises:
      ValueError: unknown mode, or thoughts asked for where nothing was thought, altered ones
        outside of the hard bin.
    """
    if mode == "no_think":
        mode = f"no_think_{baseline(measured, mask_P)}"
    direct = {"no_think_raw": measured.raw_reward_P, "no_think_header": measured.header_reward_P}
    if mode in direct:
        return direct[mode][mask_P]
    ablated = {ABLATION + name: found.reward_PG for name, found in measured.ablations.items()}
    thoughts = {
        "thought_sample": measured.sampled_reward_PG,
        "thought_argmax": measured.argmax_reward_PG,
        "target_probability": measured.target_prob_PG,
        **ablated,
    }
    if mode not in thoughts:
        known = ", ".join(["no_think", *direct, *thoughts])
        raise ValueError(f"unknown mode {mode!r}; known are {known}")
    asked_P = measured.bins[measured.hard_bin] if mode in ablated else measured.thought_P
    if not asked_P[mask_P].all():
        raise ValueError(f"{mode} was not measured at all of these positions")
    thought = thoughts[mode][mask_P].mean(axis=1)
    if threshold is None:
        return thought
    gated = measured.gate_entropy_P[mask_P] > threshold
    return np.where(gated, thought, values(measured, mask_P, "no_think"))


def table_row(
    measured: Measured, mask_P: np.ndarray, costs: Costs, seed: int
) -> dict[str, Any] | None:
    """Everything about one set of positions that were thought at; None where there is none."""
    if not mask_P.any():
        return None
    document_P = measured.document_P[mask_P]
    found = {mode: values(measured, mask_P, mode) for mode in (
        "no_think_raw", "no_think_header", "thought_sample", "thought_argmax", "target_probability"
    )}  # fmt: skip
    context = baseline(measured, mask_P)
    direct_P = found[f"no_think_{context}"]
    diagnosis_PG = measured.diagnosis_PG[mask_P]
    branch_tokens = float(measured.branch_tokens_PG[mask_P].mean())
    direct_prob_P = (measured.raw_prob_P if context == "raw" else measured.header_prob_P)[mask_P]
    return {
        "n": int(mask_P.sum()),
        "documents": len(np.unique(document_P)),
        **{mode: estimate(value_P, document_P, seed) for mode, value_P in found.items()},
        "baseline": f"no_think_{context}",
        "baseline_target_probability": estimate(direct_prob_P, document_P, seed),
        **{
            f"{mode}_minus_no_think": difference(found[mode], direct_P, document_P, seed)
            for mode in ("thought_sample", "thought_argmax")
        },
        "pass_at_k_never_a_claim": float(measured.sampled_reward_PG[mask_P].max(axis=1).mean()),
        "closed_rate": float((diagnosis_PG != _NOT_CLOSED).mean()),
        "answer_rate": float(np.isin(diagnosis_PG, ANSWERED).mean()),
        "over_budget_rate": float(measured.over_budget_PG[mask_P].mean()),
        "mean_thought_tokens": float(measured.thought_tokens_PG[mask_P].mean()),
        "mean_branch_tokens": branch_tokens,
        "diagnosis": {
            name: float((diagnosis_PG == i).mean()) for i, name in enumerate(rewards.CATEGORIES)
        },
        "flops_per_predicted_token": {
            "no_think": costs.no_think(context),
            "thought": costs.thought(branch_tokens),
        },
    }


def ablation_rows(measured: Measured, mask_P: np.ndarray, seed: int) -> dict[str, Any]:
    """What remains of the accuracy at positions of the hard bin, by name of the ablation."""
    document_P = measured.document_P[mask_P]
    true_P, direct_P = (values(measured, mask_P, mode) for mode in ("thought_argmax", "no_think"))
    rows = {}
    for name, ablated in measured.ablations.items():
        value_P = values(measured, mask_P, ABLATION + name)
        prob_P = ablated.target_prob_PG[mask_P].mean(axis=1)
        rows[name] = {
            "accuracy": estimate(value_P, document_P, seed),
            "target_probability": estimate(prob_P, document_P, seed),
            "minus_thought_argmax": difference(value_P, true_P, document_P, seed),
            "minus_no_think": difference(value_P, direct_P, document_P, seed),
        }
    return rows


def part_table(measured: Measured, part: str, costs: Costs, seed: int) -> dict[str, Any]:
    """Rows of every bin and label, the leak check, and no-think accuracy on all positions."""
    inside_P = measured.in_part(part)
    bins: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for name, bin_P in measured.bins.items():
        kind, _, label = name.partition(":")
        row = table_row(measured, bin_P & inside_P, costs, seed)
        if row is not None and name == measured.hard_bin:
            row["ablations"] = ablation_rows(measured, bin_P & inside_P, seed)
        if kind == "label" and row is not None:
            labels[label] = row
        elif kind != "label" and name != GATE:
            bins[name] = row
    document_P = measured.document_P[inside_P]
    every = {
        f"no_think_{context}": estimate(reward_P[inside_P], document_P, seed)
        for context, reward_P in (
            ("raw", measured.raw_reward_P), ("header", measured.header_reward_P)
        )
    }  # fmt: skip
    return {
        "bins": bins,
        "labels": labels,
        "leak_check": leak_check(labels.get(NOISE_LABEL)),
        "every_position": {"n": int(inside_P.sum()), **every},
    }


def leak_check(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Whether noise is predicted better than by the best constant guess, by more than 3 sigma.

    Thoughts at one position share its noise, so positions count, not thoughts.
    """
    if row is None:
        return None
    sigma = float(np.sqrt(NOISE_GUESS * (1 - NOISE_GUESS) / row["n"]))
    modes = ("no_think_raw", "no_think_header", "thought_sample", "thought_argmax")
    excess = {mode: (row[mode]["mean"] - NOISE_GUESS) / sigma for mode in modes}
    return {
        "guess": NOISE_GUESS,
        "sigma": sigma,
        "sigmas_above_guess": excess,
        "leak_suspected": max(excess.values()) > 3,
    }


def gated_table(
    measured: Measured, part: str, costs: Costs, seed: int, threshold: float | None
) -> dict[str, Any] | None:
    """The gated curve on documents of which every position was thought at.

    One thought is used per thinking position; accuracies average over the measured ones.

    Args:
      threshold: the reported one, in nats of gate_entropy; None chooses the most accurate of the
        curve (argmax answer) with enough thinking, the least thinking among equals. Only
        validation may choose.
    """
    mask_P = measured.bins[GATE] & measured.in_part(part)
    if not mask_P.any():
        return None
    gate_P = measured.gate_entropy_P[mask_P]
    quantiles = np.quantile(gate_P, 1 - np.array(_CURVE_SHARES[:-1]))
    curve = [_gated_point(measured, mask_P, costs, float(t)) for t in (*quantiles, -1.0)]
    chosen = threshold is None
    if threshold is None:
        enough = [point for point in curve if point["share"] >= _LEAST_SHARE_CHOSEN]
        best = max(enough, key=lambda point: (point["thought_argmax"], -point["share"]))
        threshold = best["threshold"]
    reported = _gated_point(measured, mask_P, costs, threshold)
    document_P = measured.document_P[mask_P]
    direct_P = values(measured, mask_P, "no_think")
    gains = {
        f"{mode}_minus_no_think": difference(
            values(measured, mask_P, mode, threshold), direct_P, document_P, seed
        )
        for mode in ("thought_argmax", "thought_sample")
    }
    low = gains["thought_argmax_minus_no_think"]["low"]
    enough_thinking = reported["share"] >= LEAST_SHARE
    return {
        "n": int(mask_P.sum()),
        "documents": len(np.unique(document_P)),
        "baseline": f"no_think_{baseline(measured, mask_P)}",
        "no_think": estimate(direct_P, document_P, seed),
        "threshold_chosen_here": chosen,
        "reported": {
            **reported,
            **gains,
            "enough_thinking": enough_thinking,
            "gain_shown": bool(enough_thinking and low is not None and low > 0),
        },
        "curve": curve,
    }


def _gated_point(measured, mask_P, costs: Costs, threshold: float) -> dict[str, float]:
    gated_P = measured.gate_entropy_P[mask_P] > threshold
    share = float(gated_P.mean())
    tokens = float((measured.thought_tokens_PG[mask_P].mean(axis=1) * gated_P).mean())
    branch = float((measured.branch_tokens_PG[mask_P].mean(axis=1) * gated_P).mean())
    flops = costs.no_think("header")
    if share:
        flops += share * (costs.thought(branch / share) - costs.no_think("header"))
    if baseline(measured, mask_P) == "raw" and costs.raw_prefix != costs.header_prefix:
        flops += costs.no_think("raw")  # the gate's trunk and the direct prediction's differ
    return {
        "threshold": threshold,
        "share": share,
        "thought_tokens_per_document_token": tokens,
        "thought_argmax": float(values(measured, mask_P, "thought_argmax", threshold).mean()),
        "thought_sample": float(values(measured, mask_P, "thought_sample", threshold).mean()),
        "flops_per_predicted_token": int(flops),
    }


def tables(
    measured: Measured, costs: Costs, seed: int, thresholds: Mapping[str, float] | None
) -> dict[str, Any]:
    """`parts` and `gated` of results.json; thresholds by part, None where they are chosen."""
    parts: Sequence[str] = measured.parts()
    gated = {
        part: gated_table(
            measured, part, costs, seed, None if thresholds is None else thresholds[part]
        )
        for part in parts
        if measured.bins[GATE].any()
    }
    return {
        "parts": {part: part_table(measured, part, costs, seed) for part in parts},
        "gated": gated or None,
    }


def estimate(value_P: np.ndarray, document_P: np.ndarray, seed: int) -> dict[str, Any]:
    """A mean and its interval as strict JSON; an unknown end of it is null."""
    return as_json(statistics.mean_estimate(value_P, document_P, seed))


def difference(a_P, b_P, document_P, seed: int) -> dict[str, Any]:
    """The paired difference a - b, as `estimate`."""
    return as_json(statistics.paired_difference(a_P, b_P, document_P, seed))


def as_json(found: statistics.Estimate) -> dict[str, Any]:
    ends = {"low": found.low, "high": found.high}
    return {
        "mean": found.mean,
        **{name: end if np.isfinite(end) else None for name, end in ends.items()},
    }
