"""Properties of the generated stories."""

import collections
import dataclasses
import itertools
import math
import pydoc_data.topics
import re

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data import generated, miniature

NUM_DOCUMENTS = 1500
DEFAULT = miniature.MiniatureConfig()
KNOWN_PLAIN = (
    " eve is 4 . fay is 9 + eve . gus is 5 + fay . hal is 9 + eve . ivy is 9 + hal . joe is 5"
    " + ivy . kim is 5 + hal . max is 5 + kim . ned is 9 + max . so ned is 2 , max is 3 , kim"
    " is 8 , ivy is 2 , gus is 8 ."
)
KNOWN_WORKED = (
    " dot is 4 . fay is 9 + dot . gus is 9 + fay . hal is 2 + gus . ian is 5 + hal . ida is 5"
    " + ian ; bus 7 left . so ida is 4 , ian is 9 , hal is<think></think> 4 , gus is<think>"
    " gus 9 fay 8 dot 2</think> 2 , fay is<think></think> 3 ."
)


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


def stories(kind="plain", split="train", seed=0, **changes):
    return miniature.Stories(dataclasses.replace(DEFAULT, **changes), kind, split, seed)


def records(num=NUM_DOCUMENTS, **arguments):
    source = stories(**arguments)
    return [source[i] for i in range(num)]


def without_thoughts(text):
    return re.sub(r"<think>.*?</think>", "", text)


def asked_paths(text):
    """Set of asked paths, each ((name, number), ..., (root, value)), read from the text."""
    told, questions = without_thoughts(text).split(" so ")
    facts = {n: (d, p) for n, d, p in re.findall(r"(\w+) is (\d)(?: \+ (\w+))?", told)}
    paths = set()
    for name in re.findall(r"(\w+) is", questions):
        path = []
        while name:
            number, parent = facts[name]
            path.append((name, number))
            name = parent
        paths.add(tuple(path))
    return paths


@pytest.mark.parametrize("kind", generated.KINDS)
@pytest.mark.parametrize("split", generated.SPLITS)
def test_answers_and_labels_are_what_the_oracle_computes(kind, split):
    for record in records(num=500, kind=kind, split=split):
        words = record.text.split()
        answers = [(i, label) for i, label in record.labels if label != "noise"]
        solved = solve(record.text)
        assert answers == [(i, f"answer/{depth}") for i, depth, _ in solved]
        assert [words[i] for i, _ in answers] == [answer for _, _, answer in solved]
        for i, label in record.labels:
            if label == "noise":
                assert words[i - 1] == "bus"
                assert words[i + 1] == "left"


def test_the_oracle_on_a_story_solved_by_hand():
    text = (
        " eve is 4 . fay is 2 + eve ; bus 7 left . gus is 5 + fay ; yes eve is 4 . hal is 9 + gus ."
        " so hal is<think> hal 9 gus 4 fay 6 eve 0</think> 0 , fay is 3 ."
    )
    assert solve(text) == [(42, 4, "0"), (46, 2, "6")]


@pytest.mark.parametrize("kind", generated.KINDS)
def test_every_word_has_exactly_one_space_before_it_and_is_known(kind):
    known = set(generated.words())
    seen = set()
    for record in records(kind=kind):
        plain = re.sub(r"</?think>", "", record.text)
        assert plain == "".join(" " + word for word in plain.split())
        assert plain.endswith(" .")
        seen.update(plain.split())
    assert seen <= known - {generated.FILLER_WORD}
    assert len(seen) >= len(known) - 6, "only the last names are rare"


def test_documents_are_pure_functions_of_their_arguments():
    assert stories()[41] == stories()[41]
    different = [
        stories(),
        stories(seed=1),
        stories(split="test"),
        stories(split="validation"),
        stories(kind="worked"),
    ]
    assert len({without_thoughts(source[41].text) for source in different}) == len(different)
    assert len({record.text for record in records()}) == NUM_DOCUMENTS


def test_a_known_document_stays_what_it_is():
    """Results depend on the exact corpus: a change of the generator must be a decision."""
    assert stories()[0].text == KNOWN_PLAIN
    assert stories(kind="worked", split="test", seed=3)[5].text == KNOWN_WORKED


def test_asked_paths_of_the_splits_are_disjoint_at_every_depth():
    config = miniature.MiniatureConfig()
    paths = {}
    for split in generated.SPLITS:
        by_depth = collections.defaultdict(set)
        for kind, seed in itertools.product(generated.KINDS, (0, 1)):
            for record in records(num=600, kind=kind, split=split, seed=seed):
                for path in asked_paths(record.text):
                    by_depth[len(path)].add(path)
        paths[split] = by_depth
    for depth in range(1, config.max_depth + 1):
        sets = [paths[split][depth] for split in generated.SPLITS]
        assert all(sets), f"a split without questions of depth {depth}"
        for one, other in itertools.combinations(sets, 2):
            assert not one & other


