"""Tokenised documents, and the order of one source.

A source is read in windows: pieces of documents that fit a row. Its order is a pure function of
(seed, ordinal): `Part.read` answers for any ordinal at once, over endless epochs, each shuffled
anew by index, so that nothing is listed and a stream's whole state is a few integers.

    small source    all documents are tokenised at the start; an ordinal is one of their windows
    large source    an ordinal is a document, tokenised when read, its windows in sequence

A small source takes at most 4 bytes per token and 16 per window of memory; a large one its latest
document, however many there are.
"""

import copy
import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data import records, tokenizers

INDEXED_DOCUMENTS = 10_000
INDEXED_TOKENS = 2**24
# A large source is not read for ever in search of a document that is long enough.
DROPS_IN_A_ROW = 10_000
_PERMUTED_ELEMENTS = 2**16

_WORD = re.compile(r"\S+")
_ASCII_SPACE = np.isin(np.arange(256), np.frombuffer(b" \t\n\v\f\r\x1c\x1d\x1e\x1f", np.uint8))


@dataclasses.dataclass(frozen=True)
class Mix:
    """A source's part in a mixture.

    Fields:
        weight: relative to the others; they need not sum to 1, and 0 turns the source off.
        name: distinct within the mixture.
        on_fault: what becomes of a record that cannot be used (`records.Fault`) when it is read:
            'fail' raises, 'skip' leaves it out and counts it.
        max_faults: more records than that raise with 'skip', too; those found when the source was
            opened are among them. A record counts once, however often it is met.
    """

    source: records.Source
    weight: float
    name: str
    on_fault: records.OnFault = "fail"
    max_faults: int = 100

    def __post_init__(self):
        if self.on_fault not in ("fail", "skip") or self.max_faults < 0:
            raise ValueError(
                f"the source {self.name!r} needs on_fault=fail or skip and max_faults >= 0, not "
                f"{self.on_fault!r} and {self.max_faults}"
            )


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


class Order:
    """From ordinals 0, 1, 2, ... to elements: endless epochs, each a permutation of its own.

    A pure function of (elements, seed, ordinal). Few elements are permuted an epoch at a time,
    which is kept. Many are never listed: grain's index shuffle answers for one ordinal in constant
    memory. For few that is slow, as it walks through 65 536 numbers however few count (2 ms an
    element for 23).
    """

    def __init__(self, elements: int, seed: int):
        self._elements, self._seed = elements, seed
        self._shuffle = None
        if elements > _PERMUTED_ELEMENTS:
            # Only here: where there is no jax, grain says so on the standard error stream.
            grain = importlib.import_module("grain")
            self._shuffle = grain.MapDataset.range(elements).seed(seed).shuffle().repeat()
        # The epoch that is read, and the one before, of which windows may be left over.
        self._epochs: dict[int, np.ndarray] = {}

    def __getitem__(self, ordinal: int) -> int:
        if self._shuffle is not None:
            element = self._shuffle[ordinal]
            assert element is not None
            return int(element)
        epoch, place = divmod(ordinal, self._elements)
        if epoch not in self._epochs:
            # Raw numbers of a bit generator are the same in every version of numpy.
            numbers = np.random.PCG64([self._seed, epoch]).random_raw(self._elements)
            kept = list(self._epochs.items())[-1:]
            self._epochs = dict([*kept, (epoch, np.argsort(numbers, kind="stable"))])
        return int(self._epochs[epoch][place])


# Number of tokens of a document -> where its windows start; none drops the document.
StartsOf = Callable[[int], Sequence[int]]


