"""Templates, and how a prediction is read out of the bytes that a branch generated.

A template is a text file that the user can replace:

    header {{document}} tail {{thought}} close {{answer}} end

The header is computed with the trunk, the tail starts every branch, and the model itself is
expected to write the thought, the close, the answer and the end. `close` contains `</think>`;
what follows it there is the `suffix`.

Everything after generation works on raw bytes, because `</think>` and `\\boxed{` may be several
tokens and tokens may straddle their ends. Letters: V vocabulary; S states of the marker
automaton.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

AnswerFormat = Literal["token", "boxed"]

MARKER = b"</think>"
_PLACEHOLDERS = ("{{document}}", "{{thought}}", "{{answer}}")
_BOX_OR_BRACE = re.compile(rb"\\boxed\{|[{}]")


@dataclasses.dataclass(frozen=True)
class Template:
    """A parsed template: header, document, tail, thought, close, answer, end in a row.

    Attributes:
      header: Before the document; belongs to the trunk.
      tail: Between document and thought; the branch's prompt.
      close: Between thought and answer; contains `</think>` once.
      suffix: The part of `close` after `</think>`, often empty or a newline.
      end: After the answer.
      text: The whole template as read, without its final newline.
    """

    header: str
    tail: str
    close: str
    suffix: str
    end: str
    text: str


def parse_template(text: str, name: str = "template") -> Template:
    """Splits a template's text into its parts; `name` is for the ValueError of a malformed one."""
    text = text.removesuffix("\n").removesuffix("\r")
    for placeholder in _PLACEHOLDERS:
        if text.count(placeholder) != 1:
            raise ValueError(
                f"{name}: {placeholder} occurs {text.count(placeholder)} times; "
                "a template needs {{document}}, {{thought}} and {{answer}} once each"
            )
    starts = [text.index(placeholder) for placeholder in _PLACEHOLDERS]
    if starts != sorted(starts):
        raise ValueError(
            f"{name}: the order must be {{{{document}}}}, {{{{thought}}}}, {{{{answer}}}}"
        )
    header, rest = text.split(_PLACEHOLDERS[0])
    tail, rest = rest.split(_PLACEHOLDERS[1])
    close, end = rest.split(_PLACEHOLDERS[2])
    marker = MARKER.decode()
    if close.count(marker) != 1:
        raise ValueError(
            f"{name}: {marker} occurs {close.count(marker)} times between {{{{thought}}}} and "
            "{{answer}}; it must occur there once"
        )
    suffix = close.split(marker)[1]
    return Template(header=header, tail=tail, close=close, suffix=suffix, end=end, text=text)


