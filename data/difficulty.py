"""The difficulty index: what a proxy model said about every token of a corpus, a few bytes each.

A folder, written once by `python -m rpt.index`, read at random by document id:

    manifest.json                   what it is: tokenizer, proxy, context rule, shards with SHA-256
    difficulty-00000.array_record   and so on: one record per document, in the order of the source
    ids.npy                         int64 [2, documents]: ids, ascending, and where each lies

A document that could not be read (`on_fault=skip` of the source) keeps its place: its record has
no tokens and the id -1, which is no document's. A record is little-endian: document id (int64),
tokens n (uint32), then two uint16 [n]:

    entropy     filter_entropy (top 16, renormalised) of the prediction of each token;
                steps of ln(16) / 65534, so within 2.2e-5 nats
    surprise    -log p of the token that stands there, no thought before it;
                steps of 1/1024 up to 64 nats, so within 4.9e-4 nats below that

65535 says that there is no prediction: of a first token with nothing before it.

A token's context is the header (its ids are in the manifest) and the document from the start of its
window, windows being those of `pipeline.trunk_batches` for the manifest's seq_len and min_context:
a training run with the same three gets from the index what the proxy would say online.
"""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from data import arrayrecords, extras, pipeline, records, shards

VERSION = 2
MANIFEST, IDS = "manifest.json", "ids.npy"
_HEAD = struct.Struct("<qI")
_NONE = 65535
ENTROPY_STEP = math.log(16) / (_NONE - 1)
SURPRISE_STEP = 1 / 1024


class Scores(NamedTuple):
    """Of one document: float32 [tokens] each, in nats, NaN where there is no prediction."""

    entropy: np.ndarray
    log_prob: np.ndarray


class Entry(NamedTuple):
    document_id: int
    scores: Scores


@dataclasses.dataclass(frozen=True)
class About:
    """What an index depends on.

    Fields:
        source: the spec, without what is done about faults.
        documents: how many it has.
        documents_digest: of them (data/digests.py): an index goes on for the same documents only.
        tokenizer_digest: of the tokenizer.
        proxy: name of the model.
        proxy_sha256: digest of its parameters.
        header_ids: what precedes every window, bos included.
        seq_len: longest row, header included.
        min_context: overlap of windows.
        shard_documents: documents in a shard; the last has fewer.
    """

    source: str
    documents: int
    documents_digest: str
    tokenizer_digest: str
    proxy: str
    proxy_sha256: str
    header_ids: tuple[int, ...]
    seq_len: int
    min_context: int
    shard_documents: int

    def __post_init__(self) -> None:
        room = self.seq_len - len(self.header_ids)
        if self.min_context < 0 or room <= self.min_context:
            raise ValueError(
                f"seq_len {self.seq_len} with a header of {len(self.header_ids)} leaves {room} "
                f"document tokens: that must exceed min_context {self.min_context}"
            )
        if self.shard_documents < 1:
            raise ValueError(f"shard_documents must be at least 1, not {self.shard_documents}")

    @property
    def room(self) -> int:
        return self.seq_len - len(self.header_ids)

    @property
    def shards(self) -> list[range]:
        """The documents of each shard."""
        starts = range(0, self.documents, self.shard_documents)
        return [range(i, min(i + self.shard_documents, self.documents)) for i in starts]

    def windows(self, tokens: int) -> list[tuple[int, int]]:
        """(start, first token that this window decides) of a document's windows."""
        starts = range(
            0, max(tokens - self.min_context, min(tokens, 1)), self.room - self.min_context
        )
        return [(start, start + (self.min_context if start else 0)) for start in starts]


def encode(entry: Entry) -> bytes:
    entropy, log_prob = entry.scores
    head = _HEAD.pack(entry.document_id, len(entropy))
    surprise = -np.asarray(log_prob, np.float64)
    return head + _quantised(entropy, ENTROPY_STEP) + _quantised(surprise, SURPRISE_STEP)


