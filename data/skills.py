"""Four more puzzles in the words of the miniature, so that thinking has several things to do.

A document states facts, then asks. Every answer follows from facts one after another, `depth` of
them, and a thought that names the intermediate results ends in the answer:

    pointer     ada is . cal sat ada . dan sat cal . so dan sat sat is<think> cal ada</think> ada .
                who sits beside whom; asked for the one some steps on
    lookup      ; ada cal dan eve . so ada ; ; is<think> cal dan</think> dan .
                a list; asked for the name some places after another
    sum         ada is 4 . cal + 2 . dan + 5 . so dan is<think> dan 5 cal 7 ada 1</think> 1 .
                running sums mod 10, from the asked name back to the first
    automaton   ada ate cal . ada ran eve . cal ate ... . so ada ate is<think> cal</think> cal .
                four states and two verbs; asked for the state some moves on

Depths. Plain documents ask for depths up to `max_depth`, as evenly as the facts allow. Worked
documents have thoughts before answers of at most `worked_depth`, and ask deeper ones without.

Entropy. As in data/miniature.py every word but the answers is one of at most four choices: the next
name (1 or 2 on), a parent 1 to 3 back, an increment of three, a state of four, one more step or
'is'. Questions begin with one of the last four names (in a lookup, the first four), the next with
one of the four before (after) that.

Labels. 'FAMILY/<depth>' of every answer.

Splits. By asked path: the words of the question and of its thought, hashed. A document asks only
paths of its own split, so no path asked in validation or test is asked in train.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from data import generated, records

FAMILIES = ("pointer", "lookup", "sum", "automaton")
VERBS = ("ate", "ran")

_NAME_STEPS = (1, 1, 1, 2)
_FIRST_NAMES = (0, 2, 4, 6)
_STATE_STEPS = (1, 2, 3)
_STATES = 4
_PARENTS = (1,) * 8 + (2, 3)  # places back
_ROOT_VALUES, _INCREMENTS = (1, 4, 8), (2, 5, 9)
_BEGINNINGS = 4  # names that the next question may begin with
_ATTEMPTS = 1000  # at one document


@dataclasses.dataclass(frozen=True)
class SkillsConfig:
    """What the documents are like."""

    family: str = "pointer"
    min_items: int = 8  # names of the facts; an automaton has four, a sum two or more
    max_items: int = 14
    max_depth: int = 12
    min_questions: int = 1
    max_questions: int = 3
    max_words: int = 104  # thoughts not counted
    worked_depth: int = 4  # in worked documents, answers of at most this depth have a thought
    deep_fraction: float = 0.25  # of the questions of worked documents
    empty_thought_fraction: float = 0.0  # of the thoughts
    idle_thought_fraction: float = 0.0  # of worked documents' other words, behind an empty thought
    filler_thoughts: bool = False  # a contentless word in place of each word of a thought
    validation_fraction: float = 0.2  # of the paths
    test_fraction: float = 0.2
    split_seed: int = 0  # of the hash that gives paths to splits

    def __post_init__(self):
        most = (len(generated.NAMES) - 1 - max(_FIRST_NAMES)) // min(_NAME_STEPS)
        shares = (self.deep_fraction, self.empty_thought_fraction, self.idle_thought_fraction)
        held_out = (self.validation_fraction, self.test_fraction)
        requirements = {
            f"family one of {', '.join(FAMILIES)}": self.family in FAMILIES,
            f"2 <= min_items <= max_items <= {most}": 2 <= self.min_items <= self.max_items <= most,
            "1 <= min_questions <= max_questions": 1 <= self.min_questions <= self.max_questions,
            "max_depth, worked_depth >= 1": min(self.max_depth, self.worked_depth) >= 1,
            "deep_, empty_ and idle_thought_fraction between 0 and 1": (
                min(shares) >= 0 and max(shares) <= 1
            ),
            "validation_ and test_fraction >= 0.05, their sum <= 0.5": (
                min(held_out) >= 0.05 and sum(held_out) <= 0.5
            ),
        }
        for requirement, holds in requirements.items():
            if not holds:
                raise ValueError(f"skills: choose {requirement}; got {self}")


class Question(NamedTuple):
    """What is asked, in words, and the thought that leads to the answer, its last word.

    `place` counts the names from where questions begin; it is -1 where any may follow any.
    """

    words: tuple[str, ...]
    walk: tuple[str, ...]
    depth: int
    place: int = -1


class Puzzle(NamedTuple):
    """Facts in words, and everything that could be asked about them."""

    facts: list[str]
    questions: list[Question]


# ---- the families: (uniform numbers in [0, 1), config) -> a puzzle -------------------------------


def _draw(uniform: Callable[[], float], choices: tuple[int, ...]) -> int:
    return choices[int(uniform() * len(choices))]


def _names(uniform: Callable[[], float], count: int, steps: tuple[int, ...]) -> list[str]:
    """Names in alphabetical order, fewer where they run out."""
    places = [_draw(uniform, _FIRST_NAMES)]
    while len(places) < count and places[-1] + max(steps) < len(generated.NAMES):
        places.append(places[-1] + _draw(uniform, steps))
    return [generated.NAMES[place] for place in places]


def _items(uniform: Callable[[], float], config: SkillsConfig) -> list[str]:
    # The square root makes long documents likelier, and with them deep questions.
    count = config.min_items + int(uniform() ** 0.5 * (config.max_items - config.min_items + 1))
    return _names(uniform, count, _NAME_STEPS)


def _pointer(uniform: Callable[[], float], config: SkillsConfig) -> Puzzle:
    names = _items(uniform, config)
    facts = [names[0], "is", "."]
    walks: list[tuple[str, ...]] = [()]
    questions = []
    for index in range(1, len(names)):
        parent = max(index - _draw(uniform, _PARENTS), 0)
        facts += [names[index], "sat", names[parent], "."]
        walks.append((names[parent], *walks[parent]))
        for depth in range(1, len(walks[index]) + 1):
            words = (names[index], *("sat",) * depth, "is")
            walk, place = walks[index][:depth], len(names) - 1 - index
            questions.append(Question(words, walk, depth, place))
    return Puzzle(facts, questions)


def _lookup(uniform: Callable[[], float], config: SkillsConfig) -> Puzzle:
    names = _items(uniform, config)
    questions = [
        Question(
            (names[start], *(";",) * depth, "is"),
            tuple(names[start + 1 : start + 1 + depth]),
            depth,
            place=start,
        )
        for start in range(len(names) - 1)
        for depth in range(1, len(names) - start)
    ]
    return Puzzle([";", *names, "."], questions)


def _sum(uniform: Callable[[], float], config: SkillsConfig) -> Puzzle:
    # All lengths alike: a question's depth is its name's place, and the last names are asked.
    count = 2 + int(uniform() * (config.max_items - 1))
    names = _names(uniform, count, _NAME_STEPS)
    numbers = [_draw(uniform, _ROOT_VALUES)]
    facts = [names[0], "is", str(numbers[0]), "."]
    for name in names[1:]:
        numbers.append(_draw(uniform, _INCREMENTS))
        facts += [name, "+", str(numbers[-1]), "."]
    questions = []
    for index in range(len(names)):
        walk, total = [], 0
        for name, number in zip(reversed(names[: index + 1]), reversed(numbers[: index + 1])):
            total = (total + number) % 10
            walk += [name, str(total)]
        place = len(names) - 1 - index
        questions.append(Question((names[index], "is"), tuple(walk), index + 1, place))
    return Puzzle(facts, questions)


def _automaton(uniform: Callable[[], float], config: SkillsConfig) -> Puzzle:
    states = _names(uniform, _STATES, _STATE_STEPS)
    goes: dict[tuple[str, str], str] = {}
    facts = []
    for state in states:
        for verb in VERBS:
            goes[state, verb] = states[int(uniform() * _STATES)]
            facts += [state, verb, goes[state, verb], "."]
    questions = []
    for depth in range(1, config.max_depth + 1):
        state = states[int(uniform() * _STATES)]
        verbs = tuple(VERBS[int(uniform() * len(VERBS))] for _ in range(depth))
        words, walk = (state, *verbs, "is"), []
        for verb in verbs:
            state = goes[state, verb]
            walk.append(state)
        questions.append(Question(words, tuple(walk), depth))
    return Puzzle(facts, questions)


_PUZZLES = {"pointer": _pointer, "lookup": _lookup, "sum": _sum, "automaton": _automaton}


# ---- documents -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Skills(generated.Documents):
    """Documents of one family, kind and split."""

    corpus = "skills"
    config: SkillsConfig

    def _tell(self, rng: random.Random) -> tuple[list[str], list[tuple[int, str]]]:
        for _ in range(_ATTEMPTS):
            puzzle = _PUZZLES[self.config.family](rng.random, self.config)
            asked = self._choose(rng, puzzle)
            if len(asked) >= self.config.min_questions:
                return self._write(rng, puzzle.facts, asked)
        raise ValueError(f"skills: no document with such questions found; allow more in {self}")

    def _choose(self, rng: random.Random, puzzle: Puzzle) -> list[Question]:
        """Questions of the split, in order; the depth of each is drawn first."""
        config = self.config
        low, high = self._path_range
        room = config.max_words - len(puzzle.facts) - 1
        allowed = [
            question
            for question in puzzle.questions
            if question.depth <= config.max_depth and low <= self._path(question) < high
        ]
        wanted = rng.randint(config.min_questions, config.max_questions)
        asked: list[Question] = []
        while len(asked) < wanted:
            last = asked[-1].place if asked else -1
            near = [
                question
                for question in allowed
                if question.place < 0 or last < question.place <= last + _BEGINNINGS
            ]
            depth = self._depth(rng, sorted({question.depth for question in near}))
            if depth is None:
                break
            near = [question for question in near if question.depth == depth]
            question = near[int(rng.random() * len(near))]
            room -= len(question.words) + 2
            if room < 0:
                break
            asked.append(question)
            allowed.remove(question)
        shallow = any(question.depth <= config.worked_depth for question in asked)
        return asked if shallow or self.kind == "plain" else []

    def _depth(self, rng: random.Random, depths: list[int]) -> int | None:
        """One of the depths that are left; worked documents ask deep questions seldom."""
        if self.kind == "worked":
            deep = rng.random() < self.config.deep_fraction
            depths = [depth for depth in depths if (depth > self.config.worked_depth) == deep]
        return depths[int(rng.random() * len(depths))] if depths else None

    def _path(self, question: Question) -> int:
        state = generated.hash_step(self.config.split_seed + 1, FAMILIES.index(self.config.family))
        for word in (*question.words, *question.walk):
            state = generated.hash_step(state, _PLACES[word])
        return state

    def _write(
        self, rng: random.Random, facts: list[str], asked: list[Question]
    ) -> tuple[list[str], list[tuple[int, str]]]:
        config, worked = self.config, self.kind == "worked"
        story = [*facts, "so"]
        number, labels = len(story), []
        for question in asked:
            thought = ""
            if worked and question.depth <= config.worked_depth:
                thought = generated.thought(
                    question.walk,
                    empty=rng.random() < config.empty_thought_fraction,
                    filler=config.filler_thoughts,
                )
            *before, last = question.words
            story += [*before, last + thought, question.walk[-1], ","]
            number += len(question.words) + thought.count(" ")
            labels.append((number, f"{config.family}/{question.depth}"))
            number += 2
        story[-1] = "."
        if worked:
            generated.idle(rng, story, {place for place, _ in labels}, config.idle_thought_fraction)
        return story, labels


_PLACES = {word: place for place, word in enumerate(generated.words())}


def open_skills(options: Mapping[str, str]) -> records.Source:
    """The source of a spec such as 'skills?family=pointer&kind=worked&split=train'.

    Args:
        options: kind (plain), split (train), seed (0), size (10,000,000), and the fields of
            SkillsConfig.

    Raises:
        ValueError: unknown option or bad value.
    """
    which, values = generated.read_options("skills", options, SkillsConfig)
    return Skills(SkillsConfig(**values), *which)
