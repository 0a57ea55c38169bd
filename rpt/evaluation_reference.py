"""The positions file of an evaluation: reused if it is there, else made by the frozen reference."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from data import tokenizers
from rpt import checkpoint, evaluation_measure, evaluation_positions, loading
from rpt import config as config_lib


def open_positions(
    config: config_lib.Config,
    loaded: loading.Loaded,
    mixture: config_lib.Mixture,
    path: pathlib.Path,
    say: Callable[[str], None],
) -> tuple[evaluation_positions.PositionsFile, list[evaluation_positions.Row]]:
    """Reads the positions file, or has the reference make it; and the rows it speaks of.

    Raises:
      ValueError: the file was made for something else, or there is neither file nor reference.
      FileNotFoundError: the reference is not there.
    """
    settings, tokenizer = config.evaluate, loaded.tokenizer
    min_context = max(config.positions.min_context, 1)
    expected = {
        "tokenizer": tokenizer.digest(),
        **text_of(settings, mixture),
        "min_context": min_context,
        "answer_format": config.rollout.answer_format,
    }
    exists = path.is_file()
    if exists:
        about = evaluation_positions.read(path).about
        evaluation_positions.check(path, about, expected)
        window_tokens = about["window_tokens"]
    else:
        prefix = evaluation_measure.subject(config, loaded, 0).header
        window_tokens = config.train.seq_len - len(prefix)
    rows = evaluation_positions.read_rows(
        mixture,
        tokenizer,
        documents=settings.documents,
        window_tokens=window_tokens,
        min_context=min_context,
        seed=settings.seed,
    )
    text = {"rows_sha256": evaluation_positions.rows_sha256(rows)}
    if exists:
        evaluation_positions.check(path, evaluation_positions.read(path).about, text)
    else:
        say(f"making {path} with the reference {settings.reference}")
        about = {**expected, "window_tokens": window_tokens, **text}
        _make_positions(config, tokenizer, rows, path, about)
    return evaluation_positions.read(path), rows


def text_of(settings: config_lib.EvaluateConfig, mixture: config_lib.Mixture) -> dict[str, Any]:
    """Which documents a positions file is about, as its first line says it."""
    return {
        "mixture": [[part.name, part.spec, part.weight] for part in mixture],
        "documents": settings.documents,
        "seed": settings.seed,
    }


def _make_positions(
    config: config_lib.Config,
    tokenizer: tokenizers.Tokenizer,
    rows: list[evaluation_positions.Row],
    path: pathlib.Path,
    about: dict[str, Any],
) -> None:
    """bin_entropy of every eligible position under the frozen reference."""
    if not config.evaluate.reference:
        raise ValueError(
            "no positions file yet: set config.evaluate.reference to the frozen model that makes "
            "it, or pass --positions"
        )
    reference = loading.load_any(config.evaluate.reference)
    if reference.tokenizer.digest() != tokenizer.digest():
        raise ValueError(
            f"the reference {config.evaluate.reference} has another tokenizer than the model"
        )
    eligible = evaluation_positions.eligible_by_row(
        rows, tokenizer, about["answer_format"], about["min_context"]
    )
    places = [(b, int(i)) for b, row in enumerate(eligible) for i in row]
    found = [
        evaluation_positions.Position(
            part=rows[b].part,
            document_id=rows[b].document_id,
            row=b,
            start=rows[b].start,
            cut=rows[b].start + i,
            bin_entropy=0.0,
            label=rows[b].labels.get(i, ""),
        )
        for b, i in places
    ]
    subject = evaluation_measure.subject(config, reference, about["window_tokens"])
    where = evaluation_measure.sites(rows, found, subject.token_bytes)
    scores, _ = evaluation_measure.no_think(subject, where, subject.raw_prefix)
    about["reference"] = {
        "path": config.evaluate.reference,
        "params_sha256": checkpoint.params_sha256(reference.params),
    }
    found = [
        dataclasses.replace(position, bin_entropy=round(float(nats), 6))
        for position, nats in zip(found, scores.entropy_P, strict=True)
    ]
    evaluation_positions.write(path, about, found)