def decode(raw: bytes) -> Entry:
    document_id, tokens = _HEAD.unpack_from(raw)
    codes = np.frombuffer(raw, "<u2", offset=_HEAD.size).reshape(2, tokens)
    values = np.where(codes == _NONE, np.nan, codes * np.array([[ENTROPY_STEP], [SURPRISE_STEP]]))
    entropy, surprise = values.astype(np.float32)
    return Entry(document_id, Scores(entropy, 0 - surprise))


def _quantised(values: np.ndarray, step: float) -> bytes:
    values = np.asarray(values, np.float64)
    # Rounding may leave an entropy a hair below 0.
    codes = np.clip(np.rint(values / step), 0, _NONE - 1)
    return np.where(np.isnan(values), _NONE, codes).astype("<u2").tobytes()


class Writer:
    """Writes an index shard by shard; made again for the same folder, it goes on.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, folder: pathlib.Path, about: About):
        self._folder, self.about = folder, about
        self._array_record = extras.load("array_record.python.array_record_module", "data")
        own = json.loads(json.dumps(dataclasses.asdict(about)))
        self._manifest = {"version": VERSION, "complete": False, "about": own, "shards": []}
        if (folder / MANIFEST).is_file():
            found = read_manifest(folder)
            for name, value in own.items():
                if found["about"].get(name) != value:
                    raise ValueError(
                        f"{folder} holds another index: its {name} is "
                        f"{found['about'].get(name)!r}, not {value!r}; choose another folder"
                    )
            self._manifest = found
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no index; choose another folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._save()

    @property
    def is_complete(self) -> bool:
        return self._manifest["complete"]

    @property
    def shards_done(self) -> int:
        return len(self._manifest["shards"])

    @property
    def faults(self) -> list[tuple[str, str, str]]:
        """Those met in the shards that are done, as `records.Guard` has them."""
        done = self._manifest["shards"]
        return [(*fault,) for shard in done for fault in shard["faults"]]

    def write_shard(
        self, entries: Iterable[Entry], cost: Mapping[str, int], guard: records.Guard
    ) -> None:
        """The next shard; it has its name and stands in the manifest once it is whole.

        Args:
            entries: of the documents of `about.shards[shards_done]`, in their order.
            cost: what scoring it took: 'scored_tokens' and 'flops'; read when entries are over.
            guard: of the source; the faults it meets meanwhile are the shard's.
        """
        met = len(guard.faults)
        path = self._folder / shard_name(self.shards_done)
        partial = path.with_name(path.name + ".partial")
        writer = self._array_record.ArrayRecordWriter(str(partial), "group_size:1")
        documents = tokens = 0
        try:
            for entry in entries:
                writer.write(encode(entry))
                documents, tokens = documents + 1, tokens + len(entry.scores.entropy)
        finally:
            writer.close()
        assert documents == len(self.about.shards[self.shards_done])
        partial.replace(path)
        counts: dict[str, Any] = {"documents": documents, "tokens": tokens, **cost}
        counts["faults"] = [list(fault) for fault in guard.faults[met:]]
        shard = {"file": path.name, "sha256": shards.sha256(path), **counts}
        self._manifest["shards"].append(shard)
        self._save()

    def finish(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Writes the ids and marks the index complete; returns the manifest.

        Args:
            counts: of the source (`records.Source`), what was met while reading included.
        """
        ids = []
        paths = [self._folder / shard["file"] for shard in self._manifest["shards"]]
        reader = arrayrecords.Reader(paths)
        for shard in range(len(paths)):
            for place in range(reader.length(shard)):
                ids.append(_HEAD.unpack_from(reader.read(shard, place))[0])
        # Of equal documents the first counts; they have the same scores.
        known, places = np.unique(np.array(ids, np.int64), return_index=True)
        table = np.stack([known, places])[:, known != pipeline.NO_DOCUMENT]
        with (self._folder / (IDS + ".partial")).open("wb") as file:
            np.save(file, table)
        (self._folder / (IDS + ".partial")).replace(self._folder / IDS)
        self._manifest |= {"complete": True, "counts": dict(counts)}
        self._save()
        return self._manifest

    def _save(self) -> None:
        partial = self._folder / (MANIFEST + ".partial")
        partial.write_text(json.dumps(self._manifest, indent=1) + "\n")
        partial.replace(self._folder / MANIFEST)


