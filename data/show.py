"""Shows documents as a model meets them: tokens, byte boundaries, entropies, cuts.

    python -m data.show --source='pydoc?split=train' --tokenizer=bytes --count=2
    python -m data.show --source=... --tokenizer=... --index=indexes/pydoc --cuts=1.5:2.6 \
        --html=page.html

In the terminal neighbouring tokens differ in colour; with an index (rpt/index.py) the background is
the entropy instead, dark blue to bright orange. A cut is marked by a red bar before the token to
predict. Bytes that are no character of their own (part of one, or a control character) are shown
as \\xNN, a newline as a mark and a new line.

--cuts is a band of entropy LOW:HIGH in nats, or a file of JSON lines: samples.jsonl of a training
run, or eval_positions.jsonl of an evaluation. With a file, the documents shown are those with cuts.
--html writes one page that needs nothing else, tokens shaded by entropy.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from data import commands, difficulty, records, show_html, sources, tokenizers

NEWLINE = "\u23ce"
_SEARCHED = 100_000
_RESET = "\x1b[0m"
_CUT = "\x1b[1;38;5;196m|" + _RESET
# Foregrounds of neighbours where there is no entropy, and backgrounds from sure to unsure.
_NEIGHBOURS = (39, 214)
_SHADES = (17, 18, 54, 90, 126, 162, 167, 172, 208)


@dataclasses.dataclass(frozen=True)
class Token:
    """One token as it is shown.

    Fields:
        id: its number.
        raw: its bytes.
        offset: of its first byte in the document.
        entropy, log_prob: in nats; NaN if unknown.
        is_cut: whether it is to be predicted behind a thought.
    """

    id: int
    raw: bytes
    offset: int
    entropy: float
    log_prob: float
    is_cut: bool

    @property
    def text(self) -> str:
        """Printable; a newline is its mark and a newline."""
        decoded = self.raw.decode("utf-8", "backslashreplace")
        return "".join(map(_printable, decoded))


@dataclasses.dataclass(frozen=True)
class Document:
    document_id: int
    number: int
    tokens: tuple[Token, ...]

    @property
    def summary(self) -> str:
        known = [token.entropy for token in self.tokens if not math.isnan(token.entropy)]
        size = sum(len(token.raw) for token in self.tokens)
        parts = [
            f"document {self.number}",
            f"id {self.document_id}",
            f"{len(self.tokens)} tokens",
            f"{size} bytes",
        ]
        if known:
            parts.append(f"mean entropy {sum(known) / len(known):.2f} nats")
        cuts = sum(token.is_cut for token in self.tokens)
        return " \u00b7 ".join([*parts, f"{cuts} cuts"] if cuts else parts)


class Cuts:
    """Where thoughts are asked for: a band of entropy, or positions by document id."""

    def __init__(self, given: str):
        self.by_id: dict[int, set[int]] | None = None
        self._band = (math.inf, -math.inf)
        if not given:
            return
        low, separator, high = given.partition(":")
        try:
            self._band = (float(low or 0), float(high or math.inf))
            is_band = bool(separator)
        except ValueError:
            is_band = False
        if not is_band:
            self._band = (math.inf, -math.inf)
            self.by_id = read_cuts(pathlib.Path(given))

    def of(self, document_id: int, entropy: np.ndarray, min_context: int) -> set[int]:
        if self.by_id is not None:
            return self.by_id.get(document_id, set())
        low, high = self._band
        inside = np.flatnonzero((entropy >= low) & (entropy <= high))
        return set(inside[inside >= min_context].tolist())


def read_cuts(path: pathlib.Path) -> dict[int, set[int]]:
    """Cuts by document id, counted in tokens of the whole document.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object, or none has a document and its cuts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--cuts={path} is neither a band LOW:HIGH nor a file")
    found: dict[int, set[int]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            if "document_id" not in entry:
                continue
            # A sample's cuts count from the start of its window.
            start = entry.get("start", 0) if "cuts" in entry else 0
            cuts = [c["cut"] for c in entry["cuts"]] if "cuts" in entry else [entry["cut"]]
            found.setdefault(entry["document_id"], set()).update(start + cut for cut in cuts)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number} names no cuts: {error!r}") from None
    if not found:
        raise ValueError(f"{path} has no line with a document_id and cuts")
    return found


