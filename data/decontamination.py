"""Benchmark text in a corpus, found by runs of words.

A document is contaminated if it shares a run of 13 words with a benchmark's document (GPT-3, arXiv
2005.14165, appendix C); words are those of data/deduplication.py, so case and punctuation do not
hide a copy. A benchmark document of fewer words, down to 8, is looked for whole; a still shorter
one would hit by chance and is left out and counted.

The benchmark is in memory: 8 bytes a run, and its vocabulary. Nothing of the corpus is, so this is
also how a corpus of any size is kept apart from a small held-out set. Runs are compared by 64-bit
hashes: the chance of one false hit among 10^9 runs of corpus and 10^6 of benchmark is 5e-5.
"""

from collections.abc import Iterable

import numpy as np

from data import deduplication

RUN_WORDS = 13
LEAST_WORDS = 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Benchmark:
    """The word runs of a benchmark.

    Fields:
        ignored: how many of its texts are too short to look for.

    Args:
        texts: of the benchmark.
        run_words: length of a run, at least 8.

    Raises:
        ValueError: the length is too small, or no text is long enough.
    """

    def __init__(self, texts: Iterable[str], run_words: int = RUN_WORDS):
        if run_words < LEAST_WORDS:
            raise ValueError(f"decontaminate_words must be at least {LEAST_WORDS}, not {run_words}")
        self.ignored = 0
        self._number_of: dict[str, int] = {}
        found: dict[int, list[np.ndarray]] = {}
        for text in texts:
            words = deduplication.words(text)
            length = min(len(words), run_words)
            if length < LEAST_WORDS:
                self.ignored += 1
                continue
            numbers = [self._number_of.setdefault(w, len(self._number_of) + 1) for w in words]
            found.setdefault(length, []).append(_runs(np.array(numbers, np.uint64), length))
        if not found:
            raise ValueError(f"no benchmark text has the {LEAST_WORDS} words to look for")
        self._runs = {length: np.unique(np.concatenate(parts)) for length, parts in found.items()}

    def touches(self, text: str) -> bool:
        """Whether the text shares a run with the benchmark."""
        # A word that the benchmark does not have is 0; runs with one are not looked up.
        number_of = self._number_of
        numbers = np.array([number_of.get(w, 0) for w in deduplication.words(text)], np.uint64)
        unknown = np.concatenate([[0], np.cumsum(numbers == 0)])
        for length, runs in self._runs.items():
            if len(numbers) < length:
                continue
            found = _runs(numbers, length)[unknown[length:] == unknown[:-length]]
            places = np.searchsorted(runs, found)
            if (runs[np.minimum(places, len(runs) - 1)] == found).any():
                return True
        return False


def _runs(numbers: np.ndarray, length: int) -> np.ndarray:
    """uint64 [words - length + 1]: a hash of every run, polynomial in mixed word numbers."""
    mixed = _mix(numbers)
    total = np.zeros(len(numbers) - length + 1, np.uint64)
    for offset in range(length):
        total = _mix(total * _FACTOR + mixed[offset : offset + len(total)])
    return total


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
