"""Tokenised documents and the order in which a run reads them.

A source is read in windows: pieces of documents that fit a row. The order is a pure function of
(seed, position): `Windows.at` answers for any position, so a stream's whole state is a few integers
and a run resumes exactly.

    small source    all documents are tokenised at the start; their windows are shuffled
    large source    documents are shuffled by index and tokenised when read, windows in sequence

Every epoch is shuffled anew.

Several sources are interleaved by weight, counted in windows (small) or documents (large). Every
shard reads each source's order at shard_index, shard_index + shard_count, ..., so all shards see
the same mixture and together every document once an epoch. Shards are plain integers: nothing here
asks an accelerator library who it is.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data import records, tokenizers

INDEXED_DOCUMENTS = 10_000
INDEXED_TOKENS = 2**24
_DROPS_IN_A_ROW = 10_000

_WORD = re.compile(r"\S+")
_ASCII_SPACE = np.isin(np.arange(256), np.frombuffer(b" \t\n\v\f\r\x1c\x1d\x1e\x1f", np.uint8))


@dataclasses.dataclass(frozen=True)
class Mix:
    """A source's part in a mixture; weights need not sum to 1."""

    source: records.Source
    weight: float
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDocument:
    """One tokenised document, without bos and eos.

    Fields:
        tokens: int32 [n].
        document_id: as in `records.Record`.
        labels: (token index, label): the record's labels, at the token that holds the word's first
            byte.
        is_exact: the tokens' bytes are the text's bytes (a normaliser or a dummy prefix changes
            them).
    """

    tokens: np.ndarray
    document_id: int
    labels: tuple[tuple[int, str], ...]
    is_exact: bool


