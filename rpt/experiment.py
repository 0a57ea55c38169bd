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
split is read once per arm and seed; what does not belong together is refused
(rpt/experiment_state.py). --part runs one part alone, on another machine too: what it needs must
have been copied there, and what it made be copied back. The plan (config.experiment) may change
between two starts; what an arm trains may not. Fewer arms with more seeds may share the directory:
the report is then about the arms and claims of the last start, with all seeds that are there.
"""

import dataclasses
import json
import pathlib
import re
import sys

from absl import flags

from rpt import (
    cli,
    evaluate,
    evaluation_reference,
    experiment_conductor,
    experiment_config,
    experiment_pieces,
    experiment_plan,
    experiment_preregistration,
    experiment_report,
    experiment_state,
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
      ValueError: unknown part, another part has to be done before it, or what is there does not
        belong together.
    """
    experiment_plan.check(config)
    parts = experiment_plan.parts(config)
    if name not in parts:
        raise ValueError(f"unknown part {name!r}; known are {', '.join(parts)}")
    part = parts[name]
    experiment_state.check(config, workdir, experiment_state.needed(parts, name))
    if experiment_state.is_done(config, workdir, part):
        return
    for needed in part.needs:
        if not experiment_state.is_done(config, workdir, parts[needed]):
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
        _evaluate(settings, config.experiment, root, part)
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
        path = experiment_state.positions_path(root, split)
        evaluation_reference.open_positions(settings, loaded, mixture, path, print)


def _evaluate(
    config: config_lib.Config,
    plan: experiment_config.ExperimentConfig,
    root: pathlib.Path,
    part: experiment_plan.Part,
) -> None:
    """Validation and test of one seed, and the piece for the report; `plan` is of all seeds.

    Validation chooses the threshold of gated thinking: an arm without skips it, unless validation
    is what is reported.
    """
    settings = experiment_plan.evaluation_config(config, root, plan.arm(part.arm))
    loaded = loading.load_run(root / part.arm)
    for split in plan.splits if settings.evaluate.gate_documents else (plan.split,):
        if experiment_state.is_measured(config, root, part, split):
            continue
        if split == plan.split:
            known = experiment_pieces.plan_json(plan)
            experiment_preregistration.record(root, split, known)
        request = evaluate.Request(
            path=str(root / part.arm),
            out=root / "evaluation" / part.arm,
            split=split,
            positions=experiment_state.positions_path(root, split),
        )
        evaluate.evaluate(settings, loaded, request)
    experiment_pieces.write(config, plan, root, part.arm)


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
    whole = _with_seeds_there(config, workdir)
    every = experiment_plan.parts(whole)
    experiment_state.check(whole, workdir, every.values())
    conductor = experiment_conductor.Conductor(
        workdir,
        experiment_plan.parts(config),
        is_done=lambda part: experiment_state.is_done(config, workdir, part),
        command=part_command,
        processes=config.experiment.processes,
        stop=stop,
    )
    if not conductor.run():
        return False
    # An arm that was trained anew may have left others behind that began from what it was.
    experiment_state.check(whole, workdir, every.values())
    _report(config, whole, workdir)
    return True


def _with_seeds_there(config: config_lib.Config, workdir: pathlib.Path) -> config_lib.Config:
    """With the seeds that other starts have made pieces of, behind the config's own."""
    plan = config.experiment
    names = [path.parent.name for path in workdir.glob("seed*/pieces")]
    there = sorted(int(name[4:]) for name in names if re.fullmatch(r"seed\d+", name))
    further = [seed for seed in there if seed not in plan.seeds] if plan.seeds else []
    plan = dataclasses.replace(plan, seeds=(*plan.seeds, *further))
    return dataclasses.replace(config, experiment=plan)


def _report(config: config_lib.Config, whole: config_lib.Config, workdir: pathlib.Path) -> None:
    """Of each seed, and of all of them; of further seeds than the config's, from what there is."""
    pieces = []
    for seed in experiment_plan.seeds(whole):
        root = workdir / experiment_plan.folder(config, seed)
        arms = [
            part.arm
            for part in experiment_plan.parts(whole).values()
            if (part.seed, part.kind) == (seed, "evaluate")
            and experiment_state.is_done(whole, workdir, part)
        ]
        of_seed = experiment_pieces.renewed(config.experiment, root, arms)
        if root != workdir and of_seed:
            experiment_report.make(of_seed, root, seeds=(seed,), quiet=True)
        pieces += of_seed
    experiment_report.make(pieces, workdir)


def _claim(workdir: pathlib.Path, config: config_lib.Config) -> None:
    """The working directory and each seed's; a changed plan is written down.

    Raises:
      ValueError, PermissionError: as runs.claim.
    """
    changes = runs.claim(workdir, config, "experiment")
    if changes:
        print(f"changed since the last start: {', '.join(changes)}")
        entry = {**experiment_preregistration.now(), "changed_since_last_start": changes}
        with (workdir / _CHANGES).open("a") as file:
            file.write(json.dumps(entry) + "\n")
    for seed in config.experiment.seeds:
        root = workdir / experiment_plan.folder(config, seed)
        runs.claim(root, experiment_plan.of_seed(config, seed), "experiment")


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
