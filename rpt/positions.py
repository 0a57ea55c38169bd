"""Where to think: the choice of cuts in each document, on the host.

A cut c of a trunk means: the branch sees trunk[:c] and predicts token c. Entry c of an entropy
row belongs to the distribution that predicts token c, as in `scoring.TrunkScores`.

Randomness is counter-based and keyed by (seed, step, round, document id) alone: neither the
order of the batch, nor the other documents, nor padding changes a document's cuts.

Letters: B documents (trunk rows), S trunk positions, C cuts per document, V vocabulary.
"""

from collections.abc import Collection
from typing import Literal

import numpy as np

from data import pipeline

Mode = Literal["entropy", "random"]


def eligible_cuts(
    tokens_BS: np.ndarray,
    lengths_B: np.ndarray,
    header_length: int,
    min_context: int,
    special_ids: Collection[int],
    expressible_V: np.ndarray,
) -> np.ndarray:
    """bool [B, S]: entry c tells whether a cut at c is allowed.

    Args:
      tokens_BS: Trunk tokens: header, document, padding.
      lengths_B: Tokens of each row, header included, padding excluded.
      header_length: Tokens before the document (begin-of-text and the template's header).
      min_context: Document tokens that must stand to the left of a cut. A cut at trunk position
        0 is never allowed.
      special_ids: Tokens that are no targets (end of text and other markers).
      expressible_V: bool per token id: may be a target in the answer format.

    Raises:
      ValueError: a document token lies outside the vocabulary of `expressible_V`.
    """
    tokens_BS, lengths_B = np.asarray(tokens_BS), np.asarray(lengths_B)
    if header_length < 0 or min_context < 0:
        raise ValueError(
            f"header_length {header_length} and min_context {min_context} must not be negative"
        )
    position_S = np.arange(tokens_BS.shape[1])
    in_row_BS = position_S < lengths_B[:, None]
    vocabulary = len(expressible_V)
    outside_BS = in_row_BS & ((tokens_BS < 0) | (tokens_BS >= vocabulary))
    if outside_BS.any():
        raise ValueError(
            f"token id {int(tokens_BS[outside_BS][0])} is outside the vocabulary of {vocabulary}; "
            "tokenizer and expressible_V do not belong together"
        )
    allowed_V = np.array(expressible_V, bool)
    special = [token for token in special_ids if 0 <= token < vocabulary]
    allowed_V[np.array(special, np.int64)] = False
    in_range_BS = in_row_BS & (position_S >= max(header_length + min_context, 1))
    return in_range_BS & allowed_V[np.where(in_row_BS, tokens_BS, 0)]


def labelled(batch: pipeline.TrunkBatch, labels: Collection[str]) -> np.ndarray:
    """bool [B, S]: the document tokens that have one of the labels; 'answer' is also 'answer/3'."""
    found_BS = np.zeros(batch.tokens_BS.shape, bool)
    for row, (places, length) in enumerate(zip(batch.labels, batch.lengths_B)):
        for index, label in places:
            place = batch.header_length + index
            if place < length and (label in labels or label.partition("/")[0] in labels):
                found_BS[row, place] = True
    return found_BS


