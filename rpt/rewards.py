"""Rewards: the bytes of a prediction against the bytes of the document.

Prefix matching is equation 3 of Reinforcement Pre-Training (https://arxiv.org/abs/2506.08007):
1 if the prediction is a prefix of the rest of the document and ends where one of the document's
tokens ends. Boundaries are those of the document's own tokenisation, in raw token bytes;
nothing is decoded, re-tokenised or stripped.

Letters: B documents, C cuts per document, G thoughts per cut.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rpt import formats

_WHITESPACE = re.compile(rb"\s*")


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentBytes:
    """A document's bytes and where its tokens end, computed once and shared by all of its cuts.

    Attributes:
      data: The concatenated raw bytes of all its tokens, past the trunk's end up to the end of
        the document.
      offsets: int64 [tokens + 1]; token i is data[offsets[i] : offsets[i + 1]].
    """

    data: bytes
    offsets: np.ndarray


def document_bytes(token_bytes: Sequence[bytes]) -> DocumentBytes:
    """Joins the raw bytes of a document's tokens (no header, no begin- or end-of-text token)."""
    offsets = np.zeros(len(token_bytes) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, token_bytes), np.int64, len(token_bytes)), out=offsets[1:])
    return DocumentBytes(data=b"".join(token_bytes), offsets=offsets)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """What follows a cut: a view into its document, so that making one costs nothing.

    Attributes:
      document: The document.
      cut: The document token to predict, counted from the document's first token.
    """

    document: DocumentBytes
    cut: int

    @property
    def start(self) -> int:
        """The byte at which the cut lies."""
        return int(self.document.offsets[self.cut])

    @property
    def remaining(self) -> bytes:
        """All bytes from the cut to the end of the document (a copy)."""
        return self.document.data[self.start :]

    @property
    def boundaries(self) -> np.ndarray:
        """Cumulative byte lengths of the remaining tokens, the set L_gt of equation 3."""
        return self.document.offsets[self.cut + 1 :] - self.start

    @property
    def first_token(self) -> bytes:
        """Raw bytes of the token at the cut."""
        return self.document.data[self.start : int(self.document.offsets[self.cut + 1])]

    def continues_with(self, prediction: bytes, skip: int = 0) -> bool:
        """Whether `prediction` stands `skip` bytes after the cut and ends with a token."""
        start = self.start + skip
        if not prediction or not self.document.data.startswith(prediction, start):
            return False
        offsets, stop = self.document.offsets, start + len(prediction)
        return bool(offsets[np.searchsorted(offsets, stop)] == stop)


def target(token_bytes: Sequence[bytes] | DocumentBytes, cut: int) -> Target:
    """The target at a cut. Pass the DocumentBytes where a document has several cuts.

    Raises:
      ValueError: the cut is not one of the document's tokens.
    """
    if not isinstance(token_bytes, DocumentBytes):
        token_bytes = document_bytes(token_bytes)
    count = len(token_bytes.offsets) - 1
    if not 0 <= cut < count:
        raise ValueError(f"cut {cut} is outside the document's {count} tokens")
    return Target(document=token_bytes, cut=int(cut))


def prefix_match(prediction: bytes | None, target: Target) -> int:
    """Equation 3: 1 if the prediction is a prefix of the rest and ends on a boundary, else 0.

    Several tokens are right only as a whole. No prediction, an empty one, and one that runs
    past the document's end are 0.
    """
    return int(prediction is not None and target.continues_with(prediction))


def first_token_match(first_token: bytes | None, target: Target) -> int:
    """1 if the first token has the bytes of the target's first token; the rest is ignored."""
    return int(bool(first_token) and first_token == target.first_token)


