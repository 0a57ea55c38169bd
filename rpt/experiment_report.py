"""What an experiment found: claims with their intervals, the arms' table, curves.

results.json, strict JSON (E is {mean, low, high}, 95%, bootstrap over documents):

    hypothesis, config_seed, commit, claim_part, bin
    gate         passed, accuracy, threshold
    claims       each: name, what, difference E, n, shown (its lower end is above 0, there are
                 enough positions, and the gate was passed)
    arms         for base, rpt, ntp, mixed_sft: hard and all (no_think, thought_argmax,
                 thought_sample: E each), hard_by_label (means of what the hard bin consists of),
                 gated and curve (rpt/evaluate.py), depths, other_parts, leak_check, compute
    compute      base included: flops_executed, flops_as_rows (had each rollout been a row of its
                 own), wall_seconds, document_tokens, data (epochs by source, of each stage);
                 flops_executed_after_base; inference_flops_per_token {no_think, thought}
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table

from rpt import config as config_lib
from rpt import evaluate, evaluation, evaluation_positions, evaluation_records, runs

NAMES = {
    "base": "base (stage 0)",
    "rpt": "RPT + trunk NTP",
    "ntp": "continued NTP",
    "mixed_sft": "Mixed SFT",
}
_SPLIT = "test"


# ---- claims --------------------------------------------------------------------------------------


def results(config: config_lib.Config, root: pathlib.Path, arms: Sequence[str]) -> dict[str, Any]:
    """Everything of results.json, from the arms' evaluations and run directories."""
    plan, settings = config.experiment, config.evaluate
    hard = evaluation_positions.bin_name(settings.bins_nats[-1], None)
    gate = _read(root / "base" / "summary.json")["gate"]
    folder = root / "evaluation"
    tables = {arm: _read(folder / arm / _SPLIT / evaluate.RESULTS) for arm in arms}
    recorded = {
        arm: evaluation_records.load(folder / arm / _SPLIT / evaluate.PREDICTIONS) for arm in arms
    }
    others = [part for part in tables["base"]["parts"] if part != plan.claim_part]
    claims = [
        claim(recorded, tables, plan, hard, gate["passed"], *words)
        for words in comparisons(hard, plan.claim_part, others)
    ]
    return {
        "hypothesis": plan.hypothesis,
        "config_seed": config.seed,
        "commit": runs.commit(),
        "claim_part": plan.claim_part,
        "bin": hard,
        "gate": {
            "passed": gate["passed"],
            "accuracy": gate["final_accuracy"],
            "threshold": config.pretrain.gate.threshold,
        },
        "claims": claims,
        "arms": {
            arm: {
                **_arm(root, arm, tables[arm], plan.claim_part, hard),
                "hard_by_label": hard_by_label(recorded[arm].measured, plan.claim_part, hard),
            }
            for arm in arms
        },
    }


def comparisons(
    hard: str, part: str, others: Sequence[str]
) -> list[tuple[str, str, str, str, str, str, str]]:
    """(name, part, bin, arm a, its mode, arm b, its mode): the difference is a - b.

    All are about the claim's part, but for gated thinking on the `others`.
    """
    thought, sampled, direct = "thought_argmax", "thought_sample", "no_think"
    return [
        ("rpt_thought_over_base_thought", part, hard, "rpt", thought, "base", thought),
        ("rpt_sampled_over_base_sampled", part, hard, "rpt", sampled, "base", sampled),
        ("rpt_thought_over_own_no_think", part, hard, "rpt", thought, "rpt", direct),
        ("rpt_thought_over_base_no_think", part, hard, "rpt", thought, "base", direct),
        ("rpt_thought_over_ntp", part, hard, "rpt", thought, "ntp", direct),
        ("rpt_thought_over_ntp_thought", part, hard, "rpt", thought, "ntp", thought),
        ("rpt_thought_over_mixed_sft_thought", part, hard, "rpt", thought, "mixed_sft", thought),
        ("rpt_gated_over_own_no_think", part, "gate", "rpt", "gated", "rpt", direct),
        ("rpt_gated_over_ntp", part, "gate", "rpt", "gated", "ntp", direct),
        ("rpt_gated_over_base_gated", part, "gate", "rpt", "gated", "base", "gated"),
        ("rpt_gated_over_ntp_gated", part, "gate", "rpt", "gated", "ntp", "gated"),
        ("rpt_gated_over_mixed_sft_gated", part, "gate", "rpt", "gated", "mixed_sft", "gated"),
        *(
            (
                f"rpt_gated_over_own_no_think_on_{other}",
                other,
                "gate",
                "rpt",
                "gated",
                "rpt",
                direct,
            )
            for other in others
        ),
    ]


