"""Sources: random access to documents, opened by one line of text.

A spec is `name:path?key=value&key=value`; path and options may be missing, values are URL-quoted:

    text:/books/emma.txt?separator=blank   one document, or one between
                                           empty lines ('blank') or matches of a regular expression
    folder:/books?pattern=*.md             a document per matching file below, sorted, none hidden
    jsonl:/corpus.jsonl?field=text         one JSON object a line
    pydoc?split=train                      sections of the documentation inside every CPython
    miniature:?...                         the generated corpus of data/miniature.py

All but the miniature, which makes its own splits, take the options of data/transforms.py: filters,
removal of duplicates and of benchmark text, and `split=train|validation|test`. Files are checked
whole when they are opened, so that a bad line is found now and not after an hour. A source may be
huge: it is indexed, never listed.
"""

import dataclasses
import fnmatch
import importlib
import json
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence

from data import records, splits, transforms

Record = records.Record
Source = records.Source
ListSource = records.ListSource
document_id = records.document_id
from_texts = records.from_texts


@dataclasses.dataclass(frozen=True)
class FileSource:
    """One document per file, read when asked for."""

    paths: Sequence[pathlib.Path]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        text = read_text(self.paths[index])
        return Record(text, document_id(text))


@dataclasses.dataclass(frozen=True)
class JsonLinesSource:
    """One document per line of a file; `lines` are (line number from 1, byte offset)."""

    path: pathlib.Path
    field: str
    lines: Sequence[tuple[int, int]]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Record:
        number, offset = self.lines[index]
        with self.path.open("rb") as file:
            file.seek(offset)
            text = _field_of(file.readline(), self.field, f"{self.path}:{number}")
        return Record(text, document_id(text))


def read_text(path: pathlib.Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: the file is not UTF-8 text; says where.
    """
    raw = path.read_bytes()
    if (offset := raw.find(0)) >= 0:
        raise ValueError(f"{path} is not text: NUL byte at byte {offset}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it first"
        ) from error


def open_source(spec: str, **extra: str) -> Source:
    """Opens a source by its spec; `extra` options are added to those of the spec.

    Raises:
        FileNotFoundError: the file or folder is missing.
        ValueError: unknown source or option, empty corpus, or a file that is not what it should be.
    """
    head, _, query = spec.partition("?")
    name, _, path = head.partition(":")
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r} in {spec!r}; known: {', '.join(SOURCES)}")
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"options of {spec!r} must be key=value joined by '&'") from error
    options = dict(pairs)
    if len(options) < len(pairs) or options.keys() & extra.keys():
        raise ValueError(f"an option is given twice for {spec!r}")
    options |= extra
    if name in _MAKE_OWN_SPLITS:
        return SOURCES[name](path, options)
    apply = transforms.take(options, spec)
    source = SOURCES[name](path, options)
    if options:
        raise ValueError(f"unknown option {min(options)!r} for the source {name!r} in {spec!r}")
    if len(source) == 0:
        raise ValueError(f"the source {spec!r} is empty: it holds no document with any text")
    return apply(source)


def _existing(path: str, what: str) -> pathlib.Path:
    if not path:
        raise ValueError(f"the source {what!r} needs a path, as in '{what}:/some/path'")
    found = pathlib.Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"there is no {found} (source {what!r})")
    if found.is_dir() != (what == "folder"):
        raise ValueError(f"{found} is {'a folder: use folder:' if found.is_dir() else 'no folder'}")
    return found


def _open_text(path: str, options: dict[str, str]) -> Source:
    separator = options.pop("separator", None)
    text = read_text(_existing(path, "text"))
    if separator is None:
        return from_texts([text] if text.strip() else [])
    try:
        parts = re.split(r"\n[^\S\n]*\n\s*" if separator == "blank" else separator, text)
    except re.error as error:
        raise ValueError(f"separator {separator!r} is no regular expression: {error}") from error
    return from_texts([part for part in parts if part is not None and part.strip()])


def _open_folder(path: str, options: dict[str, str]) -> Source:
    pattern = options.pop("pattern", "*")
    folder = _existing(path, "folder")
    paths = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and fnmatch.fnmatch(file.name, pattern)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    return FileSource([file for file in paths if read_text(file).strip()])


def _open_jsonl(path: str, options: dict[str, str]) -> Source:
    field = options.pop("field", "text")
    file_path = _existing(path, "jsonl")
    return JsonLinesSource(file_path, field, list(_lines_with_text(file_path, field)))


def _lines_with_text(path: pathlib.Path, field: str) -> Iterator[tuple[int, int]]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and _field_of(line, field, f"{path}:{number}").strip():
                yield number, offset
            offset += len(line)


def _field_of(line: bytes, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        fields = ", ".join(value) if isinstance(value, dict) else "none"
        raise ValueError(f"{where} has no string field {field!r} (fields: {fields}); set field=...")
    return value[field]


def _open_pydoc(path: str, options: dict[str, str]) -> Source:
    if path:
        raise ValueError(f"the source 'pydoc' takes no path, but has {path!r}")
    topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    return from_texts(splits.distinct_sections(list(topics.values())))


def _open_miniature(path: str, options: dict[str, str]) -> Source:
    if path:
        raise ValueError(f"the source 'miniature' takes no path, but has {path!r}")
    # Imported when asked for: it needs this module's Record.
    from data import miniature

    return miniature.open_miniature(options)


SOURCES: dict[str, Callable[[str, dict[str, str]], Source]] = {
    "text": _open_text,
    "folder": _open_folder,
    "jsonl": _open_jsonl,
    "pydoc": _open_pydoc,
    "miniature": _open_miniature,
}
_MAKE_OWN_SPLITS = frozenset({"miniature"})
