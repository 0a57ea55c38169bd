"""The gate between stage 0 and RPT: can the model think at all where thinking is easy?"""

from typing import Any

import numpy as np

from data import pipeline, tokenizers
from rpt import config, formats, ledger, loading, positions, rollout, scoring
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
    ):
        gate = experiment.pretrain.gate
        template = formats.load_template(experiment.data.template)
        header = loading.header_ids(tokenizer, template.header, experiment.data.add_bos)
        self._parts: dict[str, tuple[pipeline.TrunkBatch, np.ndarray, np.ndarray]] = {}
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
            self._parts[mix.name] = batch, cut_BC, valid_BC
        self._config = rollout.RolloutConfig(
            group_size=1,
            think_tokens=experiment.rollout.think_tokens,
            answer_format=experiment.rollout.answer_format,
            answer_tokens=1,
            chunk_tokens=experiment.rollout.think_tokens,
        )
        self._model = model
        self._tables = rollout.make_tables(tokenizer, template, model.vocab_size)

    def accuracy(self, params: Any) -> tuple[dict[str, float], int]:
        """By part, the share of its labelled tokens that one sampled thought predicts; FLOPs."""
        found = {name: self._of_part(params, *part) for name, part in self._parts.items()}
        return (
            {name: share for name, (share, _) in found.items()},
            sum(spent for _, spent in found.values()),
        )

    def _of_part(
        self, params: Any, batch: pipeline.TrunkBatch, cut_BC: np.ndarray, valid_BC: np.ndarray
    ) -> tuple[float, int]:
        model = self._model
        _, kv = scoring.score_trunk(
            model, params, batch.tokens_BS, batch.segments_BS, batch.positions_BS
        )
        result = rollout.rollout(
            model, self._config, params, self._tables, kv, cut_BC, valid_BC,
            seed=0, step=0, document_ids_B=batch.document_ids_B,
        )  # fmt: skip
        start_BR1 = np.maximum(result.answer_start_BR, 0)[..., None]
        answer_BR = np.take_along_axis(result.tokens_BRT, start_BR1, axis=2)[..., 0]
        target_BR = np.take_along_axis(batch.tokens_BS, cut_BC, axis=1)
        right_BR = (answer_BR == target_BR) & (result.answer_start_BR >= 0)
        B, S = batch.tokens_BS.shape
        _, spent = ledger.decode_flops(model, B, S, result.decode_steps)
        spent += ledger.trunk_flops(model, B, S, passes=1)
        return float(right_BR[valid_BC].mean()), spent
