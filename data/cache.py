"""The cache folder: what is fetched, indexed or prepared once and used by every later run.

It is $RPT_CACHE, else ~/.cache/rpt. An entry is named by a digest of what it was made from (path,
size, time of change, options), so a changed file gets a new entry; old ones may be deleted at any
time.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import fsspec


def root(folder: str | None = None) -> pathlib.Path:
    return pathlib.Path(folder or os.environ.get("RPT_CACHE") or "~/.cache/rpt").expanduser()


def entry(kind: str, *parts: object) -> pathlib.Path:
    """The folder for what was made from `parts`, which are JSON values."""
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return root() / kind / digest[:32]


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and holds it: other processes wait here until this one leaves or dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file such that it has either its old or its whole new content."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text)
    partial.replace(path)


def is_remote(path: str) -> bool:
    return "://" in path


def fetch(url: str) -> pathlib.Path:
    """Copies a remote file into the cache, once for every version of it.

    Of a folder the files directly in it.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the protocol is unknown, or its package is not installed.
    """
    filesystem, path = open_filesystem(url)
    if not filesystem.exists(path):
        raise FileNotFoundError(f"there is no {url}")
    is_folder = filesystem.isdir(path)
    found = _files_in(filesystem, path) if is_folder else [path]
    folder = entry("remote", url, *(str(filesystem.ukey(name)) for name in found))
    target = folder / pathlib.PurePosixPath(path).name
    with locked(folder):
        if target.exists():
            return target
        partial = folder / ".partial"
        if is_folder:
            shutil.rmtree(partial, ignore_errors=True)  # of a copy that was killed
            partial.mkdir()
        for name in found:
            into = partial / pathlib.PurePosixPath(name).name if is_folder else partial
            filesystem.get_file(name, str(into))
        partial.replace(target)
    return target


def _files_in(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    listed = filesystem.ls(path, detail=True)
    # Some list the folder itself, as an empty file whose name ends in a slash.
    return sorted(
        each["name"] for each in listed if each["type"] == "file" and not each["name"].endswith("/")
    )


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a URL, and the path in it."""
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot open {url}: {' '.join(str(error).split())}") from error
