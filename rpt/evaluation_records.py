"""predictions.jsonl: what was measured, so that anybody can recompute the tables.

The first line says what it belongs to: split, model, the positions file's hash, the number of
thoughts, the bins.
Then, for every position of the positions file in its order, lines with

    position       index in the positions file, from 0
    part, document_id, cut
    target         bytes of the token to predict
    mode           no_think_raw, no_think_header, thought_sample, thought_argmax, or
                   ablation_NAME in the hard bin (rpt/evaluation_ablations.py)
    sample         index of the thought; null without one
    predicted      bytes; null where there is no answer
    reward         1 or 0, of the bytes (a right prediction may be longer than `target`)
    prob           the target token's probability there: on no_think_* before any thought, on
                   the others after the same thought (0 where it came to no answer)

and in addition on no_think_raw `bins` (those that it stands for), on no_think_header
`gate_entropy` (nats), on thought_sample `thought` (bytes, up to `</think>` or to the end),
`diagnosis`, `over_budget`, `thought_tokens` and `branch_tokens`. Bytes are written as Latin-1 text,
one character a byte.

Letters: P positions, G thoughts per position.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rpt import (
    evaluation,
    evaluation_ablations,
    evaluation_measure,
    evaluation_positions,
    formats,
    rewards,
    statistics,
)


class Said(NamedTuple):
    """Everything that a model said: without a thought in two contexts, after thoughts, and after
    altered ones by name of the ablation."""

    raw: evaluation_measure.NoThink
    header: evaluation_measure.NoThink
    thoughts: evaluation_measure.Thoughts
    ablations: Mapping[str, evaluation_ablations.Answers]


class Recorded(NamedTuple):
    """A predictions.jsonl as it was read."""

    about: dict[str, Any]
    measured: evaluation.Measured


def write(
    path: pathlib.Path,
    about: Mapping[str, Any],
    measured: evaluation.Measured,
    where: evaluation_measure.Sites,
    said: Said,
    token_bytes: Sequence[bytes],
) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(about, allow_nan=False) + "\n")
        for p, target in enumerate(where.targets_P):
            place = {
                "position": p,
                "part": str(measured.part_P[p]),
                "document_id": int(measured.document_id_P[p]),
                "cut": int(measured.cut_P[p]),
                "target": _text(target.first_token),
            }
            for line in _lines(p, measured, said, token_bytes):
                file.write(json.dumps({**place, **line}, allow_nan=False) + "\n")
    temporary.replace(path)


def _lines(p: int, measured, said: Said, token_bytes) -> Iterator[dict[str, Any]]:
    """All lines of one position."""
    raw, header, thoughts, ablations = said
    yield {
        **_line("no_think_raw", None, raw.predicted_P[p], raw.reward_P[p], raw.target_prob_P[p]),
        "bins": [name for name, bin_P in measured.bins.items() if bin_P[p]],
    }
    yield {
        **_line(
            "no_think_header",
            None,
            header.predicted_P[p],
            header.reward_P[p],
            header.target_prob_P[p],
        ),
        "gate_entropy": float(measured.gate_entropy_P[p]),
    }
    if not measured.thought_P[p]:
        return
    for g in range(thoughts.sampled_PG.shape[1]):
        prob = thoughts.target_prob_PG[p, g]
        predicted, reward = thoughts.sampled_PG[p, g], thoughts.sampled_reward_PG[p, g]
        yield {
            **_line("thought_sample", g, predicted, reward, prob),
            "thought": _text(_thought(thoughts.ids_PG[p, g], token_bytes)),
            "diagnosis": rewards.CATEGORIES[thoughts.diagnosis_PG[p, g]],
            "over_budget": bool(thoughts.over_budget_PG[p, g]),
            "thought_tokens": int(thoughts.thought_tokens_PG[p, g]),
            "branch_tokens": int(thoughts.branch_tokens_PG[p, g]),
        }
        predicted, reward = thoughts.argmax_PG[p, g], thoughts.argmax_reward_PG[p, g]
        yield _line("thought_argmax", g, predicted, reward, prob)
        if not measured.bins[measured.hard_bin][p]:
            continue
        for name, (predicted_PG, reward_PG, prob_PG) in ablations.items():
            found = (predicted_PG[p, g], reward_PG[p, g], prob_PG[p, g])
            yield _line(evaluation.ABLATION + name, g, *found)


def _thought(ids: np.ndarray, token_bytes: Sequence[bytes]) -> bytes:
    """What was thought; ids beyond the tokenizer's carry no bytes."""
    data = b"".join(token_bytes[i] for i in ids.tolist() if i < len(token_bytes))
    split = formats.split_thought(data)
    return data if split is None else split[0]


