"""Directories as experiments and runs leave them, made up, for tests of the report.

    python -m tests.rpt.report_fixture DIR      three seeds with scaling curves, to look at

The names of files and fields are those of rpt/runs.py, rpt/stepmetrics.py and
rpt/experiment_report.py;
`test_experiment_end_to_end.py` makes the page of what these really write.
"""

import json
import pathlib
import sys

import numpy as np

from rpt import ledger

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


def results(seeds=(0,), scaling: bool = False) -> dict:
    """results.json of a finished experiment."""
    arms = {name: arm(name, 0.45 + 0.03 * i, seeds) for i, name in enumerate(ARMS)}
    return {
        "hypothesis": "Thinking pays where the next token is hard. " + HOSTILE,
        "plan": None,
        "split": "test",
        "seeds": list(seeds),
        "commits": ["0123456789abcdef"],
        "missing": ["seed9/rpt"],
        "claim_part": "stories",
        "bin": ">1.5",
        "bins_nats": [0.5, 1.5],
        "shown_depth": 3,
        "rlvr": [["base", "rpt"]],
        "scaling_fits": [],
        "gates": {"base": {"0": {"passed": True, "accuracy": 0.97, "threshold": 0.8}}},
        "claims": [
            claim("better", "RPT, with thought - base, with thought", 0.05, True, seeds),
            claim("unknown", "RPT, gated - continued NTP, gated", 0.002, False, seeds),
            claim("worse", "RPT, gated - RPT, no thought", -0.08, False, seeds),
            claim("few", "RPT, with thought - RPT, no thought", 0.09, False, seeds),
        ],
        "arms": arms,
        "scaling": {"rpt": curve(seeds)} if scaling else {},
    }


def claim(name: str, what: str, mean: float, shown: bool, seeds) -> dict:
    return {
        "name": name,
        "what": f"{what}; hard tokens (>1.5 nats) of stories",
        "goal": name in ("better", "unknown"),
        "arms": ["rpt", "ntp"],
        "seeds": {
            str(s): {
                "difference": estimate(mean + 0.01 * s),
                "n": 1128 + s,
                "supported": shown,
                "shown": shown,
            }
            for s in seeds
        },
        "pooled": {"difference": estimate(mean, 0.015), "seeds": len(seeds), "shown": shown},
    }


def arm(name: str, level: float, seeds) -> dict:
    """An arm of results.json."""
    row = {
        "n": 1128,
        "no_think": estimate(level - 0.15),
        "thought_argmax": estimate(level),
        "thought_sample": estimate(level - 0.01),
        "mean_thought_tokens": 9.1,
        "answer_rate": 0.97,
    }
    points = [
        {
            "threshold": 3.0 - share,
            "share": share,
            "thought_tokens_per_document_token": 9 * share,
            "thought_argmax": level + 0.25 + 0.05 * share - 0.3 * share**2,
        }
        for share in np.linspace(0, 1, 9).tolist()
    ]
    noise = {"n": 9, "no_think": 0.1, "thought_argmax": 0.0}
    part = {
        "bins": {">1.5": row, ">0.5": row, "all": row},
        "labels": {
            f"answer/{n}": {"n": 9, "no_think": 0.9 - 0.15 * n, "thought_argmax": 1 - 0.1 * n}
            for n in range(1, 6)
        }
        | {"noise": noise},
        "hard_by_kind": {"answer": {**noise, "n": 100}, "noise": noise},
        "asked": {"n": 45, "no_think": level - 0.2, "thought_argmax": level + 0.1},
        "every_position": {"no_think_raw": estimate(level + 0.2)},
        "leak_check": {
            "leak_suspected": name == "ntp",
            "sigmas_above_guess": dict.fromkeys(("no_think_raw", "thought_argmax"), 0.4),
        },
        "gated": {"no_think": estimate(level + 0.25), "reported": points[1], "curve": points},
    }
    compute = {
        "flops_executed": 17e12,
        "flops_as_rows": 19e12,
        "flops_executed_alone": 4e12,
        "wall_seconds": 754.2,
        "wall_seconds_alone": 200.0,
        "document_tokens": 59979,
        "data": {"base": {"main": {"epochs/stories": 0.5}, "opening": None}},
        "inference_flops_per_token": {"no_think": 1.2e6, "thought": 9.4e6},
    }
    parts = dict.fromkeys(("stories", "rlvr", "all"), part)
    entry = {"parts": parts, "compute": compute}
    title = {"rpt": "RPT + trunk NTP", "ntp": "continued NTP"}.get(name, name)
    both = {mode: estimate(level, 0.0125) for mode in ("no_think", "thought_argmax")}
    of_part = {
        "bins": {bin: {**both, "thought_sample": estimate(level)} for bin in part["bins"]},
        "asked": both,
        "gated": both,
        "labels": {f"answer/{n}": both for n in range(1, 6)},
        "depths": {"answer": {"<=3": both, ">3": both}},
    }
    return {
        "title": title,
        "seeds": {str(s): entry for s in seeds},
        "pooled": dict.fromkeys(entry["parts"], of_part),
    }


def curve(seeds, documents: int = 4) -> list[dict]:
    """A scaling curve at four budgets."""
    rng = np.random.default_rng(0)
    points = []
    for number, budget in enumerate(np.geomspace(1e12, 4e13, 4).tolist()):
        for seed in seeds:
            level = 0.5 + 0.12 * np.log10(budget / 1e12) + rng.normal(0, 0.01)
            right = 10 * (level + rng.normal(0, 0.03, documents))
            points.append(
                {
                    "arm": f"rpt_{number}",
                    "seed": seed,
                    "flops": budget * (1 + 0.01 * seed) + 1.3e13,
                    "flops_after_stage0": budget * (1 + 0.01 * seed),
                    "documents": {
                        "n": [10] * documents,
                        "no_think": (right / 2).tolist(),
                        "thought_argmax": right.tolist(),
                    },
                }
            )
    return points


def experiment(folder: pathlib.Path, seed: int = 0) -> None:
    """A finished experiment of one seed."""
    write(folder / "command.json", {"command": "experiment", "init": ""})
    write(folder / "config.json", {"seed": seed})
    write(folder / "results.json", results((seed,)))
    for name in (*ARMS, "reference"):
        run(folder / name, seed, rl=name == "rpt")


def seeds(folder: pathlib.Path, count: int, scaling: bool = False) -> None:
    """A finished experiment of several seeds."""
    for seed in range(count):
        experiment(folder / f"seed{seed}", seed)
    write(folder / "command.json", {"command": "experiment", "init": ""})
    write(folder / "config.json", {"seed": 0})
    write(folder / "results.json", results(tuple(range(count)), scaling))


if __name__ == "__main__":
    seeds(pathlib.Path(sys.argv[1]), 3, scaling=True)
