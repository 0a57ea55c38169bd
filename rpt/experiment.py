"""An experiment: arms side by side, an evaluation of each, and the report.

    python -m rpt.experiment --config=configs/mini.py --workdir=runs/mini
    python -m rpt.experiment --config=configs/mini.py --workdir=runs/mini --part=rpt

Arms, claims and seeds are data (rpt/experiment_config.py). Each part is a process of its own; parts
that do not need each other run side by side:

    ARM            a run of rpt.pretrain or rpt.train
    positions      what is evaluated, chosen by the reference, the same for all arms
    evaluate_ARM   validation (which chooses the threshold of gated thinking), then test, unless
                   config.experiment.split=validation

W/ARM is a run directory, W/evaluation/ARM an evaluation, W/pieces/ARM.json.gz all of it that the
report needs, W/logs/PART.log what a part printed. W/results.json, report.md and curves.png come
last. With several seeds W/seedN is such an experiment, a part is called seedN/ARM, and W itself has
the report that pools them.

The same command goes on where it was stopped: a part that is done is not run again, so the test
split is read once per arm and seed. --part runs one part alone, on another machine too: what it
needs must have been copied there, and what it made be copied back. The plan (config.experiment)
may change between two starts; what an arm trains may not.
"""

import json
import pathlib
import sys
import time

from absl import flags

from rpt import (
    checkpoint,
    cli,
    evaluate,
    evaluation_reference,
    experiment_conductor,
    experiment_pieces,
    experiment_plan,
    experiment_report,
    hosts,
    loading,
    pretrain,
    runs,
    train,
)
from rpt import config as config_lib

_CHANGES = "changes.jsonl"


# ---- one part, in its own process ----------------------------------------------------------------


def run_part(config: config_lib.Config, workdir: pathlib.Path, name: str) -> None:
    """Runs or continues one part; returns at once if it is done.

    Raises:
      ValueError: unknown part, or another part has to be done before it.
    """
    experiment_plan.check(config)
    parts = experiment_plan.parts(config)
    if name not in parts:
        raise ValueError(f"unknown part {name!r}; known are {', '.join(parts)}")
    part = parts[name]
    if is_done(workdir, part):
        return
    for needed in part.needs:
        if not is_done(workdir, parts[needed]):
            raise ValueError(
                f"part {name} needs {needed}, which is not finished below {workdir}: "
                f"run --part={needed} first, or copy what it made"
            )
    root, settings = part.root(workdir), experiment_plan.of_seed(config, part.seed)
    if not (root / "config.json").is_file():
        _claim(workdir, config)
    if part.kind == "positions":
        _make_positions(settings, root)
    elif part.kind == "evaluate":
        _evaluate(settings, root, part.arm)
    else:
        _train(settings, root, part.arm)


def _train(config: config_lib.Config, root: pathlib.Path, name: str) -> None:
    arm = config.experiment.arm(name)
    settings = experiment_plan.training_config(config, root, arm)
    if arm.command == "train":
        train.train(settings, root / name, stop=cli.StopSignal())
    else:
        init = root / arm.init if arm.init else None
        pretrain.pretrain(settings, root / name, init=init, stop=cli.StopSignal())


def _make_positions(config: config_lib.Config, root: pathlib.Path) -> None:
    plan = config.experiment
    arm = plan.arm(plan.reference) if plan.reference_is_arm else None
    settings = experiment_plan.evaluation_config(config, root, arm)
    loaded = loading.load_any(settings.evaluate.reference)
    if arm is None:  # the positions are of the arms' tokens, which may not be the checkpoint's
        loaded = loaded._replace(tokenizer=loading.own_tokenizer(config.data))
    for split in plan.splits:
        mixture = settings.evaluate.mixture(split)
        path = _positions(root, split)
        evaluation_reference.open_positions(settings, loaded, mixture, path, print)


def _positions(root: pathlib.Path, split: str) -> pathlib.Path:
    return root / "evaluation" / f"positions_{split}.jsonl"


def _evaluate(config: config_lib.Config, root: pathlib.Path, name: str) -> None:
    """Validation and test, and the piece for the report.

    Validation chooses the threshold of gated thinking: an arm without skips it, unless validation
    is what is reported.
    """
    settings = experiment_plan.evaluation_config(config, root, config.experiment.arm(name))
    loaded = loading.load_run(root / name)
    digest, out = checkpoint.params_sha256(loaded.params), root / "evaluation" / name
    plan = config.experiment
    for split in plan.splits if settings.evaluate.gate_documents else (plan.split,):
        if _evaluated(out / split / evaluate.RESULTS) == digest:
            continue
        request = evaluate.Request(
            path=str(root / name), out=out, split=split, positions=_positions(root, split)
        )
        evaluate.evaluate(settings, loaded, request)
    experiment_pieces.write(config, root, name)


