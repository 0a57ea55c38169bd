"""Batches of token ids: packed rows for plain pre-training, one document per row for RPT.

Letters: B rows, S positions. Everything is numpy, deterministic in the seed, sharded by plain
integers, and resumes exactly from `get_state()`, a small dict fit for JSON, in the same time at any
position. States are per shard; data/resharding.py deals them to another number of shards. The order
of reading: docs/data-order.md.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from data import cursor, documents, mixtures, tokenizers

Mix = documents.Mix

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

    def sibling(self, shard_index: int) -> Self:
        """The stream of another shard from its beginning, if this one is at its own."""
        ...

    def get_state(self) -> dict[str, Any]:
        """What `set_state` of a stream made alike needs to go on with the next batch."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from there.

        Mixture weights may be other ones than the state's; that is a further one of `events`.

        Raises:
            ValueError: the state is not of a stream made alike.
        """
        ...

    @property
    def events(self) -> Sequence[mixtures.Event]:
        """(windows drawn before, weights): the mixture's weights, the latest last."""
        ...

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Changes the mixture's weights from the next window on: the hook of a curriculum.

        Every shard has to be given the same weights at the same batch. Names that are left out
        keep theirs; 0 turns a source off. Windows that wait in a packer stay.

        Raises:
            ValueError: no such source, a negative weight, or all are 0.
        """
        ...

    def counts(self) -> dict[str, float]:
        """So far, in this shard.

        windows, windows/<source>; dropped_documents (too short); inexact_documents (whose tokens'
        bytes differ from the text); skipped_faults (records that could not be used, those of the
        sources' opening included); left_out/<source>/<reason> when the source was opened;
        epochs/<source>; weight/<source> (normalised) and weight_changes.
        """
        ...


class _Stream:
    """What packed and trunk streams share: a cursor."""

    def __init__(self, walk: cursor.Cursor):
        self._cursor = walk

    def sibling(self, shard_index: int) -> Self:
        other = copy.copy(self)
        other._cursor = self._cursor.sibling(shard_index)
        return other

    @property
    def events(self) -> Sequence[mixtures.Event]:
        return self._cursor.mixture.events

    def set_weights(self, weights: Mapping[str, float]) -> None:
        self._cursor.mixture.set_weights(weights)

    def counts(self) -> dict[str, float]:
        return self._cursor.counts()


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
        epochs: passes over a single source, then StopIteration, which need not come after as many
            batches in every shard; None goes on for ever.

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

    walk = cursor.Cursor(
        mixture,
        tokenizer,
        starts_of,
        f"packed rows of {seq_len} with {ends} tokens around a document",
        seed=seed,
        shard_index=shard_index,
        shard_count=shard_count,
        epochs=epochs,
    )
    return _PackedStream(walk, batch_size, seq_len, before, after)


_NO_TOKENS = np.zeros(0, np.int32)


def _end(id: int | None, name: str) -> np.ndarray:
    if id is None:
        raise ValueError(f"the tokenizer has no {name} token: set add_{name} = False")
    return np.array([id], np.int32)


class _PackedStream(_Stream):
    def __init__(
        self,
        walk: cursor.Cursor,
        batch_size: int,
        seq_len: int,
        before: np.ndarray,
        after: np.ndarray,
    ):
        super().__init__(walk)
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
        for key, piece in self._pieces():
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

    def _pieces(self) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """First those that waited, then new ones until too many of this batch must wait."""
        waiting, self._waiting = self._waiting, []
        before = self._cursor.get_state()
        try:
            yield from waiting
            while len(self._waiting) < _MOST_WAITING:
                found = self._cursor.next()
                if found is None:
                    return
                yield found.key, self._piece(found)
        except BaseException:
            # Without a batch its rows have not been read.
            self._cursor.set_state(before)
            self._waiting = waiting
            raise

    def _piece(self, found: cursor.Found) -> np.ndarray:
        """The window of bos, document and eos; the work does not grow with the document."""
        pieces, start = [], found.start
        for part in (self._before, found.document.tokens, self._after):
            pieces.append(part[max(start, 0) : max(start + self._shape[1], 0)])
            start -= len(part)
        return np.concatenate(pieces)

    def get_state(self) -> dict[str, Any]:
        waiting = [list(key) for key, _ in self._waiting]
        return {**self._cursor.get_state(), "waiting": waiting}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._cursor.set_state(state)
        found = [self._cursor.window(key) for key in state["waiting"]]
        self._waiting = [(one.key, self._piece(one)) for one in found if one is not None]


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
            shards yield the same number of batches, which needs a small source (data/documents.py)
            where there are several. None goes on for ever.

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

    walk = cursor.Cursor(
        mixture,
        tokenizer,
        starts_of,
        f"windows of {room} tokens with {min_context} of context",
        seed=seed,
        shard_index=shard_index,
        shard_count=shard_count,
        epochs=epochs,
    )
    part, rows = walk.parts[0], None
    if part.total is not None and part.is_indexed:
        # An ordinal is one window, hence one row, so that all shards can count their batches alike.
        rows = -(-part.total // shard_count)
    elif part.total is not None and shard_count > 1:
        raise ValueError(
            "a finite pass over several shards needs a source of at most "
            f"{documents.INDEXED_DOCUMENTS} documents and {documents.INDEXED_TOKENS} tokens, so "
            "that all shards end together"
        )
    return _TrunkStream(walk, rows, batch_size, seq_len, header)


class _TrunkStream(_Stream):
    """`rows_left`: rows that this and every other shard has still to yield; None if unknown."""

    def __init__(
        self,
        walk: cursor.Cursor,
        rows_left: int | None,
        batch_size: int,
        seq_len: int,
        header: np.ndarray,
    ):
        super().__init__(walk)
        self._rows_left = rows_left
        self._shape = (batch_size, seq_len)
        self._header = header

    def __iter__(self) -> "_TrunkStream":
        return self

    def __next__(self) -> TrunkBatch:
        if self._rows_left is not None and self._rows_left <= 0:
            raise StopIteration
        batch_size, seq_len = self._shape
        header_length = len(self._header)
        tokens_BS = np.zeros(self._shape, np.int32)
        lengths_B, starts_B = np.zeros(batch_size, np.int32), np.zeros(batch_size, np.int32)
        document_ids_B = np.full(batch_size, NO_DOCUMENT, np.int64)
        rest: list[np.ndarray] = []
        labels: list[tuple[tuple[int, str], ...]] = []
        for row, found in enumerate(self._found(batch_size)):
            if found is None:
                rest.append(_NO_TOKENS)
                labels.append(())
                continue
            document, start = found.document, found.start
            rest.append(document.tokens[start:])
            labels.append(tuple((i - start, name) for i, name in document.labels if i >= start))
            length = min(header_length + len(rest[-1]), seq_len)
            tokens_BS[row, :header_length] = self._header
            tokens_BS[row, header_length:length] = rest[-1][: length - header_length]
            lengths_B[row], starts_B[row] = length, start
            document_ids_B[row] = document.document_id
        if self._rows_left is not None:
            self._rows_left -= batch_size
        elif not lengths_B.any():
            raise StopIteration
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

    def _found(self, number: int) -> list[cursor.Found | None]:
        before = self._cursor.get_state()
        try:
            return [self._cursor.next() for _ in range(number)]
        except BaseException:
            # Without a batch its rows have not been read.
            self._cursor.set_state(before)
            raise

    def get_state(self) -> dict[str, Any]:
        return {**self._cursor.get_state(), "rows_left": self._rows_left}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._cursor.set_state(state)
        self._rows_left = state["rows_left"]
