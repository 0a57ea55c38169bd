"""Where the wall time of a run goes, over all its starts, and a sign of life for babysitters.

`heartbeat.json` in the run directory holds the step, the time and what has been spent; it is
written after a step, at most once a second (once in 30 in a bucket). A start that goes on compares
it with its checkpoint: what was spent in between is lost, for these steps are run again.
"""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rpt import files

KINDS = ("rollout", "update", "save", "stall", "other", "lost")
# Which kind the laps of a step belong to: waiting for data is a stall.
_LAPS = {"data": "stall", "trunk": "rollout", "rollout": "rollout", "update": "update"}
_NAME = "heartbeat.json"


class Goodput:
    """Seconds by kind.

    Args:
      workdir: run directory.
      began: time.monotonic() at the start of this process's work.
      saved: `state` of the checkpoint that this start goes on from; None for a fresh run.
      writes: whether this process's heartbeat is the run's.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        began: float,
        saved: Mapping[str, float] | None,
        writes: bool = True,
    ):
        self._writes = writes
        self._path = workdir / _NAME
        self._began, self._last_beat = began, -float("inf")
        self._every = 30.0 if files.is_remote(workdir) else 1.0
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._before = self._down = 0.0
        last = self._read()
        if saved is not None:
            self._seconds |= {name: saved[name] for name in KINDS}
            self._before, self._down = saved["spent"], saved["down"]
        if last is not None:
            # Spent behind the checkpoint and now spent again; all of it if nothing was saved.
            lost = max(last["spent_seconds"] - self._before, 0.0)
            self._before += lost
            self._down += max(time.time() - self.spent_here() - last["time"], 0.0)
            # This start's own way to its first step is lost too.
            self._seconds["lost"] += lost + self.spent_here()

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return None  # no loss but of this account

    def spent_here(self) -> float:
        """Seconds of this start."""
        return time.monotonic() - self._began

    def add(self, kind: str, seconds: float) -> None:
        self._seconds[kind] += seconds

    def add_laps(self, metrics: Mapping[str, float]) -> None:
        """What the laps of one step say, by their names in its metrics."""
        for lap, kind in _LAPS.items():
            self._seconds[kind] += metrics.get(f"seconds_{lap}", 0.0)

    def beat(self, step: int, status: str = "running") -> None:
        """Says that the step is done; anything but 'running' is said at once."""
        now = time.monotonic()
        if not self._writes or (status == "running" and now - self._last_beat < self._every):
            return
        self._last_beat = now
        content = {
            "step": step,
            "time": time.time(),
            "status": status,
            "process": os.getpid(),
            "spent_seconds": self._before + self.spent_here(),
        }
        files.write(self._path, json.dumps(content).encode())

    def state(self) -> dict[str, float]:
        """For a checkpoint: JSON."""
        spent = self._before + self.spent_here()
        known = sum(self._seconds[kind] for kind in KINDS if kind != "other")
        seconds = {**self._seconds, "other": max(spent - known, 0.0)}
        return {**seconds, "spent": spent, "down": self._down}

    def summary(self) -> dict[str, float]:
        """Shares of the wall time of all starts, and seconds in which no process ran."""
        state = self.state()
        spent = max(state["spent"], 1e-9)
        shares = {f"share_{kind}": state[kind] / spent for kind in KINDS}
        return {**shares, "spent_seconds": spent, "down_seconds": state["down"]}
