"""The miniature: generated stories on which thinking can pay.

A story defines variables in a chain, arithmetic mod 10, and then asks for some of them:

     eve is 4 . fay is 2 + eve ; bus 7 left . gus is 5 + fay . so gus is 1 , fay is 6 .

A shallow network cannot follow a long chain in one forward pass; a thought that walks it can. A
worked story holds such thoughts before its shallower answers, from the asked variable to its root,
after each name the sum so far mod 10, so that the last number is the answer:

     so gus is<think> gus 5 fay 7 eve 1</think> 1 , fay<think></think> is 6 .

With `idle_thought_fraction` it has empty thoughts before other words too: where there is nothing to
think, the text just goes on.

Text. Every word, the first included, is preceded by one space, so that a BPE tokenizer trained on
`tokenizer_texts` gives one token a word; the tags stand directly behind the word before them.

Entropy. Every word but answers and noise is one of at most four choices (<= ln 4 = 1.39 nats):
    first name: 4; further names: 3 (1 to 3 names on), or 'so', where the questions begin
    behind 'is': 3 root values; later 3 increments, or the one value the name has as a later root
    behind '+': a parent 1, 2 or 3 definitions back
    end of a definition: '.', or ';' before an aside, whose first word is one of 4
    next question: 0 to 3 definitions are skipped, back from the last; ',' or '.'
Answers look 10-way to a model that cannot compute; the digit of 'bus 7 left' is noise for all.

Labels. 'answer/<depth>', depth = the number of definitions from the asked variable to its root (a
root has 1), and 'noise'. Questions go back through the story, so a parent is never answered before
its child. A child may be (half of the time): then the child's answer minus one increment is a
shorter way, which needs the definition read backwards. `skip_weights=(0, ...)` makes this rare.

Splits. By asked path: the names and numbers from the root to the asked variable. A seeded hash
gives each path to one split, and a document asks only paths of its own split; a variable to be
asked is redrawn until its path belongs to it. So no path asked in validation or test is asked in
train, and the splits agree in length, density and depth. What is only defined is unrestricted.
"""

import bisect
import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from data import digests, records

_NAMES = (
    "ada ben cal dan dot eli eve fay gil gus hal ian ida ivy jan joe "
    "kai kim lea leo max mia ned nia oda pam ray rio sam tom uma"
)
NAMES = tuple(_NAMES.split())
DIGITS = tuple("0123456789")
ROOT_VALUES = (1, 4, 8)
INCREMENTS = (2, 5, 9)
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

# Weighted choices as tables to index with a uniform number.
_FIRST_NAMES = (0, 2, 4, 6)
_NAME_STEPS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 3)
_ASIDES = ("noise",) * 12 + ("filler",) * 6 + ("restated",) * 2
_MAX_VARIABLES = 1 + (len(NAMES) - 1 - max(_FIRST_NAMES)) // max(_NAME_STEPS)

