"""jsonl: sources: one JSON object a line, plain, .gz or .zst."""

import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from data import fields, files, records, sources_prepared, spans

_SUFFIXES = (".jsonl", ".json", ".ndjson", *(f".jsonl{end}" for end in files.COMPRESSED))
_SUFFIXES += (*(f".json{end}" for end in files.COMPRESSED),)


def open_jsonl(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """Plain files are read in place, compressed ones are prepared in the cache first."""
    chosen = fields.take(options)
    parts: list[records.Source] = []
    for file in files.find(path, "jsonl", _SUFFIXES):
        key: list[object] = ["jsonl", list(chosen.names), chosen.join]
        if not file.stat().st_size:
            guard.meet(records.Fault("empty_file", str(file), "is an empty file of 0 bytes"))
        elif file.suffix in files.COMPRESSED:
            read = _items(file, chosen, guard)
            parts.append(sources_prepared.open_cached(file, key, read, guard))
        else:
            parts.append(
                spans.open_spans(file, key, _scan(file, chosen, guard), chosen.text_of_json, guard)
            )
    return records.concatenated(parts)


def _scan(path: pathlib.Path, chosen: fields.Fields, guard: records.Guard) -> spans.Scan:
    def scan(file: BinaryIO) -> Iterator[spans.Span | records.Fault | None]:
        for line, text in _texts(file, path, chosen, guard):
            if isinstance(text, records.Fault):
                yield text
            elif text.strip():
                yield spans.Span(line.number, line.offset, line.size, records.document_id(text))
            else:
                yield None

    return scan


def _items(path: pathlib.Path, chosen: fields.Fields, guard: records.Guard):
    def items(start: int) -> Iterator[records.Record | records.Fault]:
        number = 0
        try:
            with files.opened_stream(path) as file:
                for position, (line, text) in enumerate(_texts(file, path, chosen, guard)):
                    number = line.number
                    if position >= start:
                        yield text if isinstance(text, records.Fault) else records.of_text(text)
        except files.BROKEN as error:
            yield files.broken(error, f"{path}, after line {number},")

    return items


def _texts(
    file: files.Readable, path: pathlib.Path, chosen: fields.Fields, guard: records.Guard
) -> Iterator[tuple[files.Line, str | records.Fault]]:
    """Every line that is not blank, with its text or what is wrong with it."""
    for line in files.lines(file, guard.max_bytes):
        where = f"{path}:{line.number}"
        if line.content is None:
            yield line, guard.too_long(where, line.size)
        elif raw := line.content.strip():
            try:
                yield line, chosen.text_of_json(raw, where)
            except records.Fault as fault:
                yield line, fault
