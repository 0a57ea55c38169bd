"""What a model says at the positions of an evaluation: without a thought, and after thoughts.

Programs see one shape each: rows of one length, in batches of one size, at most `_CUTS_PER_ROW`
cuts a row; a document with more of them takes several rows.

Letters: B rows, S trunk positions, C cuts per row, G thoughts per cut, R = C * G, T branch
positions, P positions, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rpt import (
    config,
    evaluation_positions,
    formats,
    ledger,
    loading,
    phases,
    predictions,
    rewards,
    rollout,
    scoring,
)

_CUTS_PER_ROW = 8


class NoThink(NamedTuple):
    """At every position: entropy of the next token (nats), what it predicts, and how well."""

    entropy_P: np.ndarray
    predicted_P: list[bytes]
    reward_P: np.ndarray
    target_prob_P: np.ndarray


class Thoughts(NamedTuple):
    """At every position, G thoughts; all [P, G], zero or empty where nothing was thought.

    The sampled answer is the whole one; `argmax` is the most probable first token of the answer
    after the same thought. target_prob is the probability of the target token there. `diagnosis`
    indexes rewards.CATEGORIES; thought_tokens were sampled, branch_tokens count all of them.
    `ids` are the tokens behind the template's tail up to the answer, or to the end of a branch
    that has none; `begun` says whether it has.
    """

    sampled_PG: np.ndarray
    sampled_reward_PG: np.ndarray
    argmax_PG: np.ndarray
    argmax_reward_PG: np.ndarray
    target_prob_PG: np.ndarray
    diagnosis_PG: np.ndarray
    over_budget_PG: np.ndarray
    thought_tokens_PG: np.ndarray
    branch_tokens_PG: np.ndarray
    ids_PG: np.ndarray
    begun_PG: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
    """The evaluated positions, joined with their rows; `local` indexes `rows[row].tokens`."""

    rows: Sequence[evaluation_positions.Row]
    row_P: np.ndarray
    local_P: np.ndarray
    targets_P: list[rewards.Target]


def sites(
    rows: Sequence[evaluation_positions.Row],
    found: Sequence[evaluation_positions.Position],
    token_bytes: Sequence[bytes],
) -> Sites:
    joined = [rewards.document_bytes([token_bytes[i] for i in r.tokens.tolist()]) for r in rows]
    return Sites(
        rows=rows,
        row_P=np.array([p.row for p in found], np.int64),
        local_P=np.array([p.cut - p.start for p in found], np.int64),
        targets_P=[rewards.target(joined[p.row], p.cut - p.start) for p in found],
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model as it is asked: with its tokenizer, template and settings.

    Attributes:
      loaded: model, parameters, tokenizer.
      token_bytes: raw bytes of all tokens.
      template: of the branches.
      raw_prefix: bos or nothing.
      header: what stands before a document when the model may think.
      window_tokens: document tokens in a row, at most.
      batch_size: rows at once.
    """

    loaded: loading.Loaded
    token_bytes: list[bytes]
    template: formats.Template
    raw_prefix: np.ndarray
    header: np.ndarray
    window_tokens: int
    batch_size: int

    @property
    def stop_ids(self) -> set[int]:
        eos = self.loaded.tokenizer.eos_id
        return set() if eos is None else {eos}

    def next_token_bytes(self, token: int) -> bytes:
        """What a predicted token says: nothing where it ends the text."""
        if token in self.stop_ids or token >= len(self.token_bytes):
            return b""
        return self.token_bytes[token]


def subject(experiment: config.Config, loaded: loading.Loaded, window_tokens: int) -> Subject:
    """Joins a model with the config's template.

    Raises:
      FileNotFoundError, ValueError: the template cannot be read.
    """
    template = formats.load_template(experiment.data.template)
    tokenizer, add_bos = loaded.tokenizer, experiment.data.add_bos
    return Subject(
        loaded=loaded,
        token_bytes=[tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)],
        template=template,
        raw_prefix=loading.header_ids(tokenizer, "", add_bos),
        header=loading.header_ids(tokenizer, template.header, add_bos),
        window_tokens=window_tokens,
        batch_size=experiment.evaluate.batch_size,
    )


