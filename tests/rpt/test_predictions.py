"""Predictions read from rollouts: the same as token by token, and none where there is none."""

import numpy as np
import pytest

from rpt import formats, predictions, rollout

CLOSE, EOS = 256, 257
TOKEN_BYTES = [*(bytes([i]) for i in range(256)), b"</think>", b"<eos>"]
PLAIN = formats.parse_template("{{document}}<think>{{thought}}</think>{{answer}}")
LINE = formats.parse_template("{{document}}<think>{{thought}}</think>\n{{answer}}")
BOXED = formats.parse_template("{{document}}<think>{{thought}}</think>\\boxed{{{answer}}}")
TAIL = 2


def branches(rows, answer_starts, over_budget=None) -> rollout.Rollout:
    """One document, one cut, a branch per row of tokens after a tail of two."""
    length = np.array([[TAIL + len(row) for row in rows]], np.int32)
    tokens = np.zeros((1, len(rows), 40), np.int32)
    for r, row in enumerate(rows):
        tokens[0, r, TAIL : TAIL + len(row)] = row
    zeros = np.zeros(tokens.shape)
    over = np.zeros(length.shape, bool) if over_budget is None else np.array([over_budget])
    start = np.array([[TAIL + s if s >= 0 else -1 for s in answer_starts]], np.int32)
    return rollout.Rollout(
        tokens_BRT=tokens,
        sampled_BRT=zeros.astype(bool),
        log_prob_BRT=zeros,
        threshold_BRT=zeros,
        best_BRT=tokens,
        target_log_prob_BRT=zeros,
        length_BR=length,
        answer_start_BR=start,
        over_budget_BR=over,
        tail_length=TAIL,
        decode_steps=(),
    )


def read(rows, starts, template=PLAIN, answer_format="token", answer_tokens=1, valid=True, **more):
    return predictions.read(
        branches(rows, starts, **more),
        TOKEN_BYTES,
        {EOS},
        template,
        answer_format,
        np.array([[valid]]),
        answer_tokens,
    )


def test_reads_as_the_format_does_token_by_token():
    """Joining the thought changes nothing: answer and first token are those of the slow way."""
    rng = np.random.default_rng(0)
    rows, starts = [], []
    for _ in range(50):
        thought = rng.integers(0, 256, rng.integers(0, 20)).tolist()
        answer = rng.integers(0, 256, 3).tolist()
        rows.append([*thought, CLOSE, ord("\n"), *answer])
        starts.append(len(thought) + 2)
    found = read(rows, starts, LINE, answer_tokens=3)
    slow = [formats.read_prediction([TOKEN_BYTES[t] for t in row], LINE, "token") for row in rows]
    assert found == slow
    assert all(p.answer == bytes(row[-3:]) for p, row in zip(found, rows, strict=True))


def test_a_stop_token_is_no_answer_even_after_right_tokens():
    """Ending a two-token answer after its first token must not dodge the second."""
    one, two = [1, CLOSE, EOS], [1, CLOSE, 65, EOS]
    assert read([one], [2])[0].answer is None
    (found,) = read([two], [2], answer_tokens=2)
    assert found.answer is None
    assert found.closed
    assert read([[1, CLOSE, 65, 66]], [2], answer_tokens=2)[0].answer == b"AB"


def test_ids_beyond_the_tokenizer_end_a_branch():
    assert read([[1, CLOSE, len(TOKEN_BYTES) + 3]], [2])[0].answer is None


def test_invalid_slots_and_unclosed_thoughts_predict_nothing():
    (invalid,) = read([[1, CLOSE, 65]], [2], valid=False)
    assert invalid == formats.Prediction(None, None, closed=False, truncated=False)
    (unclosed,) = read([[1, 2, EOS]], [-1])
    assert not unclosed.closed
    assert not unclosed.truncated
    (spent,) = read([[1, 2, 3]], [-1], over_budget=[True])
    assert spent.truncated


def test_a_box_that_the_budget_ended_is_truncated_and_a_complete_one_counts():
    opening = [CLOSE, *b"\\boxed{"]
    start = len(opening)
    cut_off, complete, ended = [*opening, 65], [*opening, 65, ord("}")], [*opening, EOS]
    found = read([cut_off, complete, ended], [start] * 3, BOXED, "boxed", answer_tokens=4)
    assert [p.answer for p in found] == [None, b"A", None]
    assert [p.truncated for p in found] == [True, True, False]
    assert found[1].first_token == b"A"


def test_targets_index_the_document_behind_the_header_and_see_past_the_trunk():
    document = np.array(list(b"hello world"), np.int32)
    cut_BC, valid_BC = np.array([[5, 7, 1]]), np.array([[True, True, False]])
    first, second, none = predictions.targets([document], 3, cut_BC, valid_BC, TOKEN_BYTES)
    assert none is None
    assert first is not None
    assert second is not None
    assert first.remaining == b"llo world"
    assert second.first_token == b"o"


def test_a_cut_outside_the_document_is_refused():
    with pytest.raises(ValueError, match="outside"):
        predictions.targets([np.array([1, 2])], 0, np.array([[9]]), np.array([[True]]), TOKEN_BYTES)
