"""What the generated corpora share: words, tags, splits by path, and empty thoughts.

data/miniature.py tells chains of arithmetic with these words, data/skills.py other puzzles, so one
tokenizer, trained on `tokenizer_texts`, gives one token a word in all of them.
"""

import abc
import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from data import digests, records

_NAMES = (
    "ada ben cal dan dot eli eve fay gil gus hal ian ida ivy jan joe "
    "kai kim lea leo max mia ned nia oda pam ray rio sam tom uma"
)
NAMES = tuple(_NAMES.split())
DIGITS = tuple("0123456789")
FILLER_SENTENCES = (
    *(" it rained", " it snowed", " it froze"),
    *(" we ate", " we ran", " we sang", " we sat"),
)
GLUE_WORDS = ("is", "+", ".", ",", ";", "so", "bus", "left", "yes")
# The word that fills contentless thoughts; it stands nowhere else.
FILLER_WORD = "hm"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

KINDS = ("plain", "worked")
SPLITS = ("train", "validation", "test")

_MASK_64 = (1 << 64) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15


def words() -> tuple[str, ...]:
    """Every word that occurs, without its space, each once."""
    fillers = " ".join(FILLER_SENTENCES).split()
    return tuple(dict.fromkeys((*NAMES, *DIGITS, *GLUE_WORDS, *fillers, FILLER_WORD)))


def tokenizer_texts(repetitions: int = 5000) -> Iterator[str]:
    """Texts on which BPE training merges every word, with its space, into one token.

    Each text holds all words once, so that rare ones win against other text's pairs as well.
    """
    text = "".join(" " + word for word in words())
    return itertools.repeat(text, repetitions)


class Which(NamedTuple):
    """Which documents of a generated corpus."""

    kind: str
    split: str
    seed: int
    size: int


def read_options(
    what: str, options: Mapping[str, str], config: type
) -> tuple[Which, dict[str, Any]]:
    """The options of a spec: which documents, and the given fields of the dataclass `config`.

    Args:
      what: name of the corpus, for messages.

    Raises:
      ValueError: unknown option or bad value.
    """
    which = {"kind": "plain", "split": "train", "seed": "0", "size": "10000000"}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name in which:
            which[name] = text
        elif name in defaults:
            values[name] = _option_value(what, name, text, defaults[name])
        else:
            known = ", ".join([*which, *defaults])
            raise ValueError(f"unknown {what} option {name!r}: known are {known}")
    seed, size = (int(which[name]) if which[name].isdecimal() else -1 for name in ("seed", "size"))
    return Which(which["kind"], which["split"], seed, size), values


