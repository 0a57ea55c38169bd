"""What a source is made of: a document, random access to documents, and what is wrong with one.

Nothing here opens anything: `data/sources.py` does.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Record:
    """One document.

    Fields:
        text: its text.
        document_id: 63 bits; the same document has the same id in every run.
        markup: the strings of special tokens in the text are special tokens (worked documents).
        labels: known facts about words, (word index, label), where words are `text.split()`: (41,
            'answer/5'). Only generated sources have them.
    """

    text: str
    document_id: int
    markup: bool = False
    labels: tuple[tuple[int, str], ...] = ()


class Source(Protocol):
    """Random access to documents.

    Fields:
        counts: records that were left out when the source was opened, by reason; empty if none.
    """

    @property
    def counts(self) -> Mapping[str, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Fault(ValueError):
    """A record or a file that cannot be used.

    Fields:
        reason: a short name of the kind of fault: 'invalid_utf8', 'truncated', 'missing_field',
            'too_long', 'vanished', 'changed', 'not_json', 'not_text', 'empty_file', 'unreadable'.
        where: the file and, where there is one, the record.
    """

    def __init__(self, reason: str, where: str, message: str):
        # All three are args, so that a fault keeps them on its way through another process.
        super().__init__(reason, where, message)
        self.reason = reason
        self.where = where
        self.message = message

    def __str__(self) -> str:
        return f"{self.where} {self.message}"


def document_id(text: str) -> int:
    """63 bits of the SHA-256 of the content: stable across runs, sources and splits."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def of_text(text: str) -> Record:
    return Record(text, document_id(text))


@dataclasses.dataclass(frozen=True)
class ListSource:
    """Documents in memory."""

    records: Sequence[Record]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def from_texts(texts: Sequence[str]) -> ListSource:
    return ListSource([of_text(text) for text in texts])
