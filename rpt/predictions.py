"""From a finished rollout to what the rewards compare: predictions, and the targets at the cuts.

Letters: B documents, C cuts per document, G thoughts per cut, R branches (R = C * G), T branch
positions, V vocabulary.
"""

from collections.abc import Collection, Sequence

import numpy as np

from rpt import formats, rewards, rollout

_NOTHING = formats.Prediction(answer=None, first_token=None, closed=False, truncated=False)


def read(
    rollout_: rollout.Rollout,
    token_bytes: Sequence[bytes],
    stop_ids: Collection[int],
    template: formats.Template,
    answer_format: formats.AnswerFormat,
    valid_BC: np.ndarray,
    answer_tokens: int,
) -> list[formats.Prediction]:
    """The prediction of every branch, flat in the order document, cut, sample (B * C * G).

    A branch of an invalid slot predicts nothing. In the token format the answer is exactly
    `answer_tokens` sampled tokens, so one that met a stop token earlier has none: a model cannot
    dodge the later tokens of an answer by ending it.

    Args:
      rollout_: Of `rollout.rollout`.
      token_bytes: [V'] raw bytes of the tokenizer's tokens; larger ids end a branch.
      stop_ids: Tokens that end a branch; they carry no bytes.
      template: Its suffix matters in the token format.
      answer_format: 'token' or 'boxed'.
      valid_BC: Which slots hold a cut.
      answer_tokens: K of the token format; the answer's budget in the boxed one.
    """
    B, C = valid_BC.shape
    tokens_BRT, tail = rollout_.tokens_BRT, rollout_.tail_length
    group = tokens_BRT.shape[1] // C
    valid_M = np.repeat(valid_BC, group, axis=1).reshape(-1)
    length_M = rollout_.length_BR.reshape(-1)
    tokens_MT = tokens_BRT.reshape(B * C * group, -1)
    begun_M = rollout_.answer_start_BR.reshape(-1) >= 0
    last_M = np.take_along_axis(tokens_MT, np.maximum(length_M - 1, 0)[:, None], 1)[:, 0]
    stopped_M = np.isin(last_M, np.fromiter(stop_ids, np.int64)) | (last_M >= len(token_bytes))
    stopped_M &= length_M > tail
    if answer_format == "token":
        # A begun answer ends itself; without one only the thought's budget can have ended it.
        truncated_M = rollout_.over_budget_BR.reshape(-1) & ~begun_M
        answered_M = length_M - rollout_.answer_start_BR.reshape(-1)
        incomplete_M = begun_M & ((answered_M < answer_tokens) | stopped_M)
    else:
        truncated_M, incomplete_M = ~stopped_M, np.zeros_like(stopped_M)
    count_M = np.maximum(length_M - tail - stopped_M, 0)
    # The thought is joined into one piece: only the tokens from the one that completes the marker
    # on can overlap the answer, and at most the suffix (a token has a byte) lies between.
    margin = 2 + len(template.suffix.encode())
    head_M = np.where(begun_M, rollout_.answer_start_BR.reshape(-1) - tail - margin, count_M)
    columns = (np.maximum(head_M, 0), count_M, valid_M, truncated_M, incomplete_M)
    rows = zip(tokens_MT[:, tail:].tolist(), *[x.tolist() for x in columns], strict=True)
    bytes_of = token_bytes.__getitem__
    found = []
    for ids, head, count, valid, truncated, incomplete in rows:
        if not valid:
            found.append(_NOTHING)
            continue
        pieces = [b"".join(map(bytes_of, ids[:head])), *map(bytes_of, ids[head:count])]
        read_ = formats.read_prediction(pieces, template, answer_format, truncated=truncated)
        if incomplete:
            read_ = formats.Prediction(None, None, read_.closed, read_.truncated)
        found.append(read_)
    return found


def targets(
    documents: Sequence[np.ndarray],
    header_length: int,
    cut_BC: np.ndarray,
    valid_BC: np.ndarray,
    token_bytes: Sequence[bytes],
) -> list[rewards.Target | None]:
    """The target at every cut, flat [B * C]; None for a slot without a cut.

    Args:
      documents: For every row the document's token ids from the row's first one to the
        document's end, past the trunk's end (`pipeline.TrunkBatch.documents`).
      header_length: Trunk positions before the document.
      cut_BC: Trunk positions; cut - header_length indexes the document.
      valid_BC: Which slots hold a cut.
      token_bytes: Raw bytes of every token.
    """
    found: list[rewards.Target | None] = []
    for row, document in enumerate(documents):
        if not valid_BC[row].any():
            found += [None] * valid_BC.shape[1]
            continue
        joined = rewards.document_bytes([token_bytes[i] for i in document.tolist()])
        found += [
            rewards.target(joined, int(cut) - header_length) if valid else None
            for cut, valid in zip(cut_BC[row], valid_BC[row], strict=True)
        ]
    return found
