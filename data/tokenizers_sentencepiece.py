"""SentencePiece `.model` files.

A model with a dummy prefix (Llama 2) puts a space before the text, so the first token's bytes begin
with a space that the text does not have. It is kept, since the model was trained on it; after a
special token none is added.

Two options that the Python wrapper lacks are set in the serialized model instead (`_patched`): no
dummy prefix, and pieces that must not be produced. The wire format is read by hand to spare a
protobuf dependency.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from data import tokenizers_huggingface

# Of sentencepiece_model.proto: ModelProto.pieces = 1, .normalizer_spec = 3; SentencePiece.type = 3;
# NormalizerSpec.add_dummy_prefix = 3; Type.UNUSED = 5, Type.USER_DEFINED = 4.
_PIECES, _NORMALIZER, _TYPE, _DUMMY_PREFIX = 1, 3, 3, 3
_UNUSED, _USER_DEFINED = 5, 4


def split_markup(text: str, special: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    """Splits text at special strings: (plain part, None) or (special string, its index)."""
    if not special:
        yield text, None
        return
    longest_first = sorted(special, key=len, reverse=True)
    for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
        if part:
            yield part, special.index(part) if part in special else None


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePieceTokenizer:
    """A SentencePiece model; special are its control pieces and its visible user-defined pieces."""

    model: bytes

    def __post_init__(self) -> None:
        _ = self._processors, self._table  # a bad model fails when it is opened

    @property
    def vocab_size(self) -> int:
        return len(self._table)

    @property
    def bos_id(self) -> int | None:
        return _none_if_absent(self._whole.bos_id())

    @property
    def eos_id(self) -> int | None:
        return _none_if_absent(self._whole.eos_id())

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        whole, types = self._whole, _piece_types(self.model)
        return frozenset(
            id
            for id in range(whole.get_piece_size())
            if whole.is_control(id)
            or (types[id] == _USER_DEFINED and _is_visible(whole.id_to_piece(id)))
        )

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processors[0].encode(text), np.int32)

    def encode_markup(self, text: str) -> np.ndarray:
        strings, ids = self._special
        out: list[int] = []
        for part, index in split_markup(text, strings):
            if index is not None:
                out.append(ids[index])
            else:
                # Only the start of a text has the dummy prefix.
                out += self._processors[1 if out else 0].encode(part)
        return np.array(out, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        table = self._table
        return b"".join(table[id] for id in np.asarray(ids).tolist()).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._table):
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        return self._table[id]

    def digest(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    def save(self, folder: pathlib.Path) -> None:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.model)

    @functools.cached_property
    def _whole(self) -> sentencepiece.SentencePieceProcessor:
        return _processor(self.model)

    @functools.cached_property
    def _processors(self) -> tuple[sentencepiece.SentencePieceProcessor, ...]:
        """Of plain text: at the start of a text, and after a special token (no dummy prefix)."""
        return (
            _processor(_patched(self.model, self.special_ids, dummy_prefix=True)),
            _processor(_patched(self.model, self.special_ids, dummy_prefix=False)),
        )

    @functools.cached_property
    def _special(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        ids = tuple(sorted(self.special_ids))
        return tuple(self._whole.id_to_piece(id).replace("\u2581", " ") for id in ids), ids

    @functools.cached_property
    def _table(self) -> tuple[bytes, ...]:
        whole = self._whole
        pieces = (whole.id_to_piece(id) for id in range(whole.get_piece_size()))
        return tuple(map(tokenizers_huggingface.metaspace_bytes, pieces))


def load_model(path: pathlib.Path) -> SentencePieceTokenizer:
    """Opens a `.model` file.

    Raises:
        ValueError: the file is no SentencePiece model.
    """
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def _none_if_absent(id: int) -> int | None:
    return None if id < 0 else id


def _is_visible(piece: str) -> bool:
    return not piece.replace("\u2581", " ").isspace()


def _patched(model: bytes, unused_ids: frozenset[int], *, dummy_prefix: bool) -> bytes:
    """The model with some user-defined pieces never produced and, on demand, no dummy prefix."""
    parts, index = [], 0
    for number, start, body, end in _fields(model):
        part = model[start:end]
        if number == _PIECES:
            # Control pieces are never produced anyway, and bos and eos must keep their kind.
            if index in unused_ids and _type_of(model[body:end]) == _USER_DEFINED:
                part = _appended(number, model[body:end], _TYPE, _UNUSED)
            index += 1
        elif number == _NORMALIZER and not dummy_prefix:
            part = _appended(number, model[body:end], _DUMMY_PREFIX, 0)
        parts.append(part)
    return b"".join(parts)


def _appended(number: int, message: bytes, field: int, value: int) -> bytes:
    """A sub-message with one small varint field set; in protobuf the last occurrence counts."""
    message += bytes((field << 3, value))
    return bytes((number << 3 | 2,)) + _varint(len(message)) + message


def _piece_types(model: bytes) -> list[int]:
    return [
        _type_of(model[body:end]) for number, _, body, end in _fields(model) if number == _PIECES
    ]


def _type_of(piece: bytes) -> int:
    found = 1  # NORMAL, the default
    for number, _, body, end in _fields(piece):
        if number == _TYPE:
            found = piece[body:end][0]
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start, start of the value, end) of each field of a protobuf message."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        wire = key & 7
        if wire == 0:
            body = position
            _, position = _read_varint(message, position)
        elif wire == 2:
            length, body = _read_varint(message, position)
            position = body + length
        elif wire in (1, 5):
            body = position
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {start}")
        if position > len(message):
            raise ValueError(f"the field at byte {start} runs past the end")
        yield key >> 3, start, body, position


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
