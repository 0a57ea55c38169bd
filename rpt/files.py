"""Files of a run directory, on a disk or in a bucket: written whole or not at all.

A run directory is a folder of this machine or `gs://BUCKET/PATH` (any scheme of etils.epath). On a
disk a file is written beside its place and renamed; in a bucket an object appears when it is
complete, and cannot be appended to.
"""

import errno
import os
import pathlib
import re
import time
from typing import cast

from etils import epath

# Seconds between two uploads of a file that grows.
_UPLOAD_SECONDS = 60.0


def folder(text: str) -> pathlib.Path:
    """The path of a flag: of this machine, or of a bucket, which has the same methods."""
    if re.match(r"\w+://", text):
        return cast(pathlib.Path, epath.Path(text))
    return pathlib.Path(text)


def is_remote(path: pathlib.Path) -> bool:
    """Whether it lies in a bucket, where a rename is a copy and nothing is appended to."""
    return re.match(r"\w+:/", os.fspath(path)) is not None


def write(path: pathlib.Path, content: bytes) -> None:
    """Whole or not at all, also if the process or the machine ends within.

    Raises:
      OSError: it cannot be written; what was there before is untouched.
    """
    if is_remote(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk even little counts
        raise


def settle(folder: pathlib.Path) -> None:
    """Until everything below a folder is on its disk, where a power cut leaves it.

    Raises:
      OSError: it cannot be brought there.
    """
    if is_remote(folder):
        return
    for current, _, names in os.walk(folder, topdown=False):
        for name in names:
            _settle_one(pathlib.Path(current, name))
        _settle_one(pathlib.Path(current))


def rename(path: pathlib.Path, target: pathlib.Path) -> None:
    """Beside its place, on a disk; a power cut after it does not undo it."""
    path.rename(target)
    _settle_one(target.parent)


def _settle_one(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of a network do not know it of folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


class Appender:
    """A text file that grows by lines; in a bucket it is uploaded whole, once a minute."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        remote = is_remote(path)
        self._file = None if remote else path.open("a")
        self._content = [path.read_text()] if remote and path.is_file() else []
        self._last_upload = time.monotonic()

    def write(self, line: str) -> None:
        """One line; what a disk has when this returns, and a bucket within a minute."""
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._content.append(line + "\n")
        if time.monotonic() - self._last_upload > _UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Until everything written is where the next start finds it."""
        if self._content:
            self._path.write_text("".join(self._content))
            self._last_upload = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