class Batch(NamedTuple):
    """Rows as the trunk takes them."""

    tokens_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray


def trunk_rows(
    rows: Sequence[evaluation_positions.Row], prefix: np.ndarray, window_tokens: int, batch: int
) -> Batch:
    """`prefix`, then each row's window; `batch` rows, empty ones at the end."""
    tokens_BS = np.zeros((batch, len(prefix) + window_tokens), np.int32)
    segments_BS = np.zeros_like(tokens_BS)
    for b, row in enumerate(rows):
        used = len(prefix) + row.window
        tokens_BS[b, : len(prefix)] = prefix
        tokens_BS[b, len(prefix) : used] = row.tokens[: row.window]
        segments_BS[b, :used] = 1
    position_S = np.arange(tokens_BS.shape[1], dtype=np.int32)
    return Batch(tokens_BS, segments_BS, position_S * segments_BS)


def no_think(subject: Subject, where: Sites, prefix: np.ndarray) -> tuple[NoThink, int]:
    """The direct prediction at every position after `prefix`, and the FLOPs executed.

    A position at trunk index 0 (no prefix, first token) has no prediction and cannot be asked.
    """
    loaded, count = subject.loaded, len(where.row_P)
    entropy_P, log_prob_P = np.zeros(count), np.zeros(count)
    best_P = np.zeros(count, np.int64)
    spent = 0
    for first in range(0, len(where.rows), subject.batch_size):
        rows = where.rows[first : first + subject.batch_size]
        batch = trunk_rows(rows, prefix, subject.window_tokens, subject.batch_size)
        scores, _ = scoring.score_trunk(loaded.model, loaded.params, *batch)
        spent += ledger.trunk_flops(loaded.model, *batch.tokens_BS.shape, passes=1)
        inside = np.flatnonzero((where.row_P >= first) & (where.row_P < first + len(rows)))
        place = (where.row_P[inside] - first, where.local_P[inside] + len(prefix))
        entropy_P[inside] = np.asarray(scores.entropy_BS)[place]
        log_prob_P[inside] = np.asarray(scores.target_log_prob_BS)[place]
        best_P[inside] = np.asarray(scores.best_BS)[place]
    predicted_P = [subject.next_token_bytes(token) for token in best_P.tolist()]
    reward_P = [
        rewards.prefix_match(p, t) for p, t in zip(predicted_P, where.targets_P, strict=True)
    ]
    found = NoThink(entropy_P, predicted_P, np.array(reward_P, np.float64), np.exp(log_prob_P))
    return found, spent


