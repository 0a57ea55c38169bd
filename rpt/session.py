"""What surrounds the steps of a loop: its log, checkpoints, heartbeat, traces, and when it stops.

Of several hosts all call every method, in the same order; the first alone prints and writes.
"""

import dataclasses
import pathlib
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from rpt import checkpoint, cli, goodput, hosts, profiling, runs, stepmetrics
from rpt import config as config_lib
from rpt import ledger as ledger_lib
from rpt import watch as watch_lib

Save = Callable[[], checkpoint.TrainState]


@dataclasses.dataclass(frozen=True)
class LoopState:
    """What a step changes, of any loop."""

    step: int
    params: Any
    opt_state: Any
    book: ledger_lib.Ledger = ledger_lib.Ledger()
    watch: watch_lib.Watch = watch_lib.Watch()


State = TypeVar("State", bound=LoopState)


class Session:
    """One start of a run; as a context it lets the save under way finish before an error goes on.

    Args:
      workdir: run directory, opened by `runs.open_run`.
      config: the run's.
      team: the hosts.
      stop: asks for the end, on any of them.

    Attributes:
      store: the checkpoints.
      log: of steps and lines; `start` makes it.
      metrics: of the newest step.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: config_lib.Config,
        team: hosts.Hosts,
        stop: cli.StopSignal | None,
    ):
        self.team, self.stop = team, stop
        self.store = checkpoint.Checkpoints(workdir, config.logging.keep_last, team)
        self._workdir, self._config = workdir, config
        self._began, self._seconds_before = time.monotonic(), 0.0
        self._tracer = profiling.Tracer(
            config.profile if team.is_first else profiling.ProfileConfig(), workdir
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        # An interpreter that ends starts no more threads, which a save needs. Ctrl-C, the second,
        # ends at once.
        if isinstance(error, Exception):
            self.store.let_finish()

    def restore(self, fresh: State) -> tuple[State, Mapping[str, Any] | None, list[str]]:
        """The newest good checkpoint in place of `fresh`, which stays where there is none.

        Returns:
          the state, its loop's own fields as in `fresh`; what the checkpoint holds beside it; lines
          for the log.
        """
        like = checkpoint.TrainState(0, fresh.params, fresh.opt_state, {})
        restored, notes = self.store.restore(like)
        if restored is None:
            return fresh, None, notes
        state = dataclasses.replace(
            fresh,
            step=restored.step,
            params=restored.params,
            opt_state=restored.opt_state,
            book=ledger_lib.Ledger(**restored.host["ledger"]),
            watch=watch_lib.Watch(**restored.host["watch"]),
        )
        return state, restored.host, notes

    def start(
        self, name: str, step: int, total_steps: int, saved: Mapping[str, Any] | None, notes: list
    ) -> None:
        """Opens the log behind `step`; `saved` is `host` of the checkpoint that it goes on from."""
        if saved is not None:
            self._seconds_before = saved["wall_seconds"]
        first = self.team.is_first
        saved_goodput = None if saved is None else saved["goodput"]
        self._meter = goodput.Goodput(self._workdir, self._began, saved_goodput, writes=first)
        every = self._config.logging.log_every_steps
        make = runs.Log if first else runs.NoLog
        self.log = make(self._workdir, name, step, total_steps, every)
        self.metrics = self.log.last
        for line in notes:
            self.log.say(line)

    def checkpoint(self, state: LoopState, own: Mapping[str, Any]) -> checkpoint.TrainState:
        """Everything; `own` (JSON) is the loop's."""
        host = {
            "ledger": dataclasses.asdict(state.book),
            "watch": dataclasses.asdict(state.watch),
            "goodput": self._meter.state(),
            "wall_seconds": self._seconds(),
            **own,
        }
        return checkpoint.TrainState(state.step, state.params, state.opt_state, host)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def must_stop(self) -> bool:
        """Whether any host was asked to stop, as all see it."""
        return self.team.any(self.stop is not None and self.stop.received)

    def begin_step(self, step: int) -> stepmetrics.Clock:
        """Before step number `step`, from 1."""
        self.store.check()
        self._tracer.begin(step)
        return stepmetrics.Clock()

    def end_step(
        self, step: int, metrics: dict[str, float], note: str, clock: stepmetrics.Clock
    ) -> None:
        """Its results are there."""
        self._tracer.end(step)
        self.metrics = metrics
        self.log.write(step, metrics, note)
        self._meter.add_laps(clock.seconds())

    def keep(self, before: ledger_lib.Ledger, state: LoopState, save: Save) -> None:
        """Saves where it is due; ends a run that learns nothing.

        Args:
          before: the ledger before the step.
          state: after it.
          save: makes the checkpoint.

        Raises:
          watch.TooManySkipped: the state is saved.
        """
        logging, step = self._config.logging, state.step
        began, per_decade = time.monotonic(), logging.scaling_checkpoints_per_decade
        if ledger_lib.crosses_scaling_point(before, state.book, per_decade):
            self.store.save_scaling(step, state.params)
        if step % logging.checkpoint_every_steps == 0:
            self.log.flush()
            self.store.save(save())
        self._meter.add("save", time.monotonic() - began)
        self._meter.beat(step)
        if state.watch.must_stop(self._config.watch):
            self._close(step, save, "skipped too many updates")
            raise state.watch.stopped(step)

    def _close(self, step: int, save: Save, status: str) -> None:
        began = time.monotonic()
        self.store.save(save())
        self.store.close()
        # The first is the last to be done. An end before that, with an error, would cut it off.
        self.team.barrier()
        self._meter.add("save", time.monotonic() - began)
        self._meter.beat(step, status)
        self._tracer.close()
        self.log.close()

    def finish(
        self, state: LoopState, save: Save, finished: bool, own: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Saves, closes, writes summary.json and returns it; `own` are the loop's fields."""
        self._close(state.step, save, "finished" if finished else "stopped")
        book = state.book
        summary = {
            "finished": finished,
            "step": state.step,
            "wall_seconds": self._seconds(),
            "metrics": self.metrics,
            "ledger": {**dataclasses.asdict(book), "training_flops": book.training_flops},
            "watch": dataclasses.asdict(state.watch),
            "goodput": self._meter.summary(),
            "params_sha256": checkpoint.params_sha256(state.params),
            **own,
        }
        if self.team.is_first:
            runs.write_json(self._workdir / "summary.json", summary)
        return summary
