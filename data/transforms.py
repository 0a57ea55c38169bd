"""Transforms: views of a source, chosen by options of its spec and applied in a fixed order.

    1 text       control=strip            control characters (but tab, newline, return) are removed
                 unicode=NFC              or NFKC, NFD, NFKD
    2 filters    control=drop             documents with a control character are left out
                 min_letters=0.5          least share of letters among what is not white space
                 min_chars= max_chars=    characters
                 min_words= max_words=    separated by white space
    3 duplicates duplicates=exact         the first of equal documents stays (data/deduplication.py)
                 duplicates=near          and of near-duplicates, near_threshold=0.8
    4 benchmarks decontaminate=SPEC       documents that share a 13-word run with that source are
                                          left out (data/decontamination.py); decontaminate_words=13
    5 split      split=train              or validation, test (data/splits.py); split_seed=0
                                          validation=0.08 test=0.08

A view is an array of indices, 8 bytes a document, and rewrites records when they are read; the
texts stay where they are. Steps 1 to 4 are one pass over the source, step 5 another over the rest.
What was left out is in `counts` by reason, and what else is known under `noted/`; nothing is left
out silently. A record whose text was
rewritten has the `document_id` of its new text.
"""

import collections
import dataclasses
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from data import decontamination, deduplication, digests, records, splits

