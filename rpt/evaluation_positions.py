"""Where arms are compared: the positions file, and which of its positions are thought at.

The file is made once, by one frozen reference model, and reused by every arm.
Its first line says how it was made; each further line is one eligible position, in order:

    {"part": "stories", "document_id": 7, "row": 0, "start": 0, "cut": 31,
     "bin_entropy": 2.301, "label": "answer/2"}

`part` names a part of the mixture, `row` counts the evaluated rows (a document, or a window of a
long one, that begins at its token `start`), `cut` is the document's token to predict, and
bin_entropy is in nats, over the full vocabulary, from bos and document alone.

Letters: P positions, B rows, S trunk positions.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data import pipeline, tokenizers
from rpt import config, formats, loading, positions

ALL, GATE = "all", "gate"
_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A document, or one window of a long one.

    Attributes:
      part: name of its part of the mixture.
      document_id: as in the source.
      start: the window's first token within the document.
      tokens: int32, from the window's first token to the document's END, past the window.
      window: how many of them stand in the trunk.
      labels: of tokens, by their index in `tokens`.
    """

    part: str
    document_id: int
    start: int
    tokens: np.ndarray
    window: int
    labels: Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class Position:
    """One line of the file."""

    part: str
    document_id: int
    row: int
    start: int
    cut: int
    bin_entropy: float
    label: str


@dataclasses.dataclass(frozen=True)
class PositionsFile:
    """What was read: how it was made, its positions, and the hash of its bytes."""

    about: dict[str, Any]
    positions: tuple[Position, ...]
    sha256: str


def read_rows(
    mixture: config.Mixture,
    tokenizer: tokenizers.Tokenizer,
    *,
    documents: int,
    window_tokens: int,
    min_context: int,
    seed: int,
) -> list[Row]:
    """The first rows of each part, `documents` times its weight, in the order that `seed` fixes.

    As many different documents as there are: a second window of a document is taken only where
    the part has fewer documents than rows are wanted.

    Raises:
      ValueError: no part, a name used twice or reserved, or a part without a usable document.
    """
    parts = loading.open_mixture(mixture)
    names = [part.name for part in parts]
    if len(set(names)) < len(names) or ALL in names:
        raise ValueError(f"parts of an evaluation need names of their own, not {ALL!r}: {names}")
    rows: list[Row] = []
    for part in parts:
        stream = pipeline.trunk_batches(
            [part],
            tokenizer,
            batch_size=1,
            seq_len=window_tokens,
            header_ids=np.zeros(0, np.int32),
            min_context=min_context,
            seed=seed,
            epochs=1,
        )
        wanted = max(1, round(documents * part.weight))
        seen: set[int] = set()
        first: list[Row] = []
        further: list[Row] = []
        for batch in stream:
            if not batch.lengths_B[0]:
                continue
            row = _row(part.name, batch)
            if row.document_id not in seen:
                seen.add(row.document_id)
                first.append(row)
            elif len(further) < wanted:
                further.append(row)
            if len(first) == wanted:
                break
        rows += [*first, *further][:wanted]
    return rows


def _row(part: str, batch: pipeline.TrunkBatch) -> Row:
    return Row(
        part=part,
        document_id=int(batch.document_ids_B[0]),
        start=int(batch.starts_B[0]),
        tokens=batch.documents[0],
        window=int(batch.lengths_B[0]),
        labels=dict(batch.labels[0]),
    )


def rows_sha256(rows: Sequence[Row]) -> str:
    """One digest of which rows there are and of all their tokens."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.part}\n{row.document_id} {row.start} {row.window}\n".encode())
        digest.update(np.ascontiguousarray(row.tokens, np.int32).tobytes())
    return digest.hexdigest()


def eligible_by_row(
    rows: Sequence[Row],
    tokenizer: tokenizers.Tokenizer,
    answer_format: formats.AnswerFormat,
    min_context: int,
) -> list[np.ndarray]:
    """For every row, the indices into `tokens` at which a prediction may be asked for."""
    raw = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    tokens_BS = np.zeros((len(rows), max(row.window for row in rows)), np.int32)
    for b, row in enumerate(rows):
        tokens_BS[b, : row.window] = row.tokens[: row.window]
    eligible_BS = positions.eligible_cuts(
        tokens_BS,
        np.array([row.window for row in rows]),
        0,
        max(min_context, 1),
        tokenizer.special_ids,
        formats.expressible_table(raw, answer_format),
    )
    return [np.flatnonzero(eligible_S) for eligible_S in eligible_BS]


def write(path: pathlib.Path, about: Mapping[str, Any], found: Sequence[Position]) -> None:
    """Whole or not at all."""
    lines = [{"version": _VERSION, **about}, *map(dataclasses.asdict, found)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)


def read(path: pathlib.Path) -> PositionsFile:
    """Reads a positions file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"positions file not found: {path}")
    content = path.read_bytes()
    try:
        about, *lines = [json.loads(line) for line in content.splitlines()]
        if about["version"] != _VERSION:
            raise ValueError(f"version {about['version']}")
        found = tuple(Position(**line) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no positions file ({error}); remove it or name another"
        ) from None
    return PositionsFile(about, found, hashlib.sha256(content).hexdigest())


