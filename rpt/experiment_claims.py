"""The claims of an experiment: paired differences of each seed, and pooled over the seeds.

Letters: P positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rpt import (
    evaluation,
    evaluation_positions,
    evaluation_records,
    experiment_config,
    experiment_pieces,
    statistics,
)

WORDS = {
    "thought_argmax": "with thought",
    "thought_sample": "with thought, answer sampled",
    "no_think": "no thought",
    "gated": "gated",
}
# By seed, then by arm; an arm that is not there yet is missing.
Pieces = Mapping[int, Mapping[str, experiment_pieces.Piece]]


def hard_bin(piece: experiment_pieces.Piece) -> str:
    """The name of the hardest bin."""
    return evaluation_positions.bin_name(piece.evaluation["settings"]["bins_nats"][-1], None)


def claim(
    plan: experiment_config.ExperimentConfig,
    asked: experiment_config.ClaimConfig,
    pieces: Pieces,
    hard: str,
) -> dict[str, Any]:
    """One claim of results.json (rpt/experiment_report.py).

    Pooled it is shown if it is supported in every seed that was measured and that the plan has.
    """
    seeds: dict[str, Any] = {}
    values: list[tuple[np.ndarray, np.ndarray]] = []
    for seed, arms in pieces.items():
        if asked.a not in arms or asked.b not in arms:
            continue
        a, b = arms[asked.a], arms[asked.b]
        if not _positions(asked, a, asked.bin or hard).any():
            continue
        differences = _differences(asked, a, b, hard)
        found = statistics.mean_estimate(*differences, seed=0)
        supported = _supported(plan, asked, a, b, hard)
        seeds[str(seed)] = {
            "difference": evaluation.as_json(found),
            "n": found.n,
            "supported": supported,
            "shown": bool(supported and found.low > 0),
        }
        values.append(differences)
    return {
        "name": asked.name,
        "what": asked.what or words(plan, asked, hard),
        "goal": asked.goal,
        "arms": [asked.a, asked.b],
        "seeds": seeds,
        "pooled": _pooled(plan, values, seeds) if values else None,
    }


def _pooled(
    plan: experiment_config.ExperimentConfig,
    values: Sequence[tuple[np.ndarray, np.ndarray]],
    seeds: Mapping[str, Any],
) -> dict[str, Any]:
    found = statistics.pooled_estimate(values, seed=0)
    means = [one["difference"]["mean"] for one in seeds.values()]
    complete = {str(seed) for seed in plan.seeds} <= seeds.keys()
    supported = complete and all(one["supported"] for one in seeds.values())
    return {
        "difference": evaluation.as_json(found),
        "standard_deviation": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "seeds": len(seeds),
        "seeds_shown": sum(one["shown"] for one in seeds.values()),
        "shown": bool(supported and found.low > 0),
    }


def _differences(
    asked: experiment_config.ClaimConfig,
    a: experiment_pieces.Piece,
    b: experiment_pieces.Piece,
    hard: str,
) -> tuple[np.ndarray, np.ndarray]:
    """a - b and the document at each position."""

    def mode(piece: experiment_pieces.Piece, name: str) -> tuple[str, float | None]:
        if name != "gated":
            return name, None
        return "thought_argmax", piece.evaluation["gated"][asked.part]["reported"]["threshold"]

    return evaluation_records.differences(
        a.recorded,
        b.recorded,
        asked.bin or hard,
        asked.part,
        mode(a, asked.mode_a),
        mode(b, asked.mode_b),
    )


def _positions(
    asked: experiment_config.ClaimConfig, piece: experiment_pieces.Piece, bin: str
) -> np.ndarray:
    """bool [P]; a bin that the evaluation does not have holds none."""
    measured = piece.recorded.measured
    return measured.in_part(asked.part) & evaluation.in_bin(measured, bin)


def _supported(
    plan: experiment_config.ExperimentConfig,
    asked: experiment_config.ClaimConfig,
    a: experiment_pieces.Piece,
    b: experiment_pieces.Piece,
    hard: str,
) -> bool:
    """Whether a difference may count: gates passed, positions enough, and thinking that pays.

    Hard tokens must be `least_positions`, and asked ones where a claim is about these. So must
    those of a claim about every token of the documents for gated thinking, beside the part's hard
    ones. Of other bins nothing is asked. Where `a` thinks by a gate, enough positions do, and its
    accuracy lies above that of the same model without any thought, by the whole interval.
    """
    gates = [stage["gate"] for piece in (a, b) for stage in piece.stages]
    bin = asked.bin or hard
    counted = {
        hard: (hard,),
        evaluation.ASKED: (evaluation.ASKED,),
        evaluation.GATE: (evaluation.GATE, hard),
    }.get(bin, ())
    enough = all(_positions(asked, a, each).sum() >= plan.least_positions for each in counted)
    gains = asked.mode_a != "gated" or a.evaluation["gated"][asked.part]["reported"]["gain_shown"]
    return bool(all(gate is None or gate["passed"] for gate in gates) and enough and gains)


def words(
    plan: experiment_config.ExperimentConfig, asked: experiment_config.ClaimConfig, hard: str
) -> str:
    """Which arm, how, and at which tokens, on both sides."""
    kind, _, label = asked.bin.partition(":")
    if asked.bin in ("", hard):
        where = f"hard tokens ({hard} nats)"
    elif asked.bin in (evaluation.ALL, evaluation.GATE):
        where = "all tokens"
    elif asked.bin == evaluation.ASKED:
        where = "asked tokens"
    else:
        where = f"tokens labelled {label}" if kind == "label" else f"tokens {asked.bin} nats"
    where += " of all parts" if asked.part == evaluation.ALL else f" of {asked.part}"
    return (
        f"{plan.title(asked.a)}, {WORDS[asked.mode_a]} - {plan.title(asked.b)}, "
        f"{WORDS[asked.mode_b]}; {where}"
    )
