"""Splits: no leak, useful sizes, and the same for ever."""

import random

import pytest

from data import deduplication, sources, splits
from data import records as records_lib

FRACTIONS = {"train": 0.84, "validation": 0.08, "test": 0.08}


def words(records):
    return sum(len(record.text.split()) for record in records)


def runs(text):
    split = deduplication.words(text)
    return {tuple(split[i : i + 13]) for i in range(len(split) - 12)}


def covered_by_hand(held_out, train):
    """The definition, word by word."""
    known = set().union(*map(runs, train))
    covered = total = 0
    for text in held_out:
        split = deduplication.words(text)
        hit = [False] * len(split)
        for i in range(len(split) - 12):
            if tuple(split[i : i + 13]) in known:
                hit[i : i + 13] = [True] * 13
        covered, total = covered + sum(hit), total + len(split)
    return covered / total


def overlapping_texts(count, seed):
    """Random texts over few words, some of which quote a piece of another."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abcdef", k=rng.randint(0, 40))) for _ in range(count)]
    for _ in range(count // 3):
        source = texts[rng.randrange(count)].split()
        start = rng.randint(0, 20)
        texts[rng.randrange(count)] += " " + " ".join(source[start : start + rng.randint(10, 16)])
    return texts


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_connected_components_of_shared_runs(seed):
    texts = overlapping_texts(40, seed)
    labels = splits.group_labels(texts).tolist()
    parts = [{i} for i in range(len(texts))]
    for i in range(len(texts)):
        for j in range(i):
            if runs(texts[i]) & runs(texts[j]) or texts[i].split() == texts[j].split():
                joined = parts[i] | parts[j]
                for k in joined:
                    parts[k] = joined
    expected = [min(part) for part in parts]
    assert len(set(expected)) < len(texts)
    assert len(set(zip(labels, expected))) == len(set(labels)) == len(set(expected))


@pytest.mark.parametrize("seed", range(5))
def test_covered_share_is_its_definition(seed):
    texts = overlapping_texts(40, seed)
    expected = covered_by_hand(texts[:10], texts[10:])
    assert splits.covered_share(texts[:10], texts[10:]) == pytest.approx(expected, abs=1e-12)


def test_covered_share_of_copies_and_strangers():
    text = " ".join(map(str, range(30)))
    assert splits.covered_share([text], ["x", text]) == 1.0
    assert splits.covered_share([text], [" ".join(map(str, range(10, 23)))]) == 13 / 30
    assert splits.covered_share([text], [" ".join(map(str, range(12)))]) == 0.0
    assert splits.covered_share([], [text]) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_pydoc_splits_are_useful_and_do_not_leak(seed):
    source = sources.open_source("pydoc")
    records = [source[index] for index in range(len(source))]
    dealt = splits.split_documents(records, seed, FRACTIONS)
    total = words(records)
    train = [record.text for record in dealt["train"]]
    assert sorted(r.document_id for part in dealt.values() for r in part) == sorted(
        r.document_id for r in records
    )
    for name in ("validation", "test"):
        assert 0.05 <= words(dealt[name]) / total <= 0.12
        held_out = [record.text for record in dealt[name]]
        assert covered_by_hand(held_out, train) < 0.01


def test_topics_as_they_are_would_leak():
    """Why the treatment is needed: the largest topics contain others."""
    topics = __import__("pydoc_data.topics").topics.topics
    held_out = [topics["with"], topics["try"], topics["class"]]
    train = [text for text in topics.values() if text not in held_out]
    assert splits.covered_share(held_out, train) > 0.9


def test_dealing_depends_on_seed_and_content_only():
    records = records_lib.from_texts([f"{i} " * 15 + f"end {i}" for i in range(100)]).records
    first = splits.split_documents(records, 0, FRACTIONS)
    again = splits.split_documents(records[::-1], 0, FRACTIONS)
    other = splits.split_documents(records, 1, FRACTIONS)
    for name in splits.NAMES:
        assert first[name] == again[name][::-1]
    assert first["test"] != other["test"]


def test_duplicates_stay_together():
    texts = [f"short {i // 2}" for i in range(60)]
    dealt = splits.split_documents(records_lib.from_texts(texts).records, 0, FRACTIONS)
    seen = [{record.text for record in part} for part in dealt.values()]
    assert not seen[0] & seen[1]
    assert not seen[2] & (seen[0] | seen[1])


def disguised(text):
    return text.upper().replace(" ", ", ") + "!"


@pytest.mark.parametrize("words", [5, 20])
def test_copies_in_other_case_and_punctuation_stay_together(words):
    plain = [" ".join(f"w{i}x{k}" for k in range(words)) for i in range(30)]
    labels = splits.group_labels([*plain, *map(disguised, plain)]).tolist()
    assert labels[:30] == labels[30:]
    assert len(set(labels)) == 30
    assert splits.covered_share([plain[0]], [disguised(plain[0])]) == (words >= 13)
    records = records_lib.from_texts([*plain, *map(disguised, plain)]).records
    dealt = splits.split_documents(records, 0, FRACTIONS)
    seen = [{tuple(deduplication.words(r.text)) for r in part} for part in dealt.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 30


def test_texts_without_words_are_told_apart_by_what_they_have():
    labels = splits.group_labels(["!!!", "???", "!!!"]).tolist()
    assert labels[0] == labels[2] != labels[1]


def test_mistakes_are_named():
    records = records_lib.from_texts(["a b c", "d e f"]).records
    with pytest.raises(ValueError, match="nothing to put in"):
        splits.split_documents(records, 0, FRACTIONS)
    with pytest.raises(ValueError, match="fractions must be"):
        splits.split_documents(records, 0, {"train": 1.0})
    with pytest.raises(ValueError, match="fractions must be"):
        splits.split_documents(records, 0, {"train": 0.5, "validation": 0.2, "test": 0.2})


def test_sections_are_cut_at_headings_without_repetition():
    body = "\n\n".join(f"paragraph {i} " + f"word{i} " * 20 for i in range(4))
    text = f"Title\n*****\n\n{body}\n\nSecond part\n===========\n\n{'other ' * 25}\n"
    short = "Short\n-----\n\nhas two paragraphs\n\nof few words"
    found, counts = splits.distinct_sections([body, text, text, short])
    assert [section.split("\n")[0] for section in found] == ["Title", "Second part"]
    assert "paragraph 3" in found[0]
    assert "other" not in found[0]
    # The text again: two sections of 5 and 2 paragraphs, headings included; and the 4 of the body.
    assert counts == {
        "sections/repeated": 3,
        "sections/too_short": 1,
        "noted/repeated_paragraphs": 5 + 2 + 4,
    }
