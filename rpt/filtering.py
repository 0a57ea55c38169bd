"""Where filter_entropy comes from, by which training positions are chosen.

    policy     the trunk pass that the step makes anyway (the default)
    proxy      a frozen model, one more trunk pass a step (config.positions.proxy); 'init' is the
               policy before its first step, the warm-up behind it, of which the run keeps a copy
    index      what a proxy said about the corpus beforehand (config.positions.index, rpt/index.py)

Proxy and index have the policy's tokenizer.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from data import difficulty, pipeline, tokenizers
from rpt import config, ledger, loading, scoring, sharding
from rpt.model import config as model_config

INIT = "init"  # config.positions.proxy: the policy as it began


class Proxy(NamedTuple):
    """A frozen model."""

    model: model_config.ModelConfig
    params: Any


@dataclasses.dataclass(frozen=True)
class Filter:
    """At most one of the two; none is the policy itself."""

    proxy: Proxy | None = None
    index: difficulty.Index | None = None


def open_filter(
    settings: config.PositionsConfig, tokenizer: tokenizers.Tokenizer, mesh: Mesh
) -> Filter:
    """What the config names; a proxy is spread over the mesh. For INIT see `frozen`.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it has another tokenizer than the policy, or cannot be read.
    """
    if settings.index:
        return Filter(index=difficulty.Index(settings.index, tokenizer.digest()))
    if settings.proxy in ("", INIT):
        return Filter()
    proxy = loading.load_any(settings.proxy)
    if proxy.tokenizer.digest() != tokenizer.digest():
        raise ValueError(
            f"the proxy {settings.proxy} has another tokenizer than the policy; "
            "choose a proxy with the same one"
        )
    return frozen(proxy.model, loading.place(mesh, proxy.model, proxy.params))


def frozen(model: model_config.ModelConfig, params: Any) -> Filter:
    """A proxy of parameters on the mesh: of INIT the policy's own, before its first step."""
    return Filter(proxy=Proxy(model, params))


def check(chosen: Filter, batch: pipeline.TrunkBatch) -> None:
    """Whether an index is of this text at all, by the first batch.

    Raises:
      ValueError: none of its documents is in the index.
    """
    if chosen.index is not None and chosen.index.trunk_entropies(batch)[1] == 0:
        raise ValueError(
            "no document of the first batch is in the difficulty index of config.positions.index; "
            "run python -m rpt.index over the source that is trained on"
        )


def entropies(
    chosen: Filter,
    batch: pipeline.TrunkBatch,
    scores: scoring.TrunkScores,
    inputs: tuple[Any, Any, Any],
) -> tuple[np.ndarray, float | None]:
    """filter_entropy [B, S] of a step, and the share of its documents that the index has, if any.

    Of the rows of this host.

    Args:
      chosen: where it comes from.
      batch: the step's documents.
      scores: of the policy.
      inputs: the batch's tokens, segments and positions on the mesh, for a proxy.
    """
    if chosen.index is not None:
        return chosen.index.trunk_entropies(batch)
    if chosen.proxy is not None:
        scores, _ = scoring.score_trunk(chosen.proxy.model, chosen.proxy.params, *inputs)
    return sharding.own_rows(scores.filter_entropy_BS), None


def account(chosen: Filter, book: ledger.Ledger) -> ledger.Ledger:
    """Adds what scoring beforehand has executed: the whole index, once per run."""
    if chosen.index is None:
        return book
    tokens, flops = chosen.index.cost
    return book.add("score", tokens, flops).add_rows(flops)


def context_note(chosen: Filter, header_ids: np.ndarray, settings: config.Config) -> str | None:
    """What differs between the contexts of the index and of the run; None if nothing does."""
    if chosen.index is None:
        return None
    about = chosen.index.about
    pairs = {
        "header": (about.header_ids, tuple(header_ids.tolist())),
        "seq_len": (about.seq_len, settings.train.seq_len),
        "min_context": (about.min_context, settings.positions.min_context),
    }
    different = [
        f"{name} {then} instead of {now}" if name != "header" else "another header"
        for name, (then, now) in pairs.items()
        if then != now
    ]
    if not different:
        return None
    return f"the difficulty index saw other contexts than this run: {', '.join(different)}"
