"""What of an experiment is done, and whether what is there belongs together.

A part is done when its files are there. What they were made from is compared at every start, before
a part that needs them, and before the report:

    an arm         its config, where a budget in FLOPs is a number of steps; and the parameters that
                   it was given (run.json) with those that the arm before it has now
    positions      the documents, their order, and the reference's parameters
    an evaluation  the arm's parameters, config.evaluate, and the positions

What does not fit is refused in a line that says what to move away. Two things are made anew
instead: the evaluation of an arm that was trained anew, and one of validation with other settings
or positions. Test is not read again because a setting has changed: that is refused.

A run without a record of what it was given (of an earlier version) is compared by time: it did not
begin from a run that began later. Settings that an evaluation does not tell are not compared.
"""

import datetime
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rpt import config as config_lib
from rpt import (
    evaluate,
    evaluation_positions,
    evaluation_reference,
    experiment_pieces,
    experiment_plan,
    runs,
)


class _Measured(NamedTuple):
    """What an evaluation was made of."""

    params_sha256: str
    positions_sha256: str
    settings: Mapping[str, Any]


def positions_path(root: pathlib.Path, split: str) -> pathlib.Path:
    """The positions that all arms of a seed share."""
    return root / "evaluation" / f"positions_{split}.jsonl"


def is_done(config: config_lib.Config, workdir: pathlib.Path, part: experiment_plan.Part) -> bool:
    """Whether a part has nothing left to do.

    Raises:
      ValueError: a damaged piece.
    """
    root = part.root(workdir)
    if part.kind == "positions":
        return all(positions_path(root, split).is_file() for split in part.splits)
    if part.kind != "evaluate":
        return _is_trained(root, part.arm)
    piece = _piece(root, part)
    return piece is not None and _is_current(config, root, part, piece)


def _is_current(
    config: config_lib.Config,
    root: pathlib.Path,
    part: experiment_plan.Part,
    piece: experiment_pieces.Piece,
) -> bool:
    """Whether an evaluation is not to be made anew."""
    if part.splits[-1] == "validation" and _difference(config, root, part, _of_piece(piece)):
        return False
    return not _is_trained(root, part.arm) or piece.params_sha256 == _params_sha256(root, part.arm)


def is_measured(
    config: config_lib.Config, root: pathlib.Path, part: experiment_plan.Part, split: str
) -> bool:
    """Whether an arm, as it is now, has been evaluated on a split, as the config says.

    Raises:
      ValueError: its test has been read with other settings or positions.
    """
    path = root / "evaluation" / part.arm / split / evaluate.RESULTS
    if not path.is_file():
        return False
    table = json.loads(path.read_text())
    found = _Measured(
        table["model"]["params_sha256"], table["positions"]["sha256"], table["settings"]
    )
    if found.params_sha256 != _params_sha256(root, part.arm):
        return False
    difference = _difference(config, root, part, found, split)
    if difference and split == "test":
        raise _test_was_read(root, part.arm, difference)
    return not difference


def check(
    config: config_lib.Config, workdir: pathlib.Path, parts: Iterable[experiment_plan.Part]
) -> None:
    """Whether what is there of these parts is what the plan makes of what is there now.

    Raises:
      ValueError: the first that is not, and what to move away.
    """
    every = experiment_plan.parts(config)
    for part in parts:
        root = part.root(workdir)
        if part.kind == "positions":
            _check_positions(config, root, part)
        elif part.kind == "evaluate":
            piece = _piece(root, part)
            if piece is None or part.splits[-1] != "test":
                continue
            if not _is_current(config, root, part, piece):
                continue
            if difference := _difference(config, root, part, _of_piece(piece)):
                raise _test_was_read(root, part.arm, difference)
        else:
            _check_beginning(config, root, part)
            names = (part.name, *part.needs)
            if all(is_done(config, workdir, every[name]) for name in names):
                _check_config(config, root, part)


def needed(parts: Mapping[str, experiment_plan.Part], name: str) -> list[experiment_plan.Part]:
    """A part and all before it, the first of them first."""
    found: dict[str, experiment_plan.Part] = {}
    for before in parts[name].needs:
        found |= {part.name: part for part in needed(parts, before)}
    return list((found | {name: parts[name]}).values())


# ---- arms ----------------------------------------------------------------------------------------


def _is_trained(root: pathlib.Path, arm: str) -> bool:
    path = root / arm / "summary.json"
    return path.is_file() and experiment_plan.summary(root, arm)["finished"]


def _params_sha256(root: pathlib.Path, arm: str) -> str:
    return experiment_plan.summary(root, arm)["params_sha256"]