@dataclasses.dataclass(frozen=True, eq=False)
class RewardBatch:
    """All that any reward needs, flat in the order document, cut, sample.

    Attributes:
      predictions: B * C * G of them.
      targets: B * C of them; None for a slot that holds no cut, whose rewards are 0.
      shape_BCG: (B, C, G).
      first_token_probs_BCG: P(first token of the prediction | x_<t) without a thought, under
        the policy; only for the dense rewards. Ignored where there is no first token.
      all_wrong_reward: conditional_dense: the reward of every member of a group without a
        correct one (<= 0).
    """

    predictions: Sequence[formats.Prediction]
    targets: Sequence[Target | None]
    shape_BCG: tuple[int, int, int]
    first_token_probs_BCG: np.ndarray | None = None
    all_wrong_reward: float = 0.0

    def pairs(self) -> Iterable[tuple[formats.Prediction, Target | None]]:
        """Every prediction with its cut's target."""
        group_size = self.shape_BCG[2]
        for index, prediction in enumerate(self.predictions):
            yield prediction, self.targets[index // group_size]


def _reward_array(batch: RewardBatch, values: Iterable[float]) -> np.ndarray:
    count = len(batch.predictions)
    return np.fromiter(values, np.float32, count).reshape(batch.shape_BCG)


def prefix_match_reward(batch: RewardBatch) -> np.ndarray:
    """Prefix matching (equation 3), float32 [B, C, G]."""
    return _reward_array(
        batch, (0 if t is None else prefix_match(p.answer, t) for p, t in batch.pairs())
    )


def first_token_reward(batch: RewardBatch) -> np.ndarray:
    """First-token matching (paper, appendix A), float32 [B, C, G]."""
    return _reward_array(
        batch, (0 if t is None else first_token_match(p.first_token, t) for p, t in batch.pairs())
    )


def dense_reward(batch: RewardBatch) -> np.ndarray:
    """1 if the first token is right, else its no-think probability; no token is 0. [B, C, G]."""
    if batch.first_token_probs_BCG is None:
        raise ValueError("the dense rewards need first_token_probs_BCG, the no-think probabilities")
    probs_BCG = np.asarray(batch.first_token_probs_BCG, np.float32)
    if probs_BCG.shape != batch.shape_BCG:
        raise ValueError(f"first_token_probs_BCG is {probs_BCG.shape}, not {batch.shape_BCG}")
    predicted_BCG = (
        _reward_array(
            batch, (t is not None and p.first_token is not None for p, t in batch.pairs())
        )
        == 1
    )
    used_BCG = probs_BCG[predicted_BCG]
    if not ((used_BCG >= 0) & (used_BCG <= 1)).all():
        raise ValueError("first_token_probs_BCG holds values outside [0, 1] at predicted tokens")
    right_BCG = first_token_reward(batch)
    return np.where(right_BCG == 1, right_BCG, np.where(predicted_BCG, probs_BCG, np.float32(0)))


def conditional_dense_reward(batch: RewardBatch) -> np.ndarray:
    """Dense in groups with a right first token, else `all_wrong_reward` for all. [B, C, G]."""
    if not batch.all_wrong_reward <= 0:
        raise ValueError(f"all_wrong_reward must be at most 0, not {batch.all_wrong_reward}")
    some_right_BC1 = first_token_reward(batch).any(axis=2, keepdims=True)
    batch_B, cuts_C, _ = batch.shape_BCG
    holds_cut_BC1 = np.array([t is not None for t in batch.targets], bool).reshape(
        batch_B, cuts_C, 1
    )
    penalty_BC1 = np.where(holds_cut_BC1, batch.all_wrong_reward, 0.0).astype(np.float32)
    return np.where(some_right_BC1, dense_reward(batch), penalty_BC1)


REWARDS: dict[str, Callable[[RewardBatch], np.ndarray]] = {
    "prefix_match": prefix_match_reward,
    "first_token": first_token_reward,
    "dense": dense_reward,
    "conditional_dense": conditional_dense_reward,
}

NEEDS_FIRST_TOKEN_PROBS = frozenset({"dense", "conditional_dense"})


def score(name: str, batch: RewardBatch) -> np.ndarray:
    """The reward called `name` of a batch, float32 [B, C, G].

    Raises:
      ValueError: unknown name, counts that do not fit the shape, or inputs that the reward lacks.
    """
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}; choose one of {', '.join(sorted(REWARDS))}")
    batch_B, cuts_C, group_G = batch.shape_BCG
    have = (len(batch.predictions), len(batch.targets))
    if have != (batch_B * cuts_C * group_G, batch_B * cuts_C):
        raise ValueError(
            f"{have[0]} predictions and {have[1]} targets do not fit {batch.shape_BCG}"
        )
    return REWARDS[name](batch)


def first_token_ids(
    predictions: Sequence[formats.Prediction], id_of_bytes: Mapping[bytes, int]
) -> np.ndarray:
    """int32, the id of each first token, -1 where there is none; to look up its probability.

    A first token that lost a brace is looked up by what is left of it, hence by bytes.
    """
    return np.array(
        [-1 if p.first_token is None else id_of_bytes.get(p.first_token, -1) for p in predictions],
        np.int32,
    )


# The diagnosis: exclusive categories, ordered by how far a branch came.
CATEGORIES = (
    "not_closed",
    "truncated",
    "no_answer",
    "wrong",
    "leading_space",
    "trailing_space",
    "right",
)


def diagnose(prediction: formats.Prediction, target: Target) -> str:
    """Why a prediction earned nothing under prefix matching, one of CATEGORIES.

    - right: earned the reward.
    - not_closed: no `</think>`, however the branch ended.
    - truncated: `</think>`, but the budget ended the branch before an answer was complete.
    - no_answer: ended by itself after `</think>` without a complete box, or without the
      template's suffix.
    - trailing_space: right once whitespace at its end is taken off.
    - leading_space: right once whitespace at its start (and end) is taken off on both sides.
    - wrong: anything else, an empty answer included.
    """
    if not prediction.closed:
        return "not_closed"
    if prediction.answer is None:
        return "truncated" if prediction.truncated else "no_answer"
    if target.continues_with(prediction.answer):
        return "right"
    if target.continues_with(prediction.answer.rstrip()):
        return "trailing_space"
    space = _WHITESPACE.match(target.document.data, target.start)
    skip = space.end() - target.start if space else 0
    if target.continues_with(prediction.answer.strip(), skip):
        return "leading_space"
    return "wrong"


def diagnosis_counts(batch: RewardBatch) -> dict[str, int]:
    """How many predictions at real cuts are of each category; 'read' is their number."""
    found = [diagnose(p, t) for p, t in batch.pairs() if t is not None]
    return {"read": len(found), **{name: found.count(name) for name in CATEGORIES}}


def diagnosis_line(shares: Mapping[str, float], answer_format: formats.AnswerFormat) -> str:
    """One line for a person, largest share first, zero shares left out."""
    names = {category: category.replace("_", " ") for category in CATEGORIES}
    names["no_answer"] = "no box" if answer_format == "boxed" else "no answer"
    ranked = sorted(CATEGORIES, key=lambda category: -shares[category])
    parts = [f"{names[c]} {shares[c]:.1%}" for c in ranked if shares[c] > 0]
    return "answers: " + (", ".join(parts) if parts else "none")