def read_about(path: pathlib.Path) -> dict[str, Any]:
    """The first line of a positions file that is there.

    Raises:
      ValueError: it is none.
    """
    with path.open() as file:
        try:
            return json.loads(file.readline())
        except ValueError as error:
            raise ValueError(
                f"{path} is no positions file ({error}); remove it or name another"
            ) from None


def check(path: pathlib.Path, about: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses a file made for other text, another tokenizer or other settings."""
    for key, value in expected.items():
        if about.get(key) != value:
            raise ValueError(
                f"{path} was made with another {key} ({about.get(key)!r}, now {value!r}); all arms "
                "must share one file: use its settings, or name another with --positions"
            )


def bin_name(low: float | None, high: float | None) -> str:
    """'>1.5', '<=0.5' or '0.5..1.0'."""
    if high is None:
        return f">{low}"
    return f"<={high}" if low is None else f"{low}..{high}"


def hardest(names: Iterable[str]) -> str:
    """The bin above the last limit, among names of bins; '' where there is none."""
    nested = [name for name in names if name.startswith(">")]
    return max(nested, key=lambda name: float(name[1:]), default="")


def nested_and_disjoint(bins_nats: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Every bin's open lower and closed upper limit, hardest first, without the bin 'all'."""
    limits = list(bins_nats)
    nested = {bin_name(low, None): (low, np.inf) for low in reversed(limits)}
    disjoint = {
        bin_name(low, high): (-np.inf if low is None else low, high)
        for low, high in zip([None, *limits[:-1]], limits)
    }
    return nested | disjoint


def choose(
    found: Sequence[Position], settings: config.EvaluateConfig, mixture: config.Mixture
) -> dict[str, np.ndarray]:
    """bool [P] for every bin: which positions stand for it.

    Of each document, a bin takes the first few in one pseudo-random order, so the bins overlap
    and few positions serve all. GATE holds every position of the first documents of each part of
    the mixture, as many as `gate_documents` times its weight; 'label:NAME' holds every position
    with that label. A position is thought at if any bin holds it.
    """
    row_P = np.array([p.row for p in found], np.int64)
    entropy_P = np.array([p.bin_entropy for p in found], np.float64)
    order_P = _shuffle(row_P, np.array([p.cut for p in found], np.int64), settings.seed)
    most, others = settings.positions_per_document, settings.other_positions_per_document
    bins = {ALL: _first(np.ones(len(found), bool), row_P, order_P, others)}
    limits = nested_and_disjoint(settings.bins_nats)
    for name, (low, high) in limits.items():
        inside_P = (entropy_P > low) & (entropy_P <= high)
        count = most if name == hardest(limits) else others
        bins[name] = _first(inside_P, row_P, order_P, count)
    gate_P = np.zeros(len(found), bool)
    part_P = np.array([p.part for p in found])
    for part in mixture:
        of_part = part_P == part.name
        wanted = math.ceil(settings.gate_documents * part.weight)
        gate_P |= of_part & np.isin(row_P, np.unique(row_P[of_part])[:wanted])
    bins[GATE] = gate_P
    label_P = np.array([p.label for p in found])
    for label in sorted(set(label_P.tolist()) - {""}):
        bins[f"label:{label}"] = label_P == label
    return bins


def _first(inside_P, row_P, order_P, count: int) -> np.ndarray:
    """Of each row, the first `count` members in the order of `order_P`."""
    chosen_P = np.zeros(len(inside_P), bool)
    members = np.flatnonzero(inside_P)
    members = members[np.lexsort((order_P[members], row_P[members]))]
    rows = row_P[members]
    first_of_row = np.searchsorted(rows, rows)
    chosen_P[members[np.arange(len(members)) - first_of_row < count]] = True
    return chosen_P


def _shuffle(row_P: np.ndarray, cut_P: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [P]: the splitmix64 finaliser of (seed, row, cut)."""
    x = row_P.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x ^= cut_P.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
    x += np.uint64((seed * 0x8CB92BA72F3D8DD7 + 0x9E3779B97F4A7C15) & (2**64 - 1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
