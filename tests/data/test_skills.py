"""Properties of the generated puzzles; the oracle below reads nothing but the text."""

import collections
import itertools
import re

import pytest

from data import generated, skills, sources

COUNT = 200


def documents(
    family: str, kind: str = "plain", split: str = "train", count: int = COUNT, **changes
):
    config = skills.SkillsConfig(family=family, **changes)
    source = skills.Skills(config, kind, split, seed=0)
    return [source[i] for i in range(count)]


def without_thoughts(text: str) -> str:
    return re.sub(r"<think>.*?</think>", "", text)


def questions(text: str) -> tuple[str, list[list[str]]]:
    """The facts, and every question as words, the answer last."""
    facts, asked = without_thoughts(text).split(" so ")
    return facts, [q.split() for q in re.split(r" [,.](?= |$)", " " + asked) if q]


def walk(family: str, facts: str, asked: list[str]) -> list[str]:
    """Every intermediate result in order, the answer last."""
    name, *steps = asked[:-2]  # behind them 'is' and the answer
    if family == "pointer":
        beside = dict(re.findall(r"(\w+) sat (\w+)", facts))
        return [name := beside[name] for _ in steps]
    if family == "lookup":
        names = facts.split()[1:-1]
        return names[names.index(name) + 1 :][: len(steps)]
    if family == "automaton":
        goes = {(a, verb): b for a, verb, b in re.findall(r"(\w+) (ate|ran) (\w+)", facts)}
        return [name := goes[name, verb] for verb in steps]
    numbers = [(n, int(d)) for n, d in re.findall(r"(\w+) (?:is|\+) (\d)", facts)]
    last = [n for n, _ in numbers].index(name)
    back = list(reversed(numbers[: last + 1]))
    sums = itertools.accumulate(number for _, number in back)
    return [word for (n, _), total in zip(back, sums) for word in (n, str(total % 10))]


