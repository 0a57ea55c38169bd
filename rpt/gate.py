"""The gate between stage 0 and RPT: can the model think at all where thinking is easy?"""

from typing import Any, NamedTuple

import jax
import numpy as np

from data import pipeline, tokenizers
from rpt import (
    config,
    formats,
    hosts,
    ledger,
    loading,
    phases,
    positions,
    rollout,
    scoring,
    sharding,
)
from rpt.model import config as model_config


def labelled_cuts(
    batch: pipeline.TrunkBatch, labels: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """cut_BC and valid_BC of the tokens with one of the labels; C is the most in a document."""
    found = [np.flatnonzero(row_S) for row_S in positions.labelled(batch, labels)]
    width = max(1, *map(len, found))
    cut_BC = np.ones((len(found), width), np.int32)
    valid_BC = np.zeros((len(found), width), bool)
    for row, cuts in enumerate(found):
        cut_BC[row, : len(cuts)] = cuts
        valid_BC[row, : len(cuts)] = True
    return cut_BC, valid_BC


class Gate:
    """Measures with-thought accuracy at temperature 1, on fixed documents and with fixed noise.

    Raises:
      ValueError: a part of the mixture holds none of the labels.
    """

    def __init__(
        self,
        experiment: config.Config,
        model: model_config.ModelConfig,
        tokenizer: tokenizers.Tokenizer,
        team: hosts.Hosts = hosts.ALONE,
    ):
        gate = experiment.pretrain.gate
        template = formats.load_template(experiment.data.template)
        header = loading.header_ids(tokenizer, template.header, experiment.data.add_bos)
        self._team = team
        self._parts: dict[str, _Part] = {}
        for mix in loading.open_mixture(gate.mixture):
            batch = next(
                pipeline.trunk_batches(
                    [mix],
                    tokenizer,
                    batch_size=gate.documents,
                    seq_len=experiment.train.seq_len,
                    header_ids=header,
                    min_context=1,
                    seed=0,
                )
            )
            cut_BC, valid_BC = labelled_cuts(batch, gate.labels)
            if not valid_BC.any():
                raise ValueError(f"pretrain.gate: no document of {mix.name} has {gate.labels}")
            rows = (batch.tokens_BS, batch.segments_BS, batch.positions_BS)
            part = _Part(*rows, cut_BC, valid_BC, batch.document_ids_B)
            self._parts[mix.name] = _own_rows(team, part)
        self._config = rollout.RolloutConfig(
            group_size=1,
            think_tokens=experiment.rollout.think_tokens,
            answer_format=experiment.rollout.answer_format,
            answer_tokens=1,
            chunk_tokens=experiment.rollout.think_tokens,
        )
        self._model = model
        self._tables = phases.make_tables(tokenizer, template, model.vocab_size)

    def accuracy(self, params: Any) -> tuple[dict[str, float], int]:
        """By part, the share of its labelled tokens that one sampled thought predicts; FLOPs."""
        found = {name: self._of_part(params, part) for name, part in self._parts.items()}
        return (
            {name: share for name, (share, _) in found.items()},
            sum(spent for _, spent in found.values()),
        )

    def _of_part(self, params: Any, part: "_Part") -> tuple[float, int]:
        model = self._model
        _, kv = scoring.score_trunk(model, params, *sharding.put_rows(part[:3]))
        sampler = rollout.make_sampler(model, params, kv)
        result = rollout.rollout(
            model, self._config, sampler, self._tables, part.cut_BC, part.valid_BC,
            seed=0, step=0, document_ids_B=part.document_ids_B,
        )  # fmt: skip
        start_BR1 = np.maximum(result.answer_start_BR, 0)[..., None]
        answer_BR = np.take_along_axis(result.tokens_BRT, start_BR1, axis=2)[..., 0]
        target_BR = np.take_along_axis(part.tokens_BS, part.cut_BC, axis=1)
        right_BR = (answer_BR == target_BR) & (result.answer_start_BR >= 0)
        B, S = part.tokens_BS.shape
        B *= self._team.count
        _, spent = ledger.decode_flops(model, B, S, result.decode_steps)
        spent += ledger.trunk_flops(model, B, S, passes=1)
        sums = self._team.total(
            {"right": int(right_BR[part.valid_BC].sum()), "all": int(part.valid_BC.sum())}
        )
        return sums["right"] / sums["all"], spent


class _Part(NamedTuple):
    """What is measured of one part: trunk rows, and the cuts in them."""

    tokens_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray
    cut_BC: np.ndarray
    valid_BC: np.ndarray
    document_ids_B: np.ndarray


def _own_rows(team: hosts.Hosts, part: _Part) -> _Part:
    """Those of this host; of several, padded by empty rows that divide over all devices."""
    if team.count == 1:
        return part
    padding = -len(part.cut_BC) % jax.device_count()
    own = sharding.own_block(len(part.cut_BC) + padding)

    def of_host(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)))[own.start : own.stop]

    found = _Part(*map(of_host, part))
    # A branch of an empty row still needs a position to its left.
    return found._replace(cut_BC=np.maximum(found.cut_BC, 1))
