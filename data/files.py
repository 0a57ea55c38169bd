"""Files of a corpus: which ones a path means, whole ones, lines, compressed ones, changed ones."""

import contextlib
import dataclasses
import fnmatch
import glob
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

from data import cache, extras, fields, records

CHUNK = 2**20
_COMPRESSED_BYTES = 2**8
COMPRESSED = (".gz", ".zst")


def find(path: str, what: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """The local files that a path means.

    Args:
        path: a file; a pattern with `*`, `?`, `[...]` or `**`; a folder; or the URL of one of
            these, whose files are copied into the cache.
        what: the source's name, for messages.
        suffixes: of a folder, files below it whose names end so are taken, none hidden.

    Returns:
        Files, sorted by path; at least one.

    Raises:
        FileNotFoundError: there is no such file or folder, or none in it fits.
        ValueError: no path is given.
    """
    if not path:
        raise ValueError(f"the source {what!r} needs a path, as in '{what}:/some/path'")
    found = _find_remote(path, suffixes) if cache.is_remote(path) else _find_local(path, suffixes)
    if not found:
        raise FileNotFoundError(
            f"there is no {path} (source {what!r}; in a folder, files that end in "
            f"{' or '.join(suffixes)})"
        )
    return found


def _find_local(path: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    local = pathlib.Path(path).expanduser()
    if local.is_dir():
        return below(local, [f"*{suffix}" for suffix in suffixes])
    if local.exists():
        return [local]
    matches = sorted(map(pathlib.Path, glob.glob(str(local), recursive=True)))
    # A file that links lead to a second time is one file.
    files = {match.resolve(): match for match in reversed(matches) if match.is_file()}
    return sorted(files.values())


def _find_remote(url: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    filesystem, path = cache.open_filesystem(url)
    if glob.has_magic(path):
        found = filesystem.glob(path)
    elif filesystem.isdir(path):
        found = [name for name in filesystem.find(path) if name.endswith(tuple(suffixes))]
    else:
        found = [path] if filesystem.exists(path) else []
    shown = sorted(name for name in map(str, found) if not name.rpartition("/")[2].startswith("."))
    return [cache.fetch(str(filesystem.unstrip_protocol(name))) for name in shown]


def below(folder: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
    """Files below a folder whose names match a pattern; sorted, none hidden."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def stamp(path: pathlib.Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds: other numbers, another content."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def opened_again(path: pathlib.Path, stamped: tuple[int, int], where: str) -> Iterator[BinaryIO]:
    """Opens a file that was looked at before.

    Raises:
        records.Fault: the file has vanished or changed since.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise records.Fault(
            "vanished", where, "was there when the source was opened and is gone"
        ) from error
    except OSError as error:
        raise records.Fault("unreadable", where, f"cannot be read: {error.strerror}") from error
    with file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != stamped:
            raise records.Fault(
                "changed", where, "has changed since the source was opened; open it again"
            )
        yield file


def whole_text(raw: bytes, path: pathlib.Path) -> str:
    """The text of a file, its byte order mark left out.

    Raises:
        records.Fault: it is not UTF-8 text; says where.
    """
    if (offset := raw.find(0)) >= 0:
        raise records.Fault("not_text", str(path), f"is not text: NUL byte at byte {offset}")
    return fields.decoded(raw, str(path)).removeprefix("\ufeff")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line, its end included; `content` is None if it is longer than it may be."""

    number: int
    offset: int
    size: int
    content: bytes | None


class Readable(Protocol):
    def readline(self, size: int, /) -> bytes: ...


def lines(file: Readable, max_bytes: int) -> Iterator[Line]:
    """Lines of a file, numbered from 1, none of more than `max_bytes` ever held in memory."""
    number = offset = 0
    # Two more bytes than allowed: the line's end does not count.
    while line := file.readline(max_bytes + 2):
        number += 1
        size = len(line)
        content: bytes | None = line
        if len(line.rstrip(b"\r\n")) > max_bytes:
            content = None
            while not line.endswith(b"\n") and (line := file.readline(CHUNK)):
                size += len(line)
        yield Line(number, offset, size, content)
        offset += size


@contextlib.contextmanager
def opened_stream(path: pathlib.Path) -> Iterator[Readable]:
    """A file's content from the start; .gz and .zst files are decompressed.

    Reading raises what `broken` turns into a fault.
    """
    with path.open("rb", CHUNK) as raw:
        if path.suffix == ".gz":
            # Not behind a larger buffer: where the file is cut off, that loses lines read before.
            yield gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            yield io.BufferedReader(_Zstandard(raw), CHUNK)
        else:
            yield raw


BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)


def broken(error: Exception, where: str) -> records.Fault:
    """The fault of a compressed file that cannot be read further."""
    if isinstance(error, EOFError):
        message = "is cut off: its compressed data ends too early; copy or download it again"
        return records.Fault("truncated", where, message)
    message = f"is no good compressed file: {error}; copy or download it again"
    return records.Fault("unreadable", where, message)


class _Zstandard(io.RawIOBase):
    """Decompresses a file of one or more frames; zstandard's own reader takes a cut for the end."""

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._library = extras.load("zstandard", "data")
        self._frame = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            # Little at a time: 4 bytes may stand for 128 KiB, and all of it is held.
            raw = self._rest or self._raw.read(_COMPRESSED_BYTES)
            self._rest = b""
            if not raw:
                if self._frame is not None:
                    raise EOFError
                return 0
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(raw))
            except self._library.ZstdError as error:
                raise zlib.error(str(error)) from error
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
