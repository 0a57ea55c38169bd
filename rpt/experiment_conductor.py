"""Runs the parts of an experiment as processes: what waits for what, how far it is, how long still.

A part that fails takes along only what needs it; the others go on. Progress is one line whenever a
part is done, and every few minutes. Seconds of finished parts are kept in W/seconds.json, so that
the estimate outlives a stop.
"""

import json
import os
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

from rpt import cli, experiment_plan, files

_POLL_SECONDS, _PROGRESS_SECONDS = 0.2, 300.0
_SECONDS = "seconds.json"

Parts = Mapping[str, experiment_plan.Part]


class Conductor:
    """Starts parts when what they need is done, and passes on what they print.

    Args:
      workdir: of the whole experiment.
      parts: in the order of starting.
      is_done: whether a part has nothing left to do.
      command: that runs a part, by its name.
      processes: parts that run side by side.
      stop: asks to end the parts gently.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        parts: Parts,
        *,
        is_done: Callable[[experiment_plan.Part], bool],
        command: Callable[[str], list[str]],
        processes: int,
        stop: cli.StopSignal,
    ):
        self._workdir, self._parts, self._is_done = workdir.resolve(), parts, is_done
        self._command, self._processes, self._stop = command, processes, stop
        self._shared_programs = {
            "JAX_COMPILATION_CACHE_DIR": str(self._workdir / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self._running: dict[str, subprocess.Popen] = {}
        self._started: dict[str, float] = {}
        self._failed: list[str] = []
        path = self._workdir / _SECONDS
        self._seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def run(self) -> bool:
        """Runs what is not done yet. Returns whether all is done (False after a stop signal).

        Raises:
          ValueError: parts failed; their own messages are in their logs.
        """
        done = {name for name, part in self._parts.items() if self._is_done(part)}
        told, began, last_line = False, time.monotonic(), time.monotonic()
        while len(done) < len(self._parts):
            if not self._stop.received:
                self._start(done)
            elif not told:
                self._terminate()
                told = True
            if not self._running:
                break
            time.sleep(_POLL_SECONDS)
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            for name in ended:
                self._end(name, done)
            if ended or time.monotonic() - last_line > _PROGRESS_SECONDS:
                last_line = time.monotonic()
                print(self._progress(done, last_line - began), flush=True)
        if self._failed:
            logs = ", ".join(str(self._log(name)) for name in self._failed)
            raise ValueError(
                f"part {', '.join(self._failed)} failed; its output is in {logs}; "
                "the same command goes on from there"
            )
        return len(done) == len(self._parts)

    def _start(self, done: set[str]) -> None:
        for name, part in self._parts.items():
            if len(self._running) >= self._processes:
                return
            tried = name in done or name in self._running or name in self._failed
            if tried or not done.issuperset(part.needs):
                continue
            self._log(name).parent.mkdir(parents=True, exist_ok=True)
            process = subprocess.Popen(
                self._command(name),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # Parts run the same programs: what one has compiled the next finds there.
                env={**self._shared_programs, **os.environ},
                # Ctrl-C reaches this process alone, which ends the parts gently.
                start_new_session=True,
            )
            self._running[name], self._started[name] = process, time.monotonic()
            threading.Thread(target=self._pass_on, args=(name, process), daemon=True).start()

    def _end(self, name: str, done: set[str]) -> None:
        del self._running[name]
        spent = time.monotonic() - self._started.pop(name)
        # Of a part that was stopped and goes on, all its starts count.
        self._seconds[name] = round(self._seconds.get(name, 0.0) + spent, 1)
        files.write(self._workdir / _SECONDS, json.dumps(self._seconds, indent=1).encode())
        if self._is_done(self._parts[name]):
            done.add(name)
            # What was made of an earlier one may be out of date now, such as its evaluation.
            after = {n for n in done if name in self._parts[n].needs}
            done -= {n for n in after if not self._is_done(self._parts[n])}
        # Before it listens, a part that is told to stop ends by the signal.
        elif not self._stop.received:
            self._failed.append(name)
            print(f"part {name} failed; its output is in {self._log(name)}", flush=True)

    def _log(self, name: str) -> pathlib.Path:
        part = self._parts[name]
        return part.root(self._workdir) / "logs" / f"{part.own_name}.log"

    def _pass_on(self, name: str, process: subprocess.Popen) -> None:
        with self._log(name).open("a") as log:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                print(f"{name:>18} | {line}", end="", flush=True)

    def _terminate(self) -> None:
        for process in self._running.values():
            process.terminate()

    def _progress(self, done: set[str], elapsed: float) -> str:
        now = time.monotonic()
        running = {
            name: self._seconds.get(name, 0.0) + now - self._started[name] for name in self._running
        }
        finished = {name: self._seconds[name] for name in done if name in self._seconds}
        left = seconds_left(self._parts, done, running, finished, self._processes)
        ahead = "" if left is None else f", about {duration(left)} left"
        names = ", ".join(running) or "none"
        return (
            f"{len(done)} of {len(self._parts)} parts done, {duration(elapsed)} in this start"
            f"{ahead}; running: {names}"
        )


def seconds_left(
    parts: Parts,
    done: set[str],
    running: Mapping[str, float],
    finished: Mapping[str, float],
    processes: int,
) -> float | None:
    """An estimate from the seconds of finished parts; None while there are none.

    A part is expected to take as long as the same part of other seeds, else as its kind, else as
    any part, on average.

    Args:
      parts: all of them.
      done: names that have nothing left to do.
      running: seconds spent so far.
      finished: seconds of those that are done, as far as they are known.
      processes: parts that run side by side.
    """
    if not finished:
        return None
    left = 0.0
    for name, part in parts.items():
        if name in done:
            continue
        same = [s for n, s in finished.items() if parts[n].own_name == part.own_name]
        alike = [s for n, s in finished.items() if parts[n].kind == part.kind]
        known = same or alike or list(finished.values())
        left += max(sum(known) / len(known) - running.get(name, 0.0), 0.0)
    return left / processes


def duration(seconds: float) -> str:
    """'50 s', '12 min' or '3 h 05 min'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