class Part:
    """One source of a mixture in its order.

    Args:
        mix: what is read, and what becomes of faults.
        seed: of the order.
        epochs: None repeats for ever.

    Attributes:
        total: how many ordinals there are; None is no end.
        dropped: documents without a window, found at the start.
        faults: records that could not be used, found when the source was opened or at the start.

    Raises:
        ValueError: the source is empty, or it is small, so read whole, and no document has a
            window; or more faults than allowed.
    """

    def __init__(
        self, mix: Mix, reader: Reader, starts_of: StartsOf, *, seed: int, epochs: int | None
    ):
        self.name = mix.name
        self.dropped = 0
        self.faults = sum(n for why, n in mix.source.counts.items() if why.startswith("fault/"))
        self._mix = mix
        self._reader = reader
        self._starts_of = starts_of
        self._latest: tuple[int, TokenDocument, Sequence[int]] | None = None
        if len(mix.source) == 0:
            raise ValueError(f"the source {mix.name!r} is empty{self._left_out()}")
        self._documents = self._read_all()
        self._table_W2 = np.zeros((0, 2), np.int64)
        if self._documents is not None:
            self._table_W2 = self._index(self._documents)
        self.total = None if epochs is None else len(self) * epochs
        self._seed = seed
        self._order = Order(len(self), seed)

    def twin(self) -> "Part":
        """The same part for a reader elsewhere in it, which keeps a latest document of its own."""
        other = copy.copy(self)
        other._latest = None
        other._order = Order(len(self), self._seed)
        return other

    def _read_all(self) -> list[TokenDocument] | None:
        """The documents of a small source; None if it is large."""
        if len(self._mix.source) > INDEXED_DOCUMENTS:
            return None
        found, tokens, faults = [], 0, 0
        for index in range(len(self._mix.source)):
            try:
                found.append(self._reader.read(self._mix.source[index]))
            except records.Fault as fault:
                self.check_fault(fault, faults)
                faults += 1
                continue
            tokens += len(found[-1].tokens)
            if tokens > INDEXED_TOKENS:
                return None
        self.faults += faults
        return found

    def _index(self, found: Sequence[TokenDocument]) -> np.ndarray:
        """int64 [W, 2]: (document, start) of every window W of a small source."""
        starts = [self._starts_of(len(document.tokens)) for document in found]
        table = [(index, start) for index, of_one in enumerate(starts) for start in of_one]
        if not table:
            raise self.nothing_usable(max((len(d.tokens) for d in found), default=0))
        self.dropped = sum(not len(of_one) for of_one in starts)
        return np.array(table, np.int64)

    @property
    def is_indexed(self) -> bool:
        """Whether the source is small, so that an ordinal is exactly one window."""
        return self._documents is not None

    @property
    def counts(self) -> Mapping[str, int]:
        """Of the source (`records.Source`)."""
        return self._mix.source.counts

    def __len__(self) -> int:
        """Ordinals in an epoch."""
        return len(self._table_W2) if self.is_indexed else len(self._mix.source)

    def place(self, ordinal: int) -> int:
        """The place in the source of an ordinal's document; of a small source, of its window."""
        return self._order[ordinal]

    def read(self, ordinal: int) -> tuple[TokenDocument, Sequence[int]]:
        """The document at an ordinal and where its windows start; none if it is dropped.

        Raises:
            records.Fault: the source cannot give the document.
        """
        if self._latest is None or self._latest[0] != ordinal:
            element = self._order[ordinal]
            if self._documents is not None:
                index, start = self._table_W2[element].tolist()
                self._latest = ordinal, self._documents[index], (start,)
            else:
                document = self._reader.read(self._mix.source[element])
                self._latest = ordinal, document, self._starts_of(len(document.tokens))
        return self._latest[1:]

    def window(self, ordinal: int, window: int) -> tuple[TokenDocument, int] | None:
        """A document and the start of one of its windows; None if the document has no window.

        Raises:
            records.Fault: as `read`, or the document has become shorter since it was begun.
        """
        document, starts = self.read(ordinal)
        if not starts:
            return None
        if window >= len(starts):
            raise records.Fault(
                "changed",
                f"the source {self.name!r}",
                f"has changed since this state was saved: document {document.document_id} has "
                f"{len(starts)} windows and was read up to {window}",
            )
        return document, starts[window]

    def check_fault(self, fault: records.Fault, faults: int) -> None:
        """Returns if a fault is to be skipped, after those of `faults` other records while reading.

        Raises:
            records.Fault: it is not, by the policy of `Mix`.
            ValueError: there were too many.
        """
        mix = self._mix
        if mix.on_fault == "fail":
            raise fault
        if self.faults + faults >= mix.max_faults:
            raise ValueError(
                f"the source {mix.name!r} has more than max_faults={mix.max_faults} records that "
                f"cannot be used; the last: {fault}"
            ) from fault

    def nothing_usable(self, longest: int | None = None) -> ValueError:
        """The error of a source without a window.

        Args:
            longest: tokens of the longest document, if all were read.
        """
        seen = f"the longest has {longest} tokens"
        if longest is None:
            seen = f"the first {DROPS_IN_A_ROW} read"
        return ValueError(
            f"no document of the source {self.name!r} is long enough for this setting ({seen}"
            f"{self._left_out()}); use longer documents or ask for less context"
        )

    def _left_out(self) -> str:
        left_out = records.left_out(self._mix.source.counts)
        found = [f"{number} {why}" for why, number in left_out.items()]
        if self.faults and not found:
            found = [f"{self.faults} faults"]
        return f"; left out before: {', '.join(found)}" if found else ""
