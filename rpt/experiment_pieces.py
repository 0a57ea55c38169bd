"""Pieces: all of an evaluated arm and seed that the report needs, in one small file.

ARM.json.gz is JSON, the same bytes for the same content:

    schema, arm, seed, commit and time (of the evaluation)
    plan         the experiment's, without what the arms change in the config
    claimed      time, commit and plan when the plan's split was first read; null: not recorded
    renewals     time, commit and `changed` (rpt/experiment_preregistration.py) of other plans since
    stages       for the arm and each that it continues, the first first: arm, command, ledger,
                 wall_seconds, data, parameters, gate (threshold, accuracy, passed; or null)
    evaluation   of the plan's split, as in rpt/evaluate.py: settings, test_reading, eval_flops,
                 seconds, parts, gated; params_sha256, positions_sha256, reference_sha256
    history      metrics of its training in at most 100 averages; the steps are their last
    positions    what was measured where it was thought: `part` as runs [name, length],
                 document_id, cut, gate_entropy (nats, rounded); bits, packed and hexadecimal, for
                 each of `bins` and for the rewards raw, header (no thought), sampled, argmax
                 (`thoughts` bits a position)

No paths, and nothing that is not needed: pieces may be published, and the report be made again.
"""

import dataclasses
import functools
import gzip
import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from rpt import config as config_lib
from rpt import (
    config_build,
    evaluate,
    evaluation,
    evaluation_records,
    experiment_config,
    experiment_plan,
    experiment_preregistration,
    files,
)

_SCHEMA, _SUFFIX = 2, ".json.gz"
_HISTORY = (
    *("reward", "accuracy", "no_think_accuracy", "groups_mixed", "answer_rate"),
    *("over_budget_rate", "thought_tokens", "policy_entropy_nats", "ntp_nats"),
)
_HISTORY_POINTS = 100
_ENTROPY_DECIMALS = 6
_PROCESSES = experiment_config.ExperimentConfig().processes


@dataclasses.dataclass(frozen=True)
class Piece:
    """A file as it was read; `content` is all of its JSON."""

    content: dict[str, Any]

    @property
    def arm(self) -> str:
        return self.content["arm"]

    @property
    def seed(self) -> int:
        return self.content["seed"]

    @property
    def params_sha256(self) -> str:
        return self.content["evaluation"]["params_sha256"]

    @property
    def evaluation(self) -> dict[str, Any]:
        return self.content["evaluation"]

    @property
    def stages(self) -> list[dict[str, Any]]:
        return self.content["stages"]

    @functools.cached_property
    def plan(self) -> experiment_config.ExperimentConfig:
        return config_build.build(
            experiment_config.ExperimentConfig, self.content["plan"], "experiment"
        )

    @functools.cached_property
    def recorded(self) -> evaluation_records.Recorded:
        """For comparisons of accuracies; what a piece does not keep is not a number."""
        about = {"positions_sha256": self.evaluation["positions_sha256"], "split": self.plan.split}
        return evaluation_records.Recorded(about, unpack(self.content["positions"]))


def path(root: pathlib.Path, arm: str) -> pathlib.Path:
    return root / "pieces" / f"{arm}{_SUFFIX}"


def read(where: pathlib.Path) -> Piece:
    """Reads one piece.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one.
    """
    if not where.is_file():
        raise FileNotFoundError(f"piece not found: {where}")
    try:
        content = json.loads(gzip.decompress(where.read_bytes()))
        if content["schema"] != _SCHEMA:
            raise ValueError(f"schema {content['schema']}")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where} is no piece of an experiment ({error}); remove it, and run its part again"
        ) from None
    return Piece(content)


def read_folder(folder: pathlib.Path) -> list[Piece]:
    """All pieces in a folder and below it, which belong to one experiment.

    Raises:
      FileNotFoundError: there are none.
      ValueError: a file that is none, two of one arm and seed, or two experiments.
    """
    found: dict[tuple[int, str], pathlib.Path] = {}
    pieces = []
    for where in sorted(folder.rglob(f"*{_SUFFIX}")):
        piece = read(where)
        key = (piece.seed, piece.arm)
        if key in found:
            raise ValueError(
                f"{found[key]} and {where} are of the same arm and seed; name a folder with one"
            )
        found[key] = where
        if pieces and piece.content["plan"] != pieces[0].content["plan"]:
            raise ValueError(
                f"{next(iter(found.values()))} and {where} have different plans; give the command "
                "of the experiment again, which renews them, or name the folder of one experiment"
            )
        pieces.append(piece)
    if not pieces:
        raise FileNotFoundError(f"no pieces (ARM{_SUFFIX}) in {folder} or below it")
    return pieces


def renewed(
    plan: experiment_config.ExperimentConfig, root: pathlib.Path, arms: Iterable[str]
) -> list[Piece]:
    """The pieces of arms of one seed, with the plan as it is now.

    Raises:
      FileNotFoundError: one is missing.
    """
    now, pieces = plan_json(plan), []
    for arm in arms:
        piece = read(path(root, arm))
        if piece.content["plan"] != now:
            piece = Piece({**piece.content, "plan": now, "renewals": _renewals(piece, now)})
            save(path(root, arm), piece.content)
        pieces.append(piece)
    return pieces