@pytest.mark.parametrize("split", generated.SPLITS)
@pytest.mark.parametrize("kind", generated.KINDS)
@pytest.mark.parametrize("family", skills.FAMILIES)
def test_answers_and_depths_are_what_the_oracle_computes(family, kind, split):
    for record in documents(family, kind, split, count=60):
        words = record.text.split()
        facts, asked = questions(record.text)
        walks = [walk(family, facts, question) for question in asked]
        assert [words[place] for place, _ in record.labels] == [found[-1] for found in walks]
        assert [question[-1] for question in asked] == [found[-1] for found in walks]
        depths = [len(found) // (2 if family == "sum" else 1) for found in walks]
        assert [label for _, label in record.labels] == [f"{family}/{depth}" for depth in depths]
        assert max(depths) <= 12


@pytest.mark.parametrize("family", skills.FAMILIES)
def test_a_thought_is_the_walk_to_the_answer_and_stands_before_shallow_answers_only(family):
    thoughts = 0
    for record in documents(family, "worked"):
        assert record.markup
        facts, asked = questions(record.text)
        inside = re.findall(r"<think>([^<]*)</think> \w+ [,.]", record.text)
        shallow = [
            found
            for question in asked
            if len(found := walk(family, facts, question)) <= (8 if family == "sum" else 4)
        ]
        assert [thought.split() for thought in inside] == shallow
        thoughts += len(inside)
    assert thoughts > COUNT


@pytest.mark.parametrize("family", skills.FAMILIES)
def test_no_asked_path_is_in_two_splits(family):
    paths = {}
    for split in generated.SPLITS:
        found = set()
        for kind in generated.KINDS:
            for record in documents(family, kind, split):
                facts, asked = questions(record.text)
                found |= {(*question, *walk(family, facts, question)) for question in asked}
        paths[split] = found
        assert len(found) > 50
    for one, other in itertools.combinations(paths.values(), 2):
        assert not one & other


@pytest.mark.parametrize("family", skills.FAMILIES)
def test_plain_documents_ask_for_every_depth(family):
    depths = collections.Counter(
        int(label.split("/")[1]) for record in documents(family, count=1500)
        for _, label in record.labels
    )  # fmt: skip
    assert set(depths) == set(range(1, 13))
    assert sum(count for depth, count in depths.items() if depth > 4) > 0.25 * depths.total()


@pytest.mark.parametrize("family", skills.FAMILIES)
def test_words_are_known_and_documents_have_at_most_so_many(family):
    known = set(generated.words())
    for kind in generated.KINDS:
        for record in documents(family, kind):
            words = without_thoughts(record.text).split()
            assert set(words) <= known
            assert without_thoughts(record.text) == "".join(" " + word for word in words)
            assert len(words) <= 104


def test_filler_thoughts_differ_only_inside_and_keep_the_length():
    for true, filler in zip(
        documents("pointer", "worked"), documents("pointer", "worked", filler_thoughts=True)
    ):
        assert without_thoughts(true.text) == without_thoughts(filler.text)
        assert len(true.text.split()) == len(filler.text.split())
        inside = " ".join(re.findall(r"<think>(.*?)</think>", filler.text)).split()
        assert set(inside) == {generated.FILLER_WORD}


def test_idle_thoughts_are_empty_and_stand_before_no_answer():
    for record in documents("lookup", "worked", idle_thought_fraction=0.2):
        words = record.text.split()
        for place, _ in record.labels:
            assert not words[place - 1].endswith("<think></think>")
    texts = " ".join(r.text for r in documents("lookup", "worked", idle_thought_fraction=0.2))
    assert texts.count("<think></think>") > COUNT


def test_sources_in_turn():
    one, other = "skills:?family=pointer&size=3", "skills:?family=sum&size=5"
    both = sources.open_source(sources.interleave(a=one, b=other))
    apart = [sources.open_source(spec) for spec in (one, other)]
    assert len(both) == 6
    assert [both[i] for i in range(6)] == [apart[i % 2][i // 2] for i in range(6)]
    assert both.counts == {"interleave/rest": 2}
    with pytest.raises(ValueError, match="two specs or more"):
        sources.open_source("interleave:?a=pydoc")
    skipping = sources.interleave(a="pydoc:?on_fault=skip&max_faults=3", b="pydoc:?on_fault=skip")
    _, guard = sources.open_guarded(skipping)
    assert (guard.on_fault, guard.max_faults) == ("skip", 103)
    with pytest.raises(ValueError, match="same on_fault"):
        sources.open_source(sources.interleave(a="pydoc:?on_fault=skip", b=one))


def test_text_with_idle_thoughts_is_the_same_text():
    plain = sources.open_source("pydoc:?split=validation")
    idle = sources.open_source("pydoc:?split=validation&idle_thoughts=0.1")
    assert len(plain) == len(idle)
    for one, other in zip((plain[i] for i in range(5)), (idle[i] for i in range(5)), strict=True):
        assert other.text.replace("<think></think>", "") == one.text
        assert other.markup
        share = other.text.count("<think></think>") / len(one.text.split())
        assert 0.05 < share < 0.15
        assert not re.search(r"(?:^|\s)<think>", other.text)
    text = "".join(idle[i].text for i in range(len(idle)))
    assert 0.2 < len(re.findall(r"</think>(?=\S)", text)) / text.count("</think>") < 0.6
    with pytest.raises(ValueError, match="idle_thoughts='2' must be a share"):
        sources.open_source("pydoc:?idle_thoughts=2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("family=maze", "family one of pointer, lookup, sum, automaton"),
        ("kind=hard", "choose one of plain, worked"),
        ("depth=3", "unknown skills option 'depth'"),
        ("max_items=40", "max_items <="),
        ("worked_depth=x", "worked_depth='x'"),
    ],
)
def test_bad_options_give_one_clear_line(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        sources.open_source(f"skills:?{options}")
    assert "\n" not in str(caught.value)


def test_an_impossible_document_is_an_error_not_a_hang():
    source = sources.open_source("skills:?family=lookup&max_words=5")
    with pytest.raises(ValueError, match="no document with such questions"):
        source[0]
