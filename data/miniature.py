"""The miniature: generated stories on which thinking can pay.

A story defines variables in a chain, arithmetic mod 10, and then asks for some of them:

     eve is 4 . fay is 2 + eve ; bus 7 left . gus is 5 + fay . so gus is 1 , fay is 6 .

A shallow network cannot follow a long chain in one forward pass; a thought that walks it can. A
worked story holds such thoughts before its shallower answers, from the asked variable to its root,
after each name the sum so far mod 10, so that the last number is the answer:

     so gus is<think> gus 5 fay 7 eve 1</think> 1 , fay<think></think> is 6 .

With `idle_thought_fraction` it has empty thoughts before other words too, noise included: where
there is nothing to think, the text just goes on.

Text. Every word, the first included, is preceded by one space, so that a BPE tokenizer trained on
`generated.tokenizer_texts` gives one token a word; the tags stand directly behind the word before
them.

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
from collections.abc import Callable, Mapping
from typing import NamedTuple

from data import generated, records

_NAMES, _DIGITS = generated.NAMES, generated.DIGITS
ROOT_VALUES = (1, 4, 8)
INCREMENTS = (2, 5, 9)
# Weighted choices as tables to index with a uniform number.
_FIRST_NAMES = (0, 2, 4, 6)
_NAME_STEPS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 3)  # of which some may be too large
_ASIDES = ("noise",) * 12 + ("filler",) * 6 + ("restated",) * 2
_ROOT_WORDS, _CHAIN_WORDS, _QUESTION_WORDS = 4, 6, 4
_ASIDE_WORDS = {"noise": 4, "filler": 3, "restated": 7}
_REDRAWS = 60  # of one variable
_ATTEMPTS = 10_000  # at one story


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
    largest_name_step: int = 3  # names from one to the next; there are 31, so long stories need 2
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
        most = 1 + (len(generated.NAMES) - 1 - max(_FIRST_NAMES)) // max(1, self.largest_name_step)
        requirements = {
            "largest_name_step 1, 2 or 3": 1 <= self.largest_name_step <= 3,
            f"1 <= min_variables <= max_variables <= {most} (with that largest_name_step)": (
                1 <= self.min_variables <= self.max_variables <= most
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


def later_root_value(name: int) -> int:
    """The one value a name can have as a root behind other definitions (keeps the choice 4-way)."""
    return ROOT_VALUES[name % len(ROOT_VALUES)]


@dataclasses.dataclass(frozen=True)
class Stories(generated.Documents):
    """Documents of one kind and split.

    Plain and worked documents of one index tell different stories; `filler_thoughts` changes
    nothing but the words inside the thoughts.
    """

    corpus = "miniature"
    config: MiniatureConfig

    def _tell(self, rng: random.Random) -> tuple[list[str], list[tuple[int, str]]]:
        for _ in range(_ATTEMPTS):
            drawn = self._draw(rng)
            if drawn is not None:
                break
        else:
            raise ValueError(
                f"no story with such questions found; allow more depth or questions in {self}"
            )
        variables, asked = drawn
        words, labels = _define(rng, self.config, variables, len(asked))
        thoughts = {}
        if self.kind == "worked":
            thoughts = _thoughts(rng, self.config, variables, asked)
        _ask(variables, asked, thoughts, words, labels)
        if self.kind == "worked":
            answers = {number for number, label in labels if label != "noise"}
            generated.idle(rng, words, answers, self.config.idle_thought_fraction)
        return words, labels

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
        steps = _NAME_STEPS[: bisect.bisect(_NAME_STEPS, config.largest_name_step)]
        name = variables[-1].name + steps[int(uniform() * len(steps))]
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
        state = generated.hash_step(config.split_seed + 1, 1 << 20)
        value, depth = number, 1
    else:
        before = variables[parent]
        state = before.path_hash
        value, depth = (before.value + number) % 10, before.depth + 1
    return _Variable(
        name, number, parent, value, depth, generated.hash_step(state, name * 16 + number)
    )


def _statement(variables: list[_Variable], index: int) -> list[str]:
    """The words of a definition, without its end."""
    variable = variables[index]
    if variable.parent < 0:
        return [_NAMES[variable.name], "is", _DIGITS[variable.number]]
    parent = variables[variable.parent]
    return [
        _NAMES[variable.name],
        "is",
        _DIGITS[variable.number],
        "+",
        _NAMES[parent.name],
    ]


def _define(
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
            words += ["bus", _DIGITS[int(uniform() * 10)], "left", "."]
        elif aside == "filler":
            sentence = generated.FILLER_SENTENCES[int(uniform() * len(generated.FILLER_SENTENCES))]
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
        thoughts[index] = generated.thought(
            _walk(variables, index),
            empty=rng.random() < config.empty_thought_fraction,
            filler=config.filler_thoughts,
        )
    return thoughts


def _walk(variables: list[_Variable], index: int) -> list[str]:
    """From a variable to its root: each name and the sum so far mod 10."""
    words = []
    total = 0
    while index >= 0:
        variable = variables[index]
        total = (total + variable.number) % 10
        words += [_NAMES[variable.name], _DIGITS[total]]
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
        words += [
            _NAMES[variable.name],
            "is" + thought,
            _DIGITS[variable.value],
            ",",
        ]
        num_words += 2 + thought.count(" ")
        labels.append((num_words, f"answer/{variable.depth}"))
        num_words += 2
    words[-1] = "."


def open_miniature(options: Mapping[str, str]) -> records.Source:
    """The source of a spec such as 'miniature?kind=worked&split=train&max_variables=3'.

    Args:
        options: kind (plain), split (train), seed (0), size (10,000,000), and the fields of
            MiniatureConfig. If max_variables is below the default of min_variables, that is 2.

    Raises:
        ValueError: unknown option or bad value.
    """
    found, values = generated.read_options("miniature", options, MiniatureConfig)
    least = MiniatureConfig.min_variables
    if values.get("max_variables", least) < least:
        values.setdefault("min_variables", min(2, values["max_variables"]))
    return Stories(MiniatureConfig(**values), *found)
