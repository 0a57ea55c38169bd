"""Train, validation and test splits that do not leak, made before any chunking.

Documents that share a run of 13 words belong together, and connected groups go whole to one split.
Documents of fewer words have no such run: they belong together only where they are equal, so
corpora of one-line documents need `duplicates=near` as well, or may leak by near-copies.
Words are those of data/deduplication.py, so a copy in other case or with other punctuation is a
copy. So no 13-word run of a held-out document occurs in train and `covered_share` is 0 by
construction; it is there to judge other ways of splitting.

Python's documentation (`pydoc_data.topics` of CPython 3.11.7: 79 topics, 65 024 words) shows why.
Measured:

                                                                     words covered if a random
                                         number  groups  largest     tenth is held out (6 seeds)
    topics as they are                       79      52  40% words  0.2 - 50%
    `distinct_sections` of the topics       166     148   7% words  0.4 - 2.4%

The second row, dealt by groups (`pydoc?split=...`), is what this project uses: over seeds 0 - 4
train holds 82 - 83% of the 51 765 words, validation 8.2 - 8.9%, test 8.0 - 9.0%, and 0% of the
held-out words are covered. The text differs between Python versions (3.6 has 15% fewer words than
3.11). Until words were normalised here, a run had to be equal in case and punctuation: figures of
pydoc splits from before may differ.
"""

import array
import collections
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from data import deduplication

NAMES = ("train", "validation", "test")
OPTIONS = ("split", "split_seed", "validation", "test")
FRACTION = 0.08
RUN_WORDS = 13
_LEAST_SECTION_WORDS = 20
_MOST_OVERSHOOT = 1.25

# A line of text underlined by three or more of one of reStructuredText's marks.
_HEADING = re.compile(r"^(?=\S.*\n([*=\-~^\"#.])\1{2,}[ ]*$)", re.MULTILINE)


class HasText(Protocol):
    @property
    def text(self) -> str: ...


R = TypeVar("R", bound=HasText)


def split_documents(
    records: Sequence[R], seed: int, fractions: Mapping[str, float]
) -> dict[str, list[R]]:
    """The records of each split, see `deal`."""
    dealt = deal((record.text for record in records), seed, fractions)
    return {name: [records[i] for i in dealt.documents[name].tolist()] for name in NAMES}


class Dealt(NamedTuple):
    """What went where, by split.

    Fields:
        documents: ascending numbers of the documents.
        words: how many words they have, as `deduplication.words` counts.
        covered: how many of these lie in a 13-word run that train has too; of train, all do.
    """

    documents: dict[str, np.ndarray]
    words: dict[str, int]
    covered: dict[str, int]


