"""Supervised warm-up before RPT, for models that do not close their thoughts (SmolLM2).

One step, top to bottom:

    batch      documents from the training stream, one per trunk row
    thoughts   one per cut: how the untrained policy continues the document there
    branches   tail + thought + close + TRUE answer + end, all well formed
    update     maximum likelihood on the branches, one AdamW step

Nothing is demonstrated but the form, and no answer is hinted at: the thoughts are guesses of the
model itself, sampled from the document as it stands, without the template, which an untrained
model does not understand. They come from the policy as it was before the first step, and their
lengths are drawn here; thoughts of the current policy, cut where it closes, would shrink from step
to step. What the model then learns about answers is what a guess of its own is worth.

Letters: B documents (trunk rows), C cuts per document, R branches (R = C), T branch positions,
V vocabulary, L layers, S trunk positions, K key/value heads, H head width.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data import pipeline
from kernels.sample import noise
from rpt import (
    cli,
    experience,
    formats,
    ledger,
    objectives,
    ops,
    optimizers,
    positions,
    rollout,
    scoring,
    sharding,
    update,
)
from rpt.model import config as model_config
from rpt.model import decoding, transformer

# Identifies the warm-up's noise among the rounds of dynamic sampling, which count from 0.
_ROUND = 2**16
# AdamW's first steps are as long as its later ones, whatever the gradient.
_RAMP_STEPS = 3
# Of a thought's tokens and of the decision to end it, beside 1 for the rest of the close and the
# answer. One weight for both, because it is the choice between them that sets how long thoughts
# are: with the close alone in the loss the model would learn to close at once. Less than 1,
# because there are more of them than of the answer.
THOUGHT_WEIGHT = 0.5
_OBJECTIVE = objectives.ObjectiveConfig()


@dataclasses.dataclass(frozen=True)
class Form:
    """The token ids of a well-formed branch around its thought and its true answer.

    Attributes:
      tail: begins the branch.
      close: ends the thought, up to `</think>`.
      suffix: what the rollout forces behind it.
      end: follows the answer; empty in the token format, which ends after `answer_tokens`.
      answer_tokens: how many of the document's tokens are the answer.
      shortest, longest: limits of the thought's length.
    """

    tail: np.ndarray
    close: np.ndarray
    suffix: np.ndarray
    end: np.ndarray
    answer_tokens: int
    shortest: int
    longest: int

    @property
    def positions(self) -> int:
        """T: of the longest branch."""
        parts = (self.tail, self.close, self.suffix, self.end)
        return sum(map(len, parts)) + self.longest + self.answer_tokens


def make_form(task: experience.Task) -> Form:
    """The form that template, tokenizer and rollout settings ask for.

    Raises:
      ValueError: the budget of thought tokens has no room for a thought and its close.
    """
    template, settings, tokenizer = task.template, task.config.rollout, task.tokenizer
    encode = tokenizer.encode_markup
    # Encoded as the rollout does: the suffix apart, as it is forced behind an exact close.
    close = encode(template.close.removesuffix(template.suffix))
    # The close counts as thought. A quarter of the rest is left, for the lengths will vary more
    # than here.
    longest = (settings.think_tokens - len(close)) * 3 // 4
    if longest < 1:
        raise ValueError(
            f"rollout.think_tokens={settings.think_tokens} leaves no room for a thought before "
            f"the {len(close)} tokens of its close; the warm-up needs at least {len(close) + 2}"
        )
    boxed = settings.answer_format == "boxed"
    end = encode(template.end) if boxed else np.zeros(0, np.int32)
    if boxed and tokenizer.eos_id is not None and tokenizer.eos_id not in end:
        end = np.append(end, np.int32(tokenizer.eos_id))
    return Form(
        tail=encode(template.tail),
        close=close,
        suffix=encode(template.suffix),
        end=end,
        answer_tokens=1 if boxed else settings.answer_tokens,
        shortest=-(-longest // 3),
        longest=longest,
    )


def warm_up(
    task: experience.Task,
    mesh: Mesh,
    params: Any,
    stream: Iterator[pipeline.TrunkBatch],
    book: ledger.Ledger,
    stop: cli.StopSignal | None = None,
) -> tuple[Any, ledger.Ledger]:
    """`train.warmup_steps` supervised steps; prints a line for each.

    Args:
      task: what is to be learned.
      mesh: of the parameters.
      params: where it begins; also the author of all thoughts.
      stream: training documents of this host's rows; it moves on by one batch per step.
      book: gets everything executed here under 'warmup'.
      stop: asks for the end.

    Returns:
      the trained parameters and the ledger. Optimizer state does not outlive the warm-up.

    Raises:
      cli.Stopped: the signal came before the last step.
    """
    settings = task.config.train
    optimizer_config = optimizers.OptimizerConfig(
        learning_rate=settings.warmup_learning_rate, warmup_steps=_RAMP_STEPS
    )
    optimizer = optimizers.make(optimizer_config)
    opt_state = optimizers.init_state(optimizer, params)
    form, author = make_form(task), params
    temperature = task.config.rollout.temperature or 1.0
    for step in range(settings.warmup_steps):
        if task.hosts.any(stop is not None and stop.received):
            raise cli.Stopped("stopped within the warm-up; the same command begins it again")
        batch = next(stream)
        trunk = _trunk_inputs(mesh, batch)
        branches, length_BR, decode_steps = _demonstrate(task, form, author, batch, trunk, step)
        micro_batches = update.micro_batches(
            branches, length_BR, settings.micro_branches, settings.t_multiple, task.hosts.largest
        )
        sharded = [sharding.shard_rows(mesh, micro) for micro in micro_batches]
        grads, terms = update.gradients(task.model, _OBJECTIVE, temperature, params, trunk, sharded)
        factor = optimizers.factor(optimizer_config, step, None)
        params, opt_state, norm = update.apply(optimizer, params, opt_state, grads, factor)
        book, number = _account(book, task, batch, branches, length_BR, decode_steps, sharded)
        line = (
            f"warm-up {step + 1}/{settings.warmup_steps}  branches {number}  "
            f"entropy {float(terms['entropy']):.2f} nats  gradient norm {float(norm):.2f}"
        )
        if task.hosts.is_first:
            print(line, flush=True)
    return params, book


def _trunk_inputs(mesh: Mesh, batch: pipeline.TrunkBatch) -> update.TrunkInputs:
    """The batch without a next-token loss: the warm-up is about branches alone."""
    return sharding.shard_rows(
        mesh,
        update.TrunkInputs(
            batch.tokens_BS,
            batch.segments_BS,
            batch.positions_BS,
            np.zeros(batch.tokens_BS.shape, np.float32),
        ),
    )


def _demonstrate(task, form, author, batch, trunk, step):
    """Cuts, thoughts and branches of one step: (arrays, length_BR, decode steps)."""
    config = task.config
    eligible_BS = positions.eligible_cuts(
        batch.tokens_BS,
        batch.lengths_B,
        batch.header_length,
        config.positions.min_context,
        task.tokenizer.special_ids,
        task.expressible_V,
    )
    # At random: easy answers show best that the document goes on behind the thought.
    cut_BC, valid_BC = positions.choose_cuts(
        None,
        eligible_BS,
        cuts_per_document=config.train.warmup_cuts_per_document,
        low_nats=0.0,
        high_nats=np.inf,
        random_fraction=0.0,
        mode="random",
        seed=config.seed,
        step=step,
        document_ids_B=batch.document_ids_B,
        round_index=_ROUND,
    )
    _, kv = scoring.score_trunk(
        task.model, author, trunk.tokens_BS, trunk.segments_BS, trunk.positions_BS
    )
    thought_BRT = continuations(
        task.model,
        config.rollout,
        author,
        kv,
        *sharding.put_rows((np.take_along_axis(batch.tokens_BS, cut_BC - 1, axis=1), cut_BC)),
        rollout.branch_keys(config.seed, step, _ROUND, batch.document_ids_B, cut_BC, 1),
        form.longest,
    )
    # Lengths are drawn and not the model's own: an untrained model never ends a thought.
    generator = np.random.default_rng((config.seed, step, _ROUND))
    B, C = len(cut_BC) * task.hosts.count, cut_BC.shape[1]
    most_BC = generator.integers(form.shortest, form.longest, (B, C), endpoint=True)
    own = sharding.own_block(B)
    branches, length_BR = well_formed(
        form,
        sharding.own_rows(thought_BRT),
        batch.documents,
        batch.header_length,
        cut_BC,
        valid_BC,
        most_BC[own.start : own.stop],
        task.token_bytes,
        task.stop_ids | task.tokenizer.special_ids,
        task.hosts.total,
    )
    return branches, length_BR, ((form.longest, cut_BC.shape[1], form.longest),)


@functools.partial(jax.jit, static_argnames=("model", "settings", "length"))
def continuations(
    model: model_config.ModelConfig,
    settings: rollout.RolloutConfig,
    params: transformer.Params,
    kv_LBSKH: transformer.KeyValues,
    last_BR: jax.Array,
    cut_BR: jax.Array,
    key_BR2: jax.Array,
    length: int,
) -> jax.Array:
    """Samples how the document goes on at each cut, without template or any markers.

    Args:
      model: static model shape.
      settings: temperature and truncation.
      params, kv_LBSKH: the author's, and its trunk.
      last_BR: the document's token before each cut, which begins the branch.
      cut_BR: trunk positions; a branch sees what is before its cut.
      key_BR2: noise keys.
      length: tokens to sample.

    Returns:
      int32 [B, R, length]; it goes on behind tokens that end a text.
    """
    B, R = cut_BR.shape
    copy = decoding.sampling_copy(model, params)
    trunk = decoding.prepare_trunk(model, kv_LBSKH)
    cache = decoding.empty_cache(model, B, R, length)
    rotations = decoding.rotations(model, trunk, length)
    start_BR = cut_BR - 1  # the first token of the branch is the last of the context

    def body(carry, t):
        token_BR, cache = carry
        hidden_BRD, cache = decoding.step(
            model, copy, trunk, cache, token_BR, jnp.zeros_like(cut_BR), start_BR, start_BR, t,
            rotations,
        )  # fmt: skip
        drawn = ops.sample(
            hidden_BRD.reshape(B * R, -1),
            copy.unembedding_VD,
            noise.fold(key_BR2.reshape(B * R, 2), jnp.full(B * R, t, jnp.uint32)),
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        token_BR = drawn.token_M.reshape(B, R).astype(jnp.int32)
        return (token_BR, cache), token_BR

    carry = (jnp.asarray(last_BR, jnp.int32), cache)
    _, token_TBR = jax.lax.scan(body, carry, jnp.arange(length))
    return jnp.moveaxis(token_TBR, 0, -1)


def well_formed(
    form: Form,
    thought_BRT: np.ndarray,
    documents: Sequence[np.ndarray],
    header_length: int,
    cut_BC: np.ndarray,
    valid_BC: np.ndarray,
    most_BC: np.ndarray,
    token_bytes: Sequence[bytes],
    no_thought_ids: Collection[int],
    total: Callable[[dict[str, float]], dict[str, Any]] = dict,
) -> tuple[update.MicroBatch, np.ndarray]:
    """One supervised branch per cut: tail, own thought, close, suffix, true answer, end.

    Args:
      form: of the branches.
      thought_BRT: of `continuations`.
      documents: for every row its document's ids, at least up to the answers' ends.
      header_length: trunk positions before the document.
      cut_BC, valid_BC: the cuts.
      most_BC: where each thought is cut off.
      token_bytes: raw bytes of every token.
      no_thought_ids: tokens that end a thought (stop tokens and other markers).
      total: adds what is of other hosts' rows.

    Returns:
      arrays for `update.gradients` with advantage 1 and weights that sum to 1 over all hosts; and
      length_BR: 0 for a slot without a cut, a thought without a token, or a document that ends too
      soon.
    """
    B, C = cut_BC.shape
    tokens_BRT = np.zeros((B, C, form.positions), np.int32)
    weight_BRT = np.zeros(tokens_BRT.shape, np.float32)
    length_BR = np.zeros((B, C), np.int32)
    start = len(form.tail)
    for b, r in np.argwhere(valid_BC):
        thought = own_thought(thought_BRT[b, r, : most_BC[b, r]], token_bytes, no_thought_ids)
        first = cut_BC[b, r] - header_length
        answer = documents[b][first : first + form.answer_tokens]
        if not len(thought) or len(answer) < form.answer_tokens:
            continue
        ids = np.concatenate([form.tail, thought, form.close, form.suffix, answer, form.end])
        decision = start + len(thought)
        suffix = decision + len(form.close)
        tokens_BRT[b, r, : len(ids)] = ids
        weight_BRT[b, r, start : decision + 1] = THOUGHT_WEIGHT
        weight_BRT[b, r, decision + 1 : suffix] = 1.0
        # The suffix is forced at rollout, never sampled.
        weight_BRT[b, r, suffix + len(form.suffix) : len(ids)] = 1.0
        length_BR[b, r] = len(ids)
    weight_BRT /= max(total({"weight": float(weight_BRT.sum())})["weight"], 1.0)
    branches = update.MicroBatch(
        tokens_BRT=tokens_BRT,
        weight_BRT=weight_BRT,
        behaviour_BRT=None,
        threshold_BRT=None,
        reference_BRT=None,
        advantage_BR=np.ones((B, C), np.float32),
        hi_BR=cut_BC.astype(np.int32),
    )
    return branches, length_BR


def own_thought(
    ids: np.ndarray, token_bytes: Sequence[bytes], no_thought_ids: Collection[int]
) -> np.ndarray:
    """The leading ids before a token that is no thought and before any byte of `</think>`."""
    kept: list[int] = []
    data = b""
    for token in ids.tolist():
        if token in no_thought_ids:
            break
        kept.append(token)
        data += token_bytes[token]
        if formats.MARKER in data:
            # The marker may have begun inside an earlier token, which then goes as well.
            limit = data.index(formats.MARKER)
            while len(data) > limit:
                data = data[: len(data) - len(token_bytes[kept.pop()])]
            break
    return np.array(kept, np.int32)


def _account(book, task, batch, branches, length_BR, decode_steps, micro_batches):
    """Scoring, decoding and the update of one step, all under 'warmup'; and how many branches."""
    model, (B, S) = task.model, batch.tokens_BS.shape
    B *= task.hosts.count
    decoded, decode_flops = ledger.decode_flops(model, B, S, decode_steps)
    shapes = [micro.tokens_BRT.shape for micro in micro_batches]
    trained, update_flops = ledger.branch_update_flops(model, S, shapes)
    # The trunk once forward under the author, and forward and backward in the update.
    trunk_flops = ledger.trunk_flops(model, B, S, passes=4)
    book = book.add(
        "warmup", 2 * B * S + decoded + trained, decode_flops + update_flops + trunk_flops
    )
    rows = sum(
        ledger.row_flops(model, int(cut), int(length), trained=True)
        for cut, length in zip(branches.hi_BR.flat, length_BR.flat, strict=True)
        if length
    )
    sums = task.hosts.total(
        {
            "rows": rows,
            "documents": int((batch.lengths_B - batch.header_length).clip(0).sum()),
            "branches": int((length_BR > 0).sum()),
        }
    )
    return book.add_documents(sums["documents"]).add_rows(sums["rows"]), sums["branches"]