def think(
    subject: Subject,
    where: Sites,
    thought_P: np.ndarray,
    settings: rollout.RolloutConfig,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Thoughts, int]:
    """`settings.group_size` thoughts at every position of `thought_P`, and the FLOPs executed."""
    loaded = subject.loaded
    tables = phases.make_tables(loaded.tokenizer, subject.template, loaded.model.vocab_size)
    # Two lengths of the branch cache, for the same reason.
    half = -(-rollout.total_positions(settings, tables) // 2)
    settings = dataclasses.replace(settings, chunk_tokens=half)
    found, spent = _nothing(len(thought_P), settings.group_size), 0
    batches = ask(subject, where, thought_P)
    for number, asked in enumerate(batches):
        inputs = asked.inputs
        _, kv = scoring.score_trunk(loaded.model, loaded.params, *inputs)
        sampled = rollout.rollout(
            loaded.model,
            settings,
            rollout.make_sampler(loaded.model, loaded.params, kv),
            tables,
            asked.cut_BC,
            asked.place_BC >= 0,
            seed=seed,
            step=0,
            document_ids_B=asked.document_ids_B,
            target_BC=asked.target_BC,
            # At most two sizes of R, because each is a program of its own.
            branch_multiple=max(1, asked.cut_BC.shape[1] * settings.group_size // 2),
        )
        B, S = inputs.tokens_BS.shape
        spent += ledger.trunk_flops(loaded.model, B, S, passes=1)
        spent += ledger.decode_flops(loaded.model, B, S, sampled.decode_steps)[1]
        _read(found, subject, where, settings, sampled, asked.place_BC)
        say(f"thoughts {number + 1}/{len(batches)} batches")
    return found, spent


class Asked(NamedTuple):
    """Trunk rows under the header, and what is asked in them.

    place_BC indexes the positions, -1 where a slot holds none; cut_BC are trunk positions (1 in
    such a slot), target_BC the tokens that stand there.
    """

    inputs: Batch
    place_BC: np.ndarray
    cut_BC: np.ndarray
    target_BC: np.ndarray
    document_ids_B: np.ndarray


def ask(subject: Subject, where: Sites, chosen_P: np.ndarray) -> list[Asked]:
    """The chosen positions in batches of one shape."""
    batches = list(_batches(where, chosen_P, subject.batch_size))
    C = max((len(cuts) for batch in batches for _, cuts in batch), default=1)
    found = []
    for batch in batches:
        rows = [where.rows[row] for row, _ in batch]
        inputs = trunk_rows(rows, subject.header, subject.window_tokens, subject.batch_size)
        place_BC = np.full((subject.batch_size, C), -1, np.int64)
        for b, (_, cuts) in enumerate(batch):
            place_BC[b, : len(cuts)] = cuts
        cut_BC = np.where(place_BC >= 0, where.local_P[place_BC] + len(subject.header), 1)
        ids_B = np.array([row.document_id for row in rows], np.int64)
        found.append(
            Asked(
                inputs=inputs,
                place_BC=place_BC,
                cut_BC=cut_BC.astype(np.int32),
                target_BC=np.take_along_axis(inputs.tokens_BS, cut_BC, axis=1),
                document_ids_B=np.pad(ids_B, (0, subject.batch_size - len(ids_B))),
            )
        )
    return found


def _batches(where: Sites, chosen_P, batch_size: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Lists of (row, its positions), at most `_CUTS_PER_ROW` each."""
    pieces: list[tuple[int, np.ndarray]] = []
    for row in range(len(where.rows)):
        inside = np.flatnonzero((where.row_P == row) & chosen_P)
        starts = range(0, len(inside), _CUTS_PER_ROW)
        pieces += [(row, inside[start : start + _CUTS_PER_ROW]) for start in starts]
    for first in range(0, len(pieces), batch_size):
        yield pieces[first : first + batch_size]


def _nothing(count: int, group: int) -> Thoughts:
    shape = (count, group)
    floats, ints = np.zeros(shape), np.zeros(shape, np.int64)
    empty = np.full(shape, None, object)
    return Thoughts(
        sampled_PG=empty,
        sampled_reward_PG=floats,
        argmax_PG=empty.copy(),
        argmax_reward_PG=floats.copy(),
        target_prob_PG=floats.copy(),
        diagnosis_PG=ints,
        over_budget_PG=np.zeros(shape, bool),
        thought_tokens_PG=ints.copy(),
        branch_tokens_PG=ints.copy(),
        ids_PG=empty.copy(),
        begun_PG=np.zeros(shape, bool),
    )


def _read(found: Thoughts, subject, where, settings, sampled: rollout.Rollout, place_BC) -> None:
    """Writes one batch's branches into `found`."""
    valid_BC, group = place_BC >= 0, settings.group_size
    common = (subject.stop_ids, subject.template, settings.answer_format, valid_BC)
    answers = predictions.read(
        sampled, subject.token_bytes, *common, answer_tokens=settings.answer_tokens
    )
    argmax, extended = first_token_rollout(
        sampled, subject.token_bytes, subject.stop_ids, settings.answer_format
    )
    firsts = predictions.read(argmax, extended, *common, answer_tokens=1)
    start_BR = sampled.answer_start_BR
    begun_BR = start_BR >= 0
    log_prob_BR = np.take_along_axis(
        sampled.target_log_prob_BRT, np.maximum(start_BR, 0)[..., None], 2
    )[..., 0]
    prob_BR = np.where(begun_BR, np.exp(log_prob_BR), 0.0)
    position_T = np.arange(sampled.sampled_BRT.shape[2])
    limit_BR = np.where(begun_BR, start_BR, sampled.length_BR)
    thought_BR = (sampled.sampled_BRT & (position_T < limit_BR[..., None])).sum(axis=2)

    place_M = np.repeat(place_BC, group, axis=1).reshape(-1)
    tokens_MT = sampled.tokens_BRT.reshape(len(place_M), -1)
    limit_M = limit_BR.reshape(-1)
    for m in np.flatnonzero(place_M >= 0).tolist():
        p, g = place_M[m], m % group
        target, answer = where.targets_P[p], answers[m]
        found.sampled_PG[p, g] = answer.answer
        found.sampled_reward_PG[p, g] = rewards.prefix_match(answer.answer, target)
        found.argmax_PG[p, g] = firsts[m].answer
        found.argmax_reward_PG[p, g] = rewards.prefix_match(firsts[m].answer, target)
        found.ids_PG[p, g] = tokens_MT[m, sampled.tail_length : limit_M[m]].copy()
        found.diagnosis_PG[p, g] = rewards.CATEGORIES.index(rewards.diagnose(answer, target))
    place_MG = (place_M[place_M >= 0], np.arange(len(place_M))[place_M >= 0] % group)
    for array_PG, value_BR in (
        (found.target_prob_PG, prob_BR),
        (found.over_budget_PG, sampled.over_budget_BR),
        (found.thought_tokens_PG, thought_BR),
        (found.branch_tokens_PG, sampled.length_BR),
        (found.begun_PG, begun_BR),
    ):
        array_PG[place_MG] = value_BR.reshape(-1)[place_M >= 0]


def first_token_rollout(
    sampled: rollout.Rollout,
    token_bytes: Sequence[bytes],
    stop_ids: set[int],
    answer_format: formats.AnswerFormat,
) -> tuple[rollout.Rollout, list[bytes]]:
    """The same thoughts, each answered by the one most probable token.

    In the boxed format a brace closes the box behind it (which changes nothing where the token
    itself closes it). Returns the token bytes to read it with: two ids more, that brace, and an
    empty token that stands for one that ends the text.
    """
    brace, nothing = len(token_bytes), len(token_bytes) + 1
    begun_BR = sampled.answer_start_BR >= 0
    start_BR1 = np.maximum(sampled.answer_start_BR, 0)[..., None]
    best_BR1 = np.take_along_axis(sampled.best_BRT, start_BR1, 2)
    ends_BR1 = np.isin(best_BR1, list(stop_ids)) | (best_BR1 >= len(token_bytes))
    best_BR1 = np.where(ends_BR1, nothing, best_BR1)
    tokens_BRT = np.pad(sampled.tokens_BRT, ((0, 0), (0, 0), (0, 1)))
    written = [best_BR1] if answer_format == "token" else [best_BR1, np.full_like(best_BR1, brace)]
    for offset, token_BR1 in enumerate(written):
        place_BR1 = start_BR1 + offset
        kept_BR1 = np.take_along_axis(tokens_BRT, place_BR1, 2)
        np.put_along_axis(
            tokens_BRT, place_BR1, np.where(begun_BR[..., None], token_BR1, kept_BR1), 2
        )
    length_BR = np.where(begun_BR, sampled.answer_start_BR + len(written), sampled.length_BR)
    changed = sampled._replace(tokens_BRT=tokens_BRT, length_BR=length_BR)
    return changed, [*token_bytes, b"}", b""]
