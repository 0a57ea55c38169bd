"""Kills runs at random moments, goes on, and compares them with one that nobody stopped.

    python tests/chaos/kills.py --loop=pretrain --kills=100 --folder=DIR [--seed=0]

Every start is a process of its own (forked before jax has begun, so that nothing is imported again)
which gets SIGKILL after a random time, while a checkpoint is being written, or, one time in eight,
SIGTERM, upon which it must save and exit 0 within 30 seconds. A run that ends is compared bit for
bit with the uninterrupted one, and another begins, until there were enough kills. Prints one line
of JSON; exits 1 at the first difference, or when a start fails by itself.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback
from typing import NoReturn

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from rpt import cli, config, pretrain, train
from tests.rpt import tiny_experiment

_TERM_SECONDS = 30.0
_NAMES = ("params_sha256", "step", "finished", "ledger", "data")


def experiment(base: pathlib.Path | str = "") -> config.Config:
    settings = tiny_experiment.get_config(f"init={base}")
    settings.logging.checkpoint_every_steps = 2
    return config.from_config_dict(settings)


def begin(loop: str, base: pathlib.Path, run: pathlib.Path, log: pathlib.Path) -> int:
    """The command in a process of its own; its id."""
    # No SIGTERM before there is somebody to receive it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    if (pid := os.fork()) == 0:
        _child(loop, base, run, log)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return pid


def _child(loop: str, base: pathlib.Path, run: pathlib.Path, log: pathlib.Path) -> NoReturn:
    code = 1
    try:
        stop = cli.StopSignal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if loop == "train":
            train.train(experiment(base), run, stop=stop)
        else:
            pretrain.pretrain(experiment(), run, stop=stop)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float, run: pathlib.Path, saving: bool, left: set[int]) -> int | None:
    """The exit status if it ends by itself; None after the time, or, where a save is wanted, at the
    first that is seen after it, waiting for one up to four times as long.

    `left` is what earlier kills have left half saved; what the process sweeps away is taken out of
    it, since the next save may get the same inode.
    """
    began = time.monotonic()
    while (passed := time.monotonic() - began) < (seconds * 4 if saving else seconds):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        now = half_saved(run)
        left &= now
        if saving and passed > seconds and now - left:
            return None
        time.sleep(0.0005 if saving else 0.005)
    return None


def half_saved(run: pathlib.Path) -> set[int]:
    """Inodes of checkpoints that are being written, or were when a process was killed."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.inode() for entry in entries if ".saving" in entry.name}


def result(run: pathlib.Path) -> dict:
    """What must be equal bit for bit."""
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {name: value for name, value in line.items() if not name.startswith("seconds_")}
        for line in lines
    ]
    return {**{name: summary[name] for name in _NAMES}, "metrics": metrics}


def fail(message: str, log: pathlib.Path) -> NoReturn:
    print(log.read_text()[-4000:], file=sys.stderr)
    sys.exit(f"error: {message}")


class Chaos:
    """Counts, and the random choices of one seed."""

    def __init__(self, loop: str, folder: pathlib.Path, seed: int):
        self.loop, self.folder, self.draw = loop, folder, random.Random(seed)
        self.log = folder / "log.txt"
        self.counts = {"kills": 0, "kills_in_a_save": 0, "terminations": 0, "runs": 0}
        self.longest_termination_seconds = 0.0
        self.base = folder / "base"
        if loop == "train":
            self._complete("pretrain", self.base)
        began = time.monotonic()
        self._complete(loop, folder / "whole")
        # It compiled the programs that all others find, which halves their time.
        self.seconds = (time.monotonic() - began) / 2
        self.wanted = result(folder / "whole")

    def _complete(self, loop: str, run: pathlib.Path) -> None:
        _, status = os.waitpid(begin(loop, self.base, run, self.log), 0)
        if status:
            fail(f"an uninterrupted run failed with {status}", self.log)

    def one_run(self, kills: int) -> None:
        """Until its end, or until there were enough kills and it is let go to its end."""
        run = self.folder / f"run{self.counts['runs']}"
        while True:
            left = half_saved(run)
            pid = begin(self.loop, self.base, run, self.log)
            enough = self.counts["kills"] >= kills
            seconds = 1e6 if enough else self.draw.uniform(0, self.seconds)
            saving = not enough and self.draw.random() < 0.3
            status = wait(pid, seconds, run, saving, left)
            if status is None:
                status = self._end(pid, run, left)
            elif status:
                fail(f"a start failed by itself with {status}", self.log)
            if status == 0 and (run / "summary.json").is_file() and result(run)["finished"]:
                break
        self.counts["runs"] += 1
        if result(run) != self.wanted:
            fail(f"{run} differs from the uninterrupted run", self.log)

    def _end(self, pid: int, run: pathlib.Path, left: set[int]) -> int:
        """Its exit status; `left` as in `wait`."""
        if self.draw.random() < 0.125:
            began = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            status = wait(pid, 2 * _TERM_SECONDS, run, saving=False, left=left)
            seconds = time.monotonic() - began
            if status != 0 or seconds > _TERM_SECONDS:
                if status is None:
                    os.kill(pid, signal.SIGKILL)
                fail(f"SIGTERM: exit status {status} after {seconds:.0f} s", self.log)
            self.counts["terminations"] += 1
            self.longest_termination_seconds = max(self.longest_termination_seconds, seconds)
            return status
        # Stopped first, so that what is said about the moment is true of it.
        os.kill(pid, signal.SIGSTOP)
        saving = bool(half_saved(run) - left)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code > 0:
            fail(f"a start failed by itself with {code}", self.log)
        if code:  # else it had ended in the meantime
            self.counts["kills"] += 1
            self.counts["kills_in_a_save"] += saving
        return code


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=("pretrain", "train"), default="pretrain")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(given.folder / "programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    began = time.monotonic()
    chaos = Chaos(given.loop, given.folder, given.seed)
    while chaos.counts["kills"] < given.kills:
        chaos.one_run(given.kills)
    report = {
        "loop": given.loop,
        **chaos.counts,
        "longest_termination_seconds": round(chaos.longest_termination_seconds, 1),
        "seconds_of_a_whole_run": round(chaos.seconds, 1),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
