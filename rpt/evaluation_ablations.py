"""Thought ablations: thoughts are altered, and the answer behind them is read again.

What remains of the accuracy says whether the content of thoughts matters or only their presence:

    none       the thought as it was: the control of the reading, equal to thought_argmax
    drop       an empty thought, closed at once
    shuffle    its tokens in a random order
    swap       the thought of another document's position: same part, same index of the thought
    truncate   its first half
    filler     as many tokens of one contentless token

Altered are the thoughts of the hard bin. Nothing is sampled: the altered branches run
teacher-forced over a trunk pass, and the answer is the most probable token behind the close, as of
thought_argmax. Only content is altered: where a thought never came to an answer, neither does what
is made of it. The partner of a swap depends on the positions and the seed alone, so it is the same
for all arms, and so does the noise of a shuffle.

A model trained on whole thoughts has seen no altered ones: a loss of accuracy here may also be
surprise. Where content is claimed to matter, an arm trained on fillers is the stronger control.

Letters: B rows, S trunk positions, C cuts per row, G thoughts per cut, R = C * G, T branch
positions, P positions, M rows of a head, D width.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data import tokenizers
from rpt import (
    config,
    evaluation_measure,
    evaluation_positions,
    formats,
    ledger,
    ops,
    rewards,
    scoring,
    warmup,
)
from rpt.model import transformer

_LEAST_LENGTH = 8  # of a branch; longer ones are padded to the next power of two


class Answers(NamedTuple):
    """What is answered behind altered thoughts; all [P, G], as those of a true thought."""

    predicted_PG: np.ndarray
    reward_PG: np.ndarray
    target_prob_PG: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is altered, fixed before anything is sampled.

    Attributes:
      names: of the ablations.
      chosen_P: positions whose thoughts are altered.
      partner_P: for a swap, the position whose thought is taken; -1 where there is none.
      filler_id: the contentless token.
      words_P: for a shuffle, what seeds each position.
    """

    names: tuple[config.Ablation, ...]
    chosen_P: np.ndarray
    partner_P: np.ndarray
    filler_id: int
    words_P: Sequence[tuple[int, ...]]


def filler_id(settings: config.EvaluateConfig, tokenizer: tokenizers.Tokenizer) -> int:
    """The contentless token; -1 where no ablation needs it.

    Raises:
      ValueError: the filler is not one token.
    """
    if "filler" not in settings.ablations:
        return -1
    ids = tokenizer.encode(settings.filler)
    if len(ids) != 1:
        raise ValueError(
            f"evaluate.filler={settings.filler!r} is {len(ids)} tokens of this tokenizer; choose "
            "text that is one"
        )
    return int(ids[0])


def plan(
    settings: config.EvaluateConfig,
    filler_id: int,
    found: Sequence[evaluation_positions.Position],
    hard_P: np.ndarray,
) -> Plan:
    """What is altered at the positions of the hard bin.

    Raises:
      ValueError: a swap finds no other document.
    """
    partner_P = np.full(len(found), -1)
    if "swap" in settings.ablations:
        partner_P = partners(found, hard_P, settings.seed)
    words_P = [_words(settings.seed, position) for position in found]
    return Plan(settings.ablations, hard_P, partner_P, filler_id, words_P)


def partners(
    found: Sequence[evaluation_positions.Position], chosen_P: np.ndarray, seed: int
) -> np.ndarray:
    """int [P]: for every chosen position, one of another document of its part; -1 elsewhere.

    Uniform over the chosen positions of other documents.

    Raises:
      ValueError: all chosen positions of a part lie in one document.
    """
    partner_P = np.full(len(found), -1)
    part_P = np.array([p.part for p in found])
    document_P = np.array([p.document_id for p in found], np.int64)
    for part in dict.fromkeys(part_P[chosen_P].tolist()):
        members = np.flatnonzero(chosen_P & (part_P == part))
        members = members[np.argsort(document_P[members], kind="stable")]
        document_M = document_P[members]
        first_M = np.searchsorted(document_M, document_M, side="left")
        own_M = np.searchsorted(document_M, document_M, side="right") - first_M
        if own_M[0] == len(members):
            raise ValueError(
                f"the ablation 'swap' needs hard positions in two documents of part {part!r}; "
                "raise evaluate.documents or leave it out of evaluate.ablations"
            )
        for m, p in enumerate(members.tolist()):
            generator = np.random.default_rng(_words(seed, found[p]))
            picked = generator.integers(len(members) - own_M[m])
            # Those of the same document lie side by side and are stepped over.
            partner_P[p] = members[picked + own_M[m] * (picked >= first_M[m])]
    return partner_P


