"""Rewards against a slow literal oracle that tries every boundary."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from rpt import formats, rewards

# Tokens that split a UTF-8 character, leading and trailing spaces, braces, and one without bytes.
TOKENS = [b" ", b"  ", b" time", b"time", b" ti", b"me", b"\xc3", b"\xa9", b" \xe2\x82", b"\xac"]
TOKENS += [b"{", b"}", b"{x}", b"\n", b"a", b""]
documents = strategies.lists(strategies.sampled_from(TOKENS), min_size=1, max_size=10)
PLAIN = formats.parse_template("{{document}}<think>{{thought}}</think>{{answer}}")


def oracle(prediction: bytes | None, tokens: list[bytes], cut: int) -> int:
    """Equation 3 read aloud: is the prediction the join of one or more next tokens?"""
    for count in range(1, len(tokens) - cut + 1):
        if prediction and prediction == b"".join(tokens[cut : cut + count]):
            return 1
    return 0


@strategies.composite
def cases(draw):
    """A document, a cut and a prediction that is often nearly right."""
    tokens = draw(documents)
    cut = draw(strategies.integers(0, len(tokens) - 1))
    rest = b"".join(tokens[cut:])
    prediction = rest[: draw(strategies.integers(0, len(rest)))]
    before = draw(strategies.sampled_from([b"", b"", b"", b" ", b"a", b"\n "]))
    after = draw(strategies.sampled_from([b"", b"", b"", b" ", b"a", b"\xc3", b"\n"]))
    skipped = draw(strategies.sampled_from([0, 0, 0, 1]))
    return tokens, cut, before + prediction[skipped:] + after


@hypothesis.settings(deadline=None, max_examples=1000)
@hypothesis.given(cases())
def test_prefix_match_equals_oracle(case):
    tokens, cut, prediction = case
    target = rewards.target(tokens, cut)
    assert rewards.prefix_match(prediction, target) == oracle(prediction, tokens, cut)
    assert rewards.prefix_match(None, target) == 0


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(documents)
def test_every_boundary_is_rewarded_and_nothing_between(tokens):
    document = rewards.document_bytes(tokens)
    for cut in range(len(tokens)):
        target = rewards.target(document, cut)
        lengths = np.cumsum([len(token) for token in tokens[cut:]])
        np.testing.assert_array_equal(target.boundaries, lengths)
        assert target.remaining == b"".join(tokens[cut:])
        assert target.first_token == tokens[cut]
        for length in range(len(target.remaining) + 1):
            right = rewards.prefix_match(target.remaining[:length], target)
            assert right == (length > 0 and length in lengths)
        assert rewards.prefix_match(target.remaining + b"a", target) == 0  # past the end


@pytest.mark.parametrize(
    ("prediction", "reward"),
    [
        (b" time", 1),
        (b"time", 0),
        (b" time ", 0),
        (b" time and", 1),
        (b" time an", 0),
        (b" time and \xe2\x82", 1),  # a boundary inside a character
        (b" time and \xe2", 0),
        (b" time and \xe2\x82\xac", 1),
        (b" time and \xef\xbf\xbd", 0),  # what a decoder would make of half a character
        (b"", 0),
        (None, 0),
    ],
)
def test_prefix_match_examples(prediction, reward):
    target = rewards.target([b"the", b" time", b" and", b" \xe2\x82", b"\xac"], 1)
    assert rewards.prefix_match(prediction, target) == reward


@hypothesis.settings(deadline=None, max_examples=500)
@hypothesis.given(cases(), strategies.sampled_from(["token", "boxed"]))
def test_the_whole_way_from_generated_bytes_to_reward(case, kind):
    tokens, cut, prediction = case
    answer = b"\\boxed{" + prediction + b"} ok" if kind == "boxed" else prediction
    read = formats.read_prediction([b"hm</thi", b"nk>" + answer], PLAIN, kind)
    earned = rewards.prefix_match(read.answer, rewards.target(tokens, cut))
    if kind == "token" or formats.expressible(prediction):
        assert earned == oracle(prediction, tokens, cut)
    else:  # unbalanced: a box holds something else, or nothing
        assert earned == oracle(read.answer, tokens, cut)
        assert read.answer != prediction


@pytest.mark.parametrize("cut", [-1, 2])
def test_a_cut_outside_the_document_is_an_error(cut):
    with pytest.raises(ValueError, match="outside"):
        rewards.target([b"a", b"b"], cut)


def prediction(answer, first=None, closed=True, truncated=False):
    return formats.Prediction(answer, first or answer or None, closed, truncated)


def batch_of(answers_BCG, targets, probs_BCG=None, all_wrong_reward=0.0):
    answers_BCG = np.array(answers_BCG, object)
    return rewards.RewardBatch(
        predictions=[prediction(answer) for answer in answers_BCG.reshape(-1)],
        targets=targets,
        shape_BCG=answers_BCG.shape,
        first_token_probs_BCG=None if probs_BCG is None else np.array(probs_BCG, np.float32),
        all_wrong_reward=all_wrong_reward,
    )


TARGET = rewards.target([b" a", b" b", b" c"], 0)
LATER = rewards.target(TARGET.document, 1)


def test_first_token_ignores_the_rest():
    batch = rewards.RewardBatch(
        predictions=[
            prediction(b" a", b" a"),
            prediction(b" a x", b" a"),
            prediction(b" a b", b" a b"),  # one token with the bytes of two
            prediction(None),
        ],
        targets=[TARGET],
        shape_BCG=(1, 1, 4),
    )
    assert rewards.score("first_token", batch).tolist() == [[[1, 1, 0, 0]]]
    assert rewards.score("prefix_match", batch).tolist() == [[[1, 0, 1, 0]]]


def test_the_layout_is_document_cut_sample():
    batch = batch_of([[[b" a", b" b"], [b" b", b" b"]], [[b" c", b" c"], [b" a", b" c"]]], None)
    batch = rewards.RewardBatch(batch.predictions, [TARGET, LATER, None, TARGET], batch.shape_BCG)
    reward_BCG = rewards.score("prefix_match", batch)
    assert reward_BCG.dtype == np.float32
    assert reward_BCG.tolist() == [[[1, 0], [1, 1]], [[0, 0], [1, 0]]]


def test_dense_and_conditional_dense():
    answers = [[[b" a", b" b", None], [b" x", b" y", None]]]
    probs = [[[0.5, 0.25, np.nan], [0.125, 0.75, 0.5]]]
    batch = batch_of(answers, [TARGET, TARGET], probs)
    assert rewards.score("dense", batch).tolist() == [[[1, 0.25, 0], [0.125, 0.75, 0]]]
    assert rewards.score("conditional_dense", batch).tolist() == [[[1, 0.25, 0], [0, 0, 0]]]
    batch = batch_of(answers, [TARGET, TARGET], probs, all_wrong_reward=-0.5)
    conditional = rewards.score("conditional_dense", batch)
    assert conditional.tolist() == [[[1, 0.25, 0], [-0.5, -0.5, -0.5]]]
    assert conditional.dtype == np.float32


@pytest.mark.parametrize("name", sorted(rewards.REWARDS))
def test_slots_without_a_cut_earn_nothing(name):
    batch = batch_of([[[b" a", None]]], [None], [[[0.5, 0.5]]], all_wrong_reward=-1.0)
    assert rewards.score(name, batch).tolist() == [[[0, 0]]]


def test_scoring_errors():
    with pytest.raises(ValueError, match="conditional_dense, dense, first_token, prefix_match"):
        rewards.score("exact", batch_of([[[b" a"]]], [TARGET]))
    with pytest.raises(ValueError, match="do not fit"):
        rewards.score("prefix_match", batch_of([[[b" a"]]], [TARGET, LATER]))
    for name in rewards.NEEDS_FIRST_TOKEN_PROBS:
        with pytest.raises(ValueError, match="first_token_probs_BCG"):
            rewards.score(name, batch_of([[[b" a"]]], [TARGET]))
        with pytest.raises(ValueError, match="outside"):
            rewards.score(name, batch_of([[[b" a"]]], [TARGET], [[[1.5]]]))
    with pytest.raises(ValueError, match="at most 0"):
        rewards.score("conditional_dense", batch_of([[[b" x"]]], [TARGET], [[[0.5]]], 0.1))


def test_first_token_ids_are_looked_up_by_bytes():
    found = [prediction(b" a"), prediction(None), prediction(b" zz"), prediction(b"")]
    ids = rewards.first_token_ids(found, {b" a": 7})
    assert ids.tolist() == [7, -1, -1, -1]


@pytest.mark.parametrize(
    ("found", "category"),
    [
        (prediction(b" time"), "right"),
        (prediction(b" time\n "), "trailing_space"),
        (prediction(b"time"), "leading_space"),
        (prediction(b"  time"), "leading_space"),
        (prediction(b"time "), "leading_space"),
        (prediction(b"tim"), "wrong"),
        (prediction(b" tim "), "wrong"),
        (prediction(b" "), "wrong"),
        (prediction(b""), "wrong"),
        (prediction(None), "no_answer"),
        (prediction(None, truncated=True), "truncated"),
        (prediction(None, closed=False), "not_closed"),
        (prediction(None, closed=False, truncated=True), "not_closed"),
        (prediction(b" time", truncated=True), "right"),
    ],
)
def test_diagnosis(found, category):
    assert rewards.diagnose(found, rewards.target([b"the", b" time", b" and"], 1)) == category


@hypothesis.settings(deadline=None, max_examples=500)
@hypothesis.given(cases())
def test_diagnosis_equals_a_literal_reading(case):
    tokens, cut, answer = case
    joins = {b"".join(tokens[cut:stop]) for stop in range(cut + 1, len(tokens) + 1)}
    rest = b"".join(tokens[cut:])
    lost = len(rest) - len(rest.lstrip())
    if answer and answer in joins:
        expected = "right"
    elif answer.rstrip() and answer.rstrip() in joins:
        expected = "trailing_space"
    elif answer.strip() and rest[:lost] + answer.strip() in joins:
        expected = "leading_space"
    else:
        expected = "wrong"
    assert rewards.diagnose(prediction(answer), rewards.target(tokens, cut)) == expected


def test_categories_are_counted_and_the_line_is_readable():
    batch = batch_of([[[b" a", b"a", None, b" x"], [b" a", b" a", b" a", b" a"]]], [TARGET, None])
    counts = rewards.diagnosis_counts(batch)
    assert set(counts) == {"read", *rewards.CATEGORIES}
    expected = {"read": 4, "right": 1, "leading_space": 1, "no_answer": 1, "wrong": 1}
    assert {name: count for name, count in counts.items() if count} == expected
    shares = {name: counts[name] / counts["read"] for name in rewards.CATEGORIES}
    line = rewards.diagnosis_line(shares, "boxed")
    assert "no box 25.0%" in line
    assert "truncated" not in line
    assert rewards.diagnosis_line(dict.fromkeys(rewards.CATEGORIES, 0.0), "token").endswith("none")


def test_targets_of_a_long_document_share_its_bytes():
    document = rewards.document_bytes([b"ab"] * 100_000)
    targets = [rewards.target(document, cut) for cut in range(0, 100_000, 10)]
    assert all(target.document is document for target in targets)
    assert sum(rewards.prefix_match(b"abab", target) for target in targets) == len(targets)
