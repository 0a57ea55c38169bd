"""The byte-level BPE tokenizer inside a GGUF file, rebuilt as a tokenizer.json.

A GGUF holds vocabulary and merges but only the NAME of the pre-tokenizer; the regular expressions
that the names stand for are those of llama.cpp (src/llama-vocab.cpp). Unlike Qwen's own
tokenizer.json no NFC normaliser is applied, so that the tokens' bytes are the text's.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import tokenizers
from tokenizers import pre_tokenizers

from data import tokenizers_huggingface

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# pre-tokenizer name -> the expressions that split a text, one after the other
EXPRESSIONS: Mapping[str, tuple[str, ...]] = {
    "smollm": (r"\p{N}", _GPT2),
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace("{1,3}", ""),),
    "deepseek-r1-qwen": (_LLAMA3.replace("{1,3}", ""),),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}


def load_gguf(path: pathlib.Path) -> tokenizers_huggingface.HuggingFaceTokenizer:
    """Opens the tokenizer of a GGUF file.

    Raises:
        ValueError: the file is no GGUF, or its tokenizer is not byte-level BPE with a known
            pre-tokenizer.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    prefix = "tokenizer."
    fields = {
        name.removeprefix(prefix): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(prefix)
    }
    try:
        return from_fields(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_fields(fields: Mapping[str, Any]) -> tokenizers_huggingface.HuggingFaceTokenizer:
    """Builds the tokenizer from GGUF metadata; keys come without 'tokenizer.': 'ggml.tokens'."""
    model, pre = fields.get("ggml.model"), fields.get("ggml.pre", "default")
    if model != "gpt2":
        raise ValueError(
            f"the GGUF's tokenizer is {model!r}, only byte-level BPE ('gpt2') is read; "
            "use the model's tokenizer.json or tokenizer.model instead"
        )
    if pre not in EXPRESSIONS:
        raise ValueError(f"unknown GGUF pre-tokenizer {pre!r}; known: {', '.join(EXPRESSIONS)}")
    tokens, types = fields["ggml.tokens"], fields["ggml.token_type"]
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=[(left, right) for left, right in map(str.split, fields["ggml.merges"])],
            # Llama 3 takes a word that is a token whole, even where no merges lead to it.
            ignore_merges=pre == "llama-bpe",
        )
    )
    splits = [
        pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
        for expression in EXPRESSIONS[pre]
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    encoder.decoder = tokenizers.decoders.ByteLevel()
    for kind in (_CONTROL, _USER_DEFINED):
        added = [
            tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, type_ in zip(tokens, types)
            if type_ == kind
        ]
        encoder.add_tokens(added)
    config = {
        name: tokens[fields[f"ggml.{short}_token_id"]]
        for name, short in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("pad_token", "padding"),
            ("unk_token", "unknown"),
        )
        if f"ggml.{short}_token_id" in fields
    }
    if "chat_template" in fields:
        config["chat_template"] = fields["chat_template"]
    return tokenizers_huggingface.HuggingFaceTokenizer(encoder.to_str(), config)