def _check_config(
    config: config_lib.Config, root: pathlib.Path, part: experiment_plan.Part
) -> None:
    settings = experiment_plan.of_seed(config, part.seed)
    planned = experiment_plan.training_config(settings, root, settings.experiment.arm(part.arm))
    changes = runs.trained_otherwise(root / part.arm, planned)
    if changes:
        raise ValueError(
            f"{root / part.arm} was trained with another config (config.{changes[0]} differs); "
            "move it away and the arm is trained anew, or choose another --workdir"
        )


def _check_beginning(
    config: config_lib.Config, root: pathlib.Path, part: experiment_plan.Part
) -> None:
    """Names all arms that go back to such a beginning: moved away one by one they cost a start."""
    plan = config.experiment
    if not _began_elsewhere(root, plan.arm(part.arm).init, part.arm):
        return
    stale = [arm.name for arm in plan.arms if _began_elsewhere(root, arm.init, arm.name)]
    away = [
        arm.name
        for arm in plan.arms
        if (root / arm.name).is_dir() and not set(stale).isdisjoint(plan.chain(arm.name))
    ]
    raise ValueError(
        f"{root / part.arm} began from other parameters than {root / plan.arm(part.arm).init} has "
        f"now; move {', '.join(str(root / name) for name in away)} away to train anew, or put back "
        "what was there"
    )


def _began_elsewhere(root: pathlib.Path, init: str, arm: str) -> bool:
    """Whether a run, finished or not, was given other parameters than its arm `init` has now."""
    if not init or not (root / arm / "run.json").is_file() or not _is_trained(root, init):
        return False
    starts = _starts(root, arm)
    given = {start["init_params_sha256"] for start in starts if "init_params_sha256" in start}
    if given:
        return given != {_params_sha256(root, init)}
    return _began(_starts(root, init)) > _began(starts)


def _starts(root: pathlib.Path, arm: str) -> list[dict[str, Any]]:
    return json.loads((root / arm / "run.json").read_text())


def _began(starts: list[dict[str, Any]]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(starts[0]["time"])


# ---- positions and evaluations -------------------------------------------------------------------


def _check_positions(
    config: config_lib.Config, root: pathlib.Path, part: experiment_plan.Part
) -> None:
    plan, reference = config.experiment, config.experiment.reference
    settings = experiment_plan.of_seed(config, part.seed).evaluate
    for split in part.splits:
        path = positions_path(root, split)
        if not path.is_file():
            continue
        about = evaluation_positions.read_about(path)
        now = evaluation_reference.text_of(settings, settings.mixture(split))
        changes = [f"config.evaluate's {name}" for name in now if about[name] != now[name]]
        digest = about["reference"]["params_sha256"]
        trained = plan.reference_is_arm and _is_trained(root, reference)
        if trained and digest != _params_sha256(root, reference):
            changes.append(str(root / reference))
        if not plan.reference_is_arm and about["reference"]["path"] != reference:
            changes.append(f"reference ({about['reference']['path']})")
        if changes:
            raise ValueError(
                f"{path} was made with another {changes[0]} than there is now; put that back, or "
                f"move {root / 'evaluation'} and {root / 'pieces'} away to measure all arms anew, "
                "which reads test again"
            )


def _settings(
    config: config_lib.Config, root: pathlib.Path, seed: int, arm: str
) -> config_lib.EvaluateConfig:
    settings = experiment_plan.of_seed(config, seed)
    return experiment_plan.evaluation_config(settings, root, settings.experiment.arm(arm)).evaluate


def _piece(root: pathlib.Path, part: experiment_plan.Part) -> experiment_pieces.Piece | None:
    """Of the split that the experiment reports."""
    path = experiment_pieces.path(root, part.arm)
    piece = experiment_pieces.read(path) if path.is_file() else None
    return piece if piece is not None and piece.plan.split == part.splits[-1] else None


def _of_piece(piece: experiment_pieces.Piece) -> _Measured:
    found = piece.evaluation
    return _Measured(found["params_sha256"], found["positions_sha256"], found["settings"])


def _difference(
    config: config_lib.Config,
    root: pathlib.Path,
    part: experiment_plan.Part,
    found: _Measured,
    split: str = "",
) -> str:
    """In words, what would be another in an evaluation made now; '' is nothing."""
    path = positions_path(root, split or part.splits[-1])
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != found.positions_sha256:
        return f"{path} differs"
    now = config_lib.as_json(_settings(config, root, part.seed, part.arm))
    told = found.settings.keys() & now.keys()
    changes = sorted(name for name in told if found.settings[name] != now[name])
    return f"config.evaluate.{changes[0]} differs" if changes else ""


def _test_was_read(root: pathlib.Path, arm: str, difference: str) -> ValueError:
    folder, piece = root / "evaluation" / arm, experiment_pieces.path(root, arm)
    return ValueError(
        f"{folder} has read test with other settings or positions ({difference}); give these "
        f"again, or move it and {piece} away, and test is read once more, which its log says"
    )