def _evaluated(path: pathlib.Path) -> str | None:
    """The digest of the parameters behind a results.json, if there is one."""
    return json.loads(path.read_text())["model"]["params_sha256"] if path.is_file() else None


def is_done(workdir: pathlib.Path, part: experiment_plan.Part) -> bool:
    """Whether a part has nothing left to do. An arm that was trained anew is evaluated anew."""
    root = part.root(workdir)
    if part.kind == "positions":
        return all(_positions(root, split).is_file() for split in part.splits)
    trained = (root / part.arm / "summary.json").is_file()
    if part.kind == "evaluate":
        path = experiment_pieces.path(root, part.arm)
        if not path.is_file():
            return False
        piece = experiment_pieces.read(path)
        if piece.plan.split != part.splits[-1]:
            return False
        if not trained:
            return True
        return piece.params_sha256 == experiment_plan.summary(root, part.arm)["params_sha256"]
    return trained and experiment_plan.summary(root, part.arm)["finished"]


# ---- all parts, side by side ---------------------------------------------------------------------


def part_command(part: str) -> list[str]:
    """This very command, for one part."""
    return [sys.executable, "-m", "rpt.experiment", *sys.argv[1:], f"--part={part}"]


def experiment(config: config_lib.Config, workdir: pathlib.Path, stop: cli.StopSignal) -> bool:
    """Runs all parts and writes the report; False if a stop signal came first.

    Raises:
      ValueError: the directory holds another config's experiment, or a part failed.
      PermissionError: it cannot be written.
    """
    experiment_plan.check(config)
    _claim(workdir, config)
    _check_trained(config, workdir)
    conductor = experiment_conductor.Conductor(
        workdir,
        experiment_plan.parts(config),
        is_done=lambda part: is_done(workdir, part),
        command=part_command,
        processes=config.experiment.processes,
        stop=stop,
    )
    if not conductor.run():
        return False
    pieces = []
    for seed in experiment_plan.seeds(config):
        root = workdir / experiment_plan.folder(config, seed)
        of_seed = experiment_pieces.renewed(experiment_plan.of_seed(config, seed), root)
        if root != workdir:
            experiment_report.make(of_seed, root, quiet=True)
        pieces += of_seed
    experiment_report.make(pieces, workdir)
    return True


def _claim(workdir: pathlib.Path, config: config_lib.Config) -> None:
    """The working directory and each seed's; a changed plan is written down.

    Raises:
      ValueError, PermissionError: as runs.claim.
    """
    changes = runs.claim(workdir, config, "experiment")
    if changes:
        print(f"changed since the last start: {', '.join(changes)}")
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "commit": runs.commit(),
            "changed_since_last_start": changes,
        }
        with (workdir / _CHANGES).open("a") as file:
            file.write(json.dumps(entry) + "\n")
    for seed in config.experiment.seeds:
        root = workdir / experiment_plan.folder(config, seed)
        runs.claim(root, experiment_plan.of_seed(config, seed), "experiment")


def _check_trained(config: config_lib.Config, workdir: pathlib.Path) -> None:
    """What was trained by another plan is no part of this one.

    Raises:
      ValueError: such an arm, and what differs.
    """
    parts = experiment_plan.parts(config)
    for part in parts.values():
        trained = part.kind in ("pretrain", "train") and is_done(workdir, part)
        if not trained or not all(is_done(workdir, parts[needed]) for needed in part.needs):
            continue
        root, settings = part.root(workdir), experiment_plan.of_seed(config, part.seed)
        planned = experiment_plan.training_config(settings, root, settings.experiment.arm(part.arm))
        changes = runs.trained_otherwise(root / part.arm, planned)
        if changes:
            raise ValueError(
                f"{root / part.arm} was trained with another config (config.{changes[0]} differs); "
                "move it away and the arm is trained anew, or choose another --workdir"
            )


def main(argv: list[str]) -> None:
    del argv
    hosts.refuse("rpt.experiment")
    config = config_lib.from_config_dict(_CONFIG.value)
    workdir = pathlib.Path(_WORKDIR.value)
    if _PART.value:
        run_part(config, workdir, _PART.value)
    elif not experiment(config, workdir, cli.StopSignal()):
        print("stopped; the same command goes on")


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Directory of all parts, made if missing.", required=True
    )
    _PART = flags.DEFINE_string("part", "", "Run this part alone (how the parts are started).")
    flags.mark_flag_as_required("config")
    cli.run(main)
