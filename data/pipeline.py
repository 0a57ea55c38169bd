"""Batches of token ids: packed rows for plain pre-training, one document per row for RPT.

Letters: B rows, S positions. Everything is numpy, deterministic in the seed, sharded by plain
integers, and resumes exactly from `get_state()`, a small dict fit for JSON. The order of reading is
that of data/documents.py; states are per shard.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from data import documents, tokenizers

Mix = documents.Mix
TokenDocument = documents.TokenDocument

# Windows that found no room and wait for the next batch; more waiting fills rows better and mixes
# less.
_MOST_WAITING = 16
NO_DOCUMENT = -1


@dataclasses.dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows filled with whole documents (or pieces of those longer than a row).

    Fields:
        tokens_BS: int32; 0 where empty.
        segments_BS: int32; 0 is empty, 1.. number the documents of a row.
        positions_BS: int32; counted within the segment.
        loss_mask_BS: bool; True where position s + 1 continues the segment, so is to be predicted
            at s.
    """

    tokens_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray
    loss_mask_BS: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TrunkBatch:
    """One document, or one window of a long one, per row, after a header.

    Fields:
        tokens_BS: int32; header, then the window; 0 where empty.
        segments_BS: int32; 1 where used, 0 where empty.
        positions_BS: int32; 0.. over the used part.
        header_length: positions before the document in every row (bos and template).
        lengths_B: int32; used positions, header included; 0 for a row without document (at the end
            of a finite pass).
        document_ids_B: int64; NO_DOCUMENT for a row without one.
        documents: for every row the document's ids from the window's start to the document's END,
            so past the row's end: documents[b][i] is at trunk position header_length + i while that
            is < lengths_B[b].
        starts_B: int32; the window's first token within the whole document.
        labels: for every row (index into documents[b], label).
    """

    tokens_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray
    header_length: int
    lengths_B: np.ndarray
    document_ids_B: np.ndarray
    documents: tuple[np.ndarray, ...]
    starts_B: np.ndarray
    labels: tuple[tuple[tuple[int, str], ...], ...]


Batch_co = TypeVar("Batch_co", covariant=True)


