"""What a source is made of: a document, random access to documents, and what is wrong with one.

Nothing here opens anything: `data/sources.py` does.
"""

import bisect
import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from data import digests

MAX_BYTES = 16 * 2**20
NOTED = "noted/"
OnFault = Literal["fail", "skip"]


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
        counts: records that were left out when the source was opened, by reason; and, under names
            that begin with `NOTED`, what else is known of it. Empty if nothing.
    """

    @property
    def counts(self) -> Mapping[str, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def digest(self) -> int:
        """Tells an edited corpus from the same one (data/digests.py)."""
        ...


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

    def digest(self) -> int:
        return digests.of_ids(record.document_id for record in self.records)


def from_texts(texts: Sequence[str]) -> ListSource:
    return ListSource([of_text(text) for text in texts])


@dataclasses.dataclass(frozen=True, eq=False)
class Concatenated:
    """Documents of one source after those of another."""

    parts: Sequence[Source]
    ends: Sequence[int]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]

    def digest(self) -> int:
        return digests.joined((part.digest(), len(part)) for part in self.parts)


def concatenated(parts: Sequence[Source]) -> Source:
    ends = list(itertools.accumulate(len(part) for part in parts))
    return parts[0] if len(parts) == 1 else Concatenated(parts, ends)


@dataclasses.dataclass(frozen=True, eq=False)
class Counted:
    """A source with what was left out when it was opened."""

    source: Source
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self.source[index]

    def digest(self) -> int:
        return self.source.digest()


class Guard:
    """What is done about faults: the options `on_fault`, `max_faults` and `max_bytes` of a spec.

    Fields:
        on_fault: 'fail', or 'skip' and count.
        max_faults: more than that fail even with 'skip'.
        max_bytes: a longer record is a fault.
        counts: records left out so far, by reason: 'fault/<reason>', and 'empty', which is none.
        faults: (reason, where, message) of those skipped, in the order met.

    Args:
        before: faults that another guard has met: they count towards `max_faults`, nowhere else.
    """

    def __init__(
        self,
        on_fault: str = "fail",
        max_faults: int = 100,
        max_bytes: int = MAX_BYTES,
        before: int = 0,
    ):
        if on_fault not in ("fail", "skip") or max_faults < 0 or max_bytes < 1:
            raise ValueError(
                "need on_fault=fail or skip, max_faults >= 0, max_bytes >= 1, "
                f"not {on_fault!r}, {max_faults} and {max_bytes}"
            )
        self.on_fault: OnFault = "skip" if on_fault == "skip" else "fail"
        self.max_faults = max_faults
        self.max_bytes = max_bytes
        self._before = before
        self.counts: dict[str, int] = {}
        self.faults: list[tuple[str, str, str]] = []

    def meet(self, fault: Fault) -> None:
        """Counts a fault.

        Raises:
            Fault: this one, if it must not be skipped.
        """
        if self.on_fault == "fail":
            raise fault
        met = self._before + len(self.faults)
        if met >= self.max_faults:
            raise Fault(
                fault.reason,
                fault.where,
                f"{fault.message} (and {met} faults before it were skipped: "
                f"max_faults={self.max_faults} allows no more)",
            )
        self.faults.append((fault.reason, fault.where, fault.message))
        self.count(f"fault/{fault.reason}")

    def count(self, reason: str, number: int = 1) -> None:
        if number:
            self.counts[reason] = self.counts.get(reason, 0) + number

    def counts_with(self, counts: Mapping[str, int], met: int) -> dict[str, int]:
        """A source's counts and the faults let pass since there were `met` of them."""
        total = collections.Counter(counts)
        total.update(f"fault/{reason}" for reason, _, _ in self.faults[met:])
        return dict(total)

    def replay(self, counts: Mapping[str, int], faults: Sequence[Sequence[str]]) -> None:
        """Meets what was met when something was indexed or prepared in an earlier run."""
        for reason, where, message in faults:
            self.meet(Fault(reason, where, message))
        for reason, number in counts.items():
            if not reason.startswith("fault/"):
                self.count(reason, number)

    def too_long(self, where: str, size: int) -> Fault:
        return Fault(
            "too_long",
            where,
            f"is a record of {size} bytes, more than max_bytes={self.max_bytes}",
        )


def readable(
    source: Source, guard: Guard, indices: Iterable[int] | None = None
) -> Iterator[tuple[int, Record]]:
    """The records that can be read, each with its index; the guard decides on the others.

    Args:
        indices: which, and in which order; None for all in theirs.

    Raises:
        Fault: one that the guard does not let pass.
    """
    for index in range(len(source)) if indices is None else indices:
        try:
            record = source[index]
        except Fault as fault:
            guard.meet(fault)
            continue
        yield index, record


def left_out(counts: Mapping[str, int]) -> dict[str, int]:
    """Of a source's counts, those of records that were left out, by reason."""
    return {reason: n for reason, n in counts.items() if not reason.startswith(NOTED)}


def noted(counts: Mapping[str, int]) -> dict[str, int]:
    """The others, without the `NOTED` before their names."""
    found = {name: n for name, n in counts.items() if name.startswith(NOTED)}
    return {name.removeprefix(NOTED): n for name, n in found.items()}


def described(counts: Mapping[str, int]) -> str:
    """A source's counts in words: 'left out: 2 empty; noted: 3 rewritten'."""

    def listed(found: Mapping[str, int]) -> str:
        return ", ".join(f"{number} {name}" for name, number in found.items())

    also = noted(counts)
    return f"left out: {listed(left_out(counts)) or 'nothing'}" + (
        f"; noted: {listed(also)}" if also else ""
    )
