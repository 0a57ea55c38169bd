"""A run directory: what was asked, what ran it, what came out.

config.json    the whole config          run.json       overrides, commit, versions, machine
model.json     the model's shape         tokenizer/     files of the tokenizer
metrics.jsonl  one object per step       tensorboard/   the same as event files
samples.jsonl  documents and thoughts    summary.json   final metrics, ledger, digest
checkpoints/   the last, complete        scaling/       parameters at log-spaced FLOPs
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax
import rich.console
import rich.progress
import tensorboardX

from data import tokenizers
from rpt import config as config_lib
from rpt.model import config as model_config

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def open_run(
    workdir: pathlib.Path,
    config: config_lib.Config,
    model: model_config.ModelConfig,
    tokenizer: tokenizers.Tokenizer,
    overrides: dict[str, Any],
) -> None:
    """Creates the run directory, or checks that it holds a run of the same config.

    Fields of `config.RESUMABLE` may differ; the change is written to run.json.

    Raises:
      ValueError: it holds another config's run, or something that is no run.
      PermissionError: it cannot be written.
    """
    new = _json(dataclasses.asdict(config))
    path = workdir / "config.json"
    changes: list[str] = []
    if path.is_file():
        old = json.loads(path.read_text())
        changes = config_lib.differences(old, new)
        frozen = [name for name in changes if not config_lib.is_resumable(name)]
        if frozen:
            raise ValueError(
                f"{workdir} holds a run with another config (config.{frozen[0]} differs); "
                "choose another --workdir, or repeat that run's config"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run; choose another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)
    except OSError as error:
        raise PermissionError(f"cannot write to {workdir}: {error.strerror}") from None
    write_json(workdir / "model.json", _json(dataclasses.asdict(model)))
    tokenizer.save(workdir / "tokenizer")
    _append_start(workdir / "run.json", overrides, changes, tokenizer)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


def _json(value: Any) -> Any:
    """As it comes back from a file: tuples become lists."""
    return json.loads(json.dumps(value))


def _append_start(path, overrides, changes, tokenizer) -> None:
    starts = json.loads(path.read_text()) if path.is_file() else []
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "overrides": {key: str(value) for key, value in overrides.items()},
            "changed_since_last_start": changes,
            "commit": commit(),
            "tokenizer_digest": tokenizer.digest(),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "machine": {
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
                "devices": [device.device_kind for device in jax.devices()],
            },
        }
    )
    write_json(path, starts)


def commit() -> str:
    """The checkout's commit, '+' if the tree differs from it; 'unknown' outside git."""
    root = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Log:
    """metrics.jsonl, TensorBoard and the progress line of one run.

    Lines of steps after `start` come from a run that was killed behind its last checkpoint: they
    are dropped, as the same steps are run again.
    """

    def __init__(self, workdir: pathlib.Path, name: str, start: int, total: int, every: int):
        self._path = workdir / "metrics.jsonl"
        self._every, self._total = max(every, 1), total
        self._forget_after(start)
        self._file = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start)
        self._began, self._start = time.monotonic(), start
        self._last_line = 0.0
        console = rich.console.Console()
        self._bar = None
        if console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=start, note="")
        self._name = name

    def write(self, step: int, metrics: dict[str, float], note: str) -> None:
        """Records the metrics after step number `step` (from 1) and moves the progress on."""
        if step % self._every == 0 or step == self._total:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            for key, value in metrics.items():
                self._board.add_scalar(key, value, step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._last_line > 10 or step == self._total:
            self._last_line = time.monotonic()
            rate = (time.monotonic() - self._began) / max(step - self._start, 1)
            left = rate * max(self._total - step, 0)
            print(f"{self._name} {step}/{self._total}  {note}  {left:.0f} s left", flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._file.close()
        self._board.close()

    def _forget_after(self, start: int) -> None:
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the half line of a killed run
            if entry["step"] <= start:
                kept.append(line + "\n")
        temporary = self._path.with_name("metrics.jsonl.tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self._path)
