"""A run directory: what was asked, what ran it, what came out.

config.json    the whole config          command.json   the command that it is a run of
run.json       of every start: overrides, commit, versions, machine, digest of the parameters that
               another run gave it
model.json     the model's shape         tokenizer/     files of the tokenizer
template.txt   the template, if any
metrics.jsonl  one object per step       tensorboard/   the same as event files
samples.jsonl  documents and thoughts    summary.json   final metrics, ledger, digest
checkpoints/   the last, complete        scaling/       parameters at log-spaced FLOPs
heartbeat.json the last step's time      profile/       traces of chosen steps
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import rich.console
import rich.progress
import tensorboardX

from data import tokenizers
from rpt import config as config_lib
from rpt import files
from rpt.model import config as model_config

# What a start leaves behind that was killed before its config was complete.
_HALF_WRITTEN = "config.json.tmp"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def open_run(
    workdir: pathlib.Path,
    config: config_lib.Config,
    model: model_config.ModelConfig,
    tokenizer: tokenizers.Tokenizer,
    overrides: dict[str, Any],
    command: str,
    init: str = "",
    init_params_sha256: str | None = None,
) -> None:
    """Creates the run directory, or checks that it holds a run of the same config and command.

    Fields of `config.RESUMABLE` may differ; the change is written to run.json, and so is the digest
    of the parameters that another run gave this one, '' if none did (None where it goes on).

    Raises:
      ValueError, PermissionError: as `claim`; or the template has changed since the first start.
    """
    changes = claim(workdir, config, command, init)
    write_json(workdir / "model.json", dataclasses.asdict(model))
    _save_tokenizer(tokenizer, workdir / "tokenizer")
    if config.data.template:
        _keep_template(pathlib.Path(config.data.template), workdir / "template.txt")
    start: dict[str, Any] = {"changed_since_last_start": changes}
    if init_params_sha256 is not None:
        start["init_params_sha256"] = init_params_sha256
    _append_start(workdir / "run.json", overrides, start, tokenizer)


def _save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """Each file whole, also in a bucket, which a tokenizer does not write to."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save(pathlib.Path(made))
        for path in sorted(pathlib.Path(made).iterdir()):
            files.write(folder / path.name, path.read_bytes())


def _keep_template(given: pathlib.Path, kept: pathlib.Path) -> None:
    """A copy, so that the run stays what it was when the user's file is edited or moved."""
    text = given.read_bytes()
    if kept.is_file() and kept.read_bytes() != text:
        raise ValueError(
            f"{given} was edited after this run began with what is in {kept}; "
            "restore it, or choose another --workdir"
        )
    files.write(kept, text)


def claim(
    workdir: pathlib.Path, config: config_lib.Config, command: str, init: str = ""
) -> list[str]:
    """Makes the directory and its config.json; returns the fields that differ from the last start.

    Args:
      workdir: absent, empty, or a run of the same config and command.
      config: of this start.
      command: such as 'train'.
      init: where that command's parameters come from, if the config does not say.

    Raises:
      ValueError: it holds another config's or command's run, or something that is no run.
      PermissionError: it cannot be written.
    """
    new, own = config_lib.as_json(config), {"command": command, "init": init}
    path, command_path = workdir / "config.json", workdir / "command.json"
    changes: list[str] = []
    if path.is_file():
        changes = config_lib.differences(_read_json(path), new)
        frozen = [name for name in changes if not config_lib.is_among(name, config_lib.RESUMABLE)]
        if frozen:
            raise ValueError(
                f"{workdir} holds a run with another config (config.{frozen[0]} differs); "
                "choose another --workdir, or repeat that run's config"
            )
        if command_path.is_file() and (given := _read_json(command_path)) != own:
            raise ValueError(
                f"{workdir} holds a run of {_command_line(given)}, not of {_command_line(own)}; "
                "choose another --workdir"
            )
    elif workdir.is_dir() and any(found.name != _HALF_WRITTEN for found in workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run; choose another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)
        write_json(command_path, own)
    except OSError as error:
        raise PermissionError(f"cannot write to {workdir}: {error.strerror}") from None
    return changes


