"""Manifest of a folder: size and SHA-256 of every file, written last.

`manifest.json` makes a checkpoint complete. It holds a digest of itself, so that a damaged manifest
is told from a damaged file. Extra files are no damage.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from rpt import files

NAME = "manifest.json"
_CHUNK_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Damage:
    """One file, relative to its folder, and what is wrong with it."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def write(folder: pathlib.Path) -> None:
    """Reads every file back and writes the manifest.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    names = _names(folder)
    entries = {name: [size, digest] for name, (size, digest) in _measure(folder, names).items()}
    content = {"files": entries, "sha256": _digest_of(entries)}
    files.write(folder / NAME, json.dumps(content, indent=1).encode())


def damage(folder: pathlib.Path) -> Damage | None:
    """The first damaged file, by name, or None if all are as they were written."""
    try:
        content = json.loads((folder / NAME).read_bytes())
        entries = content["files"]
        if _digest_of(entries) != content["sha256"]:
            return Damage(NAME, "its content does not match its own digest")
    except FileNotFoundError:
        return Damage(NAME, "it is missing")
    except OSError as error:
        return Damage(NAME, f"it cannot be read, {error.strerror or error}")
    except (ValueError, KeyError, TypeError):
        return Damage(NAME, "it is no complete JSON object")
    present = set(_names(folder))
    for name, (size, _) in entries.items():
        if name not in present:
            return Damage(name, "it is missing")
        found = (folder / name).stat()
        # Sizes first: they are free, and tell a truncated file at once.
        length = found.length if files.is_remote(folder) else found.st_size
        if length != size:
            return Damage(name, f"it has {length} bytes instead of {size}")
    try:
        measured = _measure(folder, list(entries))
    except OSError as error:
        name = os.path.relpath(str(error.filename), str(folder)) if error.filename else "a file"
        return Damage(name, f"it cannot be read, {error.strerror or error}")
    for name, (size, digest) in entries.items():
        if measured[name] != (size, digest):
            return Damage(name, "its SHA-256 is not what was written")
    return None


def _digest_of(entries: dict[str, list]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _names(folder: pathlib.Path) -> list[str]:
    """All files below, by relative path, the manifest left out."""
    found = []
    pending = [(folder, "")]
    while pending:
        current, prefix = pending.pop()
        for path in current.iterdir():
            if path.is_dir():
                pending.append((path, f"{prefix}{path.name}/"))
            elif prefix or not path.name.startswith(NAME):
                found.append(prefix + path.name)
    return sorted(found)


def _measure(folder: pathlib.Path, names: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Size and digest of each file; several at once, for hashing leaves Python's lock."""

    def one(name: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))