FORMS = ("NFC", "NFKC", "NFD", "NFKD")
_CONTROL = dict.fromkeys(c for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\r")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of the module's docstring; 0 and '' switch off."""

    control: str = "keep"
    unicode: str = ""
    min_letters: float = 0.0
    min_chars: int = 0
    max_chars: int = 0
    min_words: int = 0
    max_words: int = 0
    duplicates: str = "keep"
    near_threshold: float = deduplication.THRESHOLD
    decontaminate: str = ""
    decontaminate_words: int = decontamination.RUN_WORDS
    split: str = ""
    split_seed: int = 0
    validation: float = splits.FRACTION
    test: float = splits.FRACTION

    def __post_init__(self) -> None:
        _one_of("control", self.control, ("keep", "strip", "drop"))
        _one_of("unicode", self.unicode, ("", *FORMS))
        _one_of("duplicates", self.duplicates, ("keep", "exact", "near"))
        if not 0 <= self.min_letters <= 1:
            raise ValueError(f"min_letters must lie in [0, 1], not {self.min_letters}")
        for unit in ("chars", "words"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low < 0 or high < 0 or (high and low > high):
                raise ValueError(f"no document has min_{unit}={low} and max_{unit}={high}")

    @property
    def rewrites(self) -> bool:
        return self.control == "strip" or bool(self.unicode)

    @property
    def selects(self) -> bool:
        """Whether steps 1 to 4 do anything."""
        plain = Settings(**{name: getattr(self, name) for name in splits.OPTIONS})
        return self != plain

    @property
    def fractions(self) -> dict[str, float]:
        held_out = {"validation": self.validation, "test": self.test}
        return {"train": 1 - self.validation - self.test, **held_out}


OPTIONS = tuple(field.name for field in dataclasses.fields(Settings))


@dataclasses.dataclass(frozen=True)
class View:
    """Some documents of a source, in its order, their text cleaned when they are read."""

    source: records.Source
    kept: np.ndarray
    settings: Settings
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> records.Record:
        return rewritten(self.source[int(self.kept[index])], self.settings)

    def digest(self) -> int:
        """Of the source, of which documents are kept, and of how they are rewritten."""
        rewriting = [self.settings.control, self.settings.unicode]
        return digests.of_parts(self.source.digest(), self.kept.astype("<i8").tobytes(), rewriting)


class Transform(Protocol):
    def __call__(self, source: records.Source, guard: records.Guard) -> records.Source: ...


def take(options: dict[str, str], spec: str) -> Transform:
    """Takes the transforms' options away; returns what applies them.

    Raises:
        ValueError: an option's value makes no sense. Applied: nothing is left, or a step refuses.
    """
    given = {name: options.pop(name) for name in OPTIONS if name in options}
    if not given:
        return lambda source, guard: source
    if given.keys() & set(splits.OPTIONS) and given.get("split") not in splits.NAMES:
        raise ValueError(
            f"{spec!r} needs split=train, validation or test, not {given.get('split')!r}"
        )
    try:
        settings = Settings(**{name: _value(name, text) for name, text in given.items()})
    except ValueError as error:
        raise ValueError(f"{spec!r}: {error}") from error
    return lambda source, guard: apply(source, settings, spec, guard)


def apply(
    source: records.Source, settings: Settings, spec: str, guard: records.Guard
) -> records.Source:
    """The documents that the settings keep.

    Args:
        spec: names the source in an error.
        guard: decides on records that cannot be read; those that it lets pass are left out and
            counted.

    Raises:
        ValueError: no document is left, a split gets none, or a labelled text would be rewritten.
    """
    if settings.selects:
        source = _selected(source, settings, guard)
        if len(source) == 0:
            described = records.described(source.counts)
            raise ValueError(f"no document of {spec!r} is left after its filters ({described})")
    return _split(source, settings, guard) if settings.split else source


def rewritten(record: records.Record, settings: Settings) -> records.Record:
    """Step 1. A record that does not change is returned as it is, with its id."""
    if not settings.rewrites:
        return record
    text = record.text
    if settings.control == "strip":
        text = text.translate(_CONTROL)
    if settings.unicode:
        text = unicodedata.normalize(_form(settings.unicode), text)
    if text == record.text:
        return record
    if record.labels:
        raise ValueError("a labelled document cannot be rewritten: its labels count words")
    return dataclasses.replace(record, text=text, document_id=records.document_id(text))


def refusal(text: str, settings: Settings) -> str | None:
    """Step 2: why a text is left out, or None."""
    if not text.strip():
        return "empty"
    if settings.control == "drop" and len(text.translate(_CONTROL)) < len(text):
        return "control"
    if settings.min_letters:
        letters = sum(map(str.isalpha, text))
        if letters < settings.min_letters * len("".join(text.split())):
            return "letters"
    if len(text) < settings.min_chars:
        return "too_short"
    if settings.max_chars and len(text) > settings.max_chars:
        return "too_long"
    if settings.min_words or settings.max_words:
        words = len(text.split())
        if words < settings.min_words:
            return "too_short"
        if settings.max_words and words > settings.max_words:
            return "too_long"
    return None


def _selected(source: records.Source, settings: Settings, guard: records.Guard) -> View:
    """Steps 1 to 4 in one pass; duplicates are then decided in order, before contamination is."""
    count = len(source)
    counts: collections.Counter[str] = collections.Counter(source.counts)
    kept = np.zeros(count, bool)
    contaminated = np.zeros(count, bool)
    keys = np.zeros(count if settings.duplicates != "keep" else 0, np.uint64)
    near = settings.duplicates == "near"
    sketches = deduplication.Sketches(count, settings.near_threshold) if near else None
    benchmark = _open_benchmark(settings, counts) if settings.decontaminate else None
    met = len(guard.faults)
    for index, original in records.readable(source, guard):
        record = rewritten(original, settings)
        reason = refusal(record.text, settings)
        if reason is not None:
            counts[f"filtered/{reason}"] += 1
            continue
        kept[index] = True
        counts[f"{records.NOTED}rewritten"] += record is not original
        if len(keys):
            keys[index] = deduplication.exact_key(record.text)
        if sketches is not None:
            sketches.add(index, record.text)
        if benchmark is not None:
            contaminated[index] = benchmark.touches(record.text)
    counts = collections.Counter(guard.counts_with(counts, met))

    def left(documents: np.ndarray, reason: str, drop: np.ndarray) -> np.ndarray:
        counts[reason] += int(drop.sum())
        return documents[~drop]

    def text_of(index: int) -> str:
        try:
            return rewritten(source[index], settings).text
        except records.Fault:
            if guard.on_fault == "fail":
                raise
            # Gone since the pass: near to nothing, it stays, and is met when it is to be used.
            return f"unreadable document {index}"

    documents = np.flatnonzero(kept)
    if len(keys):
        repeated = np.ones(len(documents), bool)
        repeated[np.unique(keys[documents], return_index=True)[1]] = False
        documents = left(documents, "duplicates/exact", repeated)
    if sketches is not None:
        drop = sketches.duplicates(documents, text_of)
        documents = left(documents, "duplicates/near", drop)
    documents = left(documents, "contaminated", contaminated[documents])
    return View(source, documents, settings, {name: n for name, n in counts.items() if n})


def _open_benchmark(
    settings: Settings, counts: collections.Counter[str]
) -> decontamination.Benchmark:
    # Imported when asked for: it opens sources through this module.
    from data import sources

    source, guard = sources.open_guarded(settings.decontaminate)
    own = records.left_out(source.counts)
    met = len(guard.faults)
    benchmark = decontamination.Benchmark(
        (record.text for _, record in records.readable(source, guard)),
        settings.decontaminate_words,
    )
    own = {**guard.counts_with(own, met), "too_short": benchmark.ignored}
    counts.update({f"{records.NOTED}benchmark/{reason}": n for reason, n in own.items()})
    return benchmark


def _split(source: records.Source, settings: Settings, guard: records.Guard) -> View:
    """Step 5. Of a held-out split, `counts` say how much of it 13-word runs share with train."""
    read: list[int] = []
    met = len(guard.faults)

    def texts() -> Iterator[str]:
        for index, record in records.readable(source, guard):
            read.append(index)
            yield record.text

    dealt = splits.deal(texts(), settings.split_seed, settings.fractions)
    kept = np.array(read, np.int64)[dealt.documents[settings.split]]
    counts = collections.Counter(guard.counts_with(source.counts, met))
    counts["other_splits"] += len(read) - len(kept)
    if settings.split != "train":
        words, covered = dealt.words[settings.split], dealt.covered[settings.split]
        # Not added up: these are of this split, whatever it was made of.
        counts[f"{records.NOTED}split/words"] = words
        counts[f"{records.NOTED}split/words_covered_by_train"] = covered
    return View(source, kept, Settings(), counts)


def _value(name: str, text: str) -> Any:
    kind = typing.get_type_hints(Settings)[name]
    try:
        return kind(text)
    except ValueError:
        what = "whole" if kind is int else "a number"
        raise ValueError(f"{name} must be {what}, not {text!r}") from None


def _form(name: str) -> typing.Literal["NFC", "NFKC", "NFD", "NFKD"]:
    return typing.cast(typing.Literal["NFC", "NFKC", "NFD", "NFKD"], name)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        names = ", ".join(filter(None, known))
        raise ValueError(f"{name} must be one of {names}, not {value!r}")
