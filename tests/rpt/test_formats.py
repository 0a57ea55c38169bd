"""Templates, the marker automaton and answer extraction, against slow literal oracles."""

import pathlib
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from rpt import formats

TEMPLATES = pathlib.Path(__file__).parents[2] / "configs" / "templates"
PLAIN = formats.parse_template("{{document}}<think>{{thought}}</think>{{answer}}")
NEWLINE = formats.parse_template("{{document}}<think>{{thought}}</think>\n{{answer}}")

# Text in which markers, boxes and braces are frequent, broken off and overlapping.
PIECES = [b"</think>", b"</thi", b"</", b"<", b">", b"nk>", b"\\boxed{", b"\\boxed", b"\\{"]
PIECES += [b"{", b"}", b" a", b"\n", b"\xc3", b"\xa9", b"", b"x"]
bytes_text = strategies.lists(strategies.sampled_from(PIECES), max_size=14).map(b"".join)


def chopped(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data as tokens that end at the given places (any, repeated or not)."""
    ends = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:stop] for start, stop in zip([0, *ends], [*ends, len(data)])]


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.txt")), ids=lambda path: path.stem)
def test_shipped_templates_parse_and_their_own_example_can_be_read(path):
    template = formats.load_template(path)
    parts = [template.header, "{{document}}", template.tail, "{{thought}}", template.close]
    assert "".join([*parts, "{{answer}}", template.end]) == template.text
    assert template.text + "\n" == path.read_text(encoding="utf-8")
    boxed = "boxed" in template.close
    generated = f"so{template.close} time{template.end if boxed else ''}".encode()
    prediction = formats.read_prediction([generated], template, "boxed" if boxed else "token")
    assert prediction.answer == b" time"


def test_shipped_templates_are_the_expected_ones():
    names = {path.name for path in TEMPLATES.glob("*.txt")}
    assert names >= {"mini.txt", "rpt_v0.txt", "rpt_v6.txt", "smollm2_boxed.txt"}
    assert formats.load_template(TEMPLATES / "mini.txt") == PLAIN


def test_template_parts_and_suffix():
    text = "Read: {{document}} <think>{{thought}}.</think>\n\\boxed{{{answer}}}!\n\n"
    template = formats.parse_template(text)
    assert template.header == "Read: "
    assert template.tail == " <think>"
    assert template.close == ".</think>\n\\boxed{"
    assert template.suffix == "\n\\boxed{"
    assert template.end == "}!\n"  # one final newline is dropped, not two


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{document}}<think>{{thought}}</think>", "{{answer}} occurs 0 times"),
        ("{{document}}{{document}}{{thought}}</think>{{answer}}", "{{document}} occurs 2 times"),
        ("{{thought}}</think>{{document}}{{answer}}", "order"),
        ("{{document}}<think>{{thought}}{{answer}}", "</think> occurs 0 times"),
        ("{{document}}{{thought}}</think></think>{{answer}}", "</think> occurs 2 times"),
    ],
)
def test_malformed_templates_say_what_is_wrong(text, message):
    with pytest.raises(ValueError, match="mine") as error:
        formats.parse_template(text, name="mine")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_load_template_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="not found"):
        formats.load_template(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe{{document}}")
    with pytest.raises(ValueError, match="UTF-8"):
        formats.load_template(tmp_path / "binary.txt")


def oracle_state(state: int, token: bytes, marker: bytes) -> tuple[int, bool]:
    """Runs the text instead of the automaton."""
    if state == len(marker):
        return state, False
    text = marker[:state] + token
    if marker in text:
        return len(marker), text.index(marker) + len(marker) < len(text)
    return max(k for k in range(len(marker)) if text.endswith(marker[:k])), False


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    strategies.lists(bytes_text, max_size=8),
    strategies.sampled_from([formats.MARKER, b"aabaa", b"a", b"abab", b"</<</>"]),
    strategies.booleans(),
)
def test_automaton_equals_running_the_text(tokens, marker, letters):
    if letters:  # self-overlapping markers need text over their own alphabet
        tokens = [bytes(marker[byte % len(marker)] for byte in token) for token in tokens]
    automaton = formats.marker_automaton(tokens, marker)
    assert automaton.next_state_VS.shape == (len(tokens), len(marker) + 1)
    assert automaton.next_state_VS.dtype == np.uint8
    assert automaton.accepted == len(marker)
    for index, token in enumerate(tokens):
        for state in range(len(marker) + 1):
            found = automaton.next_state_VS[index, state], automaton.straddles_VS[index, state]
            assert found == oracle_state(state, token, marker)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(bytes_text, strategies.lists(strategies.integers(0, 200), max_size=6))
def test_automaton_accepts_exactly_when_the_split_is_found(data, cuts):
    tokens = chopped(data, cuts)
    automaton = formats.marker_automaton(tokens)
    state, straddled = 0, False
    for index in range(len(tokens)):
        straddled |= bool(automaton.straddles_VS[index, state])
        state = int(automaton.next_state_VS[index, state])
        prefix = b"".join(tokens[: index + 1])
        assert (state == automaton.accepted) == (formats.split_thought(prefix) is not None)
    if straddled:
        assert formats.split_thought(data) not in (None, (data[: -len(formats.MARKER)], b""))


def test_automaton_is_fast_for_a_large_vocabulary():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 12, 152_000)
    data = generator.integers(32, 127, int(lengths.sum()), dtype=np.uint8).tobytes()
    stops = np.cumsum(lengths)
    tokens = [data[stop - length : stop] for stop, length in zip(stops, lengths)]
    tokens[7] = b" " * 300
    started = time.perf_counter()
    automaton = formats.marker_automaton(tokens)
    assert time.perf_counter() - started < 10  # about 0.2 s; a loop over bytes takes minutes
    assert automaton.next_state_VS.shape == (152_000, 9)


def test_automaton_of_empty_tokens_does_not_move():
    automaton = formats.marker_automaton([b"", b""])
    np.testing.assert_array_equal(automaton.next_state_VS, np.tile(np.arange(9), (2, 1)))
    assert not automaton.straddles_VS.any()


def test_first_marker_counts():
    assert formats.split_thought(b"a</think>b</think>c") == (b"a", b"b</think>c")
    assert formats.split_thought(b"a</thin k>") is None


def oracle_boxed(rest: bytes) -> bytes | None:
    """Tries every start from the last to the first and counts braces from there."""
    for start in range(len(rest), -1, -1):
        if not rest[:start].endswith(b"\\boxed{"):
            continue
        depth = 1
        for stop in range(start, len(rest)):
            depth += {ord("{"): 1, ord("}"): -1}.get(rest[stop], 0)
            if depth == 0:
                return rest[start:stop]
    return None


@hypothesis.settings(deadline=None, max_examples=500)
@hypothesis.given(bytes_text)
def test_extract_boxed_equals_oracle(rest):
    assert formats.extract_boxed(rest) == oracle_boxed(rest)


@pytest.mark.parametrize(
    ("rest", "content"),
    [
        (rb"\boxed{ time}", b" time"),
        (rb"\boxed{a} then \boxed{b} end", b"b"),
        (rb"\boxed{a} then \boxed{b", b"a"),  # complete at truncation
        (rb"\boxed{}", b""),
        (rb"\boxed{\frac{1}{2}}", rb"\frac{1}{2}"),
        (rb"\boxed{\{}", None),  # an escaped brace is a brace
        (rb"\boxed{\{x\}}", rb"\{x\}"),
        (b"\\boxed{:\n}", b":\n"),  # raw newline
        (rb"\boxed{\n}", rb"\n"),  # nothing is unescaped
        (rb"}}\boxed{a}", b"a"),
        (rb"\boxed{a \boxed{b}}", b"b"),
        (rb"\boxed {a}", None),
        (b"", None),
    ],
)
def test_extract_boxed_cases(rest, content):
    assert formats.extract_boxed(rest) == content


def test_extract_token_strips_the_suffix_exactly_once():
    assert formats.extract_token(b" time", b"") == b" time"
    assert formats.extract_token(b"\n\n time", b"\n") == b"\n time"
    assert formats.extract_token(b" time", b"\n") is None


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(strategies.lists(strategies.sampled_from(b"{}\\a "), max_size=8).map(bytes))
def test_expressible_means_a_box_can_hold_it(token):
    assert formats.expressible(token) == (oracle_boxed(b"\\boxed{" + token + b"}") == token)


def test_expressible_table():
    tokens = [b" a", b"{", b"}{", b"{}", b""]
    boxed = formats.expressible_table(tokens, "boxed")
    assert boxed.tolist() == [True, False, False, True, True]
    assert formats.expressible_table(tokens, "token").all()


def oracle_first_token(tokens: list[bytes], start: int, stop: int) -> bytes | None:
    """Labels every byte with its token and takes the label of the first byte inside."""
    owner = [index for index, token in enumerate(tokens) for _ in token]
    inside = range(start, stop)
    if not inside:
        return None
    data = b"".join(tokens)
    return bytes(data[place] for place in inside if owner[place] == owner[start])


@hypothesis.settings(deadline=None, max_examples=500)
@hypothesis.given(
    bytes_text,
    bytes_text,
    strategies.lists(strategies.integers(0, 200), max_size=12),
    strategies.sampled_from(["token", "boxed"]),
    strategies.sampled_from([PLAIN, NEWLINE]),
)
def test_read_prediction_does_not_depend_on_tokenisation(thought, rest, cuts, kind, template):
    data = thought + formats.MARKER + rest
    tokens = chopped(data, cuts)
    prediction = formats.read_prediction(tokens, template, kind)
    whole = formats.read_prediction([data], template, kind)
    assert (prediction.answer, prediction.closed) == (whole.answer, True)
    seen = data[data.index(formats.MARKER) + len(formats.MARKER) :]
    if kind == "boxed":
        assert prediction.answer == oracle_boxed(seen)
        start = (formats.box_span(seen) or (0, 0))[0]
    else:
        assert prediction.answer == formats.extract_token(seen, template.suffix.encode())
        start = len(template.suffix)
    if prediction.answer is None:
        assert prediction.first_token is None
    else:
        start += len(data) - len(seen)
        stop = start + len(prediction.answer)
        assert prediction.first_token == oracle_first_token(tokens, start, stop)


@pytest.mark.parametrize(
    ("tokens", "kind", "first"),
    [
        ([b"</think>", b"\\boxed", b"{ ti", b"me", b"}"], "boxed", b" ti"),
        ([b"</think>", b"\\boxed{", b" time}", b"."], "boxed", b" time"),
        ([b"</think>", b"\\boxed{}", b" time"], "boxed", None),
        ([b"</thi", b"nk> a", b" b"], "token", b" a"),
        ([b"</think>", b"", b" a"], "token", b" a"),
    ],
)
def test_first_token_loses_what_lies_outside_the_answer(tokens, kind, first):
    assert formats.read_prediction(tokens, PLAIN, kind).first_token == first


def test_truncation():
    complete = formats.read_prediction([b"</think>\\boxed{a} b"], PLAIN, "boxed", truncated=True)
    assert complete.answer == b"a"
    partial = formats.read_prediction([b"</think> a"], PLAIN, "token", truncated=True)
    assert (partial.answer, partial.first_token) == (None, None)
    assert (partial.closed, partial.truncated) == (True, True)
    unclosed = formats.read_prediction([b"hm \\boxed{a}"], PLAIN, "boxed", truncated=True)
    assert (unclosed.answer, unclosed.closed) == (None, False)
