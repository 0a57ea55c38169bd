"""The charts of a report as data: what is drawn, whatever draws it (SVG in the page, PNG files)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from rpt import report_data, scaling_points, statistics

# A running mean over so many steps is drawn over what was measured.
SMOOTH_STEPS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """One curve.

    Attributes:
      name: written beside its end; '' for none.
      tone: index of its colour: 0 is neutral.
      x, y: ascending in x.
      low, high: of a band around it.
      dashed: how the second of a pair is told from the first.
      faint: whether it stands behind the others.
      marks: points instead of a line.
    """

    name: str
    tone: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashed: bool = False
    faint: bool = False
    marks: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Chart:
    """One pair of axes.

    Attributes:
      title, caption: in words; the caption says what to look for.
      x_label, y_label: with units.
      kind: 'share' for what lies between 0 and 1 and is written in percent.
      zero: whether the axis begins at 0 though no value does.
      log_x: for compute.
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    kind: Literal["share", "number"] = "number"
    zero: bool = False
    log_x: bool = False


# ---- training ------------------------------------------------------------------------------------

_TRAINING = (
    (
        "accuracy",
        "Right predictions after a thought",
        "Of all thoughts of a step. Dashed: without a thought, at the very same cuts.",
        "share",
    ),
    (
        "reward",
        "Reward",
        "Mean over the thoughts of a step; beside accuracy only where the two differ.",
        "number",
    ),
    (
        "groups_mixed",
        "Groups with a gradient",
        "Cuts where some thoughts are right and some wrong. Near 0 nothing is learned from reward.",
        "share",
    ),
    (
        "thought_tokens",
        "Length of thoughts",
        "Sampled tokens before the answer. Near 0 thoughts have become empty.",
        "number",
    ),
    (
        "policy_entropy_nats",
        "Entropy of the policy",
        "At trained tokens. A fall to 0 makes all thoughts of a group alike.",
        "number",
    ),
    (
        "answer_rate",
        "Thoughts that come to an answer",
        "Right or wrong. Dashed: those that used up their budget.",
        "share",
    ),
)
_SECOND = {"accuracy": "no_think_accuracy", "answer_rate": "over_budget_rate"}
_UNITS = {"thought_tokens": "tokens", "policy_entropy_nats": "nats", "reward": "reward"}


def training(report: report_data.Report) -> list[Chart]:
    """Curves over the steps of every arm that has them, and the next-token loss over compute."""
    charts = []
    for name, title, caption, kind in _TRAINING:
        if name == "reward" and not _reward_is_its_own(report):
            continue
        lines = _over_steps(report, name, False)
        if name in _SECOND:
            lines += _over_steps(report, _SECOND[name], True)
        if lines:
            unit = _UNITS.get(name, "share")
            charts.append(
                Chart(
                    title,
                    caption,
                    "step",
                    unit,
                    lines,
                    "share" if kind == "share" else "number",
                    zero=True,
                )
            )
    if loss := _loss_over_compute(report):
        caption = "On the documents' own tokens, from a tenth of the steps on. Forgetting rises."
        charts.append(
            Chart(
                "Next-token loss",
                caption,
                "training TFLOP of the arm",
                "nats per token",
                loss,
                log_x=True,
            )
        )
    return charts


def _reward_is_its_own(report: report_data.Report) -> bool:
    runs = [run for experiment in report.experiments for run in experiment.runs.values()]
    pairs = [
        (r.metrics["reward"][1], r.metrics["accuracy"][1]) for r in runs if "reward" in r.metrics
    ]
    return any(not np.allclose(reward, accuracy) for reward, accuracy in pairs)


def _over_steps(report: report_data.Report, metric: str, dashed: bool) -> list[Line]:
    lines = []
    for arm, tone in ((arm, report.tones[arm]) for arm in report.drawn):
        runs = [e.runs[arm] for e in report.experiments if arm in e.runs]
        series = [run.metrics[metric] for run in runs if metric in run.metrics]
        lines += _lines(report_data.arm_label(arm), tone, series, dashed)
    return lines


def _lines(
    name: str, tone: int, series: Sequence[tuple[np.ndarray, np.ndarray]], dashed: bool
) -> list[Line]:
    """The mean over seeds, smoothed, and behind it each seed; of one seed, what was measured."""
    if not series:
        return []
    smooth = [(x, statistics.running_mean(y, SMOOTH_STEPS)) for x, y in series]
    if len(series) == 1:
        ((x, y),) = smooth
        behind = [] if dashed else [Line("", tone, x, series[0][1], faint=True)]
        return [*behind, Line("" if dashed else name, tone, x, y, dashed=dashed)]
    behind = [] if dashed else [Line("", tone, x, y, faint=True) for x, y in smooth]
    shared = sorted(set.intersection(*(set(x.tolist()) for x, _ in smooth)))
    if not shared:
        return behind
    mean = np.mean([y[np.isin(x, shared)] for x, y in smooth], axis=0)
    return [*behind, Line("" if dashed else name, tone, np.array(shared), mean, dashed=dashed)]