def deal(texts: Iterable[str], seed: int, fractions: Mapping[str, float]) -> Dealt:
    """Deals whole groups of near-duplicates to the splits, by words.

    Held-out splits are filled in the order of a seeded hash of the groups, test first; a group that
    would overfill a split by more than a quarter goes on to the next, in the end to train. The
    dealing depends on the documents' content, not on their order.

    Args:
        texts: of the documents; read once and not kept. What is kept is the vocabulary, 32 bytes a
            document and, while grouping, about 80 bytes a word: for a corpus beyond that, hold out
            a small source and leave its text out of the large one (data/decontamination.py).
        seed: a different seed is a different split.
        fractions: share of the words for 'train', 'validation' and 'test', summing to 1.

    Raises:
        ValueError: fractions do not sum to 1, or the groups are too few or too large for a split to
            get any.
    """
    _check_fractions(fractions)
    digests: list[bytes] = []
    corpus = _read(texts, digests)
    runs = _ranked_runs(corpus)
    members: dict[int, list[int]] = collections.defaultdict(list)
    for index, label in enumerate(_group_labels(corpus, runs).tolist()):
        members[label].append(index)
    total = int(corpus.lengths.sum())

    def seeded(group: Sequence[int]) -> bytes:
        content = min(digests[index] for index in group)
        return hashlib.sha256(seed.to_bytes(8, "big", signed=True) + content).digest()

    where = np.full(len(digests), NAMES.index("train"), np.int8)
    filled = dict.fromkeys(NAMES, 0)
    for group in sorted(members.values(), key=seeded):
        size = int(corpus.lengths[group].sum())
        for name in ("test", "validation"):
            wanted = fractions[name] * total
            if filled[name] < wanted and filled[name] + size <= _MOST_OVERSHOOT * wanted:
                filled[name] += size
                where[group] = NAMES.index(name)
                break
    documents = {name: np.flatnonzero(where == i) for i, name in enumerate(NAMES)}
    for name in NAMES:
        if fractions[name] > 0 and not len(documents[name]):
            raise ValueError(
                f"nothing to put in {name}: {len(digests)} documents form {len(members)} groups "
                f"without common {RUN_WORDS}-word runs, too few or too large for "
                f"{fractions[name]:.1%} of the words; cut them into smaller documents"
            )
    words = {name: int(corpus.lengths[documents[name]].sum()) for name in NAMES}
    held_out = {name: where == NAMES.index(name) for name in ("validation", "test")}
    covered = {name: _covered_words(runs, where == 0, asked) for name, asked in held_out.items()}
    return Dealt(documents, words, {"train": words["train"], **covered})


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if (
        set(fractions) != set(NAMES)
        or min(fractions.values()) < 0
        or abs(sum(fractions.values()) - 1) > 1e-6
    ):
        raise ValueError(
            f"fractions must be {', '.join(NAMES)}, >= 0, sum 1, not {dict(fractions)}"
        )


def group_labels(texts: Sequence[str]) -> np.ndarray:
    """int [documents]: equal for documents connected by shared 13-word runs, or of equal words.

    Exact: runs are compared by rank, not by hash.
    """
    corpus = _read(texts)
    return _group_labels(corpus, _ranked_runs(corpus))


def covered_share(held_out: Sequence[str], train: Sequence[str]) -> float:
    """Share of the held-out words that lie in a 13-word run which also occurs in train."""
    corpus = _read([*train, *held_out])
    in_train = np.arange(len(corpus.lengths)) < len(train)
    words = int(corpus.lengths[~in_train].sum())
    covered = _covered_words(_ranked_runs(corpus), in_train, ~in_train)
    return covered / words if words else 0.0


class _Corpus(NamedTuple):
    """Words as numbers, int32 [words], and how many each document has, int64 [documents]."""

    numbers: np.ndarray
    lengths: np.ndarray


class _Runs(NamedTuple):
    """All 13-word runs within documents.

    Fields:
        ranks: [runs]; equal numbers mean equal runs.
        starts: [runs]; where each begins in the concatenation of all words.
        document_of: int32 [words]; the document of every word.
    """

    ranks: np.ndarray
    starts: np.ndarray
    document_of: np.ndarray


def _read(texts: Iterable[str], digests: list[bytes] | None = None) -> _Corpus:
    """One pass over the texts; also appends the SHA-256 of each to `digests`."""
    number_of: dict[str, int] = {}
    numbers, lengths = array.array("i"), array.array("q")
    for text in texts:
        words = _words(text)
        numbers.extend([number_of.setdefault(w, len(number_of)) for w in words])
        lengths.append(len(words))
        if digests is not None:
            digests.append(hashlib.sha256(text.encode()).digest())
    return _Corpus(np.array(numbers, np.int32), np.array(lengths, np.int64))


def _words(text: str) -> list[str]:
    # Texts without a letter or digit are told apart by what they have.
    return deduplication.words(text) or text.split()


