"""tfds: sources, builders of tensorflow-datasets that are on disk.

Builders in the ArrayRecord format are read in place, without TensorFlow; the others are streamed
through TensorFlow into the cache once.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data import arrayrecords, digests, extras, fields, records, sources_prepared


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """Examples of a builder's `as_data_source`, which lie in ArrayRecord files."""

    examples: Any
    paths: Sequence[Any]
    name: str
    chosen: fields.Fields
    max_bytes: int
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> records.Record:
        where = f"{self.name}: example {index}"
        try:
            example = self.examples[index]
        except RuntimeError as error:
            raise self._fault(where, error) from error
        if all(value is None for value in example.values()):
            # What TFDS makes of a record that a file cut off at a block's end does not have.
            raise self._fault(where, "its file does not have it")
        return _record(example, self.chosen, where, self.max_bytes)

    def digest(self) -> int:
        """Of the files' sizes and samples of their bytes: they are not read through when opened."""
        content = [digests.sampled(path) for path in self.paths]
        return digests.of_parts(self.name, dataclasses.asdict(self.chosen), content)

    def _fault(self, where: str, error: object) -> records.Fault:
        """Of the file that is cut off, where one is; else of the example alone."""
        reader = arrayrecords.Reader([pathlib.Path(path) for path in self.paths])
        for file in range(len(self.paths)):
            try:
                reader.length(file)
            except records.Fault as fault:
                return records.Fault(fault.reason, where, f"cannot be read: {fault}")
        message = f"cannot be read: {' '.join(str(error).split())}"
        return records.Fault("unreadable", where, message)


def open_tfds(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """`name/config:version`, or the folder of a builder."""
    chosen = fields.take(options)
    subset = options.pop("subset", "train")
    download = options.pop("download", "no")
    data_dir, module = options.pop("data_dir", None), options.pop("module", None)
    if not path:
        raise ValueError("the source 'tfds' needs a name, as in 'tfds:wikipedia/20230601.en'")
    if download not in ("yes", "no"):
        raise ValueError(f"download={download!r}: choose yes or no")
    if module is not None:
        extras.load_of_user(module)
    library = extras.load("tensorflow_datasets", "tfds")
    builder = _builder(library, path, data_dir)
    if not builder.is_prepared():
        if download == "no":
            raise ValueError(
                f"{path!r} of TFDS is not in {builder.data_path}: set data_dir=, or download=yes"
            )
        builder.download_and_prepare(file_format="array_record")
    name = f"{builder.info.full_name}[{subset}]"
    features = builder.info.features
    for field in chosen.names:
        if field not in features:
            known = ", ".join(features)
            message = f"has no field {field!r} (fields: {known}); set field=..."
            raise records.Fault("missing_field", name, message)
    try:
        paths = builder.info.splits[subset].filepaths
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"{path!r} of TFDS has no subset {subset!r} (subsets: {known})") from error
    if builder.info.file_format.value == "array_record":
        examples = builder.as_data_source(split=subset)
        return TfdsSource(examples, paths, name, chosen, guard.max_bytes)
    identity = {
        "name": name,
        "path": str(builder.data_path),
        "checksums": [[s.name, s.num_bytes, s.num_examples] for s in builder.info.splits.values()],
        "changed": _changed(pathlib.Path(str(builder.data_path))),
        "key": ["tfds", list(chosen.names), chosen.join],
    }
    wanted = library.decode.PartialDecoding(dict.fromkeys(chosen.names, True))
    # Autocaching holds a small dataset in memory.
    settings = {"decoders": wanted, "read_config": library.ReadConfig(try_autocache=False)}
    items = _items(builder, subset, settings, name, chosen, guard)
    return sources_prepared.open_cached_items(identity, items, guard)


def _builder(library: Any, path: str, data_dir: str | None) -> Any:
    folder = pathlib.Path(path).expanduser()
    try:
        if (folder / "dataset_info.json").exists():
            return library.builder_from_directory(str(folder))
        return library.builder(path, data_dir=data_dir, try_gcs=False)
    except (ValueError, ImportError, AssertionError) as error:
        # Without the list of all there are.
        reason = " ".join(str(error).split()).partition(" Available datasets")[0]
        raise ValueError(f"TFDS cannot open {path!r}: {reason}") from error


def _changed(folder: pathlib.Path) -> int:
    """When the dataset was written, in nanoseconds; 0 for a remote one."""
    info = folder / "dataset_info.json"
    return info.stat().st_mtime_ns if info.exists() else 0


def _items(
    builder: Any,
    subset: str,
    settings: dict[str, Any],
    name: str,
    chosen: fields.Fields,
    guard: records.Guard,
):
    def items(start: int) -> Iterator[records.Record | records.Fault]:
        # In the order of the files, the same every time.
        dataset = builder.as_dataset(split=subset, shuffle_files=False, **settings)
        index = start
        try:
            for index, example in enumerate(dataset.skip(start).as_numpy_iterator(), start):
                try:
                    where = f"{name}: example {index}"
                    yield _record(example, chosen, where, guard.max_bytes)
                except records.Fault as fault:
                    yield fault
        except Exception as error:
            yield extras.fault_of_tensorflow(error, f"{name}, after example {index},")

    return items


def _record(
    example: Mapping[str, Any], chosen: fields.Fields, where: str, max_bytes: int
) -> records.Record:
    text = chosen.text_of(example, where)
    if (size := len(text.encode())) > max_bytes:
        raise records.Guard(max_bytes=max_bytes).too_long(where, size)
    return records.of_text(text)
