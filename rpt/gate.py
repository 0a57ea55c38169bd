"""The gate between stage 0 and RPT: can the model think at all where thinking is easy?"""

from typing import Any, NamedTuple

import jax
import numpy as np

from data import pipeline, sources, tokenizers
from rpt import config, formats, hosts, ledger, loading, rollout, scoring, sharding
from rpt.model import config as model_config


def labelled_cuts(
    batch: pipeline.TrunkBatch, labels: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """cut_BC and valid_BC of the tokens with one of the labels; C is the most in a document."""
    found = [
        [batch.header_length + index for index, label in row if label in labels]
        for row in batch.labels
    ]
    found = [[c for c in row if c < length] for row, length in zip(found, batch.lengths_B)]
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
      ValueError: the documents hold none of the labels.
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
        mix = pipeline.Mix(source=sources.open_source(gate.spec), weight=1.0, name="gate")
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
            raise ValueError(f"pretrain.gate: no document of {gate.spec} has {gate.labels}")
        self._team, self._rows = team, len(cut_BC)
        self._inputs = _own_part(
            team,
            _Inputs(
                batch.tokens_BS,
                batch.segments_BS,
                batch.positions_BS,
                cut_BC,
                valid_BC,
                batch.document_ids_B,
            ),
        )
        self._config = rollout.RolloutConfig(
            group_size=1,
            think_tokens=experiment.rollout.think_tokens,
            answer_format=experiment.rollout.answer_format,
            answer_tokens=1,
            chunk_tokens=experiment.rollout.think_tokens,
        )
        self._model = model
        self._tables = rollout.make_tables(tokenizer, template, model.vocab_size)

    def accuracy(self, params: Any) -> tuple[float, int]:
        """(share of the labelled tokens that one sampled thought predicts, FLOPs spent)."""
        own, model = self._inputs, self._model
        _, kv = scoring.score_trunk(model, params, *sharding.put_rows(own[:3]))
        result = rollout.rollout(
            model, self._config, params, self._tables, kv, own.cut_BC, own.valid_BC,
            seed=0, step=0, document_ids_B=own.document_ids_B,
        )  # fmt: skip
        start_BR1 = np.maximum(result.answer_start_BR, 0)[..., None]
        answer_BR = np.take_along_axis(result.tokens_BRT, start_BR1, axis=2)[..., 0]
        target_BR = np.take_along_axis(own.tokens_BS, own.cut_BC, axis=1)
        right_BR = (answer_BR == target_BR) & (result.answer_start_BR >= 0)
        S = own.tokens_BS.shape[1]
        _, spent = ledger.decode_flops(model, self._rows, S, result.decode_steps)
        spent += ledger.trunk_flops(model, self._rows, S, passes=1)
        sums = self._team.total(
            {"right": int(right_BR[own.valid_BC].sum()), "all": int(own.valid_BC.sum())}
        )
        return sums["right"] / sums["all"], spent


class _Inputs(NamedTuple):
    """What is measured: trunk rows, and the cuts in them."""

    tokens_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray
    cut_BC: np.ndarray
    valid_BC: np.ndarray
    document_ids_B: np.ndarray


def _own_part(team: hosts.Hosts, inputs: _Inputs) -> _Inputs:
    """The rows of this host; of several, padded by empty rows that divide over all devices."""
    if team.count == 1:
        return inputs
    padding = -len(inputs.cut_BC) % jax.device_count()
    own = sharding.own_block(len(inputs.cut_BC) + padding)

    def part(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)))[own.start : own.stop]

    # A branch of an empty row still needs a position to its left.
    found = _Inputs(*map(part, inputs))
    return found._replace(cut_BC=np.maximum(found.cut_BC, 1))
