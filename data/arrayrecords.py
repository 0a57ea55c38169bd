"""Raw records of ArrayRecord files, at random."""

import collections
import importlib
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from data import files, records

_MOST_OPEN = 64
# Reads of single records: no read-ahead, no threads.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Reader:
    """Raw records of several files, by (file, index); at most 64 files are open at a time."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._paths = paths
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
        # Of every file when it was first opened: it may be another one when it is opened again.
        self._stamps: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def length(self, file: int) -> int:
        with self._lock:
            return self._reader(file).num_records()

    def read(self, file: int, index: int) -> bytes:
        """One record.

        Raises:
            records.Fault: the file is gone, or damaged there.
        """
        with self._lock:
            reader = self._reader(file)
            try:
                # A range: with a list of indices the library copies its index of all chunks first,
                # 860 microseconds a record in a file of 200,000 chunks instead of 11.
                return reader.read(index, index + 1)[0]
            except (RuntimeError, IndexError) as error:
                # A reader that met damage says no to everything after it.
                del self._open[file]
                raise records.Fault(
                    "unreadable",
                    f"{self._paths[file]}: record {index}",
                    f"cannot be read: {' '.join(str(error).split())}",
                ) from error

    def _reader(self, file: int) -> Any:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        path = self._paths[file]
        if not path.exists():
            raise records.Fault("vanished", str(path), "is gone")
        if not path.stat().st_size:
            raise records.Fault("empty_file", str(path), "is an empty file of 0 bytes")
        stamp = files.stamp(path)
        if self._stamps.setdefault(file, stamp) != stamp:
            message = "has changed since the source was opened; open it again"
            raise records.Fault("changed", str(path), message)
        library = importlib.import_module("array_record.python.array_record_module")
        reader = library.ArrayRecordReader(str(path), options=_OPTIONS)
        if not reader.ok():
            raise records.Fault(
                "truncated",
                str(path),
                "is no whole ArrayRecord file: cut off, or its writer was not closed",
            )
        self._open[file] = reader
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        return reader
