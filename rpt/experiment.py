"""An experiment: a base, reinforcement pre-training of it, its controls, and the table.

    python -m rpt.experiment --config=configs/mini.py --workdir=runs/mini

Each part is a process of its own; parts that do not need each other run side by side:

    reference    the frozen model behind bin_entropy, pre-trained from another seed
    base         stage 0, until its gate is passed
    rpt          reinforcement pre-training of the base
    ntp          the base, continued by next-token prediction at RPT's executed FLOPs
    mixed_sft    the base, continued on stage 0's own mixture at RPT's executed FLOPs
    evaluate_X   validation (which chooses the threshold of gated thinking), then test

W/PART is a run directory, W/evaluation/ARM an evaluation, W/logs/PART.log what the part printed.
W/results.json, report.md and curves.png come last. The same command goes on where it was stopped:
a part that is done is not run again, so the test split is read once per arm and seed.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from absl import flags

from rpt import checkpoint, cli, evaluate, experiment_report, hosts, loading, pretrain, runs, train
from rpt import config as config_lib

ARMS = ("base", "rpt", "ntp", "mixed_sft")
# Each part and what must be done before it; the order is that of starting.
PARTS = {
    "base": (),
    "reference": (),
    "rpt": ("base",),
    "evaluate_base": ("base", "reference"),
    "ntp": ("rpt",),
    "mixed_sft": ("rpt",),
    **{f"evaluate_{arm}": (arm, "evaluate_base") for arm in ARMS[1:]},
}
_SPLITS = ("validation", "test")


# ---- one part, in its own process ----------------------------------------------------------------


def run_part(config: config_lib.Config, root: pathlib.Path, part: str) -> None:
    """Runs or continues one part; returns at once if it is done.

    Raises:
      ValueError: unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; known are {', '.join(PARTS)}")
    if part.startswith("evaluate_"):
        _evaluate(config, root, part.removeprefix("evaluate_"))
    elif part == "rpt":
        settings = dataclasses.replace(config.train, init=str(root / "base"))
        train.train(dataclasses.replace(config, train=settings), root / part, stop=cli.StopSignal())
    else:
        pretrain.pretrain(
            pretraining(config, root, part),
            root / part,
            init=root / "base" if part in ("ntp", "mixed_sft") else None,
            stop=cli.StopSignal(),
        )


def pretraining(config: config_lib.Config, root: pathlib.Path, part: str) -> config_lib.Config:
    """The config of stage 0, of the reference, or of a control."""
    plan = config.experiment
    if part == "base":
        return config
    if part == "reference":
        seed = config.seed + plan.reference_seed_offset
        return dataclasses.replace(config, seed=seed, pretrain=plan.reference)
    control = plan.ntp if part == "ntp" else plan.mixed_sft
    budget = _summary(root, "rpt")["ledger"]["training_flops"]
    model = config_lib.model_from_json(json.loads((root / "base" / "model.json").read_text()))
    steps = math.ceil(budget / pretrain.step_flops(model, control))
    optimizer = dataclasses.replace(control.optimizer, decay_steps=steps)
    control = dataclasses.replace(control, steps=steps, optimizer=optimizer)
    return dataclasses.replace(config, pretrain=control)


def _evaluate(config: config_lib.Config, root: pathlib.Path, arm: str) -> None:
    """Both splits, on the positions that the base's evaluation has made with the reference."""
    loaded = loading.load_run(root / arm)
    settings = dataclasses.replace(config.evaluate, reference=str(root / "reference"))
    config = dataclasses.replace(config, evaluate=settings)
    digest = checkpoint.params_sha256(loaded.params)
    for split in _SPLITS:
        out = root / "evaluation" / arm
        if _evaluated(out / split / evaluate.RESULTS) == digest:
            continue
        request = evaluate.Request(
            path=str(root / arm),
            out=out,
            split=split,
            positions=root / "evaluation" / f"positions_{split}.jsonl",
        )
        evaluate.evaluate(config, loaded, request)


def _evaluated(path: pathlib.Path) -> str | None:
    """The digest of the parameters behind a results.json, if there is one."""
    return json.loads(path.read_text())["model"]["params_sha256"] if path.is_file() else None


def is_done(root: pathlib.Path, part: str) -> bool:
    """Whether a part has nothing left to do."""
    if part.startswith("evaluate_"):
        arm = part.removeprefix("evaluate_")
        return (root / "evaluation" / arm / _SPLITS[-1] / evaluate.RESULTS).is_file()
    return (root / part / "summary.json").is_file() and _summary(root, part)["finished"]


