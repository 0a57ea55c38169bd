"""Several shards of a stream, one below the other, as one batch.

A batch of B rows is cut into blocks of equal height, and each block is a shard of its own
(data/resharding.py). So the order of the data depends on the number of shards alone, and not on who
reads them: one process reads all of them, and each of several reads a run of neighbours.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from data import mixtures, pipeline, resharding

Batch = TypeVar("Batch", pipeline.PackedBatch, pipeline.TrunkBatch)
# What all shards count alike; the rest are sums, and of epochs the mean.
_COMMON = ("weight", "left_out", "noted")


class Joined(Generic[Batch]):
    """A stream of the rows of several shards.

    Args:
        first: the stream of one shard, at its beginning.
        indices: of all shards to read here, ascending; `first` is that of indices[0].
        shard_count: of all shards that there are.
    """

    def __init__(self, first: pipeline.Stream[Batch], indices: range, shard_count: int):
        self._streams = [first, *[first.sibling(index) for index in indices[1:]]]
        self._indices, self._shard_count = indices, shard_count
        # What was counted before any shard has begun, such as documents that are too short.
        self._beginning = first.counts()

    def __iter__(self) -> "Joined[Batch]":
        return self

    def __next__(self) -> Batch:
        before = self.get_states() if len(self._streams) > 1 else []
        try:
            return _stacked([next(stream) for stream in self._streams])
        except BaseException:
            # Without a batch its rows have not been read, of no shard.
            for stream, state in zip(self._streams, before):
                stream.set_state(state)
            raise

    def get_states(self) -> list[dict[str, Any]]:
        """Of the shards that are read here."""
        return [stream.get_state() for stream in self._streams]

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Goes on from the states of ALL shards; of another number of shards they are dealt anew.

        Raises:
            ValueError: the states are not of a stream made alike.
        """
        if len(states) != self._shard_count:
            states = resharding.reshard(states, self._shard_count)
        for index, stream in zip(self._indices, self._streams):
            stream.set_state(states[index])

    @property
    def events(self) -> Sequence[mixtures.Event]:
        """Of the first shard here: draws count its own windows."""
        return self._streams[0].events

    def counts(self) -> list[dict[str, float]]:
        """Of the shards that are read here."""
        return [stream.counts() for stream in self._streams]

    def merged(self, counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """The counts of any shards as one; see `pipeline.Stream.counts`."""
        counts = list(counts)
        found = {}
        for name, before in self._beginning.items():
            values = [each[name] for each in counts]
            kind = name.partition("/")[0]
            if kind in _COMMON or name == "weight_changes":
                found[name] = values[0]
            elif kind == "epochs":
                found[name] = sum(values) / len(values)
            else:
                found[name] = before + sum(value - before for value in values)
        return found


def _stacked(batches: Sequence[Batch]) -> Batch:
    """Their rows one below the other."""
    if len(batches) == 1:
        return batches[0]
    fields = {}
    for field in dataclasses.fields(batches[0]):
        values = [getattr(batch, field.name) for batch in batches]
        if isinstance(values[0], np.ndarray):
            fields[field.name] = np.concatenate(values)
        elif isinstance(values[0], tuple):
            fields[field.name] = tuple(itertools.chain.from_iterable(values))
        else:
            fields[field.name] = values[0]  # one length of the header for all
    return dataclasses.replace(batches[0], **fields)
