"""Which source of a mixture is read next, by weights that may change while a stream runs.

A draw is one window (data/documents.py). At each draw every source earns its weight, normalised to
sum 1, and the source that is owed most, the first of those at a tie, is read and pays 1:

    owed_k = credit_k + weight_k * (draws + 1) - drawn_k

So mixing is a small state and no function of the position, and shares keep to the weights at every
moment, without chance. A change of weights begins a new count of `draws` and `drawn_k`; what was
owed until then stays as `credit_k`, so that weights that change after every batch (a curriculum)
still give a rare source its due. A source of weight 0 is not read and loses its credit.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Changes that a state remembers; a curriculum that changes weights at every step must not make
# states grow. The trainer logs each change as it comes.
_MOST_EVENTS = 100

Event = tuple[int, dict[str, float]]


def tempered(weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Weights to the power 1 / temperature, normalised to sum 1.

    Args:
        weights: such as the sources' sizes in tokens.
        temperature: 1 keeps proportions, larger ones level them; 0 stays 0 at any.

    Raises:
        ValueError: a temperature that is not positive, or weights that `check` refuses.
    """
    check(weights)
    if not 0 < temperature < math.inf:
        raise ValueError(f"a mixture's temperature must be positive, not {temperature}")
    # Relative to the largest, so that no power overflows.
    most = max(weights.values())
    raised = {name: (weight / most) ** (1 / temperature) for name, weight in weights.items()}
    total = sum(raised.values())
    return {name: value / total for name, value in raised.items()}


def check(weights: Mapping[str, float]) -> None:
    """Raises ValueError for a weight that is negative or not finite, or where all are 0."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name!r} must be 0 or more, not {weight}")
    if not any(weights.values()):
        raise ValueError(f"the weights of {', '.join(map(repr, weights))} are all 0")


class Mixture:
    """The draws of one shard.

    Args:
        weights: as configured, by the names of the sources in their order.
        phase: begin so many draws into the sequence, so that shards read different sources at the
            same moment; the credit that is owed there is kept, and nothing is counted.

    Attributes:
        events: the latest weights, each with the number of draws before them; the first entry is
            where the stream began, until 100 later ones have pushed it out.
        changes: how many changes of weights there were.
        total: draws since the beginning.
    """

    def __init__(self, weights: Mapping[str, float], phase: int = 0):
        check(weights)
        self._configured = {name: float(weight) for name, weight in weights.items()}
        self.total = 0
        self.changes = 0
        self.events: list[Event] = [(0, dict(self._configured))]
        self._credit = [0.0] * len(weights)
        self._begin_count()
        for _ in range(phase):
            self.draw(self.pick())
        self._credit = [
            weight * self._draws - drawn for weight, drawn in zip(self._normalised, self._drawn)
        ]
        self.total = 0
        self._begin_count()

    def _begin_count(self) -> None:
        self._normalised = list(_normalised(self.events[-1][1]).values())
        self._draws = 0
        self._drawn = [0] * len(self._normalised)

    @property
    def weights(self) -> dict[str, float]:
        """The present ones, normalised."""
        return _normalised(self.events[-1][1])

    def pick(self) -> int:
        """The number of the source to be read next; the same until `draw`."""
        best, most = -1, -math.inf
        for k, weight in enumerate(self._normalised):
            owed = self._credit[k] + weight * (self._draws + 1) - self._drawn[k]
            if weight > 0 and owed > most:
                best, most = k, owed
        return best

    def draw(self, source: int) -> None:
        """Counts one draw of the source that was picked."""
        self._draws += 1
        self._drawn[source] += 1
        self.total += 1

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Changes weights from the next draw on; names that are left out keep theirs.

        Weights that are the same after normalising change nothing.

        Raises:
            ValueError: a name that is no source, or weights that `check` refuses.
        """
        names = self.events[-1][1]
        for name in weights:
            if name not in names:
                known = ", ".join(map(repr, names))
                raise ValueError(
                    f"a weight is given for {name!r}, which is no source of the mixture ({known})"
                )
        new = names | {name: float(weight) for name, weight in weights.items()}
        check(new)
        if _normalised(new) == self.weights:
            return
        self._credit = [
            credit + weight * self._draws - drawn if new_weight > 0 else 0.0
            for credit, weight, drawn, new_weight in zip(
                self._credit, self._normalised, self._drawn, new.values()
            )
        ]
        self.events = [*self.events, (self.total, new)][-_MOST_EVENTS:]
        self.changes += 1
        self._begin_count()

    def get_state(self) -> dict[str, Any]:
        return {
            "configured": dict(self._configured),
            "events": [[draws, dict(weights)] for draws, weights in self.events],
            "changes": self.changes,
            "total": self.total,
            "credit": list(self._credit),
            "draws": self._draws,
            "drawn": list(self._drawn),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; weights configured otherwise than they were then become an event.

        Where they are as they were then, weights set while the stream ran stay in force.
        """
        # In the order of the sources, whatever a file made of it.
        self.events = [
            (draws, {name: weights[name] for name in self._configured})
            for draws, weights in state["events"]
        ]
        self.changes, self.total = state["changes"], state["total"]
        self._credit = list(state["credit"])
        self._begin_count()
        self._draws, self._drawn = state["draws"], list(state["drawn"])
        if _normalised(state["configured"]) != _normalised(self._configured):
            self.set_weights(self._configured)


def deal_states(states: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """States of `count` shards from those of all old ones; nothing is owed then.

    Draws are dealt evenly; events stand at the mean number of draws of a shard.

    Raises:
        ValueError: the shards do not have the same weights.
    """
    histories = [[weights for _, weights in state["events"]] for state in states]
    configured = [state["configured"] for state in states]
    for other, of_config in zip(histories[1:], configured[1:]):
        if other != histories[0] or of_config != configured[0]:
            raise ValueError(
                "the states have different histories of mixture weights; set the same weights on "
                "every shard before it is saved"
            )
    totals = spread(sum(state["total"] for state in states), count)
    new = []
    for total in totals:
        state = dict(copy.deepcopy(states[0]))
        moments = [[draws for draws, _ in given["events"]] for given in states]
        state["events"] = [
            [min(sum(draws) // count, total), weights]
            for draws, weights in zip(zip(*moments), copy.deepcopy(histories[0]))
        ]
        zeros = [0] * len(state["drawn"])
        state |= {"total": total, "draws": 0, "drawn": zeros, "credit": [0.0] * len(zeros)}
        new.append(state)
    return new


def spread(number: int, count: int) -> list[int]:
    """`count` whole numbers that sum to `number` and differ by at most one."""
    return [number // count + (index < number % count) for index in range(count)]


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
