"""Tokenizers: one protocol over bytes, SentencePiece, Hugging Face and GGUF vocabularies.

Text is tokenised once; cuts, boundaries and rewards use those ids and their RAW bytes. A token may
be part of a UTF-8 character, so a decoded string is for people, never for comparing.

Two ways in: `encode` takes text from the world, in which the string '<think>' is seven characters,
and `encode_markup` takes text of our own making (templates, worked documents), in which it is the
special token. Neither adds bos or eos.

For `bytes` and byte-level BPE the concatenated `token_bytes` of `encode(text)` are `text.encode()`.
A model with a normaliser (NFC, NFKC) or a dummy prefix (SentencePiece, Llama 2) may differ from the
text: it encodes as the model was trained to, and the difference is visible with `joined_bytes`.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from data import tokenizers_gguf, tokenizers_huggingface, tokenizers_sentencepiece

HuggingFaceTokenizer = tokenizers_huggingface.HuggingFaceTokenizer
SentencePieceTokenizer = tokenizers_sentencepiece.SentencePieceTokenizer
train_bpe = tokenizers_huggingface.train_bpe

BYTES_FILE = "bytes_tokenizer.json"
DEFAULT_SPECIAL_TOKENS = tokenizers_huggingface.DEFAULT_SPECIAL_TOKENS


class Tokenizer(Protocol):
    """What the rest of the project may ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that only `encode_markup` can produce."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of plain text; strings of special tokens get no special treatment."""
        ...

    def encode_markup(self, text: str) -> np.ndarray:
        """int32 ids; as `encode`, but the strings of special tokens become their ids."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text for display; invalid UTF-8 is replaced."""
        ...

    def token_bytes(self, id: int) -> bytes:
        """The raw bytes of one token; a special token gives the bytes of its string."""
        ...

    def digest(self) -> str:
        """Hex SHA-256 of vocabulary and rules: equal digests, equal tokenizers."""
        ...

    def save(self, folder: pathlib.Path) -> None:
        """Writes files from which `load(folder)` makes the same tokenizer."""
        ...


def joined_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    """The document's bytes as the project defines them: its tokens' raw bytes, concatenated."""
    return b"".join(map(tokenizer.token_bytes, np.asarray(ids).tolist()))


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0..255 are the bytes; the special tokens follow in the order given."""

    special_tokens: tuple[str, ...] = DEFAULT_SPECIAL_TOKENS
    bos_token: str | None = "<bos>"
    eos_token: str | None = "<eos>"

    def __post_init__(self) -> None:
        tokenizers_huggingface.check_special_tokens(
            self.special_tokens, self.bos_token, self.eos_token
        )

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.special_tokens)

    @property
    def bos_id(self) -> int | None:
        return None if self.bos_token is None else 256 + self.special_tokens.index(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        return None if self.eos_token is None else 256 + self.special_tokens.index(self.eos_token)

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(range(256, self.vocab_size))

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_markup(self, text: str) -> np.ndarray:
        parts = [np.zeros(0, np.int32)]
        for part, index in tokenizers_sentencepiece.split_markup(text, self.special_tokens):
            if index is None:
                parts.append(self.encode(part))
            else:
                parts.append(np.array([256 + index], np.int32))
        return np.concatenate(parts)

    def decode(self, ids: Iterable[int]) -> str:
        return joined_bytes(self, ids).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        return bytes((id,)) if id < 256 else self.special_tokens[id - 256].encode()

    def digest(self) -> str:
        return hashlib.sha256(self._rules().encode()).hexdigest()

    def save(self, folder: pathlib.Path) -> None:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BYTES_FILE).write_text(self._rules() + "\n", encoding="utf-8")

    def _rules(self) -> str:
        return json.dumps({"type": "bytes", **dataclasses.asdict(self)}, sort_keys=True)


def load(path: str | pathlib.Path) -> Tokenizer:
    """Opens 'bytes', a folder of tokenizer files, or a .json, .model or .gguf file.

    A folder may hold tokenizer.json (preferred), tokenizer.model, or what `ByteTokenizer.save`
    wrote.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no tokenizer.
        ValueError: the file is not a tokenizer of a supported kind.
    """
    if str(path) == "bytes":
        return ByteTokenizer()
    path = pathlib.Path(path)
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", BYTES_FILE)
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(
                f"no tokenizer in the folder {path}: it needs tokenizer.json or tokenizer.model"
            )
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}: give 'bytes', a folder or a file")
    if path.name == BYTES_FILE:
        return _load_bytes(path)
    if path.suffix == ".json":
        return tokenizers_huggingface.load_json(path)
    if path.suffix == ".model":
        return tokenizers_sentencepiece.load_model(path)
    if path.suffix == ".gguf":
        return tokenizers_gguf.load_gguf(path)
    raise ValueError(
        f"{path} is no tokenizer file: expected 'bytes', a folder, *.json, *.model or *.gguf"
    )


def _load_bytes(path: pathlib.Path) -> ByteTokenizer:
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))
        special_tokens: Sequence[str] = rules["special_tokens"]
        bos_token, eos_token = rules["bos_token"], rules["eos_token"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a saved byte tokenizer: {error!r}") from error
    return ByteTokenizer(tuple(special_tokens), bos_token, eos_token)
