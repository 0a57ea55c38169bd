"""One step's experience: cuts, thoughts, rewards, advantages, and what of it is trained on.

Rounds of dynamic sampling add cuts of the same documents, so they are more slots along C: the
trunk is computed once however many rounds there are.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from data import pipeline, tokenizers
from rpt import (
    advantages,
    formats,
    ledger,
    objectives,
    phases,
    positions,
    predictions,
    rewards,
    rollout,
    scoring,
    sharding,
    update,
)
from rpt import config as config_lib
from rpt import hosts as hosts_lib
from rpt.model import config as model_config
from rpt.model import transformer


@dataclasses.dataclass(frozen=True)
class Task:
    """What stays the same over a run: how documents become questions and answers are read."""

    model: model_config.ModelConfig
    config: config_lib.Config
    tokenizer: tokenizers.Tokenizer
    template: formats.Template
    hosts: hosts_lib.Hosts = hosts_lib.ALONE

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """Of every row of the embedding; rows that only pad it are no text."""
        known = [self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)]
        return known + [b""] * (self.model.vocab_size - len(known))

    @functools.cached_property
    def tables(self) -> phases.Tables:
        return phases.make_tables(self.tokenizer, self.template, self.model.vocab_size)

    @functools.cached_property
    def expressible_V(self) -> np.ndarray:
        return formats.expressible_table(self.token_bytes, self.config.rollout.answer_format)

    @functools.cached_property
    def stop_ids(self) -> frozenset[int]:
        eos = self.tokenizer.eos_id
        padding = range(self.tokenizer.vocab_size, self.model.vocab_size)
        return frozenset([*padding] if eos is None else [eos, *padding])

    @functools.cached_property
    def id_of_bytes(self) -> dict[bytes, int]:
        # The lowest id wins where two tokens have the same bytes.
        return {raw: i for i, raw in reversed(list(enumerate(self.token_bytes)))}


@dataclasses.dataclass(frozen=True)
class Experience:
    """Everything of one step that the update, the metrics and the samples need.

    trained_BC are the groups that enter the update; rounds is how often cuts were drawn.
    """

    cut_BC: np.ndarray
    valid_BC: np.ndarray
    trained_BC: np.ndarray
    result: rollout.Rollout
    predictions: Sequence[formats.Prediction]
    targets: Sequence[rewards.Target | None]
    reward_BCG: np.ndarray
    right_BCG: np.ndarray
    advantage_BCG: np.ndarray
    rounds: int


def collect(
    task: Task,
    params: Any,
    batch: pipeline.TrunkBatch,
    kv_LBSKH: transformer.KeyValues,
    entropy_BS: np.ndarray,
    step: int,
) -> tuple[Experience, int]:
    """Chooses cuts, thinks, scores; again under dynamic sampling while groups lack a gradient.

    Each of several hosts does so for the documents of its own rows; whether there is another round
    they decide together.

    Returns:
      the experience, and the FLOPs of extra scoring passes (dense rewards).
    """
    reward = task.config.reward
    dynamic = 0 <= reward.dynamic_from_step <= step
    sampler = rollout.make_sampler(task.model, params, kv_LBSKH)
    parts, extra = [], 0
    for round_ in range(reward.max_rounds if dynamic else 1):
        taken = [p[:2] for p in parts]
        part, spent = _one_round(task, params, batch, sampler, entropy_BS, step, round_, taken)
        parts.append(part)
        extra += spent
        found = sum(len(advantages.select_groups(p[-2], p[1])) for p in parts)
        if not dynamic or task.hosts.total({"groups": found})["groups"] >= reward.target_groups:
            break
    cut_BC, valid_BC = (np.concatenate([p[i] for p in parts], axis=1) for i in (0, 1))
    result = _joined([p[2] for p in parts])
    B, G = len(cut_BC), task.config.rollout.group_size
    # Flat lists run over documents first, so rounds are interleaved document by document.
    read = [x for b in range(B) for p in parts for x in _rows(p[3], b, B)]
    targets = [x for b in range(B) for p in parts for x in _rows(p[4], b, B)]
    reward_BCG = np.concatenate([p[5] for p in parts], axis=1)
    right_BCG = np.concatenate([p[6] for p in parts], axis=1)
    advantage_BCG = advantages.group_advantages(
        reward_BCG,
        normalise=reward.normalise,
        ddof=reward.ddof,
        epsilon=reward.epsilon,
        leave_one_out=reward.leave_one_out,
        valid_BCG=np.repeat(valid_BC[..., None], G, axis=2),
    )
    return Experience(
        cut_BC=cut_BC,
        valid_BC=valid_BC,
        trained_BC=_trained(reward_BCG, valid_BC, reward.groups_per_document),
        result=result,
        predictions=read,
        targets=targets,
        reward_BCG=reward_BCG,
        right_BCG=right_BCG,
        advantage_BCG=advantage_BCG,
        rounds=len(parts),
    ), extra


def _one_round(task, params, batch, sampler, entropy_BS, step, round_, taken):
    """New cuts, none of those `taken` by earlier rounds, with their rollouts and rewards.

    Returns (cut_BC, valid_BC, rollout, predictions, targets, reward_BCG, right_BCG), extra FLOPs.
    """
    config = task.config
    eligible_BS = positions.eligible_cuts(
        batch.tokens_BS,
        batch.lengths_B,
        batch.header_length,
        config.positions.min_context,
        task.tokenizer.special_ids,
        task.expressible_V,
    )
    if config.positions.labels:
        eligible_BS &= positions.labelled(batch, config.positions.labels)
    for earlier_BC, chosen_BC in taken:
        row_BC = np.arange(len(earlier_BC))[:, None].repeat(earlier_BC.shape[1], axis=1)
        eligible_BS[row_BC[chosen_BC], earlier_BC[chosen_BC]] = False
    cut_BC, valid_BC = positions.choose_cuts(
        entropy_BS,
        eligible_BS,
        cuts_per_document=config.positions.cuts_per_document,
        low_nats=config.positions.low_nats,
        high_nats=config.positions.high_nats,
        random_fraction=config.positions.random_fraction,
        mode=config.positions.mode,
        seed=config.seed,
        step=step,
        document_ids_B=batch.document_ids_B,
        round_index=round_,
    )
    result = rollout.rollout(
        task.model, config.rollout, sampler, task.tables, cut_BC, valid_BC,
        seed=config.seed, step=step, document_ids_B=batch.document_ids_B, round_=round_,
    )  # fmt: skip
    read = predictions.read(
        result,
        task.token_bytes,
        task.stop_ids,
        task.template,
        config.rollout.answer_format,
        valid_BC,
        config.rollout.answer_tokens,
    )
    targets = predictions.targets(
        batch.documents, batch.header_length, cut_BC, valid_BC, task.token_bytes
    )
    shape = (*cut_BC.shape, config.rollout.group_size)
    probs_BCG, extra = None, 0
    if config.reward.name in rewards.NEEDS_FIRST_TOKEN_PROBS:
        ids_BCG = np.maximum(rewards.first_token_ids(read, task.id_of_bytes), 0).reshape(shape)
        rows = (batch.tokens_BS, batch.segments_BS, batch.positions_BS, cut_BC, ids_BCG)
        probs_BCG = sharding.own_rows(
            scoring.no_think_probs(task.model, params, *sharding.put_rows(rows))
        )
        B, S = batch.tokens_BS.shape
        extra = ledger.trunk_flops(task.model, B * task.hosts.count, S, passes=1)
    scored = rewards.RewardBatch(read, targets, shape, probs_BCG, config.reward.all_wrong_reward)
    reward_BCG = rewards.score(config.reward.name, scored)
    right_BCG = reward_BCG
    if config.reward.name != "prefix_match":
        right_BCG = rewards.score("prefix_match", scored)
    return (cut_BC, valid_BC, result, read, targets, reward_BCG, right_BCG), extra


def _rows(flat: Sequence[Any], row: int, rows: int) -> Sequence[Any]:
    width = len(flat) // rows
    return flat[row * width : (row + 1) * width]


def _joined(results: list[rollout.Rollout]) -> rollout.Rollout:
    if len(results) == 1:
        return results[0]
    arrays = {
        name: np.concatenate([getattr(r, name) for r in results], axis=1)
        for name, value in results[0]._asdict().items()
        if isinstance(value, np.ndarray)
    }
    steps = tuple(chunk for r in results for chunk in r.decode_steps)
    return results[0]._replace(**arrays, decode_steps=steps)


def _trained(reward_BCG, valid_BC, groups_per_document: int) -> np.ndarray:
    """The groups with a gradient, at most so many per document, highest variance first."""
    B, C, _ = reward_BCG.shape
    trained_BC = np.zeros((B, C), bool)
    for index in advantages.select_groups(reward_BCG, valid_BC):
        row, slot = divmod(int(index), C)
        if not groups_per_document or trained_BC[row].sum() < groups_per_document:
            trained_BC[row, slot] = True
    return trained_BC


def training_batches(task: Task, lived: Experience) -> list[update.MicroBatch]:
    """The branches of the trained groups as micro-batches, with their weights in the loss.

    Of this host's rows; the shapes are those of all hosts.
    """
    config, result = task.config, lived.result
    G = config.rollout.group_size
    trained_BR = np.repeat(lived.trained_BC, G, axis=1)
    counted_BR = trained_BR
    if config.objective.count_zero_variance:
        counted_BR = np.repeat(lived.valid_BC, G, axis=1)
    weight_BRT = objectives.token_weights(
        config.objective, result.sampled_BRT, counted_BR, task.hosts.total
    )
    weight_BRT = weight_BRT * trained_BR[..., None]
    truncated = config.rollout.top_k > 0 or config.rollout.top_p < 1
    arrays = update.MicroBatch(
        tokens_BRT=result.tokens_BRT,
        weight_BRT=weight_BRT,
        behaviour_BRT=result.log_prob_BRT,
        threshold_BRT=result.threshold_BRT if truncated else None,
        reference_BRT=None,
        advantage_BR=lived.advantage_BCG.reshape(trained_BR.shape),
        hi_BR=np.repeat(lived.cut_BC, G, axis=1).astype(np.int32),
    )
    # Only trained branches travel; the fullest document of any host sets R.
    (R,) = task.hosts.largest([int(trained_BR.sum(axis=1).max())])
    order_BR = np.argsort(~trained_BR, axis=1, kind="stable")[:, :R]
    arrays = jax.tree.map(lambda x: _take(x, order_BR), arrays)
    length_BR = _take(np.where(trained_BR, result.length_BR, 0), order_BR)
    return update.micro_batches(
        arrays,
        length_BR,
        config.train.micro_branches,
        config.train.t_multiple,
        task.hosts.largest,
    )


def _take(x: np.ndarray, order_BR: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x, order_BR.reshape(*order_BR.shape, *[1] * (x.ndim - 2)), axis=1)