def _summary(root: pathlib.Path, part: str) -> dict:
    return json.loads((root / part / "summary.json").read_text())


# ---- all parts, side by side ---------------------------------------------------------------------


def part_command(part: str) -> list[str]:
    """This very command, for one part."""
    return [sys.executable, "-m", "rpt.experiment", *sys.argv[1:], f"--part={part}"]


class Conductor:
    """Starts parts as processes when what they need is done, and passes on what they print."""

    def __init__(
        self,
        root: pathlib.Path,
        processes: int,
        stop: cli.StopSignal,
        command: Callable[[str], list[str]] = part_command,
    ):
        self._root, self._processes, self._stop = root.resolve(), processes, stop
        self._command = command
        self._shared_programs = {
            "JAX_COMPILATION_CACHE_DIR": str(self._root / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self._running: dict[str, subprocess.Popen] = {}
        (root / "logs").mkdir(parents=True, exist_ok=True)

    def run(self) -> bool:
        """Runs what is not done yet. Returns whether all is done (False after a stop signal).

        Raises:
          ValueError: a part failed; its own message is in the log.
        """
        done = {part for part in PARTS if is_done(self._root, part)}
        told = False
        while len(done) < len(PARTS):
            if not self._stop.received:
                self._start(done)
            elif not told:
                self._terminate()
                told = True
            if not self._running:
                return False
            time.sleep(0.2)
            for part, process in list(self._running.items()):
                if process.poll() is None:
                    continue
                del self._running[part]
                # Before it listens, a part that is told to stop ends by the signal.
                if process.returncode and not self._stop.received:
                    self._fail(part)
                if is_done(self._root, part):
                    done.add(part)
        return True

    def _start(self, done: set[str]) -> None:
        for part, needed in PARTS.items():
            if part in done or part in self._running or not done.issuperset(needed):
                continue
            if len(self._running) >= self._processes:
                return
            process = subprocess.Popen(
                self._command(part),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # Parts run the same programs: what one has compiled the next finds there.
                env={**self._shared_programs, **os.environ},
                # Ctrl-C reaches this process alone, which ends the parts gently.
                start_new_session=True,
            )
            self._running[part] = process
            threading.Thread(target=self._pass_on, args=(part, process), daemon=True).start()

    def _pass_on(self, part: str, process: subprocess.Popen) -> None:
        with (self._root / "logs" / f"{part}.log").open("a") as log:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                print(f"{part:>18} | {line}", end="", flush=True)

    def _terminate(self) -> None:
        for process in self._running.values():
            process.terminate()

    def _fail(self, part: str) -> None:
        self._terminate()
        for process in self._running.values():
            process.wait()
        raise ValueError(
            f"part {part} failed; its output is in {self._root / 'logs' / f'{part}.log'}; "
            "the same command goes on from there"
        )


def experiment(config: config_lib.Config, root: pathlib.Path, stop: cli.StopSignal) -> bool:
    """Runs all parts and writes the report; False if a stop signal came first.

    Raises:
      ValueError: the directory holds another config's experiment, or a part failed.
      PermissionError: it cannot be written.
    """
    _check(config)
    runs.claim(root, config, "experiment")
    if not Conductor(root, config.experiment.processes, stop).run():
        return False
    results = experiment_report.results(config, root, ARMS)
    runs.write_json(root / "results.json", results)
    experiment_report.write(results, root)
    return True


def _check(config: config_lib.Config) -> None:
    """Finds before the first part what the report could not do without.

    Raises:
      ValueError: no gate, no gated positions, or a claim about text that is not evaluated.
    """
    plan, settings = config.experiment, config.evaluate
    parts = [part.name for part in settings.test]
    if plan.claim_part not in parts:
        raise ValueError(
            f"config.experiment.claim_part={plan.claim_part!r} is no part of config.evaluate.test; "
            f"choose one of {', '.join(parts) or '(none)'}"
        )
    if not config.pretrain.gate.labels or not settings.gate_documents:
        raise ValueError(
            "an experiment needs config.pretrain.gate.labels and config.evaluate.gate_documents"
        )


def main(argv: list[str]) -> None:
    del argv
    hosts.refuse("rpt.experiment")
    config = config_lib.from_config_dict(_CONFIG.value)
    root = pathlib.Path(_WORKDIR.value)
    if _PART.value:
        run_part(config, root, _PART.value)
    elif not experiment(config, root, cli.StopSignal()):
        print("stopped; the same command goes on")


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Directory of all parts, made if missing.", required=True
    )
    _PART = flags.DEFINE_string("part", "", "Run this part alone (how the parts are started).")
    flags.mark_flag_as_required("config")
    cli.run(main)