def _words(seed: int, position: evaluation_positions.Position) -> tuple[int, ...]:
    """What the noise of a position is a function of; a generator takes no negative words."""
    return (seed % 2**64, position.document_id % 2**64, position.cut)


class Thought(NamedTuple):
    """One thought taken apart, as token ids.

    Attributes:
      content: what was sampled before the close.
      close: what stands between content and answer once the content is altered: the thought's own
        close, so that nothing else changes; the template's where tokens of the own one hold bytes
        of the thought or of the answer too, or where there is none.
    """

    content: np.ndarray
    close: np.ndarray


def take_apart(
    ids: np.ndarray,
    sampled_tokens: int,
    subject: evaluation_measure.Subject,
    template_close: np.ndarray,
) -> Thought:
    """Splits a branch behind its tail, of which the first `sampled_tokens` were sampled."""
    padding = range(len(subject.token_bytes), subject.loaded.model.vocab_size)
    content = warmup.own_thought(
        ids[:sampled_tokens], subject.token_bytes, subject.stop_ids.union(padding)
    )
    own = ids[len(content) :]
    exact = formats.MARKER + subject.template.suffix.encode()
    is_exact = b"".join(map(subject.next_token_bytes, own.tolist())) == exact
    return Thought(content, own if is_exact else template_close)


