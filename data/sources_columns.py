"""parquet: sources, and hf: sources, the folders that Hugging Face's `datasets` saves.

Parquet is compressed in row groups, which are no unit of random access, so it is prepared in the
cache. Saved datasets are Arrow files, which are mapped into memory and read in place, with pyarrow
alone.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data import cache, digests, extras, fields, files, records, sources_prepared

_ROWS = 256


def open_parquet(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """One document a row."""
    chosen = fields.take(options)
    parts = []
    for file in files.find(path, "parquet", (".parquet",)):
        try:
            _open_parquet_file(file, chosen)
        except records.Fault as fault:
            guard.meet(fault)
            continue
        key: list[object] = ["parquet", list(chosen.names), chosen.join]
        items = _parquet_items(file, chosen, guard)
        parts.append(sources_prepared.open_cached(file, key, items, guard))
    return records.concatenated(parts)


def _open_parquet_file(path: pathlib.Path, chosen: fields.Fields) -> Any:
    """A pyarrow ParquetFile with the columns that are asked for."""
    library = extras.load("pyarrow.parquet", "data")
    _check_ends(path, b"PAR1", "Parquet")
    try:
        file = library.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's own errors are both.
        raise _unreadable(str(path), error) from error
    _check_columns(file.schema_arrow, chosen, path)
    return file


def _check_ends(path: pathlib.Path, magic: bytes, what: str) -> None:
    if not path.stat().st_size:
        raise records.Fault("empty_file", str(path), "is an empty file of 0 bytes")
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise records.Fault("unreadable", str(path), f"is no {what} file")
        file.seek(max(path.stat().st_size - len(magic), 0))
        if file.read() != magic:
            message = f"is cut off: its {what} footer is missing; copy or download it again"
            raise records.Fault("truncated", str(path), message)


def _check_columns(schema: Any, chosen: fields.Fields, path: pathlib.Path) -> None:
    kinds = {field.name: str(field.type) for field in schema}
    for name in chosen.names:
        if kinds.get(name) not in ("string", "large_string", "binary", "large_binary"):
            known = ", ".join(f"{column}: {kind}" for column, kind in kinds.items())
            raise records.Fault(
                "missing_field",
                str(path),
                f"has no text column {name!r} (columns: {known}); set field=...",
            )


def _unreadable(where: str, error: Exception) -> records.Fault:
    return records.Fault("unreadable", where, f"cannot be read: {' '.join(str(error).split())}")


def _parquet_items(path: pathlib.Path, chosen: fields.Fields, guard: records.Guard):
    def items(start: int) -> Iterator[records.Record | records.Fault]:
        file = _open_parquet_file(path, chosen)
        row = 0
        for group in range(file.num_row_groups):
            first, row = row, row + file.metadata.row_group(group).num_rows
            if row <= start:
                continue
            try:
                batches = file.iter_batches(_ROWS, [group], columns=list(chosen.names))
                for batch in batches:
                    for index in range(max(start - first, 0), len(batch)):
                        yield _item(batch, index, chosen, f"{path}: row {first + index}", guard)
                    first += len(batch)
            except (ValueError, OSError) as error:
                # A fault for every row that is lost: positions stay those of the rows.
                for lost in range(max(first, start), row):
                    yield _unreadable(f"{path}: row {lost} (row group {group})", error)

    return items


def _item(
    batch: Any, index: int, chosen: fields.Fields, where: str, guard: records.Guard
) -> records.Record | records.Fault:
    try:
        text = _row_text(batch, index, chosen, where)
    except records.Fault as fault:
        return fault
    size = len(text.encode())
    return guard.too_long(where, size) if size > guard.max_bytes else records.of_text(text)


def _row_text(batch: Any, index: int, chosen: fields.Fields, where: str) -> str:
    """The joined columns of one row of a record batch.

    Raises:
        records.Fault: a null, or bytes that are not UTF-8.
    """
    values = {}
    for name in chosen.names:
        # As bytes: pyarrow's own error for bad UTF-8 names no place.
        scalar = batch.column(name)[index]
        values[name] = None if not scalar.is_valid else scalar.as_buffer().to_pybytes()
        if values[name] is None:
            raise records.Fault("missing_field", where, f"has a null in column {name!r}")
    return chosen.text_of(values, where)


@dataclasses.dataclass(frozen=True, eq=False)
class ArrowSource:
    """Rows of one memory-mapped Arrow file.

    Fields:
        starts: first row of every batch.
        rows_N: int64; rows that can be used; None for all.
        content: digest of all rows of the columns that are asked for.
    """

    path: pathlib.Path
    batches: Sequence[Any]
    starts: Sequence[int]
    length: int
    rows_N: np.ndarray | None
    content: int
    chosen: fields.Fields
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.length if self.rows_N is None else len(self.rows_N)

    def digest(self) -> int:
        return self.content

    def __getitem__(self, index: int) -> records.Record:
        row = range(len(self))[index] if self.rows_N is None else int(self.rows_N[index])
        batch = bisect.bisect_right(self.starts, row) - 1
        where = f"{self.path}: row {row}"
        text = _row_text(self.batches[batch], row - self.starts[batch], self.chosen, where)
        return records.of_text(text)


def open_hf(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """A folder written by `Dataset.save_to_disk`, or `subset=NAME` of a `DatasetDict`."""
    chosen = fields.take(options)
    subset = options.pop("subset", None)
    if not path:
        raise ValueError("the source 'hf' needs a path, as in 'hf:/some/folder'")
    if cache.is_remote(path):
        raise ValueError(f"{path}: a saved dataset is read in place; copy it to a local folder")
    folder = _dataset_folder(pathlib.Path(path).expanduser(), subset)
    parts = []
    for name in _data_files(folder / "state.json"):
        try:
            parts.append(_open_arrow(folder / name, chosen, guard))
        except records.Fault as fault:
            guard.meet(fault)
    return records.concatenated(parts)


def _data_files(path: pathlib.Path) -> list[str]:
    try:
        return [entry["filename"] for entry in json.loads(path.read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        message = f"does not say what save_to_disk writes there: {error!r}; save the dataset again"
        raise records.Fault("unreadable", str(path), message) from error


def _dataset_folder(folder: pathlib.Path, subset: str | None) -> pathlib.Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} (source 'hf')")
    subsets = folder / "dataset_dict.json"
    if subsets.exists():
        names = json.loads(subsets.read_text())["splits"]
        if subset is None or subset not in names:
            raise ValueError(f"{folder} holds several datasets: set subset= to one of {names}")
        folder = folder / subset
    elif subset is not None:
        raise ValueError(f"{folder} holds one dataset: leave out subset={subset}")
    if not (folder / "state.json").exists():
        raise ValueError(f"{folder} was not written by save_to_disk: it has no state.json")
    return folder


def _open_arrow(path: pathlib.Path, chosen: fields.Fields, guard: records.Guard) -> ArrowSource:
    """Maps a file and checks every row of the columns that are asked for."""
    library = extras.load("pyarrow", "data")
    if not path.exists():
        raise records.Fault("vanished", str(path), "is named in state.json and not there")
    if not path.stat().st_size:
        raise records.Fault("empty_file", str(path), "is an empty file of 0 bytes")
    batches = []
    try:
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
        mapped = library.memory_map(str(path))
        if is_file:
            reader = library.ipc.open_file(mapped)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        else:
            with library.ipc.open_stream(mapped) as reader:
                batches = list(reader)
        _check_columns(reader.schema, chosen, path)
        for column in (batch.column(name) for batch in batches for name in chosen.names):
            # Where values lie; reading them where they do not ends the process.
            kind = library.large_binary() if _is_large(column) else library.binary()
            column.view(kind).validate(full=True)
    except records.Fault:
        raise
    except (ValueError, OSError) as error:
        message = f"is cut off or damaged: {' '.join(str(error).split())}"
        raise records.Fault("truncated", str(path), message) from error
    _check_end(path, is_file)
    starts = [0, *itertools.accumulate(len(batch) for batch in batches)]
    kept = []
    bad = False
    digest = hashlib.sha256()
    for start, batch in zip(starts, batches):
        rows, fine = _usable_rows(batch, start, path, chosen, guard)
        kept.append(rows)
        bad = bad or not fine
        for name in chosen.names:
            _add_column(digest, batch.column(name))
    rows_N = np.concatenate(kept) if bad else None
    content = digests.of_parts(digest.digest(), dataclasses.asdict(chosen))
    return ArrowSource(path, batches, starts[:-1], starts[-1], rows_N, content, chosen)


def _check_end(path: pathlib.Path, is_file: bool) -> None:
    """A stream ends in a mark; pyarrow takes a cut between two batches for the end as well."""
    if is_file:
        return
    with path.open("rb") as file:
        file.seek(-8, 2)
        if file.read() != b"\xff\xff\xff\xff\0\0\0\0":
            message = "is cut off: its end mark is missing; copy or save it again"
            raise records.Fault("truncated", str(path), message)


def _usable_rows(
    batch: Any, start: int, path: pathlib.Path, chosen: fields.Fields, guard: records.Guard
) -> tuple[np.ndarray, bool]:
    """Rows of a batch without a fault and with any text, and whether these are all."""
    compute = extras.load("pyarrow.compute", "data")
    sizes = np.full(len(batch), len(chosen.join.encode()) * (len(chosen.names) - 1))
    blank = np.ones(len(batch), bool)
    suspect = np.zeros(len(batch), bool)
    for column in map(batch.column, chosen.names):
        lengths = compute.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        sizes += lengths
        text = _as_text(column)
        if text is None:
            suspect[:] = True
        else:
            blank &= (lengths == 0) | compute.utf8_is_space(text).to_numpy(zero_copy_only=False)
    suspect |= blank | (sizes > guard.max_bytes)
    usable = np.ones(len(batch), bool)
    for index in suspect.nonzero()[0].tolist():
        item = _item(batch, index, chosen, f"{path}: row {start + index}", guard)
        if isinstance(item, records.Fault):
            guard.meet(item)
            usable[index] = False
        elif not item.text.strip():
            guard.count("empty")
            usable[index] = False
    return start + usable.nonzero()[0], bool(usable.all())


def _as_text(column: Any) -> Any:
    """A column as strings, or None if there is a null in it or not all is UTF-8."""
    library = extras.load("pyarrow", "data")
    kind = library.large_string() if _is_large(column) else library.string()
    try:
        column.validate(full=True)
        return None if column.null_count else column.cast(kind)
    except ValueError:
        return None


def _is_large(column: Any) -> bool:
    return str(column.type).startswith("large_")


def _add_column(digest: Any, column: Any) -> None:
    """Adds lengths and bytes of a column's values to a SHA-256; a null has the length -1."""
    compute = extras.load("pyarrow.compute", "data")
    lengths = compute.binary_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
    digest.update(lengths.astype("<i8"))
    _, offsets, values = column.buffers()
    if values is not None and len(column):
        width = "<i8" if _is_large(column) else "<i4"
        bounds = np.frombuffer(offsets, width)[column.offset :][: len(column) + 1]
        digest.update(memoryview(values)[int(bounds[0]) : int(bounds[-1])])
