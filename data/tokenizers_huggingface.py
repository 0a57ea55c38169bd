"""Tokenizers in Hugging Face's tokenizer.json: byte-level BPE, and metaspace with byte fallback.

The `tokenizers` library does the encoding; the raw bytes of each token are worked out here from the
piece.

Two encoders are made of one file. In the plain one every added token that is not pure white space
counts as special and is not looked for in text. (Some files flag '<think>' as an ordinary added
token: in text from the world it still must be seven characters. Runs of spaces, as GPT-NeoX has,
are ordinary vocabulary and stay.)
"""

import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

DEFAULT_SPECIAL_TOKENS = ("<bos>", "<eos>", "<think>", "</think>")
_UNREACHABLE_SCORE = -1e9
_MOST_KNOWN_WORDS = 2**16


def check_special_tokens(
    special_tokens: Sequence[str], bos_token: str | None, eos_token: str | None
) -> None:
    if len(set(special_tokens)) < len(special_tokens) or "" in special_tokens:
        raise ValueError(f"special tokens must be distinct and not empty: {special_tokens}")
    for token in (bos_token, eos_token):
        if token is not None and token not in special_tokens:
            raise ValueError(f"{token!r} is not among the special tokens {tuple(special_tokens)}")


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceTokenizer:
    """A tokenizer.json with what is said beside it in tokenizer_config.json.

    Fields:
        json_text: the text of tokenizer.json.
        config: the content of tokenizer_config.json (bos_token, eos_token, chat_template, ...).
    """

    json_text: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        # The encoders and the byte table are made here, so that a bad file fails when it is opened.
        _ = self._encoders, self._table, self._ends

    @property
    def vocab_size(self) -> int:
        return len(self._table)

    @property
    def bos_id(self) -> int | None:
        return self._ends[0]

    @property
    def eos_id(self) -> int | None:
        return self._ends[1]

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(
            token["id"] for token in self._spec["added_tokens"] if _is_markup(token["content"])
        )

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._ids(text, 0), np.int32)

    def encode_markup(self, text: str) -> np.ndarray:
        return np.array(self._ids(text, 1), np.int32)

    def _ids(self, text: str, which: int) -> list[int]:
        if not (self._splits_at_spaces and _is_single_spaced(text)):
            return _encode(self._encoders[which], text)
        # Ten times faster on generated stories of few different words, with the same result.
        ids: list[int] = []
        known = self._known_words[which]
        head, *words = text.split(" ")
        words = [" " + word for word in words]
        for word in [head, *words] if head else words:
            found = known.get(word)
            if found is None:
                found = _encode(self._encoders[which], word)
                if len(known) < _MOST_KNOWN_WORDS:
                    known[word] = found
            ids += found
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        table = self._table
        return b"".join(table[id] for id in np.asarray(ids).tolist()).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._table):
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        return self._table[id]

    def digest(self) -> str:
        rules = json.dumps([self._spec, self._ends], sort_keys=True)
        return hashlib.sha256(rules.encode()).hexdigest()

    def save(self, folder: pathlib.Path) -> None:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.json_text, encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @functools.cached_property
    def _spec(self) -> dict[str, Any]:
        return json.loads(self.json_text)

    @functools.cached_property
    def _encoders(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """The plain and the markup encoder."""
        plain = copy.deepcopy(self._spec)
        for token in plain["added_tokens"]:
            token["special"] = _is_markup(token["content"])
        if plain["model"]["type"] == "Unigram":
            # Unigram finds any piece of its vocabulary in text, so the special ones must cost too
            # much.
            for id in self.special_ids:
                if id < len(plain["model"]["vocab"]):
                    plain["model"]["vocab"][id][1] = _UNREACHABLE_SCORE
        plain_encoder = tokenizers.Tokenizer.from_str(json.dumps(plain))
        plain_encoder.encode_special_tokens = True
        markup_encoder = tokenizers.Tokenizer.from_str(self.json_text)
        for encoder in (plain_encoder, markup_encoder):
            encoder.no_truncation()
            encoder.no_padding()
        return plain_encoder, markup_encoder

    @functools.cached_property
    def _known_words(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        return {}, {}

    @functools.cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether the encoders treat ' a b' as ' a', then ' b': so does GPT-2's expression."""
        spec = self._spec
        steps = spec["pre_tokenizer"] or {}
        steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
        return (
            spec["model"]["type"] == "BPE"
            and not spec["model"]["dropout"]
            and spec["normalizer"] in (None, {"type": "NFC"})
            and all(step.get("type") in ("ByteLevel", "Digits") for step in steps)
            and any(step.get("use_regex") for step in steps)
            and not any(step.get("add_prefix_space") for step in steps)
            and not any(
                token["lstrip"]
                or token["rstrip"]
                or token["single_word"]
                or " " in token["content"].strip()
                for token in spec["added_tokens"]
            )
        )

    @functools.cached_property
    def _table(self) -> tuple[bytes, ...]:
        """The raw bytes of every id; ids that no token has are empty."""
        piece_bytes = _piece_bytes(self._spec)
        pieces = self._encoders[1].get_vocab(with_added_tokens=True)
        table = [b""] * (max(pieces.values()) + 1)
        for piece, id in pieces.items():
            table[id] = piece_bytes(piece)
        for token in self._spec["added_tokens"]:
            table[token["id"]] = token["content"].encode()
        return tuple(table)

    @functools.cached_property
    def _ends(self) -> tuple[int | None, int | None]:
        return self._id_of("bos_token"), self._id_of("eos_token")

    def _id_of(self, name: str) -> int | None:
        token = self.config.get(name)
        if isinstance(token, Mapping):
            token = token["content"]
        if token is None:
            return None
        id = self._encoders[1].token_to_id(token)
        if id is None:
            raise ValueError(
                f"tokenizer_config.json names the {name} {token!r}, not in the vocabulary"
            )
        return id


def _encode(encoder: tokenizers.Tokenizer, text: str) -> list[int]:
    # The batched call is the only one that skips computing offsets, half of the time.
    return encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _is_single_spaced(text: str) -> bool:
    """Words parted by single spaces and by no other white space."""
    return text.isascii() and text.isprintable() and "  " not in text


def _is_markup(content: str) -> bool:
    return not content.isspace()


def _piece_bytes(spec: Mapping[str, Any]):
    """The function from a piece to its raw bytes, by the kind of tokenizer.json.

    Raises:
        ValueError: pieces of this kind do not determine bytes (WordPiece, word level).
    """
    kind = spec["model"]["type"]
    kinds = set(_types(spec["pre_tokenizer"])) | set(_types(spec["decoder"]))
    if kind == "BPE" and "ByteLevel" in kinds:
        from_char = {char: byte for byte, char in enumerate(byte_level_chars())}
        return lambda piece: b"".join(
            bytes((from_char[char],)) if char in from_char else char.encode() for char in piece
        )
    if kind in ("BPE", "Unigram") and kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return metaspace_bytes
    raise ValueError(
        f"a tokenizer.json of kind {kind} with {sorted(kinds)} is not supported: "
        "byte-level BPE, or BPE/Unigram with metaspace, are"
    )


def _types(part: Any) -> Iterable[str]:
    """The names of all steps of a pre-tokenizer or decoder, nested sequences included."""
    if isinstance(part, Mapping):
        if "type" in part:
            yield part["type"]
        for value in part.values():
            yield from _types(value)
    elif isinstance(part, list):
        for value in part:
            yield from _types(value)


@functools.cache
def byte_level_chars() -> str:
    """GPT-2's printable character for each of the 256 bytes, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


def metaspace_bytes(piece: str) -> bytes:
    """Raw bytes of a SentencePiece-like piece: '<0xE2>' is one byte, U+2581 is a space."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
        return bytes((int(piece[3:5], 16),))
    return piece.replace("\u2581", " ").encode()


def load_json(path: pathlib.Path) -> HuggingFaceTokenizer:
    """Opens a tokenizer.json and, if it lies beside it, tokenizer_config.json.

    Raises:
        ValueError: the file is no tokenizer.json, or of an unsupported kind.
    """
    try:
        json_text = path.read_text(encoding="utf-8")
        tokenizers.Tokenizer.from_str(json_text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a readable tokenizer.json: {error}") from error
    config: dict[str, Any] = {}
    config_path = path.parent / "tokenizer_config.json"
    if config_path.is_file():
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config_path} is not valid JSON: {error}") from error
    template_path = path.parent / "chat_template.jinja"
    if template_path.is_file():
        config["chat_template"] = template_path.read_text(encoding="utf-8")
    try:
        return HuggingFaceTokenizer(json_text, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
) -> HuggingFaceTokenizer:
    """Trains a byte-level BPE in memory: words carry their leading space, any text can be encoded.

    Deterministic: the same texts give the same tokenizer, in whatever order they come. The special
        tokens take the first ids; '<bos>' and '<eos>', if among them, are the ends. The vocabulary
        is smaller than `vocab_size` when the texts have too few pairs to merge.

    Raises:
        ValueError: `vocab_size` does not hold the 256 bytes and the special tokens.
    """
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: bytes and special tokens take {least}"
        )
    bos_token = "<bos>" if "<bos>" in special_tokens else None
    eos_token = "<eos>" if "<eos>" in special_tokens else None
    check_special_tokens(special_tokens, bos_token, eos_token)
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE())
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    encoder.train_from_iterator(texts, trainer)
    ends = {"bos_token": bos_token, "eos_token": eos_token}
    config = {name: token for name, token in ends.items() if token is not None}
    return HuggingFaceTokenizer(encoder.to_str(), config)