def _renewals(piece: Piece, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """With this one, where it is known what was claimed before."""
    claimed, before = piece.content["claimed"], piece.content["renewals"]
    if claimed is None:
        return before
    changed = experiment_preregistration.changes(claimed["plan"], plan)
    return [*before, {**experiment_preregistration.now(), "changed": changed}]


# ---- making one ----------------------------------------------------------------------------------


def write(
    config: config_lib.Config,
    plan: experiment_config.ExperimentConfig,
    root: pathlib.Path,
    arm: str,
) -> None:
    """Makes the piece of an arm of one seed from its runs and its evaluation below `root`.

    Args:
      config: of that seed.
      plan: of all seeds.
      root: of that seed.
      arm: to write.
    """
    folder = root / "evaluation" / arm / config.experiment.split
    table = json.loads((folder / evaluate.RESULTS).read_text())
    measured = evaluation_records.load(folder / evaluate.PREDICTIONS).measured
    kept = ("settings", "test_reading", "eval_flops", "seconds", "parts", "gated")
    content = {
        "schema": _SCHEMA,
        "arm": arm,
        "seed": config.seed,
        **experiment_preregistration.now(),
        "plan": plan_json(plan),
        "claimed": experiment_preregistration.recorded(root, plan.split),
        "renewals": [],
        "stages": [_stage(config, root, name) for name in config.experiment.chain(arm)],
        "evaluation": {
            **{name: table[name] for name in kept},
            "params_sha256": table["model"]["params_sha256"],
            "positions_sha256": table["positions"]["sha256"],
            "reference_sha256": table["reference"]["params_sha256"],
        },
        "history": _history(root / arm / "metrics.jsonl"),
        "positions": pack(measured),
    }
    save(path(root, arm), content)


def save(where: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes the content of a piece, whole or not at all."""
    where.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    files.write(where, gzip.compress(text.encode(), mtime=0))


def plan_json(plan: experiment_config.ExperimentConfig) -> dict[str, Any]:
    """The same for all seeds, machines and numbers of processes."""
    arms = tuple(dataclasses.replace(arm, changes=()) for arm in plan.arms)
    plan = dataclasses.replace(plan, arms=arms, processes=_PROCESSES)
    return config_lib.as_json(plan)


def _stage(config: config_lib.Config, root: pathlib.Path, name: str) -> dict[str, Any]:
    arm = config.experiment.arm(name)
    summary = experiment_plan.summary(root, name)
    gate = experiment_plan.arm_config(config, arm).pretrain.gate
    gated = arm.command == "pretrain" and gate.labels
    return {
        "arm": name,
        "command": arm.command,
        **{key: summary[key] for key in ("ledger", "wall_seconds", "data", "parameters")},
        "gate": {
            "threshold": gate.threshold,
            "accuracy": summary["gate"]["final_accuracy"],
            "passed": summary["gate"]["passed"],
        }
        if gated
        else None,
    }


def _history(where: pathlib.Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in where.read_text().splitlines()]
    size = -(-len(lines) // _HISTORY_POINTS) or 1
    blocks = [lines[start : start + size] for start in range(0, len(lines), size)]
    names = [name for name in _HISTORY if lines and name in lines[0]]
    return {
        "step": [block[-1]["step"] for block in blocks],
        **{
            name: [round(float(np.mean([line[name] for line in block])), 4) for block in blocks]
            for name in names
        },
    }


# ---- positions as bits ---------------------------------------------------------------------------


def pack(measured: evaluation.Measured) -> dict[str, Any]:
    """`positions` of a piece.

    Raises:
      ValueError: a reward that is neither 0 nor 1.
    """
    kept_P = measured.thought_P

    def bits(values: np.ndarray) -> str:
        chosen = np.asarray(values)[kept_P]
        if not np.isin(chosen, (0, 1)).all():
            raise ValueError("a reward of an evaluation is neither 0 nor 1")
        return np.packbits(chosen.astype(bool).reshape(-1)).tobytes().hex()

    return {
        "count": int(kept_P.sum()),
        "thoughts": measured.argmax_reward_PG.shape[1],
        "part": [
            [str(name), len(list(run))] for name, run in itertools.groupby(measured.part_P[kept_P])
        ],
        "document_id": measured.document_id_P[kept_P].tolist(),
        "cut": measured.cut_P[kept_P].tolist(),
        "gate_entropy": measured.gate_entropy_P[kept_P].round(_ENTROPY_DECIMALS).tolist(),
        "bins": {name: bits(bin_P) for name, bin_P in measured.bins.items()},
        "raw": bits(measured.raw_reward_P),
        "header": bits(measured.header_reward_P),
        "sampled": bits(measured.sampled_reward_PG),
        "argmax": bits(measured.argmax_reward_PG),
    }


def unpack(content: dict[str, Any]) -> evaluation.Measured:
    """The inverse of `pack` at the positions that were thought at; the rest is not a number."""
    P, G = content["count"], content["thoughts"]

    def bits(text: str, *shape: int) -> np.ndarray:
        packed = np.frombuffer(bytes.fromhex(text), np.uint8)
        return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)

    def rewards(name: str, *shape: int) -> np.ndarray:
        return bits(content[name], *shape).astype(np.float64)

    parts, lengths = zip(*content["part"]) if content["part"] else ((), ())
    kept = {
        "part_P": np.repeat(np.array(parts, str), np.array(lengths, np.int64)),
        "document_id_P": np.array(content["document_id"], np.int64),
        "cut_P": np.array(content["cut"], np.int64),
        "gate_entropy_P": np.array(content["gate_entropy"], np.float64),
        "raw_reward_P": rewards("raw", P),
        "header_reward_P": rewards("header", P),
        "thought_P": np.ones(P, bool),
        "sampled_reward_PG": rewards("sampled", P, G),
        "argmax_reward_PG": rewards("argmax", P, G),
    }
    names = {f.name for f in dataclasses.fields(evaluation.Measured) if "_P" in f.name}
    unknown = {
        name: np.broadcast_to(np.nan, (P, G) if name.endswith("PG") else (P,))
        for name in names - kept.keys()
    }
    bins = {name: bits(text, P) for name, text in content["bins"].items()}
    return evaluation.Measured(bins=bins, ablations={}, **kept, **unknown)