@pytest.mark.parametrize("split", generated.SPLITS)
def test_mixture(split):
    answers, noise, words = collections.Counter(), 0, 0
    for record in records(split=split):
        count = len(record.text.split())
        assert count <= DEFAULT.max_words
        words += count
        depths = [int(label.split("/")[1]) for _, label in record.labels if label != "noise"]
        assert DEFAULT.min_questions <= len(depths) <= DEFAULT.max_questions
        answers.update(depths)
        noise += len(record.labels) - len(depths)
    total = sum(answers.values())
    assert set(answers) == set(range(1, 9))
    assert max(answers.values()) < 0.25 * total
    assert sum(answers[depth] for depth in range(5, 9)) >= 0.33 * total
    assert total >= 0.07 * words
    assert 0.3 * NUM_DOCUMENTS < noise < 0.7 * NUM_DOCUMENTS


def test_a_parent_is_never_answered_before_its_child():
    for record in records():
        told, questions = record.text.split(" so ")
        asked = re.findall(r"(\w+) is", questions)
        assert asked == sorted(set(asked), reverse=True)
        for child, parent in re.findall(r"(\w+) is \d \+ (\w+)", told):
            assert parent < child


def entropy_nats(counts):
    total = sum(counts.values())
    return -sum(c / total * math.log(c / total) for c in counts.values())


def choices(record):
    """(state of the grammar, choice taken there) for each word that is neither answer nor noise."""
    labelled = {i for i, _ in record.labels}
    defined, last_asked, told, restated = [], "~", True, False
    before, role = "start", "start"
    for i, word in enumerate(record.text.split()):
        if restated and before != "yes" and word != ".":
            pass  # follows from the choice of the definition
        elif before == "yes":
            yield "restated", defined[::-1].index(word)
        elif before == "+":
            yield "parent", defined[-2::-1].index(word)
        elif before in ("so", ","):
            yield "asked", [name for name in defined[::-1] if name < last_asked].index(word)
            last_asked = word
        elif before == "start" or (told and before == "."):
            yield (before, *defined[-1:]), word
            if word != "so":
                defined.append(word)
        elif told and before == "is":
            yield ("is", defined[-1], len(defined) == 1), word
        elif i not in labelled:
            yield (told, role), word
        told = told and word != "so"
        restated = word == "yes" or (restated and word != ".")
        role = word
        if word in generated.NAMES:
            role = "parent" if before == "+" else "name"
        before = word


def test_only_answers_and_noise_have_more_than_four_continuations():
    following = collections.defaultdict(collections.Counter)
    for record in records(num=3000):
        for state, choice in choices(record):
            following[state][choice] += 1
    assert len(following["asked"]) == 4
    assert len(following["parent"]) == 3
    for state, counts in following.items():
        assert len(counts) <= 4, (state, counts)
        assert entropy_nats(counts) < 1.4


def test_answers_and_noise_are_spread_over_all_digits():
    counts = collections.defaultdict(collections.Counter)
    for record in records(num=5000):
        words = record.text.split()
        for i, label in record.labels:
            counts[label][words[i]] += 1
    assert set(counts) == {"noise", *(f"answer/{depth}" for depth in range(1, 9))}
    del counts["answer/1"]  # copied from the story
    for label in counts:
        assert entropy_nats(counts[label]) > 1.5
    share = max(counts["noise"].values()) / sum(counts["noise"].values())
    deviation = math.sqrt(0.09 / sum(counts["noise"].values()))
    assert abs(share - 1 / len(generated.DIGITS)) < 4 * deviation


def test_idle_thoughts_are_empty_and_stand_before_noise_but_not_before_answers():
    idle = words = before_noise = 0
    for with_idle, without in zip(
        records(kind="worked", idle_thought_fraction=0.1), records(kind="worked"), strict=True
    ):
        labelled = [with_idle.text.split()[number] for number, _ in with_idle.labels]
        assert all(word[0].isdigit() for word in labelled)
        pieces = re.split(r"<think></think>(?= )", with_idle.text)
        # Without the idle thoughts it is the same story, with the same labels.
        asked = [number for number, label in without.labels if label.startswith("answer")]
        before = [without.text.split()[number - 1] for number in asked]
        empty_answers = sum(word.endswith("<think></think>") for word in before)
        assert re.sub("<think></think>", "", with_idle.text) == re.sub(
            "<think></think>", "", without.text
        )
        assert with_idle.labels == without.labels
        idle += len(pieces) - 1 - empty_answers
        words += len(without.text.split()) - len(asked)
        for number, label in with_idle.labels:
            word = with_idle.text.split()[number - 1]
            if label == "noise":
                before_noise += word == "bus<think></think>"
            else:
                assert word.count("<think>") == without.text.split()[number - 1].count("<think>")
    assert 0.05 < idle / words < 0.12  # words inside thoughts have none
    assert before_noise


