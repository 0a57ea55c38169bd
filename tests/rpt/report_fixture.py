"""Directories as experiments and runs leave them, made up, for tests of the report.

    python -m tests.rpt.report_fixture DIR      three seeds with scaling curves, to look at

The names of files and fields are those of rpt/runs.py, rpt/stepmetrics.py, rpt/experiment_report.py
and rpt/scaling_points.py; `test_experiment_end_to_end.py` reports on what these really write.
"""

import json
import pathlib
import sys

import numpy as np

from rpt import ledger, scaling_points

ARMS = ("base", "rpt", "ntp", "mixed_sft")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>&amp;"
STORY = " eve is 4 . fay is 2 + eve . gus is 5 + fay . so gus is 1 , and fay is 6 ."


def write(path: pathlib.Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: pathlib.Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def estimate(mean: float, half: float = 0.02) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


# ---- a run ---------------------------------------------------------------------------------------


def run(folder: pathlib.Path, seed: int, *, rl: bool, steps: int = 40, text: str = STORY) -> None:
    """A finished run directory."""
    rng = np.random.default_rng(seed)
    shared = [
        {
            "step": n,
            "ntp_nats": 0.7 + 2 / n + rng.normal(0, 0.02),
            "grad_norm": 1.0,
            "training_flops": 7e10 * n,
        }
        for n in range(1, steps + 1)
    ]
    if rl:
        for line in shared:
            n = line["step"] / steps
            right = float(np.clip(0.3 + 0.3 * n + rng.normal(0, 0.05), 0, 1))
            line |= {
                "reward": right,
                "accuracy": right,
                "no_think_accuracy": 0.2,
                "groups_mixed": 0.5 - 0.3 * n,
                "thought_tokens": 9 + 3 * n + rng.normal(0, 0.4),
                "policy_entropy_nats": 0.3 - 0.1 * n,
                "answer_rate": 0.97,
                "over_budget_rate": 0.15,
            }
        samples = [sample(step, text, rng) for step in (1, 20, steps)]
        write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "metrics.jsonl", shared)
    flops = dict.fromkeys(ledger.KINDS, 0) | {"update": 18 * 10**11, "eval": 10**9}
    if rl:
        flops |= {"score": 10**11, "rollout": 9 * 10**11}
    training = sum(flops[kind] for kind in ledger.TRAINING_KINDS)
    alarm = {"name": "no_gradient", "step": 31, "value": 0.01, "threshold": 0.02, "end": None}
    summary = {
        "command": "train" if rl else "pretrain",
        "finished": True,
        "step": steps,
        "wall_seconds": 754.2,
        "ledger": {
            "tokens": flops,
            "flops": flops,
            "training_flops": training,
            "flops_as_rows": int(1.2 * training),
            "document_tokens": 59979,
        },
        "watch": {"alarms": [alarm] if rl else [], "skipped": 0},
        "goodput": {"rollout": 0.5, "update": 0.4, "other": 0.1},
    }
    write(folder / "summary.json", summary)
    write(folder / "command.json", {"command": summary["command"], "init": ""})
    start = {
        "time": "2026-11-22T00:10:00+0000",
        "commit": "0123456789abcdef",
        "machine": {"devices": ["cpu"]},
        "changed_since_last_start": [],
    }
    write(folder / "run.json", [start])


def sample(step: int, text: str, rng) -> dict:
    """A document with two cuts, eight thoughts each, one of them hostile."""
    cuts = []
    for number, target in enumerate((" 1", " 6")):
        offset = text.index(f"is{target}") + 2
        thoughts = []
        for g in range(8):
            right = bool(rng.random() < 0.5)
            words = f"<think> gus {g} fay {(g + 2) % 10} eve 4</think>{target}"
            thoughts.append(
                {
                    "text": HOSTILE if g == 0 else words,
                    "answer": HOSTILE if g == 0 else target if right else None if g == 1 else " 7",
                    "reward": float(right and g > 0),
                    "prob": None if g == 1 else float(rng.uniform(0.3, 1) if right else 0.1),
                }
            )
        cuts.append(
            {
                "cut": 20 + 5 * number,
                "offset": offset,
                "target": target,
                "no_think_prob": 0.23,
                "thoughts": thoughts,
            }
        )
    return {"step": step, "document_id": 7, "start": 0, "text": text, "cuts": cuts}


