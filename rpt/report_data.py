"""What a report is made of: the files of an experiment or of a run, read once.

Everything that knows how these files look stands here. What is missing or damaged is a note, which
the page shows; only a directory that holds nothing of ours is an error.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rpt import scaling_points

# Beside the arms: it only sorts positions by difficulty.
_REFERENCE = "reference"
_RESULTS, _METRICS, _SUMMARY = "results.json", "metrics.jsonl", "summary.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
      arm: its name in the experiment; of a run alone, the directory's.
      command: 'train', 'pretrain', or '' where it is not known.
      metrics: name -> (steps, values), both as long as the metric was logged.
      samples: lines of samples.jsonl.
      summary: of its last start; None before the first end.
      starts: lines of run.json.
      evaluations: results.json of its own evaluations, by split.
    """

    arm: str
    command: str
    metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]
    samples: Sequence[dict[str, Any]]
    summary: dict[str, Any] | None
    starts: Sequence[dict[str, Any]]
    evaluations: Mapping[str, dict[str, Any]]

    @property
    def label(self) -> str:
        return arm_label(self.arm)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment of one seed; or a run alone, then without results.

    Attributes:
      label: such as 'seed 0'.
      results: results.json (rpt/experiment_report.py), or None.
      runs: by arm, in the order of the results.
    """

    label: str
    results: dict[str, Any] | None
    runs: Mapping[str, Run]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that is shown.

    Attributes:
      title: for the head of the page.
      experiments: one per seed.
      points: of scaling curves, of all arms, measures and seeds.
      missing: what was looked for and not found, in words.
    """

    title: str
    experiments: Sequence[Experiment]
    points: Sequence[scaling_points.Point]
    missing: Sequence[str]

    @property
    def arms(self) -> list[str]:
        """In the order of the results, then of the runs."""
        found: dict[str, None] = {}
        for experiment in self.experiments:
            found |= dict.fromkeys((experiment.results or {}).get("arms", {}))
            found |= dict.fromkeys(experiment.runs)
        found |= dict.fromkeys(point.arm for point in self.points)
        return list(found)

    @property
    def with_results(self) -> list[tuple[str, dict[str, Any]]]:
        """(label, results.json) of the experiments that have one."""
        return [(e.label, e.results) for e in self.experiments if e.results is not None]


def arm_label(arm: str) -> str:
    """'mixed_sft' -> 'Mixed SFT'."""
    short = {"rpt": "RPT", "ntp": "NTP", "sft": "SFT", "rlvr": "RLVR"}
    words = [short.get(word, word) for word in arm.split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def noting(report: Report, notes: Sequence[str]) -> Report:
    """With more of what is missing."""
    return dataclasses.replace(report, missing=[*report.missing, *notes])


def gather(root: pathlib.Path) -> Report:
    """Reads a directory: an experiment, a folder of experiments (one per seed), or a run.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: it holds none of these.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"directory not found: {root}")
    notes: list[str] = []
    children = sorted(child for child in root.iterdir() if child.is_dir())
    seeds = [child for child in children if _is_experiment(child)]
    if _is_run(root):
        run = _run(root, root.resolve().name, "", notes)
        experiments, title = [Experiment("", None, {run.arm: run})], f"Run {run.arm}"
    elif seeds and not (root / _RESULTS).is_file():
        experiments = [_experiment(child, f"{child.name}/", notes) for child in seeds]
        title = f"Experiment {root.resolve().name}"
    elif _is_experiment(root):
        experiments = [_experiment(root, "", notes)]
        title = f"Experiment {root.resolve().name}"
    else:
        raise ValueError(
            f"{root} holds neither an experiment nor a run; give the --workdir of rpt.experiment, "
            "rpt.train or rpt.pretrain"
        )
    points = []
    for folder in (root, *seeds):
        points += _points(folder / scaling_points.FILE, notes)
    return Report(title, experiments, points, notes)


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / _METRICS).is_file() or (folder / _SUMMARY).is_file()


def _is_experiment(folder: pathlib.Path) -> bool:
    """Runs inside, or the mark of the command."""
    if _is_run(folder):
        return False
    command = _json(folder / "command.json", []) or {}
    if command.get("command") == "experiment":
        return True
    return any(_is_run(child) for child in folder.iterdir() if child.is_dir())


def _experiment(folder: pathlib.Path, prefix: str, notes: list[str]) -> Experiment:
    results = _json(folder / _RESULTS, notes)
    if results is None:
        notes.append(f"{prefix}{_RESULTS}: not there yet, so no claims and no tables")
    found = {child.name: child for child in sorted(folder.iterdir()) if _is_run(child)}
    order = [arm for arm in (results or {}).get("arms", {}) if arm in found]
    order += [name for name in found if name not in order and name != _REFERENCE]
    runs = {arm: _run(found[arm], arm, f"{prefix}{arm}/", notes) for arm in order}
    for arm in (results or {}).get("arms", {}):
        if arm not in runs:
            notes.append(f"{prefix}{arm}: its run directory is not there, so no curves of it")
    seed = (results or {}).get("config_seed")
    if seed is None:
        seed = (_json(folder / "config.json", notes) or {}).get("seed")
    return Experiment(folder.resolve().name if seed is None else f"seed {seed}", results, runs)


def _run(folder: pathlib.Path, arm: str, prefix: str, notes: list[str]) -> Run:
    summary = _json(folder / _SUMMARY, notes)
    if summary is None:
        notes.append(f"{prefix}{_SUMMARY}: not there; the run has not ended yet")
    elif not summary["finished"]:
        notes.append(f"{prefix}: stopped at step {summary['step']}, before its last one")
    command = (_json(folder / "command.json", notes) or {}).get("command", "")
    samples = list(_lines(folder / "samples.jsonl", prefix, notes))
    if command == "train" and not samples:
        notes.append(f"{prefix}samples.jsonl: not there, so no thoughts to read")
    evaluations = {
        split: found
        for split in ("validation", "test")
        if (found := _json(folder / "evaluation" / split / _RESULTS, notes)) is not None
    }
    return Run(
        arm=arm,
        command=command,
        metrics=_metrics(list(_lines(folder / _METRICS, prefix, notes))),
        samples=samples,
        summary=summary,
        starts=_json(folder / "run.json", notes) or [],
        evaluations=evaluations,
    )


def _metrics(lines: Sequence[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns; a metric that is not in every line has its own steps."""
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and np.isfinite(value):
                steps.setdefault(name, []).append(line["step"])
                values.setdefault(name, []).append(value)
    return {name: (np.array(steps[name]), np.array(values[name])) for name in steps}


def _json(path: pathlib.Path, notes: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        notes.append(f"{path.parent.name}/{path.name}: damaged ({error}), so it was left out")
        return None


def _lines(path: pathlib.Path, prefix: str, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Of a file of JSON lines; the half line that a killed run leaves behind is no news."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                notes.append(f"{prefix}{path.name}, line {number}: damaged, so it was left out")


def _points(path: pathlib.Path, notes: list[str]) -> list[scaling_points.Point]:
    try:
        return scaling_points.load(path) if path.is_file() else []
    except ValueError as error:
        notes.append(f"{error}; no scaling curves from this file")
        return []