def test_thoughts_walk_from_the_asked_variable_to_the_root():
    thoughts = empty = 0
    for record in records(kind="worked"):
        assert record.markup
        assert 1 <= record.text.count("<think>") <= DEFAULT.max_worked_questions
        path_of = {path[0][0]: path for path in asked_paths(record.text)}
        for name, inside, answer in re.findall(r"(\w+) is<think>(.*?)</think> (\d)", record.text):
            path = path_of[name]
            assert len(path) <= DEFAULT.worked_depth
            sums = itertools.accumulate(int(number) for _, number in path)
            walk = "".join(f" {n} {s % 10}" for (n, _), s in zip(path, sums))
            assert inside in ("", walk)
            assert walk.endswith(" " + answer)
            thoughts += 1
            empty += not inside
    assert empty / thoughts == pytest.approx(DEFAULT.empty_thought_fraction, abs=0.03)


def test_questions_deeper_than_worked_have_no_tag_or_are_left_out():
    deep = 0
    for record in records(num=500, kind="worked", worked_depth=2):
        words = record.text.split()
        for i, label in record.labels:
            if label.startswith("answer/") and int(label.split("/")[1]) > 2:
                assert words[i - 1] == "is"
                deep += 1
    assert deep > 500
    for record in records(num=300, kind="worked", worked_depth=2, deep_questions_in_worked=False):
        assert {label for _, label in record.labels} <= {"answer/1", "answer/2", "noise"}


def test_filler_thoughts_differ_only_inside_and_keep_the_length():
    for real, filler in zip(
        records(num=300, kind="worked"), records(num=300, kind="worked", filler_thoughts=True)
    ):
        assert without_thoughts(real.text) == without_thoughts(filler.text)
        assert real.labels == filler.labels
        assert len(real.text.split()) == len(filler.text.split())
        for inside in re.findall(r"<think>(.*?)</think>", filler.text):
            assert set(inside.split()) <= {generated.FILLER_WORD}


def test_a_trained_tokenizer_gives_one_token_a_word():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=704,
        special_tokens=["<bos>", "<eos>", "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    english = pydoc_data.topics.topics.values()
    tokenizer.train_from_iterator(itertools.chain(generated.tokenizer_texts(), english), trainer)
    for kind in generated.KINDS:
        for record in records(num=200, kind=kind):
            pieces = re.findall(r"</?think>| [^ <]+", record.text)
            assert "".join(pieces) == record.text
            encoded = tokenizer.encode(record.text)
            assert len(encoded.ids) == len(pieces)
            assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == record.text
    for word in generated.words():
        assert len(tokenizer.encode(" " + word).ids) == 1


def test_open_miniature_reads_every_option():
    source = miniature.open_miniature(
        {"kind": "worked", "split": "test", "seed": "7", "size": "50", "max_variables": "3"}
        | {"worked_depth": "2", "filler_thoughts": "true", "skip_weights": "0.5,0.5"}
    )
    config = miniature.MiniatureConfig(
        min_variables=2,
        max_variables=3,
        worked_depth=2,
        filler_thoughts=True,
        skip_weights=(0.5, 0.5),
    )
    assert source == miniature.Stories(config, "worked", "test", 7, 50)
    assert len(source) == 50
    assert miniature.open_miniature({})[3] == stories()[3]
    with pytest.raises(IndexError):
        source[50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knid": "plain"}, "unknown miniature option 'knid'"),
        ({"kind": "hard"}, "choose one of plain, worked"),
        ({"split": "dev"}, "choose one of train, validation, test"),
        ({"seed": "-1"}, "seed must be"),
        ({"worked_depth": "x"}, "worked_depth='x'"),
        ({"filler_thoughts": "maybe"}, "filler_thoughts='maybe'"),
        ({"max_variables": "12"}, "max_variables <= 9"),
        ({"max_words": "60"}, "no story fits max_words"),
        ({"empty_thought_fraction": "1.5"}, "between 0 and 1; got"),
        ({"parent_weights": "1,1,1"}, "parent_weights"),
        ({"skip_weights": "-1,2"}, "skip_weights"),
        ({"test_fraction": "0"}, "test_fraction >= 0.05"),
    ],
)
def test_bad_options_give_one_clear_line(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        miniature.open_miniature(options)
    assert "\n" not in str(caught.value)


def test_an_impossible_story_is_an_error_not_a_hang():
    source = stories(
        kind="worked",
        min_variables=9,
        worked_depth=1,
        max_questions=1,
        min_questions=1,
        later_root_fraction=0.0,
        max_depth=9,
        parent_weights=(1.0, 0.0, 0.0),
        skip_weights=(1.0,),
    )
    with pytest.raises(ValueError, match="no story with such questions"):
        source[0]