def _line(mode: str, sample: int | None, predicted: bytes | None, reward, prob) -> dict[str, Any]:
    return {
        "mode": mode,
        "sample": sample,
        "predicted": None if predicted is None else _text(predicted),
        "reward": int(reward),
        "prob": float(prob),
    }


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def load(path: pathlib.Path) -> Recorded:
    """Reads predictions.jsonl back into what the tables are made of.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"predictions not found: {path}")
    try:
        with path.open() as file:
            about = json.loads(next(file))
            lines = [json.loads(line) for line in file]
        return Recorded(about, _measured(lines, about["thoughts"], about["bins"]))
    except (ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} is no predictions file: {error!r}") from None


def _measured(lines: list[dict[str, Any]], group: int, bins: list[str]) -> evaluation.Measured:
    raw = [line for line in lines if line["mode"] == "no_think_raw"]
    header = [line for line in lines if line["mode"] == "no_think_header"]
    sampled = [line for line in lines if line["mode"] == "thought_sample"]
    argmax = [line for line in lines if line["mode"] == "thought_argmax"]
    altered: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["mode"].startswith(evaluation.ABLATION):
            name = line["mode"].removeprefix(evaluation.ABLATION)
            altered.setdefault(name, []).append(line)
    count = len(raw)

    def per_thought(chosen: list[dict[str, Any]], value: list[Any], dtype: Any) -> np.ndarray:
        array_PG = np.zeros((count, group), dtype)
        place = [[line["position"] for line in chosen], [line["sample"] for line in chosen]]
        array_PG[tuple(np.array(place, np.int64))] = value
        return array_PG

    def sampled_field(name: str, dtype: Any) -> np.ndarray:
        return per_thought(sampled, [line[name] for line in sampled], dtype)

    thought_P = np.zeros(count, bool)
    thought_P[[line["position"] for line in sampled]] = True
    diagnosis = [rewards.CATEGORIES.index(line["diagnosis"]) for line in sampled]
    return evaluation.Measured(
        part_P=np.array([line["part"] for line in raw]),
        document_id_P=np.array([line["document_id"] for line in raw], np.int64),
        cut_P=np.array([line["cut"] for line in raw], np.int64),
        bins={name: np.array([name in line["bins"] for line in raw]) for name in bins},
        gate_entropy_P=np.array([line["gate_entropy"] for line in header]),
        raw_reward_P=np.array([line["reward"] for line in raw], np.float64),
        raw_prob_P=np.array([line["prob"] for line in raw]),
        header_reward_P=np.array([line["reward"] for line in header], np.float64),
        header_prob_P=np.array([line["prob"] for line in header]),
        thought_P=thought_P,
        sampled_reward_PG=sampled_field("reward", np.float64),
        argmax_reward_PG=per_thought(argmax, [line["reward"] for line in argmax], np.float64),
        target_prob_PG=sampled_field("prob", np.float64),
        diagnosis_PG=per_thought(sampled, diagnosis, np.int64),
        over_budget_PG=sampled_field("over_budget", bool),
        thought_tokens_PG=sampled_field("thought_tokens", np.int64),
        branch_tokens_PG=sampled_field("branch_tokens", np.int64),
        ablations={
            name: evaluation.Ablated(
                *(per_thought(of, [x[key] for x in of], np.float64) for key in ("reward", "prob"))
            )
            for name, of in altered.items()
        },
    )


def measured(
    positions: Sequence[evaluation_positions.Position],
    bins: Mapping[str, np.ndarray],
    thought_P: np.ndarray,
    said: Said,
) -> evaluation.Measured:
    """Joins positions with what a model said at them."""
    raw, header, thoughts, ablations = said
    shared = {field.name for field in dataclasses.fields(evaluation.Measured)}
    return evaluation.Measured(
        part_P=np.array([p.part for p in positions]),
        document_id_P=np.array([p.document_id for p in positions], np.int64),
        cut_P=np.array([p.cut for p in positions], np.int64),
        bins=bins,
        gate_entropy_P=header.entropy_P,
        raw_reward_P=raw.reward_P,
        raw_prob_P=raw.target_prob_P,
        header_reward_P=header.reward_P,
        header_prob_P=header.target_prob_P,
        thought_P=thought_P,
        **{name: value for name, value in thoughts._asdict().items() if name in shared},
        ablations={
            name: evaluation.Ablated(found.reward_PG, found.target_prob_PG)
            for name, found in ablations.items()
        },
    )


def compare(
    a: Recorded,
    b: Recorded,
    bin: str,
    *,
    part: str = evaluation.ALL,
    mode_a: str = "thought_argmax",
    mode_b: str = "thought_argmax",
    threshold_a: float | None = None,
    threshold_b: float | None = None,
    seed: int = 0,
) -> statistics.Estimate:
    """The paired difference a - b between two arms on the identical positions of a bin.

    Args:
      a, b: predictions of two arms, from `load`.
      bin: such as '>1.5', 'all', 'gate', 'label:noise', 'asked' (every label but noise).
      part: part of the mixture.
      mode_a, mode_b: 'no_think' (the better context), 'no_think_raw', 'no_think_header',
        'thought_sample', 'thought_argmax', 'target_probability', or 'ablation_drop' and the
        like in the hard bin.
      threshold_a, threshold_b: think only where the arm's own gate_entropy is above it.
      seed: of the bootstrap.

    Raises:
      ValueError: the arms were not measured on the same positions, or there are none.
    """
    pairs = differences(a, b, bin, part, (mode_a, threshold_a), (mode_b, threshold_b))
    return statistics.mean_estimate(*pairs, seed)


def differences(
    a: Recorded,
    b: Recorded,
    bin: str,
    part: str,
    mode_a: tuple[str, float | None],
    mode_b: tuple[str, float | None],
) -> tuple[np.ndarray, np.ndarray]:
    """a - b at each position, and its document; modes with their thresholds, else as `compare`.

    The arms may have been measured at further positions, each at its own: what counts is that the
    bin of the part holds the same ones in both.

    Raises:
      ValueError: as `compare`.
    """
    for key in ("positions_sha256", "split"):
        if a.about[key] != b.about[key]:
            raise ValueError(
                f"the two predictions have another {key} ({a.about[key]} and {b.about[key]}); "
                "evaluate both arms with the same --positions file"
            )
    masks, places = [], []
    for recorded in (a, b):
        measured = recorded.measured
        if bin != evaluation.ASKED and bin not in measured.bins:
            raise ValueError(f"no bin {bin!r}; there are {', '.join(measured.bins)}")
        mask_P = evaluation.in_bin(measured, bin) & measured.in_part(part)
        masks.append(mask_P)
        identity = (measured.part_P, measured.document_id_P, measured.cut_P)
        places.append([each_P[mask_P] for each_P in identity])
    if not masks[0].any() or not all(map(np.array_equal, *places)):
        raise ValueError(f"bin {bin!r} of part {part!r} is empty, or not the same in both arms")
    difference_P = evaluation.values(a.measured, masks[0], *mode_a) - evaluation.values(
        b.measured, masks[1], *mode_b
    )
    return difference_P, a.measured.document_P[masks[0]]