class Stream(Protocol, Generic[Batch_co]):
    """Batches without end, or until StopIteration where a number of epochs was given."""

    def __iter__(self) -> "Stream[Batch_co]": ...

    def __next__(self) -> Batch_co: ...

    def get_state(self) -> dict[str, Any]:
        """What `set_state` of a stream made alike needs to go on with the next batch."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...

    def counts(self) -> dict[str, float]:
        """So far, in this shard: windows, dropped_documents, inexact_documents, epochs/<source>."""
        ...


def packed_batches(
    mixture: Sequence[Mix],
    tokenizer: tokenizers.Tokenizer,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    add_bos: bool = True,
    add_eos: bool = True,
    epochs: int | None = None,
) -> Stream[PackedBatch]:
    """Packs documents into rows, first fit, a batch at a time.

    A document longer than a row is cut into pieces that overlap by one token, so that every token
    but a document's first is predicted exactly once. A document without anything to predict (fewer
    than 2 tokens) is dropped.

    Args:
        batch_size: rows of this shard.
        epochs: passes over a single source, then StopIteration; None goes on for ever.

    Raises:
        ValueError: impossible settings; a source without a usable document; bos or eos that do not
            exist.
    """
    if batch_size < 1 or seq_len < 2:
        raise ValueError(f"need batch_size >= 1 and seq_len >= 2, not {batch_size} and {seq_len}")
    before = _end(tokenizer.bos_id, "bos") if add_bos else _NO_TOKENS
    after = _end(tokenizer.eos_id, "eos") if add_eos else _NO_TOKENS
    ends = len(before) + len(after)

    def starts_of(length: int) -> range:
        return range(0, length + ends - 1, seq_len - 1)

    windows = documents.Windows(
        mixture,
        tokenizer,
        starts_of,
        seed=seed,
        shard_index=shard_index,
        shard_count=shard_count,
        epochs=epochs,
    )
    return _PackedStream(documents.Cursor(windows), batch_size, seq_len, before, after)


_NO_TOKENS = np.zeros(0, np.int32)


def _end(id: int | None, name: str) -> np.ndarray:
    if id is None:
        raise ValueError(f"the tokenizer has no {name} token: set add_{name} = False")
    return np.array([id], np.int32)


class _PackedStream:
    def __init__(
        self,
        cursor: documents.Cursor,
        batch_size: int,
        seq_len: int,
        before: np.ndarray,
        after: np.ndarray,
    ):
        self._cursor = cursor
        self._shape = (batch_size, seq_len)
        self._before, self._after = before, after
        self._waiting: list[tuple[Sequence[int], np.ndarray]] = []

    def __iter__(self) -> "_PackedStream":
        return self

    def __next__(self) -> PackedBatch:
        batch_size, seq_len = self._shape
        tokens_BS, segments_BS, positions_BS = (np.zeros(self._shape, np.int32) for _ in range(3))
        used = [0] * batch_size
        last_segment = [0] * batch_size
        waiting, self._waiting = self._waiting, []
        for key, piece in self._pieces(waiting):
            length = len(piece)
            row = next((b for b in range(batch_size) if used[b] + length <= seq_len), None)
            if row is None:
                self._waiting.append((key, piece))
                continue
            place = slice(used[row], used[row] + length)
            used[row] += length
            last_segment[row] += 1
            tokens_BS[row, place] = piece
            segments_BS[row, place] = last_segment[row]
            positions_BS[row, place] = np.arange(length)
        if not any(used):
            raise StopIteration
        loss_mask_BS = np.zeros(self._shape, bool)
        loss_mask_BS[:, :-1] = (segments_BS[:, 1:] == segments_BS[:, :-1]) & (
            segments_BS[:, 1:] > 0
        )
        return PackedBatch(tokens_BS, segments_BS, positions_BS, loss_mask_BS)

    def _pieces(self, waiting: Sequence[tuple[Sequence[int], np.ndarray]]):
        """First those that waited, then new ones until too many of this batch must wait."""
        yield from waiting
        while len(self._waiting) < _MOST_WAITING:
            found = self._cursor.next()
            if found is None:
                return
            key, document, start = found
            yield key, self._piece(document, start)

    def _piece(self, document: TokenDocument, start: int) -> np.ndarray:
        whole = np.concatenate([self._before, document.tokens, self._after])
        return whole[start : start + self._shape[1]]

    def get_state(self) -> dict[str, Any]:
        waiting = [list(key) for key, _ in self._waiting]
        return {**self._cursor.get_state(), "waiting": waiting}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._cursor.set_state(state)
        self._waiting = [(key, self._piece(*self._cursor.window(key))) for key in state["waiting"]]

    def counts(self) -> dict[str, float]:
        return self._cursor.counts()


def trunk_batches(
    mixture: Sequence[Mix],
    tokenizer: tokenizers.Tokenizer,
    *,
    batch_size: int,
    seq_len: int,
    header_ids: np.ndarray,
    min_context: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    epochs: int | None = None,
) -> Stream[TrunkBatch]:
    """Puts each document in a row of its own behind the header.

    A document longer than seq_len - header is cut into windows that overlap by `min_context`: every
    token from the document's `min_context` on is in exactly one window at an index >= min_context,
    so has its context. A document with fewer than min_context + 1 tokens is dropped and counted.

    Args:
        batch_size: rows of this shard.
        header_ids: int32; what precedes the document in every row, bos included; may be empty.
        min_context: document tokens that a cut needs before it.
        epochs: passes over a single source; the last rows are then without documents, and all
            shards yield the same number of batches. None goes on for ever.

    Raises:
        ValueError: impossible settings, or a source without a document that is long enough.
    """
    header = np.asarray(header_ids, np.int32).reshape(-1)
    room = seq_len - len(header)
    if batch_size < 1 or min_context < 0 or room <= min_context:
        raise ValueError(
            f"a row of {seq_len} with a header of {len(header)} leaves {room} document tokens: "
            f"that must exceed min_context {min_context}, and batch_size {batch_size} must be >= 1"
        )

    def starts_of(length: int) -> range:
        return range(0, length - min_context, room - min_context)

    windows = documents.Windows(
        mixture,
        tokenizer,
        starts_of,
        seed=seed,
        shard_index=shard_index,
        shard_count=shard_count,
        epochs=epochs,
    )
    # An indexed source gives one window a position, so that all shards can count their batches
    # alike.
    positions = windows.positions if windows.parts[0].is_indexed else None
    batches = None if positions is None else -(-positions // batch_size)
    return _TrunkStream(documents.Cursor(windows), batches, batch_size, seq_len, header)


class _TrunkStream:
    def __init__(
        self,
        cursor: documents.Cursor,
        batches: int | None,
        batch_size: int,
        seq_len: int,
        header: np.ndarray,
    ):
        self._cursor = cursor
        self._batches = batches
        self._batches_done = 0
        self._shape = (batch_size, seq_len)
        self._header = header

    def __iter__(self) -> "_TrunkStream":
        return self

    def __next__(self) -> TrunkBatch:
        if self._batches is not None and self._batches_done >= self._batches:
            raise StopIteration
        batch_size, seq_len = self._shape
        header_length = len(self._header)
        tokens_BS = np.zeros(self._shape, np.int32)
        lengths_B, starts_B = np.zeros(batch_size, np.int32), np.zeros(batch_size, np.int32)
        document_ids_B = np.full(batch_size, NO_DOCUMENT, np.int64)
        rest: list[np.ndarray] = []
        labels: list[tuple[tuple[int, str], ...]] = []
        for row in range(batch_size):
            found = self._cursor.next()
            if found is None:
                rest.append(_NO_TOKENS)
                labels.append(())
                continue
            _, document, start = found
            rest.append(document.tokens[start:])
            labels.append(tuple((i - start, name) for i, name in document.labels if i >= start))
            length = min(header_length + len(rest[-1]), seq_len)
            tokens_BS[row, :header_length] = self._header
            tokens_BS[row, header_length:length] = rest[-1][: length - header_length]
            lengths_B[row], starts_B[row] = length, start
            document_ids_B[row] = document.document_id
        if self._batches is None and not lengths_B.any():
            raise StopIteration
        self._batches_done += 1
        segments_BS = (np.arange(seq_len) < lengths_B[:, None]).astype(np.int32)
        positions_BS = np.arange(seq_len, dtype=np.int32) * segments_BS
        return TrunkBatch(
            tokens_BS,
            segments_BS,
            positions_BS,
            header_length,
            lengths_B,
            document_ids_B,
            tuple(rest),
            starts_B,
            tuple(labels),
        )

    def get_state(self) -> dict[str, Any]:
        return {**self._cursor.get_state(), "batches_done": self._batches_done}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._cursor.set_state(state)
        self._batches_done = state["batches_done"]

    def counts(self) -> dict[str, float]:
        return self._cursor.counts()
