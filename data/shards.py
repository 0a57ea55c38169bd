"""Prepared folders: ArrayRecord shards and a manifest, written so that nothing half done is used.

A record is one byte of flags (1: markup, 2: labels), 8 bytes of document id (little-endian), with
labels 4 bytes of length and as much JSON, then the text in UTF-8.

    FOLDER/manifest.json              what it holds; there only when all shards are whole
    FOLDER/shard-00000.array_record   a finished shard
    FOLDER/.progress.json             while unfinished: shards done, position, counts
    FOLDER/.partial-*                 being written; left by a kill, removed by the next run

Order, shard ends and bytes are functions of source and settings, so a preparation that was
interrupted any number of times gives the same files as one that was not.
"""

import collections
import dataclasses
import hashlib
import importlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data import cache, digests, records

VERSION = 2
# What the documents' texts of a shard come to where no number of shards is asked for.
SHARD_BYTES = 256 * 2**20
# Records compressed together: fewer compress worse, more make a random read slower.
_WRITER_OPTIONS = "group_size:8"
_MARKUP, _LABELS = 1, 2

# From a position on: records, and faults in the place of those that cannot be used.
Items = Callable[[int], Iterator[records.Record | records.Fault]]
# Documents, bytes of text, and position so far.
Progress = Callable[[int, int, int], None]


def encode(record: records.Record) -> bytes:
    flags = _MARKUP * record.markup + _LABELS * bool(record.labels)
    labels = b""
    if record.labels:
        labels = json.dumps(record.labels).encode()
        labels = len(labels).to_bytes(4, "little") + labels
    return (
        flags.to_bytes(1, "little")
        + record.document_id.to_bytes(8, "little")
        + labels
        + record.text.encode()
    )