class Reader:
    """Tokenises records; holds the bytes of every token for it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self.tokenizer = tokenizer
        self._pieces = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self._lengths = np.array([len(piece) for piece in self._pieces], np.int64)

    def read(self, record: records.Record) -> TokenDocument:
        encode = self.tokenizer.encode_markup if record.markup else self.tokenizer.encode
        tokens = encode(record.text)
        raw = record.text.encode()
        is_exact = b"".join([self._pieces[id] for id in tokens.tolist()]) == raw
        labels: tuple[tuple[int, str], ...] = ()
        if record.labels:
            if not is_exact:
                raise ValueError("labels need a tokenizer whose tokens keep the text's bytes")
            words, names = zip(*record.labels)
            starts = word_starts(record.text)[list(words)]
            token_ends = self._lengths[tokens].cumsum()
            labels = tuple(zip(token_ends.searchsorted(starts, side="right").tolist(), names))
        return TokenDocument(tokens, record.document_id, labels, is_exact)


def word_starts(text: str) -> np.ndarray:
    """int64 [words]: the byte at which each word of `text.split()` starts."""
    if text.isascii():
        # One space put before the text: a word then starts at i where i is space and i + 1 is not.
        space = _ASCII_SPACE[np.frombuffer(b" " + text.encode(), np.uint8)]
        return (space[:-1] > space[1:]).nonzero()[0]
    sizes = [len(char.encode()) for char in text]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return offsets[[match.start() for match in _WORD.finditer(text)]]


class Part:
    """One source of a mixture, cut into elements.

    Args:
        starts_of: number of tokens of a document -> where its windows start; none drops the
            document.

    Raises:
        ValueError: the source is small, so read whole, and no document has a window.
    """

    def __init__(self, mix: Mix, reader: Reader, starts_of: Callable[[int], Sequence[int]]):
        self.name = mix.name
        self._source = mix.source
        self._reader = reader
        self._starts_of = starts_of
        self._latest: tuple[int, TokenDocument] | None = None
        self._documents: list[TokenDocument] | None = self._read_all()
        self._table: list[tuple[int, int]] = []
        if self._documents is not None:
            self._table = [
                (index, start)
                for index, document in enumerate(self._documents)
                for start in starts_of(len(document.tokens))
            ]
            if not self._table:
                raise self.nothing_long_enough(max(len(d.tokens) for d in self._documents))

    def _read_all(self) -> list[TokenDocument] | None:
        if not 0 < len(self._source) <= INDEXED_DOCUMENTS:
            return None
        documents, tokens = [], 0
        for index in range(len(self._source)):
            documents.append(self._reader.read(self._source[index]))
            tokens += len(documents[-1].tokens)
            if tokens > INDEXED_TOKENS:
                return None
        return documents

    def nothing_long_enough(self, longest: int | None = None) -> ValueError:
        seen = (
            f"the first {_DROPS_IN_A_ROW} read"
            if longest is None
            else f"the longest has {longest} tokens"
        )
        return ValueError(
            f"no document of the source {self.name!r} is long enough for this setting ({seen}); "
            "use longer documents or ask for less context"
        )

    @property
    def is_indexed(self) -> bool:
        return self._documents is not None

    @property
    def dropped_at_start(self) -> int:
        kept = len({index for index, _ in self._table})
        return 0 if self._documents is None else len(self._documents) - kept

    def __len__(self) -> int:
        return len(self._table) if self.is_indexed else len(self._source)

    def windows(self, element: int) -> list[tuple[TokenDocument, int]]:
        """The (document, start) pairs of one element: one if indexed, else any number."""
        if self._documents is not None:
            index, start = self._table[element]
            return [(self._documents[index], start)]
        if self._latest is None or self._latest[0] != element:
            self._latest = element, self._reader.read(self._source[element])
        document = self._latest[1]
        return [(document, start) for start in self._starts_of(len(document.tokens))]


class Windows:
    """A mixture in its order: random access by position, for one shard.

    Args:
        epochs: None repeats for ever; else that many passes, of a single source.

    Raises:
        ValueError: the mixture, a weight or the shard makes no sense.
    """

    def __init__(
        self,
        mixture: Sequence[Mix],
        tokenizer: tokenizers.Tokenizer,
        starts_of: Callable[[int], Sequence[int]],
        *,
        seed: int,
        shard_index: int,
        shard_count: int,
        epochs: int | None,
    ):
        names = [mix.name for mix in mixture]
        if not mixture or len(set(names)) < len(names):
            raise ValueError(f"a mixture needs sources with distinct names, not {names}")
        if not 0 <= shard_index < shard_count:
            raise ValueError(f"shard_index {shard_index} is not in 0..{shard_count - 1}")
        for mix in mixture:
            if not mix.weight > 0:
                raise ValueError(f"the weight of {mix.name!r} must be positive, not {mix.weight}")
            if len(mix.source) == 0:
                raise ValueError(f"the source {mix.name!r} is empty")
        reader = Reader(tokenizer)
        self.parts = [Part(mix, reader, starts_of) for mix in mixture]
        self._offsets = list(itertools.accumulate(map(len, self.parts), initial=0))
        self._shard = (shard_index, shard_count)
        self.positions = self._positions(epochs)
        orders = [
            grain.MapDataset.range(self._offsets[k], self._offsets[k + 1])
            .seed(int(np.random.SeedSequence([seed, k]).generate_state(1)[0]))
            .shuffle()
            .repeat(epochs)
            for k in range(len(mixture))
        ]
        if len(orders) == 1:
            self._order = orders[0]
        else:
            # Sharded before they are mixed: an interleaving of period 2 would give each of 2 shards
            # one source.
            shards = [order[shard_index::shard_count] for order in orders]
            self._order = grain.MapDataset.mix(shards, [mix.weight for mix in mixture])
        self.identity = {
            "sources": [[mix.name, len(mix.source), mix.weight] for mix in mixture],
            "elements": [len(part) for part in self.parts],
            "tokenizer": tokenizer.digest(),
            "seed": seed,
            "shard": [shard_index, shard_count],
        }

    def _positions(self, epochs: int | None) -> int | None:
        """How many positions this and every other shard has; None if endless."""
        if epochs is None:
            return None
        if epochs < 1 or len(self.parts) > 1:
            raise ValueError(
                "a finite number of epochs must be >= 1 and needs a mixture of one source"
            )
        if self._shard[1] > 1 and not self.parts[0].is_indexed:
            raise ValueError(
                f"a finite pass over several shards needs a source of at most {INDEXED_DOCUMENTS} "
                f"documents and {INDEXED_TOKENS} tokens, so that all shards end together"
            )
        return -(-len(self.parts[0]) * epochs // self._shard[1])

    def at(self, position: int) -> tuple[int, list[tuple[TokenDocument, int]]]:
        """The number of the source read at a position of this shard, and the windows read there."""
        if len(self.parts) == 1:
            position = position * self._shard[1] + self._shard[0]
            if self.positions is not None and position >= len(self._order):
                return 0, []
        element = self._order[position]
        assert element is not None
        part = bisect.bisect_right(self._offsets, element) - 1
        return part, self.parts[part].windows(int(element) - self._offsets[part])


class Cursor:
    """Walks over `Windows` one by one; its state is a few integers."""

    def __init__(self, windows: Windows):
        self._windows = windows
        self._position = 0
        self._window = 0
        self._drops_in_a_row = [0] * len(windows.parts)
        self._elements = [0] * len(windows.parts)
        self._counts = {
            "windows": 0,
            "dropped_documents": sum(part.dropped_at_start for part in windows.parts),
            "inexact_documents": 0,
        }

    def next(self) -> tuple[tuple[int, int], TokenDocument, int] | None:
        """((position, window), document, the window's start in it), or None at the end.

        Raises:
            ValueError: a large source seems to hold no document that is long enough.
        """
        windows = self._windows
        while windows.positions is None or self._position < windows.positions:
            number, found = windows.at(self._position)
            part = windows.parts[number]
            if not found and not part.is_indexed:
                self._drop(number)
            elif found:
                key = (self._position, self._window)
                document, start = found[self._window]
                self._drops_in_a_row[number] = 0
                self._counts["windows"] += 1
                self._counts["inexact_documents"] += start == 0 and not document.is_exact
                self._window += 1
                if self._window == len(found):
                    self._advance(number)
                return key, document, start
            else:
                self._position += 1  # past the end: other shards have one element more
        return None

    def window(self, key: Sequence[int]) -> tuple[TokenDocument, int]:
        """A window that was passed before."""
        return self._windows.at(key[0])[1][key[1]]

    def counts(self) -> dict[str, float]:
        """Windows read, documents dropped as too short or changed by the tokenizer, and epochs."""
        shard_count = self._windows.identity["shard"][1]
        epochs = {
            f"epochs/{part.name}": elements * shard_count / len(part)
            for part, elements in zip(self._windows.parts, self._elements)
        }
        return {**self._counts, **epochs}

    def get_state(self) -> dict[str, Any]:
        return {
            "identity": self._windows.identity,
            "position": self._position,
            "window": self._window,
            "drops_in_a_row": list(self._drops_in_a_row),
            "elements": list(self._elements),
            "counts": dict(self._counts),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a state, as it is or after a trip through JSON.

        Raises:
            ValueError: the state belongs to other data.
        """
        own, given = self._windows.identity, state["identity"]
        for name in own:
            if own[name] != given[name]:
                raise ValueError(
                    f"the saved data state is of another run: {name} was {given[name]}, "
                    f"is {own[name]}"
                )
        self._position, self._window = state["position"], state["window"]
        self._drops_in_a_row = list(state["drops_in_a_row"])
        self._elements = list(state["elements"])
        self._counts = dict(state["counts"])

    def _drop(self, number: int) -> None:
        self._counts["dropped_documents"] += 1
        self._drops_in_a_row[number] += 1
        self._advance(number)
        if self._drops_in_a_row[number] >= _DROPS_IN_A_ROW:
            raise self._windows.parts[number].nothing_long_enough()

    def _advance(self, number: int) -> None:
        self._elements[number] += 1
        self._position, self._window = self._position + 1, 0