def look(
    record: records.Record,
    number: int,
    tokenizer: tokenizers.Tokenizer,
    index: difficulty.Index | None,
    cuts: Cuts,
) -> Document:
    """A record as tokens with what is known about each.

    Raises:
        ValueError: the index has another number of tokens for it.
    """
    encode = tokenizer.encode_markup if record.markup else tokenizer.encode
    ids = encode(record.text).tolist()
    entropy = log_prob = np.full(len(ids), np.nan, np.float32)
    scores = None if index is None else index.get(record.document_id)
    if scores is not None:
        if len(scores.entropy) != len(ids):
            raise ValueError(
                f"document {number} has {len(ids)} tokens, {len(scores.entropy)} in the index"
            )
        entropy, log_prob = scores
    min_context = 1 if index is None else index.about.min_context
    chosen = cuts.of(record.document_id, entropy, min_context)
    tokens, offset = [], 0
    for place, id in enumerate(ids):
        raw = tokenizer.token_bytes(id)
        known = float(entropy[place]), float(log_prob[place])
        tokens.append(Token(id, raw, offset, *known, place in chosen))
        offset += len(raw)
    return Document(record.document_id, number, tuple(tokens))


def documents(
    source: records.Source,
    guard: records.Guard,
    tokenizer: tokenizers.Tokenizer,
    index: difficulty.Index | None,
    cuts: Cuts,
    first: int,
    count: int,
) -> Iterator[Document]:
    """From number `first` on; with a file of cuts those that have any.

    Args:
        guard: decides on documents that cannot be read.

    Raises:
        ValueError: there is none, or one cannot be read (records.Fault).
    """
    if not 0 <= first < len(source):
        raise ValueError(f"--first={first} is not among the {len(source)} documents")
    if count < 1:
        raise ValueError(f"--count={count} must be at least 1")
    shown = 0
    searched = range(first, min(len(source), first + _SEARCHED))
    for number, record in records.readable(source, guard, searched):
        if cuts.by_id is None or record.document_id in cuts.by_id:
            shown += 1
            yield look(record, number, tokenizer, index, cuts)
        if shown == count:
            return
    if not shown and cuts.by_id is None:
        raise ValueError(f"none of the documents from {first} on can be read")
    if not shown:
        raise ValueError(
            f"none of the documents from {first} on has cuts in that file (looked at up to "
            f"{_SEARCHED}); is it of this source?"
        )


def ansi(document: Document) -> str:
    """The document in the colours of a terminal."""
    parts = [f"\x1b[1m{document.summary}{_RESET}\n"]
    for place, token in enumerate(document.tokens):
        if math.isnan(token.entropy):
            colour = f"\x1b[38;5;{_NEIGHBOURS[place % 2]}m"
        else:
            shade = _SHADES[round(show_html.share(token.entropy) * (len(_SHADES) - 1))]
            # Neighbours of the same shade are told apart by their foreground.
            colour = f"\x1b[48;5;{shade}m\x1b[38;5;{(255, 229)[place % 2]}m"
        # Colours end before each new line: a background would run on to the terminal's edge.
        text = token.text.replace("\n", f"{_RESET}\n{colour}")
        parts.append(f"{_CUT * token.is_cut}{colour}{text}{_RESET}")
    return "".join(parts) + "\n"


def _printable(char: str) -> str:
    if char == "\n":
        return NEWLINE + "\n"
    if char == " " or char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.show", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", required=True, help="spec of data/sources.py")
    parser.add_argument("--tokenizer", required=True, help="'bytes', a file or a folder")
    parser.add_argument("--index", default="", help="folder of a difficulty index")
    parser.add_argument("--cuts", default="", help="LOW:HIGH in nats, or a file of JSON lines")
    parser.add_argument("--html", type=pathlib.Path, help="page to write")
    parser.add_argument("--first", default=0, type=int, help="number of the first document")
    parser.add_argument("--count", default=3, type=int, help="documents shown")
    given = parser.parse_args(argv)
    tokenizer = tokenizers.load(given.tokenizer)
    index = difficulty.Index(given.index, tokenizer.digest()) if given.index else None
    cuts = Cuts(given.cuts)
    if given.cuts and cuts.by_id is None and index is None:
        raise ValueError("a band of entropy (--cuts=LOW:HIGH) needs an --index")
    source, guard = sources.open_guarded(given.source)
    met = len(guard.faults)
    found = list(documents(source, guard, tokenizer, index, cuts, given.first, given.count))
    for document in found:
        print(ansi(document))
    print(records.described(guard.counts_with(source.counts, met)))
    if given.html:
        page = show_html.page(given.source, found)
        partial = given.html.with_name(given.html.name + ".partial")
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, given.html)
        print(f"{given.html} written", file=sys.stderr)


if __name__ == "__main__":
    commands.run(main)
