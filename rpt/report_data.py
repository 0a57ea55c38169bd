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

from rpt import experiment_lines, scaling_points, scaling_studies

# Beside the arms: it only sorts positions by difficulty.
_REFERENCE = "reference"
_KEPT = ("hypothesis", "plan", "split", "claim_part", "bin", "commits")
_FIELDS = {*_KEPT, "seeds", "claims", "arms", "scaling"}
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
      results: what results.json says of this seed (`_of_seed`), or None.
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
      pooled: by claim, over the seeds: difference and shown; empty where nothing is pooled.
      results: every results.json that was read, by its place; '' where there is one of all.
      featured: arms that are drawn in colour; none means all.
      caveats: what else decides whether a figure counts, in words.
      points: of scaling curves, of all curves, measures and seeds.
      missing: what was looked for and not found, in words.
    """

    title: str
    experiments: Sequence[Experiment]
    pooled: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Mapping[str, Any]]
    featured: Sequence[str]
    caveats: Sequence[str]
    points: Sequence[scaling_points.Point]
    missing: Sequence[str]

    @property
    def arms(self) -> list[str]:
        """In the order of the results, then of the runs."""
        found: dict[str, None] = {}
        for experiment in self.experiments:
            found |= dict.fromkeys((experiment.results or {}).get("arms", {}))
            found |= dict.fromkeys(experiment.runs)
        return list(found)

    @property
    def drawn(self) -> list[str]:
        """The arms of the charts."""
        return [arm for arm in self.arms if not self.featured or arm in self.featured]

    @property
    def tones(self) -> dict[str, int]:
        """A colour for each arm: the base and what is not drawn are neutral (0)."""
        coloured = [arm for arm in self.drawn if arm != "base"]
        return {arm: 1 + coloured.index(arm) % 6 if arm in coloured else 0 for arm in self.arms}

    @property
    def with_results(self) -> list[tuple[str, dict[str, Any]]]:
        """(label, results) of the seeds that have some."""
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
    """Reads a directory: an experiment of one or more seeds, a folder of experiments, or a run.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: it holds none of these.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"directory not found: {root}")
    name, notes = root.resolve().name, list[str]()
    if _is_run(root):
        run = _run(root, name, "", notes)
        return Report(f"Run {name}", [Experiment("", None, {name: run})], {}, {}, (), (), (), notes)
    inner = [child for child in sorted(root.iterdir()) if child.is_dir() and _is_experiment(child)]
    if not inner and not _is_experiment(root):
        raise ValueError(
            f"{root} holds neither an experiment nor a run; give the --workdir of rpt.experiment, "
            "rpt.train or rpt.pretrain"
        )
    whole = _results(root, notes)
    experiments, read = [], {} if whole is None else {"": whole}
    for folder in inner or [root]:
        prefix = "" if folder == root else f"{folder.name}/"
        found = whole
        if found is None and folder != root:
            found = _results(folder, notes)
            read |= {} if found is None else {folder.name: found}
        experiments.append(_experiment(folder, prefix, found, notes))
    # What was made of pieces alone, without the runs.
    known = {experiment.label for experiment in experiments if experiment.results is not None}
    if whole is not None:
        experiments += [
            Experiment(f"seed {seed}", _of_seed(whole, seed), {})
            for seed in whole["seeds"]
            if f"seed {seed}" not in known
        ]
    experiments = [e for e in experiments if e.results is not None or e.runs]
    readable = list(read.values())
    caveats = dict.fromkeys(line for found in readable for line in experiment_lines.notes(found))
    pooled = {c["name"]: c["pooled"] for c in whole["claims"] if c["pooled"]} if whole else {}
    return Report(
        title=f"Experiment {name}",
        experiments=experiments,
        pooled=pooled,
        results=read,
        featured=experiment_lines.featured(readable[0]) if readable else (),
        caveats=list(caveats),
        points=[p for found in readable for p in scaling_studies.points(found["scaling"])],
        missing=notes,
    )


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / _METRICS).is_file() or (folder / _SUMMARY).is_file()


def _is_experiment(folder: pathlib.Path) -> bool:
    """Results, runs inside, or the mark of the command."""
    if _is_run(folder):
        return False
    if "claims" in (_json(folder / _RESULTS, []) or {}):
        return True
    if (_json(folder / "command.json", []) or {}).get("command") == "experiment":
        return True
    return any(_is_run(child) for child in folder.iterdir() if child.is_dir())


def _experiment(
    folder: pathlib.Path, prefix: str, found: dict[str, Any] | None, notes: list[str]
) -> Experiment:
    """One seed's runs, and what the results say of that seed."""
    seed = (_json(folder / "config.json", notes) or {}).get("seed")
    if seed is None and found is not None and len(found["seeds"]) == 1:
        (seed,) = found["seeds"]
    if found is None:
        notes.append(f"{prefix}{_RESULTS}: not there yet, so no claims and no tables")
    there = {child.name: child for child in sorted(folder.iterdir()) if _is_run(child)}
    arms = list(found["arms"]) if found else []
    order = [arm for arm in arms if arm in there]
    order += [name for name in there if name not in order and name != _REFERENCE]
    runs = {arm: _run(there[arm], arm, f"{prefix}{arm}/", notes) for arm in order}
    notes += [
        f"{prefix}{arm}: its run directory is not there, so no curves of it"
        for arm in arms
        if arm not in runs
    ]
    label = folder.resolve().name if seed is None else f"seed {seed}"
    if found is None or seed is None or seed not in found["seeds"]:
        return Experiment(label, None, runs)
    return Experiment(label, _of_seed(found, seed), runs)


def _of_seed(found: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Of results.json what it says of one seed; fields as there, those of the claim's part."""
    part, hard, key = found["claim_part"], found["bin"], str(seed)
    arms = {}
    for name, arm in found["arms"].items():
        if key in arm["seeds"]:
            inside = arm["seeds"][key]["parts"][part]
            arms[name] = {
                "title": arm["title"],
                "hard": inside["bins"][hard],
                "gated": inside["gated"],
                "labels": inside["labels"],
                "compute": arm["seeds"][key]["compute"],
            }
    return {
        **{name: found[name] for name in _KEPT},
        "claims": [
            {**{n: claim[n] for n in ("name", "what", "goal")}, **claim["seeds"][key]}
            for claim in found["claims"]
            if key in claim["seeds"]
        ],
        "arms": arms,
    }


def _results(folder: pathlib.Path, notes: list[str]) -> dict[str, Any] | None:
    """results.json of an experiment."""
    found = _json(folder / _RESULTS, notes)
    lacks = ", ".join(sorted(_FIELDS.difference(found or _FIELDS)))
    if lacks:
        notes.append(
            f"{folder.name}/{_RESULTS}: of another version (no {lacks}), so it was left out"
        )
        return None
    return found


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
