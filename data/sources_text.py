"""text: and folder: sources, plain UTF-8 files."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from data import cache, fields, files, records, spans

_SUFFIXES = (".txt", ".md", ".rst")


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """One document per file, read when asked for.

    Fields:
        stamps_N2: int64; size and time of change of every file (`files.stamp`).
    """

    paths: Sequence[pathlib.Path]
    stamps_N2: np.ndarray
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> records.Record:
        path = self.paths[index]
        size, changed = self.stamps_N2[index].tolist()
        with files.opened_again(path, (size, changed), str(path)) as file:
            return records.of_text(files.whole_text(file.read(), path))


def open_text(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """One document a file, or with `separator` several."""
    separator = options.pop("separator", None)
    if not cache.is_remote(path) and (folder := pathlib.Path(path).expanduser()).is_dir() and path:
        raise ValueError(f"{folder} is a folder: use folder:")
    found = files.find(path, "text", _SUFFIXES)
    if separator is None:
        return _file_source(found, guard)
    if separator == "blank":
        parts = [
            spans.open_spans(file, ["blank"], _paragraphs(file, guard), _paragraph, guard)
            for file in found
        ]
        return records.concatenated(parts)
    texts = []
    for file in found:
        try:
            texts += _separated(files.whole_text(file.read_bytes(), file), separator)
        except records.Fault as fault:
            guard.meet(fault)
    return records.from_texts([text for text in texts if text.strip()])


def open_folder(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """One document a file below the folder."""
    pattern = options.pop("pattern", "*")
    if cache.is_remote(path):
        wanted = f"{path.rstrip('/')}/**/{pattern}"
        return _file_source(files.find(wanted, "folder", ()), guard)
    if not path:
        raise ValueError("the source 'folder' needs a path, as in 'folder:/some/path'")
    folder = pathlib.Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"there is no {folder} (source 'folder')")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    return _file_source(files.below(folder, [pattern]), guard)


def _file_source(paths: Sequence[pathlib.Path], guard: records.Guard) -> FileSource:
    """Reads every file once, so that a bad one is found now."""
    kept, stamps = [], []
    for path in paths:
        size, changed = files.stamp(path)
        try:
            if size > guard.max_bytes:
                raise guard.too_long(str(path), size)
            if files.whole_text(path.read_bytes(), path).strip():
                kept.append(path)
                stamps.append((size, changed))
            else:
                guard.count("empty")
        except records.Fault as fault:
            guard.meet(fault)
    return FileSource(kept, np.array(stamps, np.int64).reshape(-1, 2))


def _separated(text: str, separator: str) -> list[str]:
    try:
        return [part for part in re.split(separator, text) if part]
    except re.error as error:
        raise ValueError(f"separator {separator!r} is no regular expression: {error}") from error


def _paragraphs(path: pathlib.Path, guard: records.Guard) -> spans.Scan:
    """Runs of lines with text; a fault takes the run it lies in with it."""

    def scan(file: BinaryIO) -> Iterator[spans.Span | records.Fault | None]:
        first, start, end = 0, 0, 0
        fault: records.Fault | None = None

        def finished() -> Iterator[spans.Span | records.Fault]:
            if fault is not None:
                yield fault
            elif end - start > guard.max_bytes:
                yield guard.too_long(f"{path}:{first}", end - start)
            elif first:
                yield first, start, end - start

        for line in files.lines(file, guard.max_bytes):
            where = f"{path}:{line.number}"
            try:
                blank = _is_blank(line, where, guard)
            except records.Fault as found:
                fault, blank = fault or found, False
            if blank:
                yield from finished()
                first, fault = 0, None
                continue
            if not first:
                first, start, end = line.number, line.offset, line.offset
            end = line.offset + line.size
        yield from finished()

    return scan


def _is_blank(line: files.Line, where: str, guard: records.Guard) -> bool:
    if line.content is None:
        raise guard.too_long(where, line.size)
    if b"\0" in line.content:
        raise records.Fault("not_text", where, "is not text: NUL byte")
    return not fields.decoded(line.content, where).removeprefix("\ufeff").strip()


def _paragraph(raw: bytes, where: str) -> str:
    text = fields.decoded(raw, where).removeprefix("\ufeff").removesuffix("\n")
    return text.removesuffix("\r")