def _command_line(run: dict[str, str]) -> str:
    return f"rpt.{run['command']}" + (f" --init={run['init']}" if run["init"] else "")


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --workdir") from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Whole or not at all."""
    files.write(path, (json.dumps(value, indent=1) + "\n").encode())


def trained_otherwise(workdir: pathlib.Path, config: config_lib.Config) -> list[str]:
    """Fields by which a run would have trained something else than its directory holds.

    The directory that it started from is not compared: directories may be moved.

    Raises:
      ValueError: config.json is damaged.
    """
    changes = config_lib.differences(
        _read_json(workdir / "config.json"), config_lib.as_json(config)
    )
    ignored = (*config_lib.SURROUNDINGS, "train.init")
    return [name for name in changes if not config_lib.is_among(name, ignored)]


def _append_start(path, overrides, start, tokenizer) -> None:
    starts = json.loads(path.read_text()) if path.is_file() else []
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "overrides": {key: str(value) for key, value in overrides.items()},
            **start,
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
    """The checkout's commit, '+' if the tree differs from it.

    Outside git what RPT_COMMIT says (tpu_scripts/launch.sh sets it), else 'unknown'.
    """
    root = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("RPT_COMMIT") or "unknown"


class Log:
    """metrics.jsonl, TensorBoard and the progress line of one run.

    Lines of steps after `start` come from a run that was killed behind its last checkpoint: they
    are dropped, as the same steps are run again; in samples.jsonl, too.

    Attributes:
      last: the metrics of the newest line.
    """

    def __init__(self, workdir: pathlib.Path, name: str, start: int, total: int, every: int):
        path = workdir / "metrics.jsonl"
        self._every, self._total = max(every, 1), total
        kept = _forget_after(path, start)
        _forget_after(workdir / "samples.jsonl", start)
        self.last: dict[str, float] = json.loads(kept[-1]) if kept else {}
        self.last.pop("step", None)
        self._file = files.Appender(path)
        self._samples_path, self._samples = workdir / "samples.jsonl", None
        # TensorBoard forgets from the purged step on, so the next one to be written.
        self._board = None
        if not files.is_remote(workdir) or _can_write_events():
            board = str(workdir / "tensorboard")
            self._board = tensorboardX.SummaryWriter(board, purge_step=start + 1)
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
            self._file.write(json.dumps({"step": step, **metrics}))
            self.last = metrics
            if self._board is not None:
                for key, value in metrics.items():
                    self._board.add_scalar(key, value, step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._last_line > 10 or step == self._total:
            self._last_line = time.monotonic()
            rate = (time.monotonic() - self._began) / max(step - self._start, 1)
            left = rate * max(self._total - step, 0)
            print(f"{self._name} {step}/{self._total}  {note}  {left:.0f} s left", flush=True)

    def sample(self, samples: list[dict[str, Any]]) -> None:
        """Documents and thoughts, into samples.jsonl."""
        self._samples = self._samples or files.Appender(self._samples_path)
        for sample in samples:
            self._samples.write(json.dumps(sample))

    def flush(self) -> None:
        """Until all lines are where a start finds them; before a checkpoint of their steps."""
        self._file.flush()
        if self._samples is not None:
            self._samples.flush()

    def expect(self, total: int) -> None:
        """The number of steps has turned out to be another one."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

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
        if self._samples is not None:
            self._samples.close()
        if self._board is not None:
            self._board.close()


class NoLog(Log):
    """Of the hosts that leave the log to the first."""

    def __init__(self, workdir: pathlib.Path, name: str, start: int, total: int, every: int):
        self.last = {}

    def write(self, step: int, metrics: dict[str, float], note: str) -> None:
        pass

    def sample(self, samples: list[dict[str, Any]]) -> None:
        pass

    def flush(self) -> None:
        pass

    def expect(self, total: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def _can_write_events() -> bool:
    """tensorboardX writes to a bucket through this library only."""
    try:
        return importlib.util.find_spec("google.cloud.storage") is not None
    except ModuleNotFoundError:
        return False


def _forget_after(path: pathlib.Path, start: int) -> list[str]:
    """Drops the lines of later steps from a file of JSON lines; returns those that are left."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the half line of a killed run
        if entry["step"] <= start:
            kept.append(line + "\n")
    files.write(path, "".join(kept).encode())
    return kept
