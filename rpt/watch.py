"""A run that watches itself: updates that are skipped, and alarms on metrics that went bad.

An update whose loss or gradient is not finite is skipped inside its program (`update.apply`); here
it is counted, and too many in a row end the run. An alarm is raised when its condition has held for
`patience_steps` steps in a row, and ends with the first step in which it does not hold.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """Thresholds of alarms; each can be switched off by the value in brackets.

    Attributes:
      most_skipped_in_a_row: this many skipped updates in a row end the run [0].
      patience_steps: how long a condition holds before its alarm is raised.
      mismatch_mean_nats: alarm above, sampler against trainer [inf].
      least_entropy_nats: alarm below, in steps that train groups [0].
      least_thought_share: alarm below this share of the thoughts' first length, the mean over
        the first `patience_steps` steps [0].
      least_groups_mixed: alarm below: the share of groups that have a gradient [0].
      most_gold_in_thought: alarm above: thoughts that hold the very token to be predicted [1].
    """

    most_skipped_in_a_row: int = 10
    patience_steps: int = 20
    mismatch_mean_nats: float = 0.02
    least_entropy_nats: float = 0.02
    least_thought_share: float = 0.25
    least_groups_mixed: float = 0.02
    most_gold_in_thought: float = 0.95

    def __post_init__(self):
        if self.patience_steps < 1 or self.most_skipped_in_a_row < 0:
            raise ValueError(
                "patience_steps must be at least 1 and most_skipped_in_a_row at least 0, not "
                f"{self.patience_steps} and {self.most_skipped_in_a_row}"
            )


class TooManySkipped(ValueError):
    """The state is saved; the run has ended because it no longer learns."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What has been seen so far; JSON through dataclasses.asdict.

    Attributes:
      skipped, skipped_in_a_row: updates that were not made.
      thought_tokens: sum over the first `thought_steps` steps.
      held: for each condition, for how many steps it has held.
      alarms: all so far: name, step, value, threshold, and the step of its end or None.
    """

    skipped: int = 0
    skipped_in_a_row: int = 0
    thought_tokens: float = 0.0
    thought_steps: int = 0
    held: dict[str, int] = dataclasses.field(default_factory=dict)
    alarms: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def after_update(self, loss: float, grad_norm: float) -> "Watch":
        """Counts the update if it was skipped, by the rule of `update.apply`."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return dataclasses.replace(self, skipped_in_a_row=0)
        return dataclasses.replace(
            self, skipped=self.skipped + 1, skipped_in_a_row=self.skipped_in_a_row + 1
        )

    def must_stop(self, config: WatchConfig) -> bool:
        return 0 < config.most_skipped_in_a_row <= self.skipped_in_a_row

    def stopped(self, step: int) -> TooManySkipped:
        """The error that ends the run, its state saved."""
        return TooManySkipped(
            f"loss or gradient was not finite in the last {self.skipped_in_a_row} steps, whose "
            f"updates were skipped; stopped at step {step} with the state from before them saved; "
            "see docs/reliability.md"
        )

    def after_step(
        self, config: WatchConfig, step: int, metrics: Mapping[str, float]
    ) -> tuple["Watch", list[str]]:
        """Judges the metrics of a training step; returns a line for each alarm that begins."""
        watch = self
        if self.thought_steps < config.patience_steps:
            watch = dataclasses.replace(
                self,
                thought_tokens=self.thought_tokens + metrics["thought_tokens"],
                thought_steps=self.thought_steps + 1,
            )
        held, alarms, lines = dict(watch.held), list(watch.alarms), []
        for name, (bad, value, threshold) in watch._conditions(config, metrics).items():
            if bad is None:  # nothing to judge in this step
                continue
            held[name] = held.get(name, 0) + 1 if bad else 0
            if held[name] == config.patience_steps:
                alarms.append(
                    {
                        "name": name,
                        "step": step,
                        "value": value,
                        "threshold": threshold,
                        "end": None,
                    }
                )
                lines.append(
                    f"alarm {name} at step {step}: {value:.4g}, threshold {threshold:.4g}, for "
                    f"{config.patience_steps} steps; see docs/reliability.md"
                )
            elif not bad:
                alarms = [
                    {**alarm, "end": step}
                    if (alarm["name"], alarm["end"]) == (name, None)
                    else alarm
                    for alarm in alarms
                ]
        return dataclasses.replace(watch, held=held, alarms=alarms), lines

    def _conditions(
        self, config: WatchConfig, metrics: Mapping[str, float]
    ) -> dict[str, tuple[bool | None, float, float]]:
        """Name -> (does it hold, value, threshold). A value that is not finite holds nothing."""
        trained = metrics["trained_tokens"] > 0
        thought, first = metrics["thought_tokens"], self.thought_tokens / max(self.thought_steps, 1)
        shortest = config.least_thought_share * first
        mismatch, entropy = metrics["mismatch_mean_nats"], metrics["policy_entropy_nats"]
        mixed, gold = metrics["groups_mixed"], metrics["gold_in_thought_rate"]
        return {
            "mismatch": (
                mismatch > config.mismatch_mean_nats if trained else None,
                mismatch,
                config.mismatch_mean_nats,
            ),
            "entropy_collapse": (
                entropy < config.least_entropy_nats if trained else None,
                entropy,
                config.least_entropy_nats,
            ),
            "thought_collapse": (thought < shortest, thought, shortest),
            "no_gradient": (mixed < config.least_groups_mixed, mixed, config.least_groups_mixed),
            "gold_in_thought": (
                gold > config.most_gold_in_thought,
                gold,
                config.most_gold_in_thought,
            ),
        }
