"""What a run cost and what went wrong in it, as HTML: compute, alarms, and how it was made."""

import html
from collections.abc import Iterator
from typing import Any

from rpt import ledger, report_data, report_results

_text = html.escape
_KINDS = {
    "warmup": "warm-up",
    "score": "scoring",
    "rollout": "rollouts",
    "update": "updates",
    "eval": "evaluation",
}
_COLUMNS = (
    ("part", ""),
    ("TFLOP executed", "training only, padding and discarded groups included"),
    ("as rows", "the same, had each rollout been a row of its own"),
    ("wall", "compilation included; parts may run side by side"),
    ("document tokens", "of the corpus, epochs counted again"),
    ("steps", ""),
    ("goodput", "share of the wall time that was rollouts and updates"),
)


def ledgers(report: report_data.Report) -> str:
    """FLOPs by kind as bars, and the table of costs.

    Raises:
      ValueError: no run has ended yet.
    """
    found = [
        (experiment.label, run, run.summary)
        for experiment in report.experiments
        for run in experiment.runs.values()
        if run.summary is not None
    ]
    if not found:
        raise ValueError("no run has written a summary.json yet")
    most = max(sum(summary["ledger"]["flops"].values()) for _, _, summary in found) or 1
    bars = "".join(_bar(label, run, summary, most) for label, run, summary in found)
    key = "".join(
        f'<span class="key"><i class="swatch k{i}"></i>{name}</span>'
        for i, name in enumerate(_KINDS.values())
    )
    rows = [_row(label, run, summary) for label, run, summary in found]
    return (
        f'<p class="lead">Compute of each part by itself, in FLOPs that were executed. {key}</p>'
        f'<div class="bars">{bars}</div>{report_results.table("cost of each part", _COLUMNS, rows)}'
        f"{_inference(report)}"
    )


def _bar(label: str, run: report_data.Run, summary: dict[str, Any], most: float) -> str:
    flops = summary["ledger"]["flops"]
    pieces = "".join(
        f'<i class="k{i}" style="width:{100 * flops[kind] / most:.2f}%" '
        f'title="{name}: {flops[kind] / 1e12:.3g} TFLOP"></i>'
        for i, (kind, name) in enumerate(_KINDS.items())
        if flops[kind]
    )
    total = sum(flops[kind] for kind in ledger.TRAINING_KINDS) / 1e12
    return (
        f'<div class="row"><span class="arm">{_text(_name(label, run))}</span>'
        f'<div class="stack">{pieces}</div><span class="number">{total:.3g}</span></div>'
    )


def _name(label: str, run: report_data.Run) -> str:
    return f"{run.label}, {label}" if label else run.label


def _row(label: str, run: report_data.Run, summary: dict[str, Any]) -> list[str]:
    book = summary["ledger"]
    goodput = summary.get("goodput", {})
    useful = goodput.get("rollout", 0.0) + goodput.get("update", 0.0)
    return [
        _text(_name(label, run)),
        f"{book['training_flops'] / 1e12:,.3f}",
        f"{book['flops_as_rows'] / 1e12:,.3f}" if book["flops_as_rows"] else "",
        _duration(summary["wall_seconds"]),
        f"{book['document_tokens']:,}",
        f"{summary['step']:,}",
        f"{useful:.0%}" if goodput else "",
    ]


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"


def _inference(report: report_data.Report) -> str:
    rows = [
        [
            _text(entry["title"]),
            _text(label),
            f"{cost['inference_flops_per_token']['no_think'] / 1e6:,.2f}",
            f"{cost['inference_flops_per_token']['thought'] / 1e6:,.2f}",
            f"{cost['flops_executed'] / 1e12:,.3f}",
            f"{cost['flops_as_rows'] / 1e12:,.3f}",
        ]
        for label, results in report.with_results
        for entry in results["arms"].values()
        for cost in (entry["compute"],)
        if cost["inference_flops_per_token"]
    ]
    if not rows:
        return ""
    columns = (
        ("arm, stage 0 included", ""),
        ("seed", ""),
        ("MFLOP a token", "of inference, without a thought"),
        ("with a thought", ""),
        ("TFLOP executed", "of training, with stage 0"),
        ("as rows", "of training, with stage 0"),
    )
    return report_results.table("cost of inference and of training", columns, rows)


# ---- alarms --------------------------------------------------------------------------------------


def alarms(report: report_data.Report) -> str:
    """What the runs noticed by themselves; no alarm is said, too."""
    lines = list(_of_runs(report))
    if not lines:
        return '<p class="calm">None: no update was skipped, and nothing collapsed.</p>'
    return f'<ul class="alarms">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _of_runs(report: report_data.Report) -> Iterator[str]:
    for experiment in report.experiments:
        for run in experiment.runs.values():
            name = f"<b>{_text(_name(experiment.label, run))}</b>"
            watch = (run.summary or {}).get("watch", {})
            for alarm in watch.get("alarms", ()):
                end = "to the end" if alarm["end"] is None else f"to step {alarm['end']}"
                yield (
                    f"{name}: {_text(alarm['name'].replace('_', ' '))} from step {alarm['step']} "
                    f"{end}: {alarm['value']:.4g}, threshold {alarm['threshold']:.4g}"
                )
            if watch.get("skipped"):
                yield f"{name}: {watch['skipped']} updates were skipped, not finite"
            gate = (run.summary or {}).get("gate") or {}
            if gate.get("final_accuracy") is not None and not gate["passed"]:
                yield f"{name}: its gate was not passed ({gate['final_accuracy']:.3f})"


# ---- how it was made -----------------------------------------------------------------------------


def origin(report: report_data.Report) -> str:
    """Commits, machines and versions of every start, and what this page lacks."""
    rows = []
    for experiment in report.experiments:
        for run in experiment.runs.values():
            for start in run.starts:
                machine = start.get("machine", {})
                rows.append(
                    [
                        _text(_name(experiment.label, run)),
                        _text(str(start.get("time", ""))[:16].replace("T", " ")),
                        f"<code>{_text(str(start.get('commit', '')))[:13]}</code>",
                        _text(", ".join(machine.get("devices", ()))),
                        _text(", ".join(start.get("changed_since_last_start", ()))),
                    ]
                )
    columns = (
        ("part", ""),
        ("started", ""),
        ("commit", "+ where the tree differed from it"),
        ("devices", ""),
        ("changed since", "fields of the config that differ from the start before"),
    )
    missing = "".join(f"<li>{_text(note)}</li>" for note in report.missing)
    parts = [f'<p>Missing here:</p><ul class="missing">{missing}</ul>'] if missing else []
    return "".join([*parts, report_results.table("starts", columns, rows) if rows else ""])