def _group_labels(corpus: _Corpus, runs: _Runs) -> np.ndarray:
    owner_of = runs.document_of[runs.starts]
    order = np.lexsort((owner_of, runs.ranks))
    ranks, owners = runs.ranks[order], owner_of[order]
    touching = ranks[1:] == ranks[:-1]
    pairs = set(zip(owners[:-1][touching].tolist(), owners[1:][touching].tolist()))
    parent = list(range(len(corpus.lengths)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    same_words: dict[bytes, int] = {}
    ends = np.cumsum(corpus.lengths)
    # Documents shorter than a run have no run, yet may be equal.
    for document in np.flatnonzero(corpus.lengths < RUN_WORDS).tolist():
        words = corpus.numbers[ends[document] - corpus.lengths[document] : ends[document]]
        pairs.add((same_words.setdefault(words.tobytes(), document), document))
    for left, right in pairs:
        parent[root(left)] = root(right)
    return np.array([root(document) for document in range(len(parent))], np.int64)


def _covered_words(runs: _Runs, is_train: np.ndarray, is_asked: np.ndarray) -> int:
    """How many words of the asked documents lie in a run that a train document has too."""
    owner_of = runs.document_of[runs.starts]
    shared = np.isin(runs.ranks, runs.ranks[is_train[owner_of]])
    hit_starts = runs.starts[is_asked[owner_of] & shared]
    # A word is covered if a hit begins at it or at one of the 12 words before; hits never cross
    # documents.
    depth = np.zeros(len(runs.document_of) + RUN_WORDS + 1, np.int64)
    np.add.at(depth, hit_starts, 1)
    np.add.at(depth, hit_starts + RUN_WORDS, -1)
    return int(np.count_nonzero(np.cumsum(depth)))


def _ranked_runs(corpus: _Corpus) -> _Runs:
    """By prefix doubling: rank pairs of ranks."""
    document_of = np.repeat(np.arange(len(corpus.lengths), dtype=np.int32), corpus.lengths)
    ends = np.repeat(np.cumsum(corpus.lengths), corpus.lengths)
    starts = np.flatnonzero(np.arange(len(ends)) + RUN_WORDS <= ends)
    del ends
    ranks = corpus.numbers.astype(np.int64)
    width = 1
    while width < RUN_WORDS:
        # Runs of `width` at i and at i + step cover one of width + step; steps may overlap.
        step = min(width, RUN_WORDS - width)
        shifted = np.zeros_like(ranks)
        shifted[:-step] = ranks[step:]
        codes = ranks * (ranks.max(initial=0) + 1) + shifted
        del shifted
        ranks = np.unique(codes, return_inverse=True)[1]
        width += step
    return _Runs(ranks[starts], starts, document_of)


class Sections(NamedTuple):
    """Documents, and what was left out of the text they were made of (`records.Source`)."""

    texts: list[str]
    counts: Mapping[str, int]


def distinct_sections(texts: Iterable[str]) -> Sections:
    """Sections of documentation without repetition, as documents.

    Longest texts first; a paragraph equal to an earlier one (white space aside) is left out, the
    rest is cut before underlined headings, and sections that are left with under 20 words are
    dropped.
    """
    seen: set[str] = set()
    sections = []
    counts: collections.Counter[str] = collections.Counter()
    for text in sorted(texts, key=lambda text: (-len(text), text)):
        for section in _HEADING.split(text)[::2]:
            paragraphs, repeated = [], 0
            for paragraph in re.split(r"\n\s*\n", section.rstrip()):
                key = " ".join(paragraph.split())
                repeated += key in seen
                if key and key not in seen:
                    seen.add(key)
                    paragraphs.append(paragraph)
            counts["noted/repeated_paragraphs"] += repeated
            kept = "\n\n".join(paragraphs).strip("\n")
            if len(kept.split()) >= _LEAST_SECTION_WORDS:
                sections.append(kept)
            elif paragraphs:
                counts["sections/too_short"] += 1
            elif repeated:
                counts["sections/repeated"] += 1
    return Sections(sections, +counts)