def claim(
    recorded, tables, plan, hard, passed, name, part, bin, a, mode_a, b, mode_b
) -> dict[str, Any]:
    """One comparison with its interval, and whether it counts as shown."""

    def threshold(arm: str, mode: str) -> float | None:
        return tables[arm]["gated"][part]["reported"]["threshold"] if mode == "gated" else None

    def records_mode(mode: str) -> str:
        return "thought_argmax" if mode == "gated" else mode

    found = evaluation_records.compare(
        recorded[a],
        recorded[b],
        bin,
        part=part,
        mode_a=records_mode(mode_a),
        mode_b=records_mode(mode_b),
        threshold_a=threshold(a, mode_a),
        threshold_b=threshold(b, mode_b),
    )
    mask_P = recorded[a].measured.bins[bin] & recorded[a].measured.in_part(part)
    enough = mask_P.sum() >= (plan.least_positions if bin == hard else 1)
    if mode_a == "gated":
        enough = enough and tables[a]["gated"][part]["reported"]["enough_thinking"]
    where = f"hard tokens ({bin} nats)" if bin == hard else "all tokens"
    where += " of all parts" if part == evaluation.ALL else f" of {part}"
    return {
        "name": name,
        "what": f"{NAMES[a]}, {_words(mode_a)} - {NAMES[b]}, {_words(mode_b)}; {where}",
        "difference": evaluation.as_json(found),
        "n": int(mask_P.sum()),
        "shown": bool(passed and enough and found.low > 0),
    }


def _words(mode: str) -> str:
    return {
        "thought_argmax": "with thought",
        "thought_sample": "with thought, answer sampled",
        "no_think": "no thought",
        "gated": "gated",
    }[mode]


# ---- arms ----------------------------------------------------------------------------------------


def _arm(root: pathlib.Path, arm: str, table: dict[str, Any], part: str, hard: str):
    inside = table["parts"][part]
    row = inside["bins"][hard]
    gated = table["gated"][part]
    return {
        "hard": {"n": row["n"], **_accuracies(row)},
        "all": {
            "n": gated["n"],
            "no_think": gated["no_think"],
            "no_think_every_position": inside["every_position"],
        },
        "gated": gated["reported"],
        "curve": gated["curve"],
        "depths": {
            label: {"n": labelled["n"], **_accuracies(labelled)}
            for label, labelled in inside["labels"].items()
        },
        "leak_check": inside["leak_check"],
        "other_parts": {
            name: {
                "no_think_every_position": entry["every_position"],
                "bins": {
                    bin: {"n": found["n"], **_accuracies(found)}
                    for bin, found in entry["bins"].items()
                    if found is not None
                },
            }
            for name, entry in table["parts"].items()
            if name not in (part, evaluation.ALL)
        },
        "compute": _compute(root, arm, row),
    }


def hard_by_label(measured: evaluation.Measured, part: str, hard: str) -> dict[str, Any]:
    """What the hard bin consists of: accuracies by kind of label ('answer' for 'answer/3')."""
    inside_P = measured.bins[hard] & measured.in_part(part)
    kinds: dict[str, np.ndarray] = {}
    for name, bin_P in measured.bins.items():
        if name.startswith("label:"):
            kind = name.removeprefix("label:").partition("/")[0]
            kinds[kind] = kinds.get(kind, np.zeros_like(bin_P)) | bin_P
    labelled_P = np.logical_or.reduce([np.zeros_like(inside_P), *kinds.values()])
    kinds["unlabelled"] = ~labelled_P
    found = {}
    for kind, of_kind_P in kinds.items():
        mask_P = inside_P & of_kind_P
        if mask_P.any():
            means = {
                mode: float(evaluation.values(measured, mask_P, mode).mean())
                for mode in ("no_think", "thought_argmax")
            }
            found[kind] = {"n": int(mask_P.sum()), **means}
    return found


