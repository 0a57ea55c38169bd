"""Random access to documents that are byte ranges of one file.

One pass over the file checks every record and notes where it lies: three numbers a document (line
number from 1, byte offset, bytes). For a file of more than 16 MiB they lie in the cache, are mapped
into memory when read, and are found again at the next start, so neither memory nor the time of a
second start grows with the file. The documents' digest, made in the same pass, lies beside them.
"""

import dataclasses
import io
import json
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np

from data import cache, digests, files, records

_CACHED_FROM_BYTES = 16 * 2**20
_VERSION = 2
_ENTRY = struct.Struct("<QQQ")


class Span(NamedTuple):
    """Where a document lies: its first line, from 1; bytes; and the id of its text."""

    number: int
    offset: int
    size: int
    document_id: int


# What a pass over a file finds: a document, one without text (None), or a fault.
Scan = Callable[[BinaryIO], Iterator[Span | records.Fault | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class SpanSource:
    """Documents of one file.

    Fields:
        stamp: of the file when it was scanned (`files.stamp`).
        spans_N3: uint64; line number, offset, bytes.
        parse: raw bytes and where they come from, to the text.
        content: digest of the documents when the file was scanned.
    """

    path: pathlib.Path
    stamp: tuple[int, int]
    spans_N3: np.ndarray
    parse: Callable[[bytes, str], str]
    content: int
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.spans_N3)

    def __getitem__(self, index: int) -> records.Record:
        number, offset, size = self.spans_N3[index].tolist()
        where = f"{self.path}:{number}"
        with files.opened_again(self.path, self.stamp, where) as file:
            file.seek(offset)
            raw = file.read(size)
        return records.of_text(self.parse(raw, where))

    def digest(self) -> int:
        return self.content


def open_spans(
    path: pathlib.Path,
    key: list[object],
    scan: Scan,
    parse: Callable[[bytes, str], str],
    guard: records.Guard,
) -> SpanSource:
    """Scans a file, unless an earlier run has.

    Args:
        key: JSON values: which documents the scan finds in a file.

    Raises:
        records.Fault: one that the guard does not let pass.
    """
    stamp = files.stamp(path)
    if stamp[0] <= _CACHED_FROM_BYTES:
        sink = io.BytesIO()
        with path.open("rb", files.CHUNK) as file:
            content = _write(scan(file), sink, guard)
        flat = np.frombuffer(sink.getbuffer(), "<u8")
        return SpanSource(path, stamp, _spans(flat), parse, content)
    folder = cache.entry("spans", _VERSION, str(path.resolve()), *stamp, guard.max_bytes, *key)
    with cache.locked(folder):
        if not (folder / "notes.json").exists():
            own = records.Guard(guard.on_fault, guard.max_faults, guard.max_bytes)
            with path.open("rb", files.CHUNK) as file, (folder / "spans").open("wb") as sink:
                content = _write(scan(file), sink, own)
            notes = {"path": str(path), "counts": own.counts, "faults": own.faults}
            notes["digest"] = digests.shown(content)
            # Last: with it the entry counts as whole.
            cache.replace_text(folder / "notes.json", json.dumps(notes))
    notes = json.loads((folder / "notes.json").read_text())
    guard.replay(notes["counts"], notes["faults"])
    size = (folder / "spans").stat().st_size
    flat = np.memmap(folder / "spans", "<u8", "r") if size else np.zeros(0, "<u8")
    return SpanSource(path, stamp, _spans(flat), parse, int(notes["digest"], 16))


def _spans(flat: np.ndarray) -> np.ndarray:
    # A plain array: reading a row of a memmap costs microseconds more.
    return np.asarray(flat).reshape(-1, 3)


def _write(
    found: Iterator[Span | records.Fault | None], sink: BinaryIO, guard: records.Guard
) -> int:
    """Writes where the documents lie; returns their digest."""
    content = digests.Running()
    for span in found:
        if isinstance(span, records.Fault):
            guard.meet(span)
        elif span is None:
            guard.count("empty")
        else:
            sink.write(_ENTRY.pack(span.number, span.offset, span.size))
            content.add(span.document_id)
    return content.value
