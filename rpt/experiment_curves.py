"""curves.png: training, the arms on hard tokens, and gated thinking; bands are the seeds' range."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import ArrayLike

from rpt import experiment_claims, experiment_lines, statistics

_ACCURACIES = (("accuracy", "with thought"), ("no_think_accuracy", "without"))
_GROUPS = ("groups_mixed", "answer_rate", "over_budget_rate")
_SMOOTH_STEPS = 5


def draw(found: Mapping[str, Any], path: pathlib.Path) -> None:
    """Four plots of results.json; lines are means over seeds."""
    matplotlib.use("Agg")
    height = max(8.0, 4.0 + 0.3 * len(found["arms"]))
    figure, axes = plt.subplots(2, 2, figsize=(11, height), layout="constrained")
    chosen = {name: found["arms"][name] for name in experiment_lines.featured(found)}
    _training(axes[0, 0], axes[0, 1], chosen)
    _hard(axes[1, 0], found)
    _gated(axes[1, 1], chosen, found["claim_part"])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _training(accuracy: Any, groups: Any, arms: Mapping[str, Any]) -> None:
    """The first of the arms that was trained by reward."""
    reinforced = [arm for arm in arms.values() if arm["command"] == "train"]
    for axes, names in ((accuracy, _ACCURACIES), (groups, [(name, name) for name in _GROUPS])):
        for name, label in names if reinforced else ():
            seeds = [seed for seed in reinforced[0]["history"].values() if name in seed]
            smooth = [(s["step"], statistics.running_mean(s[name], _SMOOTH_STEPS)) for s in seeds]
            _line(smooth, axes, label)
        axes.set(xlabel="step", ylim=(0, 1.02))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    title = reinforced[0]["title"] if reinforced else "no arm trained by reward"
    accuracy.set_title(f"{title}: accuracy at the cuts of each step")
    groups.set_title(f"{title}: groups and thoughts")


def _hard(axes: Any, found: Mapping[str, Any]) -> None:
    part, hard = found["claim_part"], found["bin"]
    arms = [arm for arm in found["arms"].values() if hard in arm["pooled"][part]["bins"]]
    place = np.arange(len(arms))[::-1]
    for offset, mode in ((0.2, "no_think"), (-0.2, "thought_argmax")):
        values = [arm["pooled"][part]["bins"][hard][mode] for arm in arms]
        mean = np.array([value["mean"] for value in values])
        ends = np.array([[_end(v, "low"), _end(v, "high")] for v in values]).reshape(-1, 2).T
        words = experiment_claims.WORDS[mode]
        axes.barh(place + offset, mean, 0.38, xerr=abs(ends - mean), label=words)
    axes.set(title=f"hard {found['split']} tokens ({hard} nats), 95% intervals", xlim=(0, 1))
    axes.set_yticks(place, [arm["title"] for arm in arms])
    axes.legend()


def _gated(axes: Any, arms: Mapping[str, Any], part: str) -> None:
    for arm in arms.values():
        found = [entry["parts"][part]["gated"] for entry in arm["seeds"].values()]
        points = [gated["curve"] for gated in found if gated is not None]
        lines = [
            (
                [point["thought_tokens_per_document_token"] for point in curve],
                [point["thought_argmax"] for point in curve],
            )
            for curve in points
        ]
        _line(lines, axes, arm["title"])
    axes.set(
        title="gated thinking: accuracy on all tokens",
        xlabel="thought tokens per document token",
    )
    axes.legend()


def _line(seeds: Sequence[tuple[ArrayLike, ArrayLike]], axes: Any, label: str) -> None:
    """The mean of the seeds' lines as far as all of them go, and their range."""
    if not seeds:
        return
    lines = [(np.asarray(x, float), np.asarray(y, float)) for x, y in seeds]
    length = min(len(x) for x, _ in lines)
    x = np.mean([x[:length] for x, _ in lines], axis=0)
    values = np.array([y[:length] for _, y in lines])
    (line,) = axes.plot(x, values.mean(axis=0), label=label)
    if len(seeds) > 1:
        axes.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, lw=0
        )


def _end(value: Mapping[str, Any], name: str) -> float:
    """An end of an interval; the mean where it is unknown."""
    return value["mean"] if value[name] is None else value[name]