def _accuracies(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "no_think": row[row["baseline"]],
        "thought_argmax": row["thought_argmax"],
        "thought_sample": row["thought_sample"],
        "thought_tokens": row["mean_thought_tokens"],
        "answer_rate": row["answer_rate"],
    }


def _compute(root: pathlib.Path, arm: str, row: dict[str, Any]) -> dict[str, Any]:
    """Of an arm, stage 0 included."""
    stages = [_read(root / name / "summary.json") for name in dict.fromkeys(("base", arm))]
    executed = [stage["ledger"]["training_flops"] for stage in stages]
    return {
        "flops_executed": sum(executed),
        "flops_executed_after_base": executed[-1] if arm != "base" else 0,
        "flops_as_rows": sum(stage["ledger"]["flops_as_rows"] for stage in stages),
        "wall_seconds": sum(stage["wall_seconds"] for stage in stages),
        "document_tokens": sum(stage["ledger"]["document_tokens"] for stage in stages),
        "data": [stage["data"] for stage in stages],
        "inference_flops_per_token": row["flops_per_predicted_token"],
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# ---- for people ----------------------------------------------------------------------------------


def write(found: dict[str, Any], root: pathlib.Path) -> None:
    """report.md and curves.png; prints the tables and where they are."""
    console = rich.console.Console()
    console.width = max(console.width, 160)
    console.print(_console_table(found))
    lines = claim_lines(found)
    print("\n".join(lines))
    curves(found, root)
    table = _markdown_table(found)
    kinds = _markdown_kinds(found)
    depths = _markdown_depths(found)
    report = [
        f"# RPT experiment, seed {found['config_seed']}",
        *("", found["hypothesis"], "", "## Claims", "", *(f"- {line}" for line in lines)),
        *("", f"## Arms: test, part {found['claim_part']}", "", *table),
        *("", "## Hard tokens by kind: without thought / with thought", "", *kinds),
        *("", "## By depth: without thought / with thought", "", *depths),
        *("", "![curves](curves.png)", "", "All figures: results.json.", ""),
    ]
    (root / "report.md").write_text("\n".join(report))
    print(f"report in {root / 'report.md'}, curves in {root / 'curves.png'}")


def claim_lines(found: dict[str, Any]) -> list[str]:
    """One line per claim, and one on the gate."""
    gate = found["gate"]
    state = "passed" if gate["passed"] else "NOT passed: this row is below the gate, no claim shown"
    lines = [
        f"gate {state} (shallow with-thought accuracy {gate['accuracy']:.3f}, "
        f"asked {gate['threshold']})"
    ]
    for arm, entry in found["arms"].items():
        check = entry["leak_check"]
        for mode, sigmas in check["sigmas_above_guess"].items() if check else ():
            if abs(sigmas) > 3:
                lines.append(
                    f"noise: {NAMES[arm]}, {mode} is {sigmas:+.1f} sigma from a constant guess"
                )
    for claim in found["claims"]:
        shown = "shown" if claim["shown"] else "not shown"
        lines.append(f"{shown}: {_interval(claim['difference'])}  {claim['what']}, n {claim['n']}")
    return lines


def _interval(value: dict[str, Any]) -> str:
    low, high = ("?" if end is None else f"{end:+.3f}" for end in (value["low"], value["high"]))
    return f"{value['mean']:+.3f} [{low}, {high}]"


_COLUMNS = (
    *("arm", "hard: no thought", "hard: thought", "hard: sampled", "all: no thought"),
    *("all: gated", "PFLOP", "PFLOP as rows", "wall s", "doc tokens", "MFLOP/token"),
)


def _cells(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for arm, entry in found["arms"].items():
        hard, compute = entry["hard"], entry["compute"]
        inference = compute["inference_flops_per_token"]
        rows.append(
            [
                NAMES[arm],
                *(f"{hard[m]['mean']:.3f}" for m in ("no_think", "thought_argmax")),
                f"{hard['thought_sample']['mean']:.3f}",
                f"{entry['all']['no_think']['mean']:.4f}",
                f"{entry['gated']['thought_argmax']:.4f}",
                f"{compute['flops_executed'] / 1e15:.4f}",
                f"{compute['flops_as_rows'] / 1e15:.4f}",
                f"{compute['wall_seconds']:.0f}",
                f"{compute['document_tokens'] / 1e6:.2f} M",
                f"{inference['no_think'] / 1e6:.1f} -> {inference['thought'] / 1e6:.1f}",
            ]
        )
    return rows


def _console_table(found: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table(title=f"test, {found['claim_part']}, seed {found['config_seed']}")
    for number, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if number else "left")
    for cells in _cells(found):
        table.add_row(*cells)
    return table


def _markdown_table(found: dict[str, Any]) -> list[str]:
    return _markdown(_COLUMNS, _cells(found))


def _markdown_kinds(found: dict[str, Any]) -> list[str]:
    kinds = {arm: entry["hard_by_label"] for arm, entry in found["arms"].items()}
    names = list(kinds["base"])
    rows = [
        [
            NAMES[arm],
            *(f"{of[k]['no_think']:.3f} / {of[k]['thought_argmax']:.3f}" for k in names),
        ]
        for arm, of in kinds.items()
    ]
    return _markdown(("arm", *names), [*rows, ["n", *(str(kinds["base"][k]["n"]) for k in names)]])


def _markdown_depths(found: dict[str, Any]) -> list[str]:
    labels = list(found["arms"]["base"]["depths"])
    rows = []
    for arm, entry in found["arms"].items():
        cells = [
            f"{entry['depths'][label]['no_think']['mean']:.2f} / "
            f"{entry['depths'][label]['thought_argmax']['mean']:.2f}"
            for label in labels
        ]
        rows.append([NAMES[arm], *cells])
    counts = ["n", *(str(found["arms"]["base"]["depths"][label]["n"]) for label in labels)]
    return _markdown(("arm", *labels), [*rows, counts])


def _markdown(columns: Sequence[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def curves(found: dict[str, Any], root: pathlib.Path) -> None:
    """curves.png: training, the arms on hard tokens, and gated thinking."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    lines = [json.loads(line) for line in (root / "rpt" / "metrics.jsonl").read_text().splitlines()]
    step = [line["step"] for line in lines]
    for name, label in (("accuracy", "with thought"), ("no_think_accuracy", "without")):
        axes[0, 0].plot(step, _smooth([line[name] for line in lines]), label=label)
    axes[0, 0].set(title="RPT: accuracy at the cuts of each step", xlabel="step", ylim=(0, 1))
    axes[0, 0].legend()
    for name in ("groups_mixed", "answer_rate", "over_budget_rate"):
        axes[0, 1].plot(step, _smooth([line[name] for line in lines]), label=name)
    axes[0, 1].set(title="RPT: groups and thoughts", xlabel="step", ylim=(0, 1.02))
    axes[0, 1].legend()
    place = np.arange(len(found["arms"]))
    for offset, mode in ((-0.2, "no_think"), (0.2, "thought_argmax")):
        values = [entry["hard"][mode] for entry in found["arms"].values()]
        mean = np.array([value["mean"] for value in values])
        ends = np.array([[_end(value, "low"), _end(value, "high")] for value in values]).T
        axes[1, 0].bar(place + offset, mean, 0.38, yerr=abs(ends - mean), label=_words(mode))
    axes[1, 0].set(title=f"hard test tokens ({found['bin']} nats), 95% intervals", ylim=(0, 1))
    axes[1, 0].set_xticks(place, [NAMES[arm] for arm in found["arms"]])
    axes[1, 0].legend()
    for arm, entry in found["arms"].items():
        cost = [point["thought_tokens_per_document_token"] for point in entry["curve"]]
        axes[1, 1].plot(cost, [p["thought_argmax"] for p in entry["curve"]], label=NAMES[arm])
    axes[1, 1].set(
        title="thinking where the entropy is high: accuracy on all tokens",
        xlabel="thought tokens per document token",
    )
    axes[1, 1].legend()
    figure.savefig(root / "curves.png", dpi=120)
    plt.close(figure)


def _end(value: dict[str, Any], name: str) -> float:
    """An end of an interval; the mean where it is unknown."""
    return value["mean"] if value[name] is None else value[name]


def _smooth(values: Sequence[float], window: int = 5) -> np.ndarray:
    """A running mean that begins with what there is."""
    total = np.cumsum(np.insert(np.asarray(values, float), 0, 0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)
