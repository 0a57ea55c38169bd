"""Raw records of ArrayRecord files, at random."""

import collections
import importlib
import pathlib
import resource
import threading
from collections.abc import Sequence
from typing import Any

from data import files, records

# Reads of single records: no read-ahead, no threads.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_MOST_OPEN = 512

Stamp = tuple[int, int]


class _OpenFiles:
    """The files that this process has open, of all sources together.

    A source of 20 GB is 75 shards, a folder may be a thousand files: few of each would make every
    read at random open a file again, all of them would exceed what a process may have open.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self._readers: collections.OrderedDict[tuple[pathlib.Path, Stamp], Any] = (
            collections.OrderedDict()
        )

    def get(self, path: pathlib.Path, stamp: Stamp) -> Any:
        """The library's reader of a file, if it is open; None if not."""
        reader = self._readers.get((path, stamp))
        if reader is not None:
            self._readers.move_to_end((path, stamp))
        return reader

    def open(self, path: pathlib.Path, stamp: Stamp) -> Any:
        """Opens a file, and closes the one that was not read for longest if that is one too many.

        Raises:
            records.Fault: it is no whole file.
        """
        while len(self._readers) >= _most_open():
            self._readers.popitem(last=False)[1].close()
        library = importlib.import_module("array_record.python.array_record_module")
        reader = library.ArrayRecordReader(str(path), options=_OPTIONS)
        if not reader.ok():
            raise records.Fault(
                "truncated",
                str(path),
                "is no whole ArrayRecord file: cut off, or its writer was not closed",
            )
        self._readers[path, stamp] = reader
        return reader

    def forget(self, path: pathlib.Path, stamp: Stamp) -> None:
        self._readers.pop((path, stamp), None)


_OPEN = _OpenFiles()


def _most_open() -> int:
    """A quarter of what the process may have open leaves room for everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, soft // 4))


class Reader:
    """Raw records of several files, by (file, index)."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._paths = paths
        # Of every file when it was first opened: it may be another one when it is opened again.
        self._stamps: dict[int, Stamp] = {}

    def length(self, file: int) -> int:
        with _OPEN.lock:
            return self._reader(file).num_records()

    def read(self, file: int, index: int) -> bytes:
        """One record.

        Raises:
            IndexError: there is no such record.
            records.Fault: the file is gone, or damaged there.
        """
        with _OPEN.lock:
            reader = self._reader(file)
            if not 0 <= index < reader.num_records():
                raise IndexError(f"{self._paths[file]}: record {index} of {reader.num_records()}")
            try:
                # A range: with a list of indices the library copies its index of all chunks first,
                # 860 microseconds a record in a file of 200,000 chunks instead of 11.
                return reader.read(index, index + 1)[0]
            except (RuntimeError, IndexError) as error:
                # A reader that met damage says no to everything after it.
                _OPEN.forget(self._paths[file], self._stamps[file])
                raise records.Fault(
                    "unreadable",
                    f"{self._paths[file]}: record {index}",
                    f"cannot be read: {' '.join(str(error).split())}",
                ) from error

    def _reader(self, file: int) -> Any:
        path = self._paths[file]
        if file in self._stamps:
            reader = _OPEN.get(path, self._stamps[file])
            if reader is not None:
                return reader
        if not path.exists():
            raise records.Fault("vanished", str(path), "is gone")
        if not path.stat().st_size:
            raise records.Fault("empty_file", str(path), "is an empty file of 0 bytes")
        stamp = files.stamp(path)
        if self._stamps.setdefault(file, stamp) != stamp:
            message = "has changed since the source was opened; open it again"
            raise records.Fault("changed", str(path), message)
        return _OPEN.get(path, stamp) or _OPEN.open(path, stamp)
