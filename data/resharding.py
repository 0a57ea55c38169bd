"""Which documents of a source a shard reads, and dealing that anew to another number of shards.

A source's documents have ordinals 0, 1, 2, ... over its endless shuffled epochs
(data/documents.py). Every source's ordinals are dealt to the shards on their own, so that a shard's
part of a source does not depend on the mixture: shard i of n reads i, i + n, i + 2 n, ....

Shards that were stopped, each at any moment, have read their progressions to different ends and may
be within a document. `reshard` deals what is left to any other number of shards:

    old shards    0: ....x.-.-.-.-.-      . read    x read in part    - to be read
                  1: ........-.-.-.-
                             |level: the furthest of the old shards' next ordinals
    new shards    what is left below the level, dealt round robin, then the deal goes on above it

So every ordinal, and every window of a document that was read in part, is read by exactly one
shard: within an epoch nothing is lost and nothing is repeated.
"""

import collections
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data import mixtures


class Share:
    """What one shard has still to read of one source, in this order.

    Fields:
        holes: (ordinal, window): documents of which the windows from this one on are left; the
            one that is being read stands first.
        runs: (first, stride, stop): ordinals left over by a resharding; empty ones there are none.
        next, stride: then next, next + stride, ... without end.
    """

    def __init__(self, index: int, count: int):
        self.holes: collections.deque[tuple[int, int]] = collections.deque()
        self.runs: collections.deque[tuple[int, int, int]] = collections.deque()
        self.next, self.stride = index, count

    def peek(self, total: int | None) -> tuple[int, int] | None:
        """(ordinal, window) to be read next, or None where all ordinals below `total` are read."""
        if self.holes:
            return self.holes[0]
        if self.runs:
            return self.runs[0][0], 0
        return (self.next, 0) if total is None or self.next < total else None

    def advance(self, window: int | None) -> None:
        """The document at `peek` is done with, or to be read on from a window."""
        if self.holes:
            ordinal, _ = self.holes.popleft()
        elif self.runs:
            ordinal, stride, stop = self.runs.popleft()
            if ordinal + stride < stop:
                self.runs.appendleft((ordinal + stride, stride, stop))
        else:
            ordinal, self.next = self.next, self.next + self.stride
        if window is not None:
            self.holes.appendleft((ordinal, window))

    def remaining(self, total: int) -> int:
        """How many documents below `total` are left, in part or whole."""
        runs = [*self.runs, (self.next, self.stride, total)]
        return len(self.holes) + sum(len(range(*_range(run))) for run in runs)

    def get_state(self) -> dict[str, Any]:
        return {
            "holes": [list(hole) for hole in self.holes],
            "runs": [list(run) for run in self.runs],
            "next": self.next,
            "stride": self.stride,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Share":
        share = cls(state["next"], state["stride"])
        share.holes.extend((ordinal, window) for ordinal, window in state["holes"])
        share.runs.extend((first, stride, stop) for first, stride, stop in state["runs"])
        return share


def _range(run: tuple[int, int, int]) -> tuple[int, int, int]:
    first, stride, stop = run
    return first, stop, stride


def reshard(states: Sequence[Mapping[str, Any]], shard_count: int) -> list[dict[str, Any]]:
    """States for `shard_count` shards that together read what the old ones had still to read.

    For each source, the new shards' numbers of documents left differ by at most one. Counts are
    dealt evenly, so that their sums stay; a packed stream's waiting windows go round robin, and so
    do the records that any old shard could not use.

    Args:
        states: `get_state()` of every shard of one stream, in order, each from any moment.
        shard_count: of the new streams.

    Raises:
        ValueError: these are not the states of all shards of one stream, or there are to be fewer
            than one shard.
    """
    _check(states, shard_count)
    identity = states[0]["identity"]
    sources = range(len(identity["elements"]))
    totals = [
        None if identity["epochs"] is None else elements * identity["epochs"]
        for elements in identity["elements"]
    ]
    shares = [
        deal([Share.from_state(state["shares"][k]) for state in states], totals[k], shard_count)
        for k in sources
    ]
    mixture = mixtures.deal_states([state["mixture"] for state in states], shard_count)
    counts = _deal_counts([state["counts"] for state in states], shard_count)
    faulty = [sorted({place for s in states for place in s["faulty"][k]}) for k in sources]
    lineage = hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:16]
    new = []
    for index in range(shard_count):
        state = {
            "identity": identity,
            "shard": [index, shard_count],
            "lineage": lineage,
            "shares": [shares[k][index].get_state() for k in sources],
            "mixture": mixture[index],
            "counts": counts[index],
            "faulty": [places[index::shard_count] for places in faulty],
            "drops_in_a_row": [0 for _ in sources],
        }
        if "waiting" in states[0]:
            waiting = itertools.chain.from_iterable(state["waiting"] for state in states)
            state["waiting"] = [list(key) for key in waiting][index::shard_count]
        if "rows_left" in states[0]:
            # None where rows cannot be counted beforehand, as there is no end or no small source.
            state["rows_left"] = states[0]["rows_left"]
            if state["rows_left"] is not None and totals[0] is not None:
                state["rows_left"] = max(share.remaining(totals[0]) for share in shares[0])
        new.append(state)
    return new


