"""results.json of an experiment, made of its pieces alone (fields: rpt/experiment_report.py).

Letters: P positions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rpt import (
    evaluation,
    experiment_claims,
    experiment_config,
    experiment_pieces,
    experiment_pooled,
    experiment_preregistration,
    scaling_studies,
)

_MODES = experiment_pooled.MODES
_KEPT = (
    *("n", "thought_argmax", "thought_sample", "thought_argmax_minus_no_think", "answer_rate"),
    *("over_budget_rate", "mean_thought_tokens", "ablations"),
)
RLVR_PART = "rlvr"
UNLABELLED = "unlabelled"


def results(
    pieces: Sequence[experiment_pieces.Piece], seeds: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Everything of results.json; what has no piece yet is left out and named in `missing`.

    Args:
      pieces: of one experiment, at least one.
      seeds: that are asked for; None is the plan's. There may be pieces of further ones.
    """
    plan, hard = pieces[0].plan, experiment_claims.hard_bin(pieces[0])
    if seeds is not None:
        plan = dataclasses.replace(plan, seeds=seeds)
    by_seed = {
        seed: {piece.arm: piece for piece in pieces if piece.seed == seed}
        for seed in sorted({piece.seed for piece in pieces})
    }
    names = [arm.name for arm in plan.arms if arm.evaluated]
    found = {
        "hypothesis": plan.hypothesis,
        "seeds": list(by_seed),
        "commits": sorted({piece.content["commit"] for piece in pieces}),
        "plan": experiment_preregistration.history([piece.content for piece in pieces]),
        "missing": [
            f"seed{seed}/{name}"
            for seed in plan.seeds or by_seed
            for name in names
            if name not in by_seed.get(seed, {})
        ],
        "split": plan.split,
        "claim_part": plan.claim_part,
        "bin": hard,
        "bins_nats": pieces[0].evaluation["settings"]["bins_nats"],
        "shown_depth": plan.shown_depth,
        "gates": _gates(by_seed),
        "claims": [experiment_claims.claim(plan, c, by_seed, hard) for c in plan.claims],
        "arms": {
            name: _arm(plan, plan.arm(name), hard, by_seed)
            for name in names
            if any(name in arms for arms in by_seed.values())
        },
    }
    found["rlvr"] = [
        [arm.init, arm.name]
        for arm in plan.arms
        if {arm.init, arm.name} <= found["arms"].keys()
        and any(_is_rlvr(arms[arm.name]) for arms in by_seed.values() if arm.name in arms)
    ]
    found["scaling"] = scaling_points(found)
    return {**found, "scaling_fits": scaling_studies.as_json(found["scaling"])}


def _is_rlvr(piece: experiment_pieces.Piece) -> bool:
    """Trained by reward, and on a source that nothing before it was trained on."""
    *before, own = piece.stages
    known = {source for stage in before for source in epochs(stage["data"])}
    new = epochs(own["data"]).keys() - known
    return own["command"] == "train" and bool(before) and bool(new)


def epochs(data: Mapping[str, Any]) -> dict[str, float]:
    """By source what a stage read of it, in an opening mixture too."""
    streams = [data, *(inner for inner in data.values() if isinstance(inner, Mapping))]
    found: dict[str, float] = {}
    for name, value in (item for stream in streams for item in stream.items()):
        if name.startswith("epochs/"):
            source = name.removeprefix("epochs/")
            found[source] = found.get(source, 0.0) + value
    return found


def _gates(by_seed: experiment_claims.Pieces) -> dict[str, dict[str, Any]]:
    """Of every run that has one: accuracy, threshold and passed, by arm and seed."""
    found: dict[str, dict[str, Any]] = {}
    for seed, arms in by_seed.items():
        for piece in arms.values():
            for stage in piece.stages:
                if stage["gate"] is not None:
                    found.setdefault(stage["arm"], {})[str(seed)] = stage["gate"]
    return found


def _arm(
    plan: experiment_config.ExperimentConfig,
    arm: experiment_config.ArmConfig,
    hard: str,
    by_seed: experiment_claims.Pieces,
) -> dict[str, Any]:
    part = plan.claim_part
    pieces = {seed: arms[arm.name] for seed, arms in by_seed.items() if arm.name in arms}
    return {
        "title": arm.title,
        "command": arm.command,
        "init": arm.init,
        "curve": arm.curve,
        "seeds": {
            str(seed): _entry(piece, part, hard, bool(arm.curve)) for seed, piece in pieces.items()
        },
        "pooled": experiment_pooled.pooled(list(pieces.values()), part, plan.shown_depth),
        "history": {str(seed): piece.content["history"] for seed, piece in pieces.items()},
    }


# ---- one arm of one seed -------------------------------------------------------------------------