class Index:
    """Reads an index; ids are mapped into memory, records are read when asked for.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, unfinished, or of another tokenizer.
    """

    def __init__(self, folder: str | pathlib.Path, tokenizer_digest: str):
        folder = pathlib.Path(folder)
        self.manifest = read_manifest(folder)
        found = self.manifest["about"]
        if found["tokenizer_digest"] != tokenizer_digest:
            raise ValueError(
                f"the difficulty index {folder} was made with another tokenizer "
                f"({found['tokenizer_digest'][:12]}, not {tokenizer_digest[:12]}); "
                "run python -m rpt.index with a proxy that has this one"
            )
        if not self.manifest["complete"]:
            raise ValueError(
                f"the difficulty index {folder} is unfinished: run its python -m rpt.index again"
            )
        self.about = About(**{**found, "header_ids": tuple(found["header_ids"])})
        self._folder = folder
        self._ids, self._places = np.load(folder / IDS, mmap_mode="r")
        paths = [folder / shard["file"] for shard in self.manifest["shards"]]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"the difficulty index {folder} lacks {path.name}")
        self._reader = arrayrecords.Reader(paths)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def cost(self) -> tuple[int, int]:
        """(tokens, FLOPs) that the proxy executed for it."""
        done = self.manifest["shards"]
        return sum(shard["scored_tokens"] for shard in done), sum(shard["flops"] for shard in done)

    def get(self, document_id: int) -> Scores | None:
        """What the proxy said about a document, or None if it is not in the index."""
        place = int(np.searchsorted(self._ids, document_id))
        if place == len(self._ids) or self._ids[place] != document_id:
            return None
        shard, offset = divmod(int(self._places[place]), self.about.shard_documents)
        entry = decode(self._reader.read(shard, offset))
        if entry.document_id != document_id:
            raise ValueError(f"{self._folder / shard_name(shard)} is damaged: record {offset}")
        return entry.scores

    def trunk_entropies(self, batch: pipeline.TrunkBatch) -> tuple[np.ndarray, float]:
        """filter_entropy as the rows of a batch need it.

        Returns:
            float32 [B, S]: entry c for the prediction of trunk token c, NaN where there is none;
            and the share of the documents that are in the index.

        Raises:
            ValueError: a document has another number of tokens than when it was indexed.
        """
        entropy_BS = np.full(batch.tokens_BS.shape, np.nan, np.float32)
        documents = found = 0
        for b, length in enumerate(batch.lengths_B.tolist()):
            if not length:
                continue
            documents += 1
            document_id, start = int(batch.document_ids_B[b]), int(batch.starts_B[b])
            scores = self.get(document_id)
            if scores is None:
                continue
            found += 1
            tokens = start + len(batch.documents[b])
            if tokens != len(scores.entropy):
                raise ValueError(
                    f"document {document_id} has {tokens} tokens, but {len(scores.entropy)} in "
                    f"the difficulty index {self._folder}: make the index again"
                )
            used = length - batch.header_length
            entropy_BS[b, batch.header_length : length] = scores.entropy[start : start + used]
        return entropy_BS, found / documents if documents else 1.0


def shard_name(number: int) -> str:
    return f"difficulty-{number:05d}.array_record"


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no difficulty index: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
        if manifest["version"] != VERSION:
            raise ValueError(f"version {manifest['version']}, not {VERSION}")
        _ = manifest["about"]["tokenizer_digest"], manifest["complete"], manifest["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the manifest of a difficulty index: {error}") from None
    return manifest
