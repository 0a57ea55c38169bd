"""Duplicates: equal texts by digest, near-duplicates by MinHash and an exact look.

Equal means equal after NFC and with runs of white space as one space. Near means that the sets of
5-word shingles have a Jaccard similarity of at least a threshold; words are lower-cased runs of
letters, digits and underscores, and every ideograph or kana is a word.

Sketches only propose pairs (MinHash, Broder 1997; banding, Leskovec, Rajaraman and Ullman, Mining
of Massive Datasets, chapter 3): a proposed pair is read again and compared exactly, so no document
is dropped that is not near to one that stays. A pair at the threshold is proposed with a
probability of at least 99.9%: it shares a band (bands are chosen for that), and its similarity as
estimated from one byte per permutation (Li and Koenig, arXiv 0910.3349) is not 4 standard
deviations below the threshold. The estimate spares the reading of texts that share a template and
little else.

Memory per document: 8 bytes for equal texts; for near ones 16 per band (25 bands at the default
threshold) and 128; measured 600 bytes, whatever the documents' length. The shingles of 512 are
kept while comparing.

The sketches come from `rensa` (Rust): 20 microseconds for 1000 shingles on one core, where the same
in datasketch 2.0 takes 2.5 milliseconds. Its full-set digest does not depend on the machine.
"""

import functools
import hashlib
import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from data import extras

THRESHOLD = 0.8
SHINGLE_WORDS = 5
_PERMUTATIONS = 128
# Of the bands alone; the estimate then loses less than 1 pair in 10 000.
_RECALL = 0.9992
_SEED = 1
_COMPARED = 512

# One word per ideograph and kana: these scripts put no spaces between words.
_UNSPACED = r"\u3040-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def exact_key(text: str) -> int:
    """64 bits that equal texts share: NFC, runs of white space as one space."""
    content = " ".join(unicodedata.normalize("NFC", text).split())
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")


def words(text: str) -> list[str]:
    """The lower-cased words by which near-duplicates and benchmark text are found."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def shingles(text: str) -> frozenset[str]:
    """Its 5-word shingles; a shorter text is one shingle."""
    found = words(text)
    last = max(len(found) - SHINGLE_WORDS, 0)
    return frozenset(" ".join(found[i : i + SHINGLE_WORDS]) for i in range(last + 1))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    common = len(left & right)
    return common / (len(left) + len(right) - common)


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows): the most rows whose bands find a pair at the threshold with 99.9%.

    Raises:
        ValueError: the threshold is not in (0, 1], or too low to be found with 128 permutations.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"near_threshold must lie in (0, 1], not {threshold}")
    for rows in range(_PERMUTATIONS, 0, -1):
        count = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= _RECALL:
            return count, rows
    raise ValueError(f"near_threshold {threshold} is too low for {_PERMUTATIONS} permutations")


class Sketches:
    """The bands of every document's MinHash: 8 bytes each.

    Args:
        documents: how many there may be, numbered from 0.
        threshold: least Jaccard similarity of near-duplicates.

    Raises:
        ValueError: the threshold makes no sense, or rensa is not installed.
    """

    def __init__(self, documents: int, threshold: float):
        self._threshold = threshold
        count, self._rows = bands(threshold)
        self._rensa: Any = extras.load("rensa", "data")
        self._hash = np.zeros((count, documents), np.uint64)
        self._bytes = np.zeros((documents, _PERMUTATIONS), np.uint8)

    def add(self, document: int, text: str) -> None:
        sketch = self._rensa.RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
        sketch.update(list(shingles(text)))
        digest = np.array(sketch.digest(), "<u4")
        self._bytes[document] = digest & 255
        count = len(self._hash)
        for band, part in enumerate(digest[: count * self._rows].reshape(count, self._rows)):
            raw = hashlib.blake2b(part.tobytes(), digest_size=8).digest()
            self._hash[band, document] = int.from_bytes(raw, "big")

    def duplicates(self, documents: np.ndarray, text_of: Callable[[int], str]) -> np.ndarray:
        """Which are near to an earlier one that stays; the first of its kind always stays.

        Args:
            documents: ascending numbers of those to compare.
            text_of: reads a document's text again.

        Returns:
            bool [documents].
        """

        @functools.lru_cache(maxsize=_COMPARED)
        def known(place: int) -> frozenset[str]:
            return shingles(text_of(int(documents[place])))

        before = [_previous(band[documents]) for band in self._hash]
        dropped = np.zeros(len(documents), bool)
        suspects = np.flatnonzero(np.any([chain >= 0 for chain in before], axis=0))
        for place in suspects:
            candidates: set[int] = set()
            for chain in before:
                # Those that were dropped are passed over, and so are never passed again.
                while (earlier := chain[place]) >= 0 and dropped[earlier]:
                    chain[place] = chain[earlier]
                while earlier >= 0:
                    candidates.add(int(earlier))
                    earlier = chain[earlier]
            alike = self._alike(documents, int(place), sorted(candidates))
            own = known(int(place)) if len(alike) else frozenset()
            dropped[place] = any(jaccard(own, known(e)) >= self._threshold for e in alike.tolist())
        return dropped

    def _alike(self, documents: np.ndarray, place: int, earlier: list[int]) -> np.ndarray:
        """Those of the earlier places that may be near, by the share of equal bytes."""
        places = np.array(earlier, np.int64)
        equal = self._bytes[documents[places]] == self._bytes[documents[place]]
        deviation = math.sqrt(self._threshold * (1 - self._threshold) / _PERMUTATIONS)
        return places[equal.mean(axis=1) >= self._threshold - 4 * deviation]


def _previous(hashes: np.ndarray) -> np.ndarray:
    """int64 [n]: for each place the nearest earlier one of equal hash, or -1."""
    order = np.argsort(hashes, kind="stable")
    previous = np.full(len(hashes), -1, np.int64)
    equal = hashes[order[1:]] == hashes[order[:-1]]
    previous[order[1:][equal]] = order[:-1][equal]
    return previous