def _entry(piece: experiment_pieces.Piece, part: str, hard: str, documents: bool) -> dict[str, Any]:
    tables, measured = piece.evaluation, piece.recorded.measured
    found = {
        "params_sha256": piece.params_sha256,
        "test_reading": tables["test_reading"],
        "parts": {
            name: {
                "bins": {bin: row and _row(row) for bin, row in table["bins"].items()},
                "labels": {label: _label(row) for label, row in table["labels"].items()},
                "hard_by_kind": hard_by_kind(measured, name, hard),
                "asked": _means(measured, experiment_pooled.asked(measured, name)),
                "leak_check": table["leak_check"],
                "every_position": table["every_position"],
                "gated": (tables["gated"] or {}).get(name),
            }
            for name, table in tables["parts"].items()
        },
        "compute": _compute(piece, tables["parts"][part]["bins"][hard]),
    }
    if documents:
        found["documents"] = _by_document(measured, measured.bins[hard] & measured.in_part(part))
    return found


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a row of an evaluation what is compared, with the better no-think context."""
    kept = {name: row[name] for name in _KEPT if name in row}
    return {**kept, "no_think": row[row["baseline"]]}


def _label(row: Mapping[str, Any]) -> dict[str, Any]:
    """Means alone: there are many labels, of few positions each."""
    row = _row(row)
    return {"n": row["n"], **{mode: row[mode]["mean"] for mode in _MODES}}


def hard_by_kind(measured: evaluation.Measured, part: str, hard: str) -> dict[str, Any]:
    """What the hard bin consists of: accuracies by kind of label ('answer' for 'answer/3')."""
    inside_P = measured.bins[hard] & measured.in_part(part)
    kinds: dict[str, np.ndarray] = {}
    for name, bin_P in measured.bins.items():
        if name.startswith("label:"):
            kind = name.removeprefix("label:").partition("/")[0]
            kinds[kind] = kinds.get(kind, np.zeros_like(bin_P)) | bin_P
    kinds[UNLABELLED] = ~np.logical_or.reduce([np.zeros_like(inside_P), *kinds.values()])
    return {
        kind: _means(measured, inside_P & of_kind_P)
        for kind, of_kind_P in kinds.items()
        if (inside_P & of_kind_P).any()
    }


def _means(measured: evaluation.Measured, mask_P: np.ndarray) -> dict[str, Any] | None:
    if not mask_P.any():
        return None
    means = {mode: float(evaluation.values(measured, mask_P, mode).mean()) for mode in _MODES}
    return {"n": int(mask_P.sum()), **means}


def _by_document(measured: evaluation.Measured, mask_P: np.ndarray) -> dict[str, list[float]]:
    """Positions of each document, and how many of them are right: what a bootstrap resamples."""
    cluster_P = np.unique(measured.document_P[mask_P], return_inverse=True)[1].reshape(-1)
    return {
        "n": np.bincount(cluster_P).tolist(),
        **{
            mode: np.bincount(cluster_P, evaluation.values(measured, mask_P, mode)).tolist()
            for mode in _MODES
        },
    }


def _compute(piece: experiment_pieces.Piece, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of an arm with all that it continues, and of itself."""
    ledgers = [stage["ledger"] for stage in piece.stages]
    own, fresh = piece.stages[-1], len(piece.stages) == 1
    executed = sum(ledger["training_flops"] for ledger in ledgers)
    first = 0 if fresh else ledgers[0]["training_flops"]
    return {
        "flops_executed": executed,
        "flops_executed_after_stage0": executed - first,
        "flops_executed_alone": own["ledger"]["training_flops"],
        "flops_as_rows": sum(ledger["flops_as_rows"] for ledger in ledgers),
        "wall_seconds": sum(stage["wall_seconds"] for stage in piece.stages),
        "wall_seconds_alone": own["wall_seconds"],
        "document_tokens": sum(ledger["document_tokens"] for ledger in ledgers),
        "data": {stage["arm"]: stage["data"] for stage in piece.stages},
        "parameters": own["parameters"],
        "inference_flops_per_token": row and row["flops_per_predicted_token"],
    }


# ---- scaling -------------------------------------------------------------------------------------


def scaling_points(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The points of every scaling curve of results.json, cheapest first.

    Accuracies are of the claim's part, hard bin; `documents` are what a bootstrap resamples.
    """
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, arm in found["arms"].items():
        for seed, entry in arm["seeds"].items() if arm["curve"] else ():
            row = entry["parts"][found["claim_part"]]["bins"][found["bin"]]
            point = {
                "arm": name,
                "seed": int(seed),
                "flops": entry["compute"]["flops_executed"],
                "flops_after_stage0": entry["compute"]["flops_executed_after_stage0"],
                "wall_seconds": entry["compute"]["wall_seconds"],
                "value": row and {mode: row[mode] for mode in _MODES},
                "documents": entry["documents"],
            }
            curves.setdefault(arm["curve"], []).append(point)
    return {
        curve: sorted(points, key=lambda point: (point["flops"], point["seed"]))
        for curve, points in curves.items()
    }