def _loss_over_compute(report: report_data.Report) -> list[Line]:
    """Seeds end at different computes, so each is drawn, and the first one named."""
    lines = []
    for arm, tone in ((arm, report.tones[arm]) for arm in report.drawn):
        name = report_data.arm_label(arm)
        for experiment in report.experiments:
            metrics = experiment.runs[arm].metrics if arm in experiment.runs else {}
            if not {"ntp_nats", "training_flops"} <= set(metrics):
                continue
            (steps, flops), (at, nats) = metrics["training_flops"], metrics["ntp_nats"]
            kept = np.isin(at, steps)
            x, y = (
                flops[np.isin(steps, at)] / 1e12,
                statistics.running_mean(nats[kept], 4 * SMOOTH_STEPS),
            )
            first = len(x) // 10  # the first fall from chance would flatten all that follows
            if len(x) > 1:
                lines.append(Line(name, tone, x[first:], y[first:]))
                name = ""
    return lines


# ---- results -------------------------------------------------------------------------------------


def depths(report: report_data.Report) -> list[Chart]:
    """Accuracy by the number in a label ('answer/3'), a chart for every kind of label."""
    results = [results for _, results in report.with_results]
    kinds: dict[str, set[int]] = {}
    for entry in (entry for found in results for entry in found["arms"].values()):
        for label in entry["labels"]:
            kind, _, number = label.partition("/")
            if number.isdigit():
                kinds.setdefault(kind, set()).add(int(number))
    charts = []
    for kind, numbers in kinds.items():
        if len(numbers) < 2:
            continue
        x = np.array(sorted(numbers))
        lines = []
        for mode, dashed in (("thought_argmax", False), ("no_think", True)):
            for arm in report.drawn:
                y = np.array([_labelled(results, arm, f"{kind}/{n}", mode) for n in x])
                if np.isfinite(y).any():
                    name = "" if dashed else report_data.arm_label(arm)
                    lines.append(Line(name, report.tones[arm], x, y, dashed=dashed))
        caption = "Solid: with a thought. Dashed: without. At any entropy; the mean over seeds."
        charts.append(
            Chart(f"By depth: {kind}", caption, "depth", "accuracy", lines, "share", True)
        )
    return charts


def _labelled(results: Sequence[Mapping], arm: str, label: str, mode: str) -> float:
    """The mean over seeds; not a number where no seed has such a label."""
    found = [
        r["arms"][arm]["labels"][label][mode]
        for r in results
        if arm in r["arms"] and label in r["arms"][arm]["labels"]
    ]
    return float(np.mean(found)) if found else float("nan")


def gates(report: report_data.Report) -> list[Chart]:
    """Accuracy on all tokens over the thought tokens spent, one chart a seed."""
    charts = []
    for label, results in report.with_results:
        lines = []
        for arm in report.drawn:
            gated = results["arms"].get(arm, {}).get("gated")
            if gated is None:
                continue
            points = sorted(gated["curve"], key=lambda p: p["thought_tokens_per_document_token"])
            name, tone = report_data.arm_label(arm), report.tones[arm]
            lines.append(Line(name, tone, *_gate_points(points)))
            lines.append(Line("", tone, *_gate_points([gated["reported"]]), marks=True))
        caption = "Thinking only above a threshold of entropy. Dots: the one validation chose."
        axes = ("thought tokens per document token", "all tokens")
        if lines:
            charts.append(Chart(f"When to think, {label}", caption, *axes, lines, "share"))
    return charts


def _gate_points(points: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    x = np.array([point["thought_tokens_per_document_token"] for point in points])
    return x, np.array([point["thought_argmax"] for point in points])


# ---- scaling -------------------------------------------------------------------------------------

_FORM_NAMES = {"power": "power law", "log_linear": "log-linear", "sigmoid": "sigmoid"}


def scaling(study: scaling_points.Study) -> Chart:
    """An arm's points, and the three curves, the best one with its band."""
    misses = {n: abs(c.error.value) for n, c in study.curves.items() if c.error is not None}
    best = min(misses, key=misses.__getitem__) if misses else None
    lines = []
    for tone, (name, curve) in enumerate(study.curves.items(), 1):
        band = name == best
        lines.append(
            Line(
                _FORM_NAMES[name],
                tone,
                curve.compute_FLOPs / 1e12,
                curve.middle,
                low=curve.low if band else None,
                high=curve.high if band else None,
            )
        )
    x = np.array([point.compute_FLOPs(study.with_stage0) for point in study.points]) / 1e12
    y = np.array([point.value for point in study.points])
    lines.append(Line("", 0, x, y, marks=True))
    stage = "with stage 0" if study.with_stage0 else "after stage 0"
    caption = (
        "Dots: a run each, of its own budget. Band: 95%, of the form that misses the last least."
    )
    return Chart(
        f"{report_data.arm_label(study.arm)}: {study.measure}",
        caption,
        f"training TFLOP, {stage}",
        "accuracy",
        lines,
        "share" if y.min() >= 0 and y.max() <= 1 else "number",
        log_x=True,
    )
