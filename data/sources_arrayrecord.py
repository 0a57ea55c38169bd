"""array_record: sources, files of ArrayRecord's own format, and the reader that others share."""

import collections
import dataclasses
import importlib
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from data import fields, files, records, sources_jsonl

_MOST_OPEN = 64
# Reads of single records: no read-ahead, no threads.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_FORMS = ("text", "json", "example")


class Reader:
    """Raw records of several files, by (file, index); at most 64 files are open at a time."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._paths = paths
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def length(self, file: int) -> int:
        with self._lock:
            return self._reader(file).num_records()

    def read(self, file: int, index: int) -> bytes:
        """One record.

        Raises:
            records.Fault: the file is gone, or damaged there.
        """
        with self._lock:
            reader = self._reader(file)
            try:
                return reader.read([index])[0]
            except (RuntimeError, IndexError) as error:
                # A reader that met damage says no to everything after it.
                del self._open[file]
                raise records.Fault(
                    "unreadable",
                    f"{self._paths[file]}: record {index}",
                    f"cannot be read: {' '.join(str(error).split())}",
                ) from error

    def _reader(self, file: int) -> Any:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        path = self._paths[file]
        if not path.exists():
            raise records.Fault("vanished", str(path), "is gone")
        if not path.stat().st_size:
            raise records.Fault("empty_file", str(path), "is an empty file of 0 bytes")
        library = importlib.import_module("array_record.python.array_record_module")
        reader = library.ArrayRecordReader(str(path), options=_READER_OPTIONS)
        if not reader.ok():
            raise records.Fault(
                "truncated",
                str(path),
                "is no whole ArrayRecord file: cut off, or its writer was not closed",
            )
        self._open[file] = reader
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        return reader


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecordSource:
    """Records of one file whose content has the `form` text, json or example."""

    reader: Reader
    path: pathlib.Path
    file: int
    length: int
    form: str
    chosen: fields.Fields
    guard: records.Guard
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> records.Record:
        where = f"{self.path}: record {index}"
        raw = self.reader.read(self.file, index)
        if len(raw) > self.guard.max_bytes:
            raise self.guard.too_long(where, len(raw))
        if self.form == "text":
            return records.of_text(fields.decoded(raw, where))
        if self.form == "json":
            return records.of_text(sources_jsonl.text_of(raw, self.chosen, where))
        try:
            values = example_bytes(raw)
        except (IndexError, ValueError) as error:
            raise records.Fault("unreadable", where, "is no tf.train.Example") from error
        return records.of_text(self.chosen.text_of(values, where))


def open_array_record(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """Files are opened once, so that a half-written one is found now; records when they are read."""
    form = options.pop("form", "text")
    if form not in _FORMS:
        raise ValueError(f"form={form!r} of an array_record source: choose {', '.join(_FORMS)}")
    chosen = fields.take(options)
    found = files.find(path, "array_record", (".array_record", ".arrayrecord"))
    reader = Reader(found)
    parts = []
    for number, file in enumerate(found):
        try:
            length = reader.length(number)
        except records.Fault as fault:
            guard.meet(fault)
            continue
        parts.append(ArrayRecordSource(reader, file, number, length, form, chosen, guard))
    return records.concatenated(parts)


def example_bytes(raw: bytes) -> dict[str, bytes]:
    """The features of a serialised tf.train.Example that are one string each.

    The wire format: Example{1: Features{1: map entry{1: name, 2: Feature{1: BytesList{1: value}}}}}

    Raises:
        ValueError, IndexError: the bytes are something else.
    """
    out = {}
    for features in _submessages(raw):
        for entry in _submessages(features):
            parts = dict(_messages(entry))
            values = [value for lists in _submessages(parts[2]) for value in _submessages(lists)]
            if len(values) == 1:
                out[parts[1].decode()] = values[0]
    return out


def _submessages(raw: bytes) -> list[bytes]:
    return [value for number, value in _messages(raw) if number == 1]


def _messages(raw: bytes) -> list[tuple[int, bytes]]:
    """Length-delimited fields (number, content) of a protocol buffer; others are passed over."""
    at, out = 0, []
    while at < len(raw):
        key, at = _varint(raw, at)
        if key & 7 == 0:
            _, at = _varint(raw, at)
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        elif key & 7 == 2:
            size, at = _varint(raw, at)
            if at + size > len(raw):
                raise ValueError("a field ends behind its message")
            out.append((key >> 3, raw[at : at + size]))
            at += size
        else:
            raise ValueError(f"wire type {key & 7}")
    return out


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