def decode(raw: bytes) -> records.Record:
    """The record that was encoded.

    Raises:
        ValueError: the bytes are no such record.
    """
    if len(raw) < 9 or raw[0] > _MARKUP + _LABELS:
        raise ValueError("is no record that data.prepare wrote")
    start, labels = 9, ()
    if raw[0] & _LABELS:
        start = 13 + int.from_bytes(raw[9:13], "little")
        labels = tuple((int(word), str(label)) for word, label in json.loads(raw[13:start]))
    document_id = int.from_bytes(raw[1:9], "little")
    return records.Record(raw[start:].decode(), document_id, bool(raw[0] & _MARKUP), labels)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written.

    Fields:
        identity: JSON values that say what the documents are; a folder holds one identity.
        items: the source's content.
        ends: positions at which shards end; None ends them at SHARD_BYTES of text.
        notes: further entries of the manifest.
        token_count: tokens of a text, to be added up; None for none.
        before: counts of the source when it was opened (`records.Source`).
        faults: those met then, as `records.Guard` has them; they count towards its bound.
    """

    identity: Mapping[str, Any]
    items: Items
    ends: Sequence[int] | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    token_count: Callable[[str], int] | None = None
    before: Mapping[str, int] = dataclasses.field(default_factory=dict)
    faults: Sequence[tuple[str, str, str]] = ()


@dataclasses.dataclass
class _State:
    """What is done; `.progress.json`. Counts and faults are those of the writing alone."""

    identity: dict[str, Any]
    position: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    faults: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def write(
    folder: pathlib.Path, plan: Plan, rules: records.Guard, progress: Progress | None = None
) -> tuple[dict[str, Any], bool]:
    """Writes, or goes on writing, a prepared folder; a finished one is checked.

    Args:
        rules: what is done about faults; counts stand in the manifest and not there.

    Returns:
        The manifest, and whether anything was written.

    Raises:
        ValueError: the folder holds something else, or a finished shard is not what it was.
        records.Fault: one that must not be skipped; what is finished stays.
    """
    guard = records.Guard(rules.on_fault, rules.max_faults, rules.max_bytes, len(plan.faults))
    with cache.locked(folder):
        manifest = folder / "manifest.json"
        if manifest.exists():
            found = read_manifest(folder)
            _check_identity(folder, found["identity"], plan.identity)
            verify(folder, found)
            return found, False
        state = _begin(folder, plan)
        guard.replay(state.counts, state.faults)
        _write_shards(folder, plan, guard, state, progress)
        text = json.dumps(_manifest(plan, guard, state), indent=1, ensure_ascii=False)
        cache.replace_text(manifest, text + "\n")
        (folder / ".progress.json").unlink(missing_ok=True)
        return read_manifest(folder), True


def _begin(folder: pathlib.Path, plan: Plan) -> _State:
    """The state to go on from; leftovers of a kill are removed."""
    for file in folder.glob(".partial-*"):
        file.unlink()
    saved = folder / ".progress.json"
    if saved.exists():
        state = _State(**json.loads(saved.read_text()))
        _check_identity(folder, state.identity, plan.identity)
        return state
    others = [file.name for file in folder.iterdir() if file.name != ".lock"]
    # A shard may be whole though the first progress was not written yet: it is written again.
    if set(others) - {_shard_name(0)}:
        raise ValueError(
            f"{folder} holds other files ({min(others)}): choose a new or an empty folder"
        )
    return _State(json.loads(json.dumps(dict(plan.identity))))


def _check_identity(
    folder: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    wanted = json.loads(json.dumps(dict(wanted)))
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder} was prepared with {key} {found.get(key)!r}, not {wanted.get(key)!r}: "
                "choose another folder or delete this one"
            )


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.array_record"


def _write_shards(
    folder: pathlib.Path,
    plan: Plan,
    guard: records.Guard,
    state: _State,
    progress: Progress | None,
) -> None:
    items = plan.items(state.position)
    while plan.ends is None or len(state.shards) < len(plan.ends):
        number = len(state.shards)
        end = None if plan.ends is None else plan.ends[number]
        name = _shard_name(number)
        partial = folder / f".partial-{name}"
        try:
            shard = _write_shard(partial, items, end, plan, guard, state, progress)
            if plan.ends is None and not shard["documents"]:
                return
            shard = {"file": name, **shard, "sha256": sha256(partial)}
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
        state.shards.append(shard)
        state.counts, state.faults = dict(guard.counts), list(guard.faults)
        cache.replace_text(folder / ".progress.json", json.dumps(dataclasses.asdict(state)))


def _write_shard(
    path: pathlib.Path,
    items: Iterator[records.Record | records.Fault],
    end: int | None,
    plan: Plan,
    guard: records.Guard,
    state: _State,
    progress: Progress | None,
) -> dict[str, Any]:
    library = importlib.import_module("array_record.python.array_record_module")
    writer = library.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    done = {"documents": 0, "text_bytes": 0, "tokens": 0}
    content = digests.Running()
    before = [sum(shard[key] for shard in state.shards) for key in ("documents", "text_bytes")]
    try:
        while state.position != end and done["text_bytes"] < (SHARD_BYTES if end is None else 1e99):
            item = next(items, None)
            if item is None:
                break
            state.position += 1
            if isinstance(item, records.Fault):
                guard.meet(item)
            elif not item.text.strip():
                guard.count("empty")
            else:
                raw = encode(item)
                writer.write(raw)
                content.add(item.document_id)
                done["documents"] += 1
                done["text_bytes"] += len(item.text.encode())
                done["tokens"] += plan.token_count(item.text) if plan.token_count else 0
            if progress is not None:
                progress(
                    before[0] + done["documents"], before[1] + done["text_bytes"], state.position
                )
    finally:
        writer.close()
    if plan.token_count is None:
        del done["tokens"]
    return {**done, "bytes": path.stat().st_size, "digest": digests.shown(content.value)}


def _manifest(plan: Plan, guard: records.Guard, state: _State) -> dict[str, Any]:
    totals = {
        key: sum(shard[key] for shard in state.shards)
        for key in ("documents", "text_bytes", "bytes", *(["tokens"] if plan.token_count else []))
    }
    counts = dict(collections.Counter(plan.before) + collections.Counter(guard.counts))
    return {
        "version": VERSION,
        **plan.notes,
        **totals,
        "skipped": records.left_out(counts),
        "noted": records.noted(counts),
        "faults": [*plan.faults, *guard.faults],
        "identity": dict(plan.identity),
        "shards": state.shards,
    }


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or of another version.
    """
    path = folder / "manifest.json"
    if not path.exists():
        unfinished = (folder / ".progress.json").exists()
        hint = "is not finished: run data.prepare again" if unfinished else "has no manifest.json"
        raise FileNotFoundError(f"{folder} {hint}")
    try:
        manifest = json.loads(path.read_text())
        if manifest["version"] != VERSION:
            raise ValueError(f"it has version {manifest['version']}, not {VERSION}")
        needed = ("file", "documents", "bytes", "sha256", "digest")
        _ = [shard[key] for shard in manifest["shards"] for key in needed]
        _ = [manifest[key] for key in ("identity", "skipped", "noted", "faults")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be used: {error!r}; prepare the folder again") from error
    return manifest


def counts_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """What a source of this folder counts (`records.Source`)."""
    noted = {f"{records.NOTED}{name}": number for name, number in manifest["noted"].items()}
    return {**manifest["skipped"], **noted}


def verify(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Compares every shard with the manifest, byte for byte.

    Raises:
        records.Fault: a shard is missing or differs.
    """
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.exists():
            raise records.Fault("vanished", str(path), "is in the manifest and not in the folder")
        if sha256(path) != shard["sha256"]:
            raise records.Fault(
                "changed", str(path), "is not what its manifest says (SHA-256); prepare it again"
            )


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