# ---- an experiment -------------------------------------------------------------------------------


def results(seed: int) -> dict:
    """results.json of a finished experiment."""
    return {
        "hypothesis": "Thinking pays where the next token is hard. " + HOSTILE,
        "config_seed": seed,
        "commit": "0123456789abcdef",
        "claim_part": "stories",
        "bin": ">1.5",
        "gate": {"passed": True, "accuracy": 0.97, "threshold": 0.8},
        "claims": [
            claim("better", "RPT, with thought - base (stage 0), with thought", 0.05, True, seed),
            claim("unknown", "RPT, gated - continued NTP, gated", 0.002, False, seed),
            claim("worse", "RPT, gated - RPT, no thought", -0.08, False, seed),
            claim("few", "RPT, with thought - RPT, no thought", 0.09, False, seed),
        ],
        "arms": {arm: entry(0.45 + 0.03 * i) for i, arm in enumerate(ARMS)},
    }


def claim(name: str, what: str, mean: float, shown: bool, seed: int) -> dict:
    return {
        "name": name,
        "what": f"{what}; hard tokens (>1.5 nats) of stories",
        "difference": estimate(mean + 0.01 * seed),
        "n": 1128 + seed,
        "shown": shown,
    }


def entry(level: float) -> dict:
    """An arm of results.json."""

    def accuracies(value: float) -> dict:
        return {
            "n": 1128,
            "no_think": estimate(value - 0.15),
            "thought_argmax": estimate(value),
            "thought_sample": estimate(value - 0.01),
            "thought_tokens": 9.1,
            "answer_rate": 0.97,
        }

    curve = [
        {
            "threshold": 3.0 - share,
            "share": share,
            "thought_tokens_per_document_token": 9 * share,
            "thought_argmax": level + 0.25 + 0.05 * share - 0.3 * share**2,
        }
        for share in np.linspace(0, 1, 9).tolist()
    ]
    return {
        "hard": accuracies(level),
        "all": {"n": 2141, "no_think": estimate(level + 0.25)},
        "gated": curve[1],
        "curve": curve,
        "depths": {f"answer/{n}": accuracies(level + 0.4 - 0.1 * n) for n in range(1, 6)}
        | {"noise": accuracies(0.2)},
        "leak_check": {"sigmas_above_guess": {"thought_argmax": -3.4, "no_think_raw": 0.1}},
        "compute": {
            "flops_executed": 17e12,
            "flops_as_rows": 19e12,
            "inference_flops_per_token": {"no_think": 1.2e6, "thought": 9.4e6},
        },
    }


def experiment(folder: pathlib.Path, seed: int = 0) -> None:
    """A finished experiment."""
    write(folder / "command.json", {"command": "experiment", "init": ""})
    write(folder / "config.json", {"seed": seed})
    write(folder / "results.json", results(seed))
    for arm in (*ARMS, "reference"):
        run(folder / arm, seed, rl=arm == "rpt")


def scaling(path: pathlib.Path, arms=("rpt", "ntp"), seeds=(0, 1, 2), documents: int = 12) -> None:
    """Arms at five budgets."""
    rng = np.random.default_rng(0)
    points = []
    for arm in arms:
        gain = 0.12 if arm == "rpt" else 0.06
        for seed in seeds:
            for budget in np.geomspace(1e12, 4e13, 5).tolist():
                level = 0.5 + gain * np.log10(budget / 1e12) + rng.normal(0, 0.01)
                share_D = level + rng.normal(0, 0.05, documents)
                point = scaling_points.Point(
                    arm=arm,
                    seed=seed,
                    measure="hard, with a thought",
                    budget_FLOPs=budget,
                    stage0_FLOPs=1.3e13,
                    trained_FLOPs=budget,
                    documents={f"d{d}": (10 * float(s), 10.0) for d, s in enumerate(share_D)},
                )
                points.append(point)
    scaling_points.write(path, points)


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    for number in range(3):
        experiment(root / f"seed{number}", number)
    scaling(root / scaling_points.FILE)