def altered(
    name: config.Ablation,
    content: np.ndarray,
    *,
    donor: np.ndarray,
    filler_id: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """The content that takes the place of a thought's.

    Args:
      name: of the ablation.
      content: the thought's own.
      donor: the content of its partner's thought, for a swap.
      filler_id: of the contentless token.
      generator: of the thought, for a shuffle.

    Raises:
      ValueError: no such ablation.
    """
    if name == "none":
        return content
    if name == "drop":
        return content[:0]
    if name == "shuffle":
        return generator.permutation(content)
    if name == "swap":
        return donor
    if name == "truncate":
        return content[: len(content) // 2]
    if name == "filler":
        return np.full_like(content, filler_id)
    raise ValueError(f"no ablation {name!r}")


class Branch(NamedTuple):
    """All tokens before the answer, and those of them behind the content."""

    ids: np.ndarray
    close: np.ndarray


def measure(
    plan: Plan,
    subject: evaluation_measure.Subject,
    where: evaluation_measure.Sites,
    thoughts: evaluation_measure.Thoughts,
    answer_format: formats.AnswerFormat,
    say: Callable[[str], None],
) -> tuple[Mapping[str, Answers], int]:
    """The answers behind altered thoughts by name of the ablation, and the FLOPs executed."""
    (count, group), loaded, spent = thoughts.begun_PG.shape, subject.loaded, 0
    found = {name: _no_answers(count, group) for name in plan.names}
    if not found:
        return found, spent
    apart = _take_all_apart(plan, subject, thoughts)
    branches = {name: _branches(name, plan, subject, thoughts, apart) for name in plan.names}
    batches = evaluation_measure.ask(subject, where, plan.chosen_P)
    for number, asked in enumerate(batches):
        _, kv = scoring.score_trunk(loaded.model, loaded.params, *asked.inputs)
        spent += ledger.trunk_flops(loaded.model, *asked.inputs.tokens_BS.shape, passes=1)
        place_BR = np.repeat(asked.place_BC, group, axis=1)
        slots = [
            (b, r, (int(place_BR[b, r]), r % group))
            for b, r in np.argwhere(place_BR >= 0).tolist()
            if thoughts.begun_PG[place_BR[b, r], r % group]
        ]
        for name, answers in found.items():
            ids = {(b, r): branches[name][pg].ids for b, r, pg in slots}
            best_BR, prob_BR, more = _next_tokens(subject, asked, kv, ids, group)
            spent += more
            for b, r, pg in slots:
                close, best = branches[name][pg].close, int(best_BR[b, r])
                predicted = read_answer(subject, close, best, answer_format)
                answers.predicted_PG[pg] = predicted
                answers.reward_PG[pg] = rewards.prefix_match(predicted, where.targets_P[pg[0]])
                answers.target_prob_PG[pg] = prob_BR[b, r]
        say(f"ablations {number + 1}/{len(batches)} batches")
    return found, spent


def _no_answers(count: int, group: int) -> Answers:
    shape = (count, group)
    return Answers(np.full(shape, None, object), np.zeros(shape), np.zeros(shape))


def _take_all_apart(plan: Plan, subject, thoughts) -> dict[tuple[int, int], Thought]:
    close = subject.loaded.tokenizer.encode_markup(subject.template.close)
    return {
        (p, g): take_apart(ids, thoughts.thought_tokens_PG[p, g], subject, close)
        for p in np.flatnonzero(plan.chosen_P).tolist()
        for g, ids in enumerate(thoughts.ids_PG[p])
    }


def _branches(
    name: config.Ablation, plan: Plan, subject, thoughts, apart: Mapping[tuple[int, int], Thought]
) -> dict[tuple[int, int], Branch]:
    """The branches that replace those of the chosen positions."""
    tail = subject.loaded.tokenizer.encode_markup(subject.template.tail)
    branches = {}
    for (p, g), (content, close) in apart.items():
        if name == "none":
            ids = thoughts.ids_PG[p, g]
            branches[p, g] = Branch(np.concatenate([tail, ids]), ids[len(content) :])
            continue
        new = altered(
            name,
            content,
            donor=apart[plan.partner_P[p], g].content if name == "swap" else content,
            filler_id=plan.filler_id,
            generator=np.random.default_rng([*plan.words_P[p], g]),
        )
        branches[p, g] = Branch(np.concatenate([tail, new, close]), close)
    return branches


def _next_tokens(
    subject: evaluation_measure.Subject,
    asked: evaluation_measure.Asked,
    kv_LBSKH: transformer.KeyValues,
    ids: Mapping[tuple[int, int], np.ndarray],
    group: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The most probable token behind the branches (b, r) of one batch.

    Returns:
      its id and the probability of the target token there, [B, R], and the FLOPs executed.
    """
    loaded, (B, S), R = subject.loaded, asked.inputs.tokens_BS.shape, asked.cut_BC.shape[1] * group
    longest = max(map(len, ids.values()), default=0)
    T = max(_LEAST_LENGTH, 1 << max(longest - 1, 0).bit_length())
    # No more branch positions at once than the trunk has: what holds the one holds the other.
    size = max(1, min(R, S // T))
    wide = ((0, 0), (0, -R % size))
    hi_BR, target_BR = (
        np.pad(np.repeat(x, group, axis=1), wide, constant_values=1)
        for x in (asked.cut_BC, asked.target_BC)
    )
    tokens_BRT = np.zeros((*hi_BR.shape, T), np.int32)
    length_BR = np.zeros(hi_BR.shape, np.int32)
    for (b, r), row in ids.items():
        tokens_BRT[b, r, : len(row)] = row
        length_BR[b, r] = len(row)
    best_BR, prob_BR, spent = np.zeros_like(hi_BR), np.zeros(hi_BR.shape), 0
    for first in range(0, R, size):
        part = slice(first, first + size)
        if not length_BR[:, part].any():
            continue
        arrays = (x[:, part] for x in (tokens_BRT, length_BR, hi_BR, target_BR))
        best, log_prob = _read(loaded.model, loaded.params, kv_LBSKH, *arrays)
        best_BR[:, part], prob_BR[:, part] = np.asarray(best), np.exp(np.asarray(log_prob))
        spent += ledger.forward_flops(loaded.model, B * size * (T - 1), S + T, head=False)
        spent += ledger.forward_flops(loaded.model, B * size, S + T)
    return best_BR, prob_BR, spent


@functools.partial(jax.jit, static_argnames=("model",))
def _read(model, params, kv_LBSKH, tokens_BRT, length_BR, hi_BR, target_BR):
    """The most probable next token of right-padded branches and the target's log-probability."""
    hidden_BRTD, _ = transformer.branch(
        model, params, kv_LBSKH, tokens_BRT, jnp.zeros_like(hi_BR), hi_BR, hi_BR
    )
    last_BR11 = jnp.maximum(length_BR - 1, 0)[..., None, None]
    hidden_MD = jnp.take_along_axis(hidden_BRTD, last_BR11, axis=2).reshape(-1, model.width)
    unembedding_VD = transformer.unembedding(model, params)
    found = ops.score(hidden_MD, unembedding_VD, target_BR.reshape(-1), top=1)
    shape = hi_BR.shape
    return found.top_ids_MK.reshape(shape), found.log_prob_M.reshape(shape)


def read_answer(
    subject: evaluation_measure.Subject,
    close: np.ndarray,
    best: int,
    answer_format: formats.AnswerFormat,
) -> bytes | None:
    """What the token `best` answers behind a close, as evaluation_measure reads thought_argmax.

    In the boxed format a brace closes the box behind it.
    """
    pieces = [*map(subject.next_token_bytes, close.tolist()), subject.next_token_bytes(best)]
    if answer_format == "boxed":
        pieces.append(b"}")
    return formats.read_prediction(pieces, subject.template, answer_format).answer
