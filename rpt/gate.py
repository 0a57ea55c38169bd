"""The gate between stage 0 and RPT: can the model think at all where thinking is easy?"""

from typing import Any

import numpy as np

from data import pipeline, tokenizers
from rpt import config, formats, ledger, loading, rollout, scoring
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
    ):
        gate = experiment.pretrain.gate
        template = formats.load_template(experiment.data.template)
        header = loading.header_ids(tokenizer, template.header, experiment.data.add_bos)
        mix = loading.open_mix(gate.spec, weight=1.0, name="gate")
        self._batch = next(
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
        self._cut_BC, self._valid_BC = labelled_cuts(self._batch, gate.labels)
        if not self._valid_BC.any():
            raise ValueError(f"pretrain.gate: no document of {gate.spec} has {gate.labels}")
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
        batch, model = self._batch, self._model
        _, kv = scoring.score_trunk(
            model, params, batch.tokens_BS, batch.segments_BS, batch.positions_BS
        )
        result = rollout.rollout(
            model, self._config, params, self._tables, kv, self._cut_BC, self._valid_BC,
            seed=0, step=0, document_ids_B=batch.document_ids_B,
        )  # fmt: skip
        start_BR1 = np.maximum(result.answer_start_BR, 0)[..., None]
        answer_BR = np.take_along_axis(result.tokens_BRT, start_BR1, axis=2)[..., 0]
        target_BR = np.take_along_axis(batch.tokens_BS, self._cut_BC, axis=1)
        right_BR = (answer_BR == target_BR) & (result.answer_start_BR >= 0)
        B, S = batch.tokens_BS.shape
        _, spent = ledger.decode_flops(model, B, S, result.decode_steps)
        spent += ledger.trunk_flops(model, B, S, passes=1)
        return float(right_BR[self._valid_BC].mean()), spent
