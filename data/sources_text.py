"""text: and folder: sources, plain UTF-8 files."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from data import cache, digests, fields, files, records, spans

_SUFFIXES = (".txt", ".md", ".rst")


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """One document per file, read when asked for.

    Fields:
        stamps_N2: int64; size and time of change of every file (`files.stamp`).
        content: digest of what was read when the files were checked.
    """

    paths: Sequence[pathlib.Path]
    stamps_N2: np.ndarray
    content: int
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> records.Record:
        path = self.paths[index]
        size, changed = self.stamps_N2[index].tolist()
        with files.opened_again(path, (size, changed), str(path)) as file:
            return records.of_text(files.whole_text(file.read(), path))

    def digest(self) -> int:
        return self.content


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
    texts: list[str] = []
    for file in found:
        try:
            pieces = _separated(files.whole_text(file.read_bytes(), file), separator)
        except records.Fault as fault:
            guard.meet(fault)
            continue
        for number, text in enumerate(pieces, 1):
            if (size := len(text.encode())) > guard.max_bytes:
                guard.meet(guard.too_long(f"{file}: piece {number}", size))
            elif text.strip():
                texts.append(text)
            else:
                guard.count("empty")
    return records.from_texts(texts)


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
    kept, stamps, content = [], [], digests.Running()
    for path in paths:
        size, changed = files.stamp(path)
        try:
            if size > guard.max_bytes:
                raise guard.too_long(str(path), size)
            text = files.whole_text(path.read_bytes(), path)
            if text.strip():
                kept.append(path)
                stamps.append((size, changed))
                content.add(records.document_id(text))
            else:
                guard.count("empty")
        except records.Fault as fault:
            guard.meet(fault)
    return FileSource(kept, np.array(stamps, np.int64).reshape(-1, 2), content.value)


def _separated(text: str, separator: str) -> list[str]:
    """What lies between the matches; groups in the expression give no pieces."""
    try:
        places = [match.span() for match in re.finditer(separator, text)]
    except re.error as error:
        raise ValueError(f"separator {separator!r} is no regular expression: {error}") from error
    starts = [0, *(end for _, end in places)]
    ends = [*(start for start, _ in places), len(text)]
    return [text[start:end] for start, end in zip(starts, ends)]


def _paragraphs(path: pathlib.Path, guard: records.Guard) -> spans.Scan:
    """Runs of lines with text; a fault takes the run it lies in with it."""

    def scan(file: BinaryIO) -> Iterator[spans.Span | records.Fault | None]:
        first, start, size = 0, 0, 0
        held: list[bytes] = []
        fault: records.Fault | None = None

        def finished() -> Iterator[spans.Span | records.Fault]:
            where = f"{path}:{first}"
            if fault is not None:
                yield fault
            elif size > guard.max_bytes:
                yield guard.too_long(where, size)
            elif first:
                text = _paragraph(b"".join(held), where)
                yield spans.Span(first, start, size, records.document_id(text))

        for line in files.lines(file, guard.max_bytes):
            where = f"{path}:{line.number}"
            try:
                blank = _is_blank(line, where, guard)
            except records.Fault as found:
                fault, blank = fault or found, False
            if blank:
                yield from finished()
                first, size, held, fault = 0, 0, [], None
                continue
            if not first:
                first, start = line.number, line.offset
            size += line.size
            if line.content is not None and size <= guard.max_bytes:
                held.append(line.content)
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
