"""array_record: sources, files of the ArrayRecord format that others wrote."""

import dataclasses
import pathlib
from collections.abc import Mapping

from data import arrayrecords, digests, fields, files, records

_FORMS = ("text", "json", "example")


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecordSource:
    """Records of one file whose content has the `form` text, json or example."""

    reader: arrayrecords.Reader
    path: pathlib.Path
    file: int
    length: int
    form: str
    chosen: fields.Fields
    guard: records.Guard
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.length

    def digest(self) -> int:
        """Of the file's size and a sample of its bytes: it is not read through when opened."""
        chosen = dataclasses.asdict(self.chosen)
        return digests.of_parts(digests.sampled(self.path), self.form, chosen)

    def __getitem__(self, index: int) -> records.Record:
        where = f"{self.path}: record {index}"
        raw = self.reader.read(self.file, index)
        if len(raw) > self.guard.max_bytes:
            raise self.guard.too_long(where, len(raw))
        if self.form == "text":
            return records.of_text(fields.decoded(raw, where))
        if self.form == "json":
            return records.of_text(self.chosen.text_of_json(raw, where))
        try:
            values = example_bytes(raw)
        except (IndexError, ValueError) as error:
            raise records.Fault("unreadable", where, "is no tf.train.Example") from error
        return records.of_text(self.chosen.text_of(values, where))


def open_array_record(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """Files are opened now, so that a half-written one is found; records when they are read."""
    form = options.pop("form", "text")
    if form not in _FORMS:
        raise ValueError(f"form={form!r} of an array_record source: choose {', '.join(_FORMS)}")
    chosen = fields.take(options)
    found = files.find(path, "array_record", (".array_record", ".arrayrecord"))
    reader = arrayrecords.Reader(found)
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
