"""prepared: sources, the folders of data.prepare, and the cache of what was prepared on the way.

A format that cannot be read at random (compressed lines, Parquet, TFRecord, a seqio task) is
streamed once into such a folder in the cache and read from there.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping

from data import arrayrecords, cache, files, records, shards


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """Documents of one shard; `content` is the digest that its manifest says."""

    reader: arrayrecords.Reader
    path: pathlib.Path
    file: int
    length: int
    content: int
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> records.Record:
        raw = self.reader.read(self.file, index)
        try:
            return shards.decode(raw)
        except ValueError as error:
            raise records.Fault("unreadable", f"{self.path}: record {index}", str(error)) from error

    def digest(self) -> int:
        return self.content


def open_prepared(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """A folder with a manifest; what was left out when it was made is counted again."""
    del options
    if not path:
        raise ValueError("the source 'prepared' needs a path, as in 'prepared:/some/folder'")
    if cache.is_remote(path):
        folder = _fetched(path.rstrip("/"))
    else:
        folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} (source 'prepared')")
    manifest = shards.read_manifest(folder)
    for reason, number in shards.counts_of(manifest).items():
        guard.count(reason, number)
    return _source(folder, manifest, guard)


def open_cached(
    file: pathlib.Path, key: list[object], items: shards.Items, guard: records.Guard
) -> records.Source:
    """The documents of one file, prepared in the cache unless an earlier run has.

    Args:
        key: JSON values: which documents `items` finds in the file.
    """
    identity = {"path": str(file.resolve()), "stamp": list(files.stamp(file)), "key": key}
    return open_cached_items(identity, items, guard)


def open_cached_items(
    identity: Mapping[str, object], items: shards.Items, guard: records.Guard
) -> records.Source:
    """The same for documents that are identified by other things than a file."""
    identity = {**identity, "max_bytes": guard.max_bytes, "version": shards.VERSION}
    folder = cache.entry("prepared", identity)
    if not (folder / "manifest.json").exists():
        what = identity.get("path") or identity.get("name")
        logging.getLogger(__name__).warning("preparing %s in %s, once", what, folder)
        shards.write(folder, shards.Plan(identity, items), guard)
    manifest = shards.read_manifest(folder)
    guard.replay(manifest["skipped"], manifest["faults"])
    return _source(folder, manifest, guard)


def _source(folder: pathlib.Path, manifest: Mapping, guard: records.Guard) -> records.Source:
    paths = [folder / shard["file"] for shard in manifest["shards"]]
    reader = arrayrecords.Reader(paths)
    parts = []
    for number, (path, shard) in enumerate(zip(paths, manifest["shards"])):
        try:
            if not path.exists():
                raise records.Fault("vanished", str(path), "is in the manifest, not in the folder")
            if path.stat().st_size != shard["bytes"]:
                raise records.Fault(
                    "truncated", str(path), f"has not the {shard['bytes']} bytes of its manifest"
                )
            if reader.length(number) != shard["documents"]:
                raise records.Fault("changed", str(path), "has not its manifest's documents")
        except records.Fault as fault:
            guard.meet(fault)
            continue
        content = int(shard["digest"], 16)
        parts.append(ShardSource(reader, path, number, shard["documents"], content))
    return records.concatenated(parts)


def _fetched(url: str) -> pathlib.Path:
    """A remote prepared folder in the cache: its files link to where each was fetched to."""
    manifest = cache.fetch(f"{url}/manifest.json")
    folder = manifest.parent / "folder"
    folder.mkdir(exist_ok=True)
    _link(manifest, folder)
    for shard in shards.read_manifest(folder)["shards"]:
        _link(cache.fetch(f"{url}/{shard['file']}"), folder)
    return folder


def _link(file: pathlib.Path, folder: pathlib.Path) -> None:
    link = folder / file.name
    link.unlink(missing_ok=True)
    link.symlink_to(file)