_ROOT_WORDS, _CHAIN_WORDS, _QUESTION_WORDS = 4, 6, 4
_ASIDE_WORDS = {"noise": 4, "filler": 3, "restated": 7}
_REDRAWS = 60  # of one variable
_ATTEMPTS = 10_000  # at one story
_MASK_64 = (1 << 64) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True)
class MiniatureConfig:
    """What the stories are like."""

    min_variables: int = 4  # definitions in a story
    max_variables: int = 9
    length_exponent: float = 3.0  # n definitions have a weight of n to this power
    max_depth: int = 8  # definitions; a variable whose parent is that deep becomes a root
    min_questions: int = 3  # at most; a story of n definitions may ask n - 1
    max_questions: int = 5
    max_words: int = 80  # thoughts not counted
    skip_weights: tuple[float, ...] = (0.85, 0.1, 0.04, 0.01)  # of 0 to 3 definitions not asked
    parent_weights: tuple[float, ...] = (0.75, 0.15, 0.1)  # of 1, 2, 3 definitions back; sum 1
    later_root_fraction: float = 0.04  # of the variables after the first
    aside_fraction: float = 0.11  # definitions with an aside: 60% noise, 30% filler, 10% restated
    worked_depth: int = 4  # in worked documents, answers of at most this depth have a thought
    max_worked_questions: int = 4  # thoughts in one document
    empty_thought_fraction: float = 0.2  # of the thoughts
    deep_questions_in_worked: bool = True  # worked documents ask deeper ones too, without tags
    idle_thought_fraction: float = 0.0  # of worked documents' other words, behind an empty thought
    filler_thoughts: bool = False  # a contentless word in place of each word of a thought
    validation_fraction: float = 0.2  # of the paths
    test_fraction: float = 0.2
    split_seed: int = 0  # of the hash that gives paths to splits

    def __post_init__(self):
        lengths = range(self.min_variables, self.max_variables + 1)
        in_unit = (
            *(self.later_root_fraction, self.aside_fraction),
            *(self.empty_thought_fraction, self.idle_thought_fraction),
        )
        at_least_1 = (self.min_questions, self.max_depth, self.worked_depth)
        held_out = (self.validation_fraction, self.test_fraction)
        skips, parents = self.skip_weights, self.parent_weights
        requirements = {
            f"1 <= min_variables <= max_variables <= {_MAX_VARIABLES}": (
                1 <= self.min_variables <= self.max_variables <= _MAX_VARIABLES
            ),
            "min_questions <= max_questions": self.min_questions <= self.max_questions,
            "min_questions, max_depth, worked_depth, max_worked_questions >= 1": (
                min(*at_least_1, self.max_worked_questions) >= 1
            ),
            "later_root_, aside_, empty_ and idle_thought_fraction between 0 and 1": (
                min(in_unit) >= 0 and max(in_unit) <= 1
            ),
            "validation_ and test_fraction >= 0.05, their sum <= 0.5": (
                min(held_out) >= 0.05 and sum(held_out) <= 0.5
            ),
            "1 to 4 skip_weights, none negative": 1 <= len(skips) <= 4 and min(skips) >= 0,
            "3 parent_weights, none negative, that add up to 1": (
                len(parents) == 3 and min(parents) >= 0 and abs(sum(parents) - 1) < 1e-6
            ),
        }
        for requirement, holds in requirements.items():
            if not holds:
                raise ValueError(f"miniature: choose {requirement}; got {self}")
        if not all(_question_patterns(self, num_variables) for num_variables in lengths):
            raise ValueError(
                "miniature: no story fits max_words with that many questions and such skips; "
                f"allow more words or ask fewer questions; got {self}"
            )