def _option_value(what: str, name: str, text: str, default: Any) -> Any:
    """The option's text as the type of its default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split(","))
        return type(default)(text)
    except (KeyError, ValueError):
        raise ValueError(
            f"{what} option {name}={text!r}: expected a value like {name}={default}"
        ) from None


@dataclasses.dataclass(frozen=True)
class Documents(abc.ABC):
    """Documents of one kind and split; document i is a pure function of all fields and i.

    Args:
        config: a dataclass with validation_fraction and test_fraction, of the asked paths.
        kind: 'plain', or 'worked' (with thoughts).
        split: 'train', 'validation' or 'test', by asked path.
        seed: not negative.
        size: number of documents.
    """

    corpus: ClassVar[str]  # its name, for messages

    config: Any
    kind: str
    split: str
    seed: int
    size: int = 10_000_000

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.corpus} kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.split not in SPLITS:
            raise ValueError(
                f"{self.corpus} split {self.split!r}: choose one of {', '.join(SPLITS)}"
            )
        if self.seed < 0 or not 0 < self.size <= 1 << 40:
            raise ValueError(
                f"{self.corpus} seed={self.seed}, size={self.size}: "
                "seed must be >= 0, size in 1..2**40"
            )

    @property
    def counts(self) -> Mapping[str, int]:
        return {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> records.Record:
        if not 0 <= index < self.size:
            raise IndexError(f"document {index} of {self.size}")
        stream = self.seed * len(SPLITS) + SPLITS.index(self.split)
        stream = stream * len(KINDS) + KINDS.index(self.kind)
        story, labels = self._tell(random.Random((stream << 40) + index))
        text = " " + " ".join(story)
        return records.Record(
            text, records.document_id(text), markup=self.kind == "worked", labels=tuple(labels)
        )

    def digest(self) -> int:
        """Of the fields, and of some documents: another version of the code may write others."""
        told = [self[index].text for index in range(min(self.size, 4))]
        return digests.of_parts(dataclasses.asdict(self), told)

    @abc.abstractmethod
    def _tell(self, rng: random.Random) -> tuple[list[str], list[tuple[int, str]]]:
        """The words of a document and its labels (records.Record)."""

    @functools.cached_property
    def _path_range(self) -> tuple[int, int]:
        """Hashes [low, high) of the paths that belong to the split."""
        validation = round(self.config.validation_fraction * (1 << 64))
        held_out = validation + round(self.config.test_fraction * (1 << 64))
        edges = {"validation": (0, validation), "test": (validation, held_out)}
        return edges.get(self.split, (held_out, 1 << 64))


def hash_step(state: int, word: int) -> int:
    """One step of a 64-bit multiplicative hash; the high bits are the good ones."""
    state = ((state ^ word) * _MULTIPLIER) & _MASK_64
    return state ^ (state >> 32)


def thought(walk: Sequence[str], *, empty: bool, filler: bool) -> str:
    """A thought with its tags, each word behind a space; `filler` makes it contentless."""
    if empty:
        return THINK_OPEN + THINK_CLOSE
    inside = [FILLER_WORD] * len(walk) if filler else walk
    return THINK_OPEN + "".join(" " + word for word in inside) + THINK_CLOSE


def idle(
    rng: random.Random, story: list[str], answers: Collection[int], share_of_words: float
) -> None:
    """Puts an empty thought behind that share of the words: there is nothing to think there.

    Never before an answer, whose thought is another matter, nor inside a thought.

    Args:
      story: words, changed in place; one with a thought behind it holds it, spaces included.
      answers: numbers of the answers, counting the words of thoughts too.
    """
    number = 0
    for index, word in enumerate(story[:-1]):
        number += 1 + word.count(" ")
        if number not in answers and rng.random() < share_of_words:
            story[index] = word + THINK_OPEN + THINK_CLOSE


@dataclasses.dataclass(frozen=True)
class Idle:
    """A source of plain text with an empty thought in a share of its words, or behind them.

    It teaches a model that was shown thoughts in generated documents alone that in other text, too,
    the text goes on behind a thought: half of them stand anywhere in the word, because many tokens
    go on in the middle of one. Which words have one, and where, is a function of the document.
    """

    source: records.Source
    share_of_words: float

    @property
    def counts(self) -> Mapping[str, int]:
        return self.source.counts

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> records.Record:
        record = self.source[index]
        if THINK_OPEN in record.text or THINK_CLOSE in record.text:
            return record  # its own tags would become marks too
        rng = random.Random(record.document_id)

        def with_thought(word: re.Match[str]) -> str:
            letters = word.group()
            if rng.random() >= self.share_of_words:
                return letters
            place = rng.randint(1, len(letters)) if rng.random() < 0.5 else len(letters)
            return letters[:place] + THINK_OPEN + THINK_CLOSE + letters[place:]

        text = re.sub(r"\S+(?=\s)", with_thought, record.text)
        return dataclasses.replace(record, text=text, markup=True)

    def digest(self) -> int:
        return digests.of_parts(self.source.digest(), self.share_of_words)


def take_idle(options: dict[str, str]) -> Callable[[records.Source], records.Source]:
    """Takes the option `idle_thoughts` away; what it asks for.

    Raises:
      ValueError: no share.
    """
    text = options.pop("idle_thoughts", "0")
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"idle_thoughts={text!r} must be a share of the words, such as 0.06")
    return lambda source: Idle(source, share) if share else source
