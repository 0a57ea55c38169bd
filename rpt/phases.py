"""What a branch lives through while it is decoded: four phases, told apart on the device.

    THINK   sampled tokens, until the bytes `</think>` have appeared (at any tokenisation) or the
            budget is used up
    FORCE   tokens given by the template: its suffix after the marker, or, when the budget was
            used up and `on_budget='force_close'`, the whole close; never in the loss
    ANSWER  sampled tokens: exactly `answer_tokens` in the token format, up to that many in boxed
    DONE

The marker is found by the automaton of `formats.marker_automaton`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data import tokenizers
from kernels.sample import noise
from rpt import formats, ops

THINK, FORCE, ANSWER, DONE = range(4)


class Tables(NamedTuple):
    """What the device must know of tokenizer and template.

    `forced_ids` is the template's close followed by its suffix alone; a budget close starts at 0,
    a suffix at `close_length`.
    """

    tail_ids: jax.Array
    forced_ids: jax.Array
    close_length: jax.Array
    automaton_VS: jax.Array
    straddles_VS: jax.Array
    stop_V: jax.Array


class Branches(NamedTuple):
    """Everything that lives per branch; all [B, R] or [B, R, T]. `slot` is the original index."""

    slot_BR: jax.Array
    lo_BR: jax.Array
    hi_BR: jax.Array
    key_BR2: jax.Array
    target_BR: jax.Array
    phase_BR: jax.Array
    match_BR: jax.Array
    forced_BR: jax.Array
    sampled_count_BR: jax.Array
    length_BR: jax.Array
    answer_start_BR: jax.Array
    over_budget_BR: jax.Array
    tokens_BRT: jax.Array
    sampled_BRT: jax.Array
    log_prob_BRT: jax.Array
    threshold_BRT: jax.Array
    best_BRT: jax.Array
    target_log_prob_BRT: jax.Array


def make_tables(tokenizer: tokenizers.Tokenizer, template: formats.Template, vocab_size: int):
    """Tables for a vocabulary of `vocab_size` rows (at least the tokenizer's, padded by no-ops)."""
    raw = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    raw += [b""] * (vocab_size - len(raw))
    automaton_VS, straddles_VS = formats.marker_automaton(raw)
    close = tokenizer.encode_markup(template.close)
    suffix = tokenizer.encode_markup(template.suffix)
    stop_V = np.zeros(vocab_size, bool)
    if tokenizer.eos_id is not None:
        stop_V[tokenizer.eos_id] = True
    # Padding rows of the embedding are no text: ending the branch there gives them reward 0.
    stop_V[tokenizer.vocab_size :] = True
    tables = Tables(
        tail_ids=jnp.asarray(tokenizer.encode_markup(template.tail)),
        forced_ids=jnp.asarray(np.concatenate([close, suffix])),
        close_length=jnp.int32(len(close)),
        automaton_VS=jnp.asarray(automaton_VS),
        straddles_VS=jnp.asarray(straddles_VS),
        stop_V=jnp.asarray(stop_V),
    )
    if not len(tables.tail_ids):
        raise ValueError(
            "the template has nothing between {{document}} and {{thought}}; a branch needs at "
            "least one token there, such as <think>"
        )
    return Tables(*[jnp.asarray(x) for x in tables])


@jax.named_scope("advance")
def advance(
    config: Any,
    tables: Tables,
    branches: Branches,
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    t: jax.Array,
    record: bool,
) -> Branches:
    """Writes the token at position t of every live branch and moves its phase on.

    Args:
      config: a `rollout.RolloutConfig`.
      tables: of `make_tables`.
      branches: as they are before position t.
      hidden_MD: final hidden states of position t - 1, M = B * R.
      unembedding_VD: the head.
      t: scalar.
      record: whether the target's log-probability is wanted.
    """
    B, R = branches.phase_BR.shape
    keys_M2 = noise.fold(branches.key_BR2.reshape(B * R, 2), jnp.full(B * R, t, jnp.uint32))
    drawn = ops.sample(
        hidden_MD,
        unembedding_VD,
        keys_M2,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    drawn = jax.tree.map(lambda x: x.reshape(B, R), drawn)

    phase = branches.phase_BR
    sampling_BR = (phase == THINK) | (phase == ANSWER)
    forced_token_BR = tables.forced_ids[jnp.minimum(branches.forced_BR, _last(tables.forced_ids))]
    token_BR = jnp.where(phase == FORCE, forced_token_BR, drawn.token_M)
    # Nothing is left of what an ended branch computes: compacting it away must change nothing.
    token_BR = jnp.where(phase == DONE, 0, token_BR)
    threshold_BR = jnp.where(phase == DONE, -jnp.inf, drawn.threshold_M)
    best_BR = jnp.where(phase == DONE, 0, drawn.best_M)
    moved = next_phase(config, tables, branches, token_BR)

    def put(array_BRT, value_BR):
        return jax.lax.dynamic_update_slice_in_dim(
            array_BRT, value_BR[..., None].astype(array_BRT.dtype), t, axis=2
        )

    if record:
        target = ops.logprob(hidden_MD, unembedding_VD, branches.target_BR.reshape(-1))
        target_BR = jnp.where(phase == DONE, 0.0, target.log_prob_M.reshape(B, R))
        moved = moved._replace(target_log_prob_BRT=put(branches.target_log_prob_BRT, target_BR))
    return moved._replace(
        length_BR=jnp.where(phase != DONE, t + 1, branches.length_BR),
        answer_start_BR=jnp.where(
            (phase == ANSWER) & (branches.answer_start_BR < 0), t, branches.answer_start_BR
        ),
        tokens_BRT=put(branches.tokens_BRT, token_BR),
        sampled_BRT=put(branches.sampled_BRT, sampling_BR),
        log_prob_BRT=put(branches.log_prob_BRT, jnp.where(sampling_BR, drawn.log_prob_M, 0.0)),
        threshold_BRT=put(branches.threshold_BRT, threshold_BR),
        best_BRT=put(branches.best_BRT, best_BR),
    )


def _last(array: jax.Array) -> int:
    return array.shape[0] - 1


def next_phase(config: Any, tables: Tables, branches: Branches, token_BR) -> Branches:
    """The phase after `token_BR` was written, with its counters."""
    phase, match = branches.phase_BR, branches.match_BR
    accept = tables.automaton_VS.shape[1] - 1
    close_length, forced_total = tables.close_length, tables.forced_ids.shape[0]
    count_BR = branches.sampled_count_BR + ((phase == THINK) | (phase == ANSWER))
    stopped_BR = tables.stop_V[token_BR]

    # THINK: the marker, a stop token, or the end of the budget.
    new_match = jnp.where(phase == THINK, tables.automaton_VS[token_BR, match], match)
    closed_BR = new_match == accept
    exact_BR = ~tables.straddles_VS[token_BR, match]
    has_suffix = close_length < forced_total
    spent_BR = count_BR >= config.think_tokens
    over_BR = (phase == THINK) & spent_BR & ~closed_BR & ~stopped_BR
    after_budget = FORCE if config.on_budget == "force_close" else DONE
    from_think = jnp.where(spent_BR, after_budget, THINK)
    from_think = jnp.where(stopped_BR, DONE, from_think)
    from_think = jnp.where(closed_BR, jnp.where(exact_BR & has_suffix, FORCE, ANSWER), from_think)
    begin_BR = jnp.where(closed_BR, close_length, 0)

    # FORCE: until the end of the close (begun at 0) or of the suffix (begun after the close).
    next_forced = branches.forced_BR + 1
    force_over = (next_forced == close_length) | (next_forced == forced_total)
    from_force = jnp.where(force_over, ANSWER, FORCE)

    # ANSWER: a fixed number of tokens, or a stop token.
    answered_BR = count_BR >= config.answer_tokens
    from_answer = jnp.where(answered_BR | stopped_BR, DONE, ANSWER)

    new_phase = jnp.select(
        [phase == THINK, phase == FORCE, phase == ANSWER],
        [from_think, from_force, from_answer],
        DONE,
    )
    return branches._replace(
        phase_BR=new_phase.astype(jnp.int32),
        match_BR=new_match.astype(jnp.int32),
        forced_BR=jnp.where(phase == THINK, begin_BR, next_forced).astype(jnp.int32),
        # The answer counts from zero again.
        sampled_count_BR=jnp.where((phase == THINK) & (new_phase != THINK), 0, count_BR),
        over_budget_BR=branches.over_budget_BR | over_BR,
    )