def load_template(path: str | pathlib.Path) -> Template:
    """Reads a UTF-8 template file to the byte (no newline translation).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not UTF-8, or malformed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"template file not found: {path}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a template must be UTF-8 text ({error.reason})") from error
    return parse_template(text, name=str(path))


class MarkerAutomaton(NamedTuple):
    """The matcher of a byte marker, lifted from bytes to tokens, for use on the device.

    Start in state 0. State k < M (M the marker's length) means that the last k bytes are the
    longest suffix which is a proper prefix of the marker; state M means that the marker has
    been seen, and is never left.

    Attributes:
      next_state_VS: uint8 [V, M + 1], the state after reading the token in the state.
      straddles_VS: bool [V, M + 1], the token completes the marker and has bytes left over
        after it (these belong to the answer). False in state M, where there is nothing to
        complete.
    """

    next_state_VS: np.ndarray
    straddles_VS: np.ndarray

    @property
    def accepted(self) -> int:
        """The accepting state, M."""
        return self.next_state_VS.shape[1] - 1


def _byte_automaton(marker: bytes) -> np.ndarray:
    """Knuth-Morris-Pratt transitions, uint8 [M + 1, 256], with an absorbing accepting state."""
    count = len(marker)
    table = np.zeros((count + 1, 256), np.uint8)
    table[0, marker[0]] = 1
    fallback = 0  # the state of marker[1:k], from which a mismatch in state k continues
    for state in range(1, count):
        table[state] = table[fallback]
        table[state, marker[state]] = state + 1
        fallback = int(table[fallback, marker[state]])
    table[count] = count
    return table


def marker_automaton(token_bytes: Sequence[bytes], marker: bytes = MARKER) -> MarkerAutomaton:
    """Builds the automaton; `token_bytes[v]` are the raw bytes of token v (empty: no move)."""
    if not 0 < len(marker) < 256:
        raise ValueError(f"the marker must have 1 to 255 bytes, not {len(marker)}")
    byte_table = _byte_automaton(marker)
    accepted = len(marker)
    lengths_V = np.fromiter(map(len, token_bytes), np.int64, len(token_bytes))
    starts_V = np.cumsum(lengths_V) - lengths_V
    data = np.frombuffer(b"".join(token_bytes), np.uint8)
    # Longest first, so that the tokens that still have a byte at position p are a leading
    # slice: the work is the sum of the lengths and one token of 200 spaces costs nothing to the
    # others.
    order_V = np.argsort(-lengths_V, kind="stable")
    lengths_sorted_V, starts_sorted_V = lengths_V[order_V], starts_V[order_V]
    state_VS = np.tile(np.arange(accepted + 1, dtype=np.uint8), (len(token_bytes), 1))
    left_over_VS = np.zeros(state_VS.shape, bool)
    for position in range(int(lengths_V.max(initial=0))):
        live = int(np.searchsorted(-lengths_sorted_V, -position, side="left"))
        byte_V = data[starts_sorted_V[:live] + position]
        left_over_VS[:live] |= state_VS[:live] == accepted
        state_VS[:live] = byte_table[state_VS[:live], byte_V[:, None]]
    left_over_VS[:, accepted] = False
    next_state_VS, straddles_VS = np.empty_like(state_VS), np.empty_like(left_over_VS)
    next_state_VS[order_V], straddles_VS[order_V] = state_VS, left_over_VS
    return MarkerAutomaton(next_state_VS=next_state_VS, straddles_VS=straddles_VS)


def split_thought(data: bytes) -> tuple[bytes, bytes] | None:
    """The bytes before and after the first `</think>`; None where it does not occur."""
    thought, marker, rest = data.partition(MARKER)
    return (thought, rest) if marker else None


def box_span(rest: bytes) -> tuple[int, int] | None:
    """Start and stop of the content of the last complete `\\boxed{...}`; None without one.

    Last means the latest start. Braces balance by bytes: `\\{` counts as a brace. Linear time.
    """
    # Content start where the open brace is a box's, else None. A stray `}` before any brace
    # closes nothing.
    open_braces: list[int | None] = []
    best: tuple[int, int] | None = None
    for match in _BOX_OR_BRACE.finditer(rest):
        if match.group() == b"}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (best is None or start > best[0]):
                best = (start, match.start())
        else:
            open_braces.append(match.end() if match.group() != b"{" else None)
    return best


def extract_boxed(rest: bytes) -> bytes | None:
    """The content of the last complete box, as it stands: nothing stripped, nothing unescaped."""
    span = box_span(rest)
    return None if span is None else rest[span[0] : span[1]]


def extract_token(rest: bytes, suffix: bytes) -> bytes | None:
    """All bytes after the template's suffix, taken off exactly once; None where it is missing."""
    return rest[len(suffix) :] if rest.startswith(suffix) else None


def expressible(token_bytes: bytes) -> bool:
    """Whether a first target token can stand in a box at all: its braces balance by bytes."""
    depth = 0
    for byte in token_bytes:
        depth += (byte == ord("{")) - (byte == ord("}"))
        if depth < 0:
            return False
    return depth == 0


def expressible_table(token_bytes: Sequence[bytes], answer_format: AnswerFormat) -> np.ndarray:
    """bool [V]: tokens that may be a cut's first target. The token format expresses all."""
    if answer_format == "token":
        return np.ones(len(token_bytes), bool)
    return np.fromiter(map(expressible, token_bytes), bool, len(token_bytes))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one branch predicted.

    Attributes:
      answer: The predicted bytes; None where there is no prediction.
      first_token: The answer's first token, without bytes that lie outside the answer (a brace,
        the suffix, the end of the marker); None where the answer is missing or empty.
      closed: `</think>` was generated or forced.
      truncated: The budget ended the branch before it ended itself.
    """

    answer: bytes | None
    first_token: bytes | None
    closed: bool
    truncated: bool


def read_prediction(
    token_bytes: Sequence[bytes],
    template: Template,
    answer_format: AnswerFormat,
    *,
    truncated: bool = False,
) -> Prediction:
    """Reads the prediction out of a branch's tokens.

    Args:
      token_bytes: Raw bytes of every token after the template's tail, forced ones included,
        end-of-text tokens and padding excluded.
      template: Its suffix matters in the token format.
      answer_format: 'token' or 'boxed'.
      truncated: The branch was ended by its budget. A box complete at that moment counts; in
        the token format the answer is exactly the asked number of tokens, so a truncated branch
        has none.
    """
    data = b"".join(token_bytes)
    split = split_thought(data)
    if split is None:
        return Prediction(answer=None, first_token=None, closed=False, truncated=truncated)
    rest = split[1]
    if answer_format == "boxed":
        span = box_span(rest)
    else:
        suffix = template.suffix.encode()
        found = rest.startswith(suffix) and not truncated
        span = (len(suffix), len(rest)) if found else None
    if span is None:
        return Prediction(answer=None, first_token=None, closed=True, truncated=truncated)
    rest_start = len(data) - len(rest)
    return Prediction(
        answer=rest[span[0] : span[1]],
        first_token=_first_overlap(token_bytes, rest_start + span[0], rest_start + span[1]),
        closed=True,
        truncated=truncated,
    )


def _first_overlap(token_bytes: Sequence[bytes], start: int, stop: int) -> bytes | None:
    """The first token that shares bytes with [start, stop) of the whole, cut to that range."""
    found: bytes | None = None
    token_stop = sum(map(len, token_bytes))
    for token in reversed(token_bytes):  # from the end: answers are short, thoughts are not
        if token_stop <= start:
            break
        token_start = token_stop - len(token)
        overlap = token[max(start - token_start, 0) : max(stop - token_start, 0)]
        found = overlap or found
        token_stop = token_start
    return found
