r"""Trains a SentencePiece model on a source.

    python -m data.train_tokenizer --source='pydoc?split=train' --out=pydoc.model --vocab_size=2000

The model is lossless: nothing is normalised, no space is added before a text, white space is kept
as it is, and bytes without a piece have byte pieces. (One exception is SentencePiece's own: it
writes a space as U+2581, so that character of a text comes back as a space.) Special tokens are
control pieces: text never becomes one, markup does (data/tokenizers.py). Newlines and tabs are
pieces, as tokens of their own.

The training text is a sample of whole documents in a seeded order, up to --max_bytes, since
SentencePiece holds it in memory (about ten times its size). The same text and settings give the
same file.
"""

import argparse
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import sentencepiece

from data import commands, records, sources, tokenizers_huggingface, tokenizers_sentencepiece

Kind = Literal["bpe", "unigram"]
BOS, EOS, UNKNOWN = "<bos>", "<eos>", "<unk>"
SPECIAL_TOKENS = ("<think>", "</think>")
MAX_BYTES = 100_000_000
# Longer lines are cut there: SentencePiece would leave them out.
_LINE_CHARS = 4000
_LINE_BYTES = 4 * _LINE_CHARS
_SETTINGS: Mapping[str, Any] = {
    "hard_vocab_limit": False,
    # Lossless.
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "character_coverage": 0.9995,
    # Indentation is one piece, digits are single.
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "user_defined_symbols": ["\n", "\t"],
    "unk_piece": UNKNOWN,
    "bos_piece": BOS,
    "eos_piece": EOS,
    "pad_id": -1,
    "max_sentence_length": _LINE_BYTES,
    # Sums of several threads would differ from run to run.
    "num_threads": 1,
    "minloglevel": 2,
}


def train(
    source: records.Source,
    vocab_size: int,
    guard: records.Guard,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    kind: Kind = "bpe",
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> tokenizers_sentencepiece.SentencePieceTokenizer:
    """A tokenizer whose ids are: unknown, bos, eos, special tokens, newline, tab, bytes, the rest.

    Args:
        source: at least some of its text is read.
        vocab_size: pieces at most; fewer where the text does not have as many.
        guard: decides on documents that cannot be read.
        special_tokens: besides '<bos>' and '<eos>', which there always are.
        kind: byte-pair encoding, or a unigram language model.
        max_bytes: of training text.
        seed: of the order in which documents are taken.

    Raises:
        ValueError: the vocabulary has no room for its fixed pieces, a special token cannot be one,
            SentencePiece refuses, or a document cannot be read (records.Fault).
    """
    fixed = (UNKNOWN, BOS, EOS, *special_tokens)
    tokenizers_huggingface.check_special_tokens(fixed, BOS, EOS)
    least = len(fixed) + 2 + 256
    if vocab_size <= least:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: bytes and special tokens take {least}"
        )
    out = io.BytesIO()
    faults: list[records.Fault] = []

    def lines() -> Iterator[str]:
        try:
            yield from _lines(source, guard, max_bytes, seed)
        except records.Fault as fault:
            # SentencePiece makes an error of its own of it.
            faults.append(fault)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=out,
            model_type=kind,
            vocab_size=vocab_size,
            control_symbols=list(special_tokens),
            **_SETTINGS,
        )
    except (RuntimeError, OSError) as error:
        for fault in faults:
            raise fault from error
        raise ValueError(f"SentencePiece cannot train on this text: {error}") from error
    return tokenizers_sentencepiece.SentencePieceTokenizer(out.getvalue())


def _lines(
    source: records.Source, guard: records.Guard, max_bytes: int, seed: int
) -> Iterator[str]:
    """Documents in a seeded order, whole but for the last, line by line."""
    left = max_bytes
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    for _, record in records.readable(source, guard, order):
        for line in record.text.splitlines(keepends=True):
            for start in range(0, len(line), _LINE_CHARS):
                piece = line[start : start + _LINE_CHARS]
                left -= len(piece.encode())
                if left < 0:
                    return
                yield piece


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.train_tokenizer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", required=True, help="spec of data/sources.py")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="file to write, *.model")
    parser.add_argument("--vocab_size", required=True, type=int, help="pieces at most")
    parser.add_argument(
        "--special", default=",".join(SPECIAL_TOKENS), help="special tokens, joined by commas"
    )
    parser.add_argument("--kind", default="bpe", choices=get_args(Kind))
    parser.add_argument("--max_bytes", default=MAX_BYTES, type=int, help="of training text")
    parser.add_argument("--seed", default=0, type=int, help="of the sample")
    given = parser.parse_args(argv)
    if given.out.suffix != ".model":
        raise ValueError(f"--out={given.out}: a SentencePiece file is called *.model")
    special = tuple(filter(None, given.special.split(",")))
    source, guard = sources.open_guarded(given.source)
    found = len(guard.faults)
    tokenizer = train(
        source,
        given.vocab_size,
        guard,
        special_tokens=special,
        kind=given.kind,
        max_bytes=given.max_bytes,
        seed=given.seed,
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_name(given.out.name + ".partial")
    partial.write_bytes(tokenizer.model)
    os.replace(partial, given.out)
    counts = records.described(guard.counts_with(source.counts, found))
    print(f"{given.out}: {tokenizer.vocab_size} pieces, digest {tokenizer.digest()[:12]}; {counts}")


if __name__ == "__main__":
    commands.run(main)
