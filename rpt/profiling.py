"""xprof traces of chosen steps: --config.profile.steps="(3, 4)" writes them into profile/.

Steps are counted from 1, as in metrics.jsonl; neighbours are one trace. Look at them with
`tensorboard --logdir=W/profile` and its profile plugin, or with xprof. Step 3 or later: the first
ones compile.
"""

import dataclasses
import os
import pathlib

import jax


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps to trace, from 1."""

    steps: tuple[int, ...] = ()

    def __post_init__(self):
        if any(step < 1 for step in self.steps):
            raise ValueError(f"steps are counted from 1, not {self.steps}")


class Tracer:
    """Switches the trace on and off between steps."""

    def __init__(self, config: ProfileConfig, workdir: pathlib.Path):
        self._steps, self._folder = frozenset(config.steps), workdir / "profile"
        self._open = False
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def begin(self, step: int) -> None:
        """Before step number `step`."""
        if step in self._steps and not self._open:
            jax.profiler.start_trace(os.fspath(self._folder))
            self._open = True
        if self._open:
            self._annotation = jax.profiler.StepTraceAnnotation("step", step_num=step)
            self._annotation.__enter__()

    def end(self, step: int) -> None:
        """After it, its results computed."""
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if self._open and step + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
