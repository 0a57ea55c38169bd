"""One shard's walk over the windows of a mixture, and its state.

    mixture (data/mixtures.py)   which source is drawn from
    share (data/resharding.py)   which ordinal, and which window of it
    part (data/documents.py)     the document there

Every source is dealt to the shards on its own, so all shards see the same mixture and together
every document once an epoch. Shards are plain integers: nothing here asks an accelerator library
who it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data import digests, documents, mixtures, records, resharding, tokenizers

_EDITED = ": the text of a source was edited since; put it back, or begin a new run"
# Of the state; a state of another version is refused.
_VERSION = 3


class Found(NamedTuple):
    """A window. `key` is (number of the source, ordinal, window); `start` is its first token."""

    key: tuple[int, int, int]
    document: documents.TokenDocument
    start: int


class Cursor:
    """Walks over the windows of a mixture.

    Args:
        mixture: the sources.
        starts_of: where the windows of a document start, by its number of tokens.
        cutting: the same in words; streams that cut otherwise refuse each other's states.
        epochs: None repeats for ever; else that many passes, of a single source.

    Raises:
        ValueError: the mixture, a weight or the shard makes no sense.
    """

    def __init__(
        self,
        mixture: Sequence[documents.Mix],
        tokenizer: tokenizers.Tokenizer,
        starts_of: documents.StartsOf,
        cutting: str,
        *,
        seed: int,
        shard_index: int,
        shard_count: int,
        epochs: int | None,
    ):
        _check(mixture, shard_index, shard_count, epochs)
        self.mixture = mixtures.Mixture({mix.name: mix.weight for mix in mixture})
        reader = documents.Reader(tokenizer)
        seeds = [np.random.SeedSequence([seed, k]) for k in range(len(mixture))]
        self.parts = [
            documents.Part(
                mix, reader, starts_of, seed=int(own.generate_state(1)[0]), epochs=epochs
            )
            for mix, own in zip(mixture, seeds)
        ]
        self._shard = [shard_index, shard_count]
        self._shares = [resharding.Share(shard_index, shard_count) for _ in mixture]
        self._drops_in_a_row = [0] * len(mixture)
        self._lineage = ""
        # Of every source: the records that could not be used, by their places in it.
        self._faulty: list[set[int]] = [set() for _ in mixture]
        self._counts: dict[str, Any] = {
            **{name: [0] * len(mixture) for name in ("windows", "finished")},
            **dict.fromkeys(("dropped", "inexact"), 0),
        }
        self._identity = {
            "version": _VERSION,
            "sources": [[mix.name, len(mix.source)] for mix in mixture],
            "documents": {mix.name: digests.shown(mix.source.digest()) for mix in mixture},
            "elements": [len(part) for part in self.parts],
            "cutting": cutting,
            "epochs": epochs,
            "tokenizer": tokenizer.digest(),
            "seed": seed,
        }

    def next(self) -> Found | None:
        """The next window, or None at the end.

        Raises:
            records.Fault: a record cannot be used and is not to be skipped; `next` tries again.
            ValueError: a large source seems to hold no document that is long enough, or too many
                records that cannot be used.
        """
        while True:
            number = self.mixture.pick()
            part, share = self.parts[number], self._shares[number]
            place = share.peek(part.total)
            if place is None:
                return None
            key = (number, *place)
            try:
                found = part.window(*place)
            except records.Fault as fault:
                self._skip(number, place[0], fault)
                self._pass(number)
                continue
            if found is None:
                self._counts["dropped"] += 1
                self._pass(number)
                continue
            document, start = found
            self.mixture.draw(number)
            self._drops_in_a_row[number] = 0
            self._counts["windows"][number] += 1
            self._counts["inexact"] += start == 0 and not document.is_exact
            following = key[2] + 1
            if following < len(part.read(key[1])[1]):
                share.advance(following)
            else:
                self._finish(number)
            return Found(key, document, start)

    def window(self, key: Sequence[int]) -> Found | None:
        """A window that was passed before; None if it has become a fault that is skipped."""
        number, ordinal, window = key
        try:
            found = self.parts[number].window(ordinal, window)
        except records.Fault as fault:
            self._skip(number, ordinal, fault)
            return None
        return None if found is None else Found((number, ordinal, window), *found)

    def counts(self) -> dict[str, float]:
        """So far, in this shard; see `pipeline.Stream.counts`."""
        counts, found = self._counts, {}
        for number, part in enumerate(self.parts):
            found[f"windows/{part.name}"] = counts["windows"][number]
            read = counts["finished"][number] * self._shard[1]
            found[f"epochs/{part.name}"] = read / len(part)
            found[f"weight/{part.name}"] = self.mixture.weights[part.name]
            for reason, left_out in records.left_out(part.counts).items():
                found[f"left_out/{part.name}/{reason}"] = left_out
            for fact, known in records.noted(part.counts).items():
                found[f"noted/{part.name}/{fact}"] = known
        return {
            "windows": sum(counts["windows"]),
            "dropped_documents": counts["dropped"] + sum(part.dropped for part in self.parts),
            "inexact_documents": counts["inexact"],
            "skipped_faults": sum(map(len, self._faulty)) + sum(p.faults for p in self.parts),
            "weight_changes": self.mixture.changes,
            **found,
        }

    def get_state(self) -> dict[str, Any]:
        return {
            "identity": self._identity,
            "shard": list(self._shard),
            "lineage": self._lineage,
            "shares": [share.get_state() for share in self._shares],
            "mixture": self.mixture.get_state(),
            "counts": _copied(self._counts),
            "faulty": [sorted(places) for places in self._faulty],
            "drops_in_a_row": list(self._drops_in_a_row),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a state, as it is or after a trip through JSON.

        Weights that were configured otherwise become an event of the mixture.

        Raises:
            ValueError: the state belongs to other data or to another shard.
        """
        given = state.get("identity", {})
        for name, own in self._identity.items():
            if own != given.get(name):
                raise ValueError(
                    f"the saved data state is of another run: {name} was {given.get(name)}, "
                    f"is {own}{_EDITED if name == 'documents' else ''}"
                )
        if self._shard != list(state["shard"]):
            (index, count), (own_index, own_count) = state["shard"], self._shard
            raise ValueError(
                f"the saved data state is of shard {index} of {count}, this is {own_index} of "
                f"{own_count}: deal the states of all shards anew with data.resharding.reshard"
            )
        self._lineage = state["lineage"]
        self._shares = [resharding.Share.from_state(share) for share in state["shares"]]
        self._counts = _copied(state["counts"])
        self._faulty = [set(places) for places in state["faulty"]]
        self._drops_in_a_row = list(state["drops_in_a_row"])
        self.mixture.set_state(state["mixture"])

    def _skip(self, number: int, ordinal: int, fault: records.Fault) -> None:
        """A record counts once: it comes again in every epoch, and with every window that waits."""
        part, faulty = self.parts[number], self._faulty[number]
        place = part.place(ordinal)
        part.check_fault(fault, 0 if place in faulty else len(faulty))
        faulty.add(place)

    def _pass(self, number: int) -> None:
        """The document at hand gives no window."""
        self._drops_in_a_row[number] += 1
        self._finish(number)
        if self._drops_in_a_row[number] >= documents.DROPS_IN_A_ROW:
            raise self.parts[number].nothing_usable()

    def _finish(self, number: int) -> None:
        self._counts["finished"][number] += 1
        self._shares[number].advance(None)


def _check(
    mixture: Sequence[documents.Mix], shard_index: int, shard_count: int, epochs: int | None
) -> None:
    names = [mix.name for mix in mixture]
    if not mixture or len(set(names)) < len(names):
        raise ValueError(f"a mixture needs sources with distinct names, not {names}")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index {shard_index} is not in 0..{shard_count - 1}")
    if epochs is not None and (epochs < 1 or len(mixture) > 1):
        raise ValueError("a finite number of epochs must be >= 1 and needs a mixture of one source")


def _copied(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, or lists with one per source."""
    return {
        name: list(value) if isinstance(value, list) else value for name, value in counts.items()
    }