def choose_cuts(
    entropy_BS: np.ndarray | None,
    eligible_BS: np.ndarray,
    *,
    cuts_per_document: int,
    low_nats: float,
    high_nats: float,
    random_fraction: float,
    mode: Mode,
    seed: int,
    step: int,
    document_ids_B: np.ndarray,
    round_index: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws up to C cuts per document, uniformly and without replacement.

    Args:
      entropy_BS: filter_entropy in nats, entry c for the prediction of token c; None in
        mode 'random'. Not-a-number lies in no band.
      eligible_BS: From `eligible_cuts`.
      cuts_per_document: C.
      low_nats: Lower end of the entropy band, inclusive.
      high_nats: Upper end, inclusive; may be infinite.
      random_fraction: Probability with which each slot, independently, draws from all eligible
        cuts and not from the band.
      mode: 'random' draws every slot from all eligible cuts (the control).
      seed: Of the run.
      step: Training step.
      document_ids_B: Stable ids of the documents.
      round_index: Dynamic sampling's round within the step.

    Returns:
      cut_BC int32 and valid_BC bool. The valid cuts of a row come first, ascending and
      distinct. Slots that could not be filled repeat the last one (1 in a row without any),
      which is safe to compute and must be masked.
    """
    _check_choice(entropy_BS, eligible_BS, mode, random_fraction, low_nats, high_nats)
    batch_B, cuts_C = len(eligible_BS), cuts_per_document
    if len(document_ids_B) != batch_B:
        raise ValueError(f"{len(document_ids_B)} document ids for {batch_B} documents")
    cut_BC = np.ones((batch_B, cuts_C), np.int32)
    valid_BC = np.zeros((batch_B, cuts_C), bool)
    for row in range(batch_B):
        generator = _generator(seed, step, int(document_ids_B[row]), round_index)
        random_slots = int((generator.random(cuts_C) < random_fraction).sum())
        candidates = np.flatnonzero(eligible_BS[row])
        if entropy_BS is None or mode == "random":
            chosen = _draw(generator, candidates, cuts_C)
        else:
            # The random slots first: uniform over all eligible cuts, whatever the band holds.
            at_random = _draw(generator, candidates, random_slots)
            rest = np.setdiff1d(candidates, at_random, assume_unique=True)
            entropy = np.asarray(entropy_BS[row])[rest]
            in_band = rest[(entropy >= low_nats) & (entropy <= high_nats)]
            in_band = _draw(generator, in_band, cuts_C - random_slots)
            chosen = np.concatenate([at_random, in_band])
        if len(chosen):
            cut_BC[row, : len(chosen)] = np.sort(chosen)
            cut_BC[row, len(chosen) :] = chosen.max()
            valid_BC[row, : len(chosen)] = True
    return cut_BC, valid_BC


def check_band(low_nats: float, high_nats: float) -> None:
    """Raises ValueError if no entropy lies in the band."""
    if not low_nats <= high_nats:
        raise ValueError(f"the entropy band [{low_nats}, {high_nats}] nats is empty")


def check_random_fraction(random_fraction: float) -> None:
    """Raises ValueError if it is no share."""
    if not 0 <= random_fraction <= 1:
        raise ValueError(f"random_fraction must lie in [0, 1], not {random_fraction}")


def _check_choice(
    entropy_BS: np.ndarray | None,
    eligible_BS: np.ndarray,
    mode: Mode,
    random_fraction: float,
    low_nats: float,
    high_nats: float,
) -> None:
    if mode not in ("entropy", "random"):
        raise ValueError(f"mode must be 'entropy' or 'random', not {mode!r}")
    check_random_fraction(random_fraction)
    if eligible_BS[:, :1].any():
        raise ValueError("a cut at trunk position 0 has nothing to its left and is never eligible")
    if mode == "entropy":
        if entropy_BS is None:
            raise ValueError("mode 'entropy' needs entropy_BS")
        if np.shape(entropy_BS) != eligible_BS.shape:
            raise ValueError(
                f"entropy_BS is {np.shape(entropy_BS)}, eligible_BS is {eligible_BS.shape}"
            )
        check_band(low_nats, high_nats)


def _generator(seed: int, step: int, document_id: int, round_index: int) -> np.random.Generator:
    """An independent stream per (seed, step, document, round)."""
    word = 2**64 - 1
    key = np.array([seed & word, step & word], np.uint64)
    # Drawing advances the lowest counter words; the upper two separate the streams.
    counter = np.array([0, 0, document_id & word, round_index & word], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _draw(generator: np.random.Generator, candidates: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the candidates, uniformly without replacement, in no order."""
    order = np.argsort(generator.random(len(candidates)), kind="stable")
    return candidates[order[:count]]