def _question_patterns(config: MiniatureConfig, num_variables: int) -> dict[tuple[int, ...], float]:
    """Definitions asked, in order of asking, and the weight of asking just those."""
    fewest = min(config.min_questions, max(1, num_variables - 1))
    room = config.max_words - _ROOT_WORDS - _CHAIN_WORDS * (num_variables - 1) - 1
    most = min(config.max_questions, room // _QUESTION_WORDS)
    patterns: dict[tuple[int, ...], float] = {}

    def extend(asked: tuple[int, ...], following: int, weight: float):
        """Walks back from definition `following`; the ways to stop share `weight`."""
        ended = 0.0
        for skipped, skip_weight in enumerate(config.skip_weights):
            share = weight * skip_weight
            if len(asked) == most or following - skipped < 0:
                ended += share
            elif share:
                extend((*asked, following - skipped), following - skipped - 1, share)
        if ended and len(asked) >= fewest:
            patterns[asked] = patterns.get(asked, 0.0) + ended

    extend((), num_variables - 1, 1.0)
    return patterns


class _Variable(NamedTuple):
    """A definition (a named tuple, because a frozen dataclass takes three times as long)."""

    name: int
    number: int  # increment, or value of a root
    parent: int  # index of its definition, -1 for a root
    value: int
    depth: int
    path_hash: int  # 64 bits


def _hash_step(state: int, word: int) -> int:
    """One step of a 64-bit multiplicative hash; the high bits are the good ones."""
    state = ((state ^ word) * _MULTIPLIER) & _MASK_64
    return state ^ (state >> 32)


def later_root_value(name: int) -> int:
    """The one value a name can have as a root behind other definitions (keeps the choice 4-way)."""
    return ROOT_VALUES[name % len(ROOT_VALUES)]


@dataclasses.dataclass(frozen=True)
class Stories:
    """Documents of one kind and split; document i is a pure function of all fields and i.

    Plain and worked documents of one index tell different stories; `filler_thoughts` changes
    nothing but the words inside the thoughts.

    Args:
        kind: 'plain', or 'worked' (with thoughts).
        split: 'train', 'validation' or 'test', by asked path.
        seed: not negative.
        size: number of documents.
    """

    config: MiniatureConfig
    kind: str
    split: str
    seed: int
    size: int = 10_000_000

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"miniature kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.split not in SPLITS:
            raise ValueError(f"miniature split {self.split!r}: choose one of {', '.join(SPLITS)}")
        if self.seed < 0 or not 0 < self.size <= 1 << 40:
            raise ValueError(
                f"miniature seed={self.seed}, size={self.size}: seed must be >= 0, size in 1..2**40"
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
        rng = random.Random((stream << 40) + index)
        for _ in range(_ATTEMPTS):
            drawn = self._draw(rng)
            if drawn is not None:
                break
        else:
            raise ValueError(
                f"no story with such questions found; allow more depth or questions in {self}"
            )
        variables, asked = drawn
        words, labels = _tell(rng, self.config, variables, len(asked))
        thoughts = {}
        if self.kind == "worked":
            thoughts = _thoughts(rng, self.config, variables, asked)
        _ask(variables, asked, thoughts, words, labels)
        if self.kind == "worked":
            _idle(rng, self.config, words, {number for number, _ in labels})
        text = " " + " ".join(words)
        return records.Record(
            text, records.document_id(text), markup=self.kind == "worked", labels=tuple(labels)
        )

    def digest(self) -> int:
        """Of the fields, and of some stories: another version of this module may tell others."""
        told = [self[index].text for index in range(min(self.size, 4))]
        return digests.of_parts(dataclasses.asdict(self), told)

    @functools.cached_property
    def _patterns(self) -> tuple[list[tuple[tuple[int, ...], int]], list[float]]:
        """Question patterns with their number of variables, and the cumulated probabilities."""
        patterns: list[tuple[tuple[int, ...], int]] = []
        weights: list[float] = []
        for num_variables in range(self.config.min_variables, self.config.max_variables + 1):
            of_length = _question_patterns(self.config, num_variables)
            scale = num_variables**self.config.length_exponent / sum(of_length.values())
            patterns += [(pattern, num_variables) for pattern in of_length]
            weights += [weight * scale for weight in of_length.values()]
        total = sum(weights)
        return patterns, [part / total for part in itertools.accumulate(weights)]

    @functools.cached_property
    def _path_range(self) -> tuple[int, int]:
        """Hashes [low, high) that belong to the split."""
        validation = round(self.config.validation_fraction * (1 << 64))
        held_out = validation + round(self.config.test_fraction * (1 << 64))
        edges = {"validation": (0, validation), "test": (validation, held_out)}
        return edges.get(self.split, (held_out, 1 << 64))

    def _draw(self, rng: random.Random) -> tuple[list[_Variable], list[int]] | None:
        """Definitions, and which are asked; None where none with a fitting path was found."""
        config = self.config
        uniform = rng.random
        patterns, cumulated = self._patterns
        # The last cumulated probability may be a rounding error below 1.
        pattern, num_variables = patterns[
            min(bisect.bisect(cumulated, uniform()), len(patterns) - 1)
        ]
        low, high = self._path_range
        variables: list[_Variable] = []
        for index in range(num_variables):
            for _ in range(_REDRAWS):
                variable = _draw_variable(uniform, config, variables)
                if low <= variable.path_hash < high or index not in pattern:
                    variables.append(variable)
                    break
            else:
                return None
        asked = list(pattern)
        if self.kind == "worked":
            shallow = [i for i in asked if variables[i].depth <= config.worked_depth]
            if not shallow:
                return None
            if not config.deep_questions_in_worked:
                asked = shallow
        return variables, asked


def _draw_variable(
    uniform: Callable[[], float], config: MiniatureConfig, variables: list[_Variable]
) -> _Variable:
    """The next definition; `uniform` gives floats in [0, 1)."""
    if not variables:
        name = _FIRST_NAMES[int(uniform() * 4)]
        number = ROOT_VALUES[int(uniform() * 3)]
        parent = -1
    else:
        name = variables[-1].name + _NAME_STEPS[int(uniform() * 10)]
        back, position = 1, uniform()
        for weight in config.parent_weights[:-1]:
            position -= weight
            back += position >= 0
        parent = max(len(variables) - back, 0)
        if variables[parent].depth >= config.max_depth or uniform() < config.later_root_fraction:
            parent = -1
            number = later_root_value(name)
        else:
            number = INCREMENTS[int(uniform() * 3)]
    if parent < 0:
        state = _hash_step(config.split_seed + 1, 1 << 20)
        value, depth = number, 1
    else:
        before = variables[parent]
        state = before.path_hash
        value, depth = (before.value + number) % 10, before.depth + 1
    return _Variable(name, number, parent, value, depth, _hash_step(state, name * 16 + number))


def _statement(variables: list[_Variable], index: int) -> list[str]:
    """The words of a definition, without its end."""
    variable = variables[index]
    if variable.parent < 0:
        return [NAMES[variable.name], "is", DIGITS[variable.number]]
    parent = variables[variable.parent]
    return [NAMES[variable.name], "is", DIGITS[variable.number], "+", NAMES[parent.name]]


def _tell(
    rng: random.Random, config: MiniatureConfig, variables: list[_Variable], num_questions: int
) -> tuple[list[str], list[tuple[int, str]]]:
    """Words of the definitions and of the asides between them, and the labels of the noise."""
    uniform = rng.random
    words: list[str] = []
    labels: list[tuple[int, str]] = []
    num_words = sum(_ROOT_WORDS if v.parent < 0 else _CHAIN_WORDS for v in variables)
    room = config.max_words - num_words - 1 - _QUESTION_WORDS * num_questions
    for index in range(len(variables)):
        words += _statement(variables, index)
        aside = ""
        if uniform() < config.aside_fraction:
            aside = _ASIDES[int(uniform() * len(_ASIDES))]
        if not aside or _ASIDE_WORDS[aside] > room:
            words.append(".")
            continue
        room -= _ASIDE_WORDS[aside]
        words.append(";")
        if aside == "noise":
            labels.append((len(words) + 1, "noise"))
            words += ["bus", DIGITS[int(uniform() * 10)], "left", "."]
        elif aside == "filler":
            sentence = FILLER_SENTENCES[int(uniform() * len(FILLER_SENTENCES))]
            words += [*sentence.split(), "."]
        else:
            words += ["yes", *_statement(variables, max(index - int(uniform() * 3), 0)), "."]
    return words, labels


def _thoughts(
    rng: random.Random, config: MiniatureConfig, variables: list[_Variable], asked: list[int]
) -> dict[int, str]:
    """Definition -> thought with its tags, for the questions that have one."""
    shallow = [i for i in asked if variables[i].depth <= config.worked_depth]
    thoughts = {}
    for index in rng.sample(shallow, min(len(shallow), config.max_worked_questions)):
        inside = ""
        if rng.random() >= config.empty_thought_fraction:
            walk = _walk(variables, index)
            if config.filler_thoughts:
                walk = [FILLER_WORD] * len(walk)
            inside = " " + " ".join(walk)
        thoughts[index] = THINK_OPEN + inside + THINK_CLOSE
    return thoughts


def _walk(variables: list[_Variable], index: int) -> list[str]:
    """From a variable to its root: each name and the sum so far mod 10."""
    words = []
    total = 0
    while index >= 0:
        variable = variables[index]
        total = (total + variable.number) % 10
        words += [NAMES[variable.name], DIGITS[total]]
        index = variable.parent
    return words


def _ask(
    variables: list[_Variable],
    asked: list[int],
    thoughts: dict[int, str],
    words: list[str],
    labels: list[tuple[int, str]],
):
    """Appends the questions to words and the labels of their answers to labels."""
    words.append("so")
    num_words = len(words)
    for index in asked:
        variable, thought = variables[index], thoughts.get(index, "")
        # The tags belong to the word 'is'; spaces inside the thought make further words.
        words += [NAMES[variable.name], "is" + thought, DIGITS[variable.value], ","]
        num_words += 2 + thought.count(" ")
        labels.append((num_words, f"answer/{variable.depth}"))
        num_words += 2
    words[-1] = "."


def _idle(
    rng: random.Random, config: MiniatureConfig, words: list[str], labelled: set[int]
) -> None:
    """Puts empty thoughts behind words, but not before answers and noise nor inside thoughts."""
    number = 0  # of the word in the text, where thoughts make further words
    for index, word in enumerate(words[:-1]):
        number += 1 + word.count(" ")
        if number not in labelled and rng.random() < config.idle_thought_fraction:
            words[index] = word + THINK_OPEN + THINK_CLOSE


def _option_value(name: str, text: str, default: Any) -> Any:
    """The option's text as the type of its default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split(","))
        return float(text) if isinstance(default, float) else int(text)
    except (KeyError, ValueError):
        raise ValueError(
            f"miniature option {name}={text!r}: expected a value like {name}={default}"
        ) from None


def open_miniature(options: Mapping[str, str]) -> records.Source:
    """The source of a spec such as 'miniature?kind=worked&split=train&max_variables=3'.

    Args:
        options: kind (plain), split (train), seed (0), size (10,000,000), and the fields of
            MiniatureConfig. If max_variables is below the default of min_variables, that is 2.

    Raises:
        ValueError: unknown option or bad value.
    """
    kinds = {"kind": "plain", "split": "train"}
    numbers = {"seed": 0, "size": 10_000_000}
    defaults = {field.name: field.default for field in dataclasses.fields(MiniatureConfig)}
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name in kinds:
            kinds[name] = text
        elif name in numbers:
            numbers[name] = int(text) if text.isdecimal() else -1
        elif name in defaults:
            values[name] = _option_value(name, text, defaults[name])
        else:
            known = ", ".join([*kinds, *numbers, *defaults])
            raise ValueError(f"unknown miniature option {name!r}: known are {known}")
    if values.get("max_variables", _MAX_VARIABLES) < defaults["min_variables"]:
        values.setdefault("min_variables", min(2, values["max_variables"]))
    config = MiniatureConfig(**values)
    return Stories(config, kinds["kind"], kinds["split"], numbers["seed"], numbers["size"])


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


_STATEMENT = re.compile(r"(\w+) is (\d)(?: \+ (\w+))?")


def solve(text: str) -> list[tuple[int, int, str]]:
    """Answers the questions of a story from its text alone.

    Shares nothing with the generator, so that one can be tested against the other.

    Returns:
        For each question (index of its answer in text.split(), depth, the right answer).
    """
    # Tags and thoughts become marks, so that the numbering of the words stays.
    hidden = re.sub(r"<think>.*?</think>", lambda m: re.sub(r"\S", "~", m.group()), text)
    numbered = [(i, w.rstrip("~")) for i, w in enumerate(hidden.split()) if w.rstrip("~")]
    start = [word for _, word in numbered].index("so")
    facts: dict[str, tuple[int, str | None]] = {}
    for sentence in re.split(r"[.;]", " ".join(word for _, word in numbered[:start])):
        match = _STATEMENT.fullmatch(sentence.strip().removeprefix("yes "))
        if match:
            facts[match[1]] = (int(match[2]), match[3])
    solved = []
    questions = numbered[start + 1 :]  # name, 'is', answer, ',' or '.'
    for (_, name), (position, _) in zip(questions[::4], questions[2::4]):
        depth, total = 0, 0
        current: str | None = name
        while current is not None:
            number, current = facts[current]
            depth, total = depth + 1, total + number
        solved.append((position, depth, str(total % 10)))
    return solved