def deal(shares: Sequence[Share], total: int | None, count: int) -> list[Share]:
    """What is left of one source, dealt to `count` shards.

    Args:
        shares: of all old shards.
        total: ordinals that there are; None is no end.
    """
    level = max(share.next for share in shares)
    if total is not None:
        level = min(level, total)
    holes = sorted(hole for share in shares for hole in share.holes)
    runs = [run for share in shares for run in share.runs]
    runs += [(share.next, share.stride, level) for share in shares if share.next < level]
    new = [Share(0, count) for _ in range(count)]
    for index, share in enumerate(new):
        share.holes.extend(holes[index::count])
    dealt = len(holes)
    for first, stride, stop in sorted(runs):
        members = len(range(first, stop, stride))
        for number in range(min(members, count)):
            run = (first + number * stride, stride * count, stop)
            new[(dealt + number) % count].runs.append(run)
        dealt += members
    for index, share in enumerate(new):
        share.next = level + (index - dealt) % count
    return new


def _check(states: Sequence[Mapping[str, Any]], shard_count: int) -> None:
    if shard_count < 1:
        raise ValueError(f"shard_count must be at least 1, not {shard_count}")
    if not states or any("identity" not in state or "shard" not in state for state in states):
        raise ValueError("reshard needs the states of all shards of a stream, from get_state()")
    shards = [list(state["shard"]) for state in states]
    if shards != [[index, len(states)] for index in range(len(states))]:
        found = ", ".join(f"{index} of {count}" for index, count in shards)
        raise ValueError(f"reshard needs the states of all shards in their order, not of {found}")
    for state in states[1:]:
        for name, value in states[0]["identity"].items():
            if state["identity"].get(name) != value:
                raise ValueError(
                    f"the states do not belong together: {name} is {value} in shard 0 and "
                    f"{state['identity'].get(name)} in shard {state['shard'][0]}"
                )
        if state["lineage"] != states[0]["lineage"] or state.keys() != states[0].keys():
            raise ValueError(
                f"the states do not belong together: shard {state['shard'][0]} comes from another "
                "resharding than shard 0"
            )


def _deal_counts(counts: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Every number (one or a list with one per source) is dealt evenly."""
    new: list[dict[str, Any]] = [{} for _ in range(count)]
    for name in counts[0]:
        if isinstance(counts[0][name], list):
            columns = zip(*(given[name] for given in counts))
            per_source = [mixtures.spread(sum(column), count) for column in columns]
            dealt: list[Any] = [list(numbers) for numbers in zip(*per_source)]
        else:
            dealt = mixtures.spread(sum(given[name] for given in counts), count)
        for state, value in zip(new, dealt):
            state[name] = value
    return new
