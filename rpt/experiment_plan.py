"""From an experiment's config to its parts: what is run, with which config, after what.

Every seed has a part for each arm, `positions` (the shared file of evaluated positions, made by the
reference, an arm or a checkpoint) and `evaluate_ARM` for each evaluated arm. Parts are called
'rpt', or 'seed1/rpt' where there are several seeds; seed 1 is then an experiment of its own in the
folder seed1.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from rpt import config as config_lib
from rpt import evaluation, evaluation_positions, experiment_config, pretrain
from rpt.model import config as model_config

POSITIONS, EVALUATE = "positions", "evaluate_"
Kind = Literal["pretrain", "train", "positions", "evaluate"]


@dataclasses.dataclass(frozen=True)
class Part:
    """What one process does.

    Attributes:
      name: with its seed's folder, if there is one.
      seed: of its experiment.
      folder: of its experiment below the working directory; '' is that itself.
      kind: what it resembles in cost.
      arm: that it trains or evaluates; '' for the positions.
      needs: names of the parts before it.
      splits: of the held-out text that the experiment reads.
    """

    name: str
    seed: int
    folder: str
    kind: Kind
    arm: str
    needs: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def own_name(self) -> str:
        """Within its seed's experiment."""
        return self.name.rpartition("/")[2]

    def root(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / self.folder


def seeds(config: config_lib.Config) -> tuple[int, ...]:
    """Those of the plan, or the config's own."""
    return config.experiment.seeds or (config.seed,)


def folder(config: config_lib.Config, seed: int) -> str:
    """Of one seed's experiment: '' where there is one seed alone."""
    return f"seed{seed}" if config.experiment.seeds else ""


def of_seed(config: config_lib.Config, seed: int) -> config_lib.Config:
    """One seed's experiment as one that stands alone.

    It evaluates documents of its own: an interval that pools seeds takes documents of different
    seeds for different ones. A split that holds few, such as pydoc's, has the same in every seed.
    """
    plan = dataclasses.replace(config.experiment, seeds=())
    evaluate = dataclasses.replace(config.evaluate, seed=seed)
    return dataclasses.replace(config, seed=seed, evaluate=evaluate, experiment=plan)


def parts(config: config_lib.Config) -> dict[str, Part]:
    """All parts by name, in the order of starting: each after what it needs, seed after seed."""
    found = [part for seed in seeds(config) for part in _parts_of_seed(config, seed)]
    return {part.name: part for part in found}


def _parts_of_seed(config: config_lib.Config, seed: int) -> list[Part]:
    """An arm is evaluated as soon as it and the positions are there: faults show early."""
    plan, where = config.experiment, folder(config, seed)
    prefix = f"{where}/" if where else ""

    def part(name: str, kind: Kind, arm: str, *needs: str) -> Part:
        before = tuple(prefix + needed for needed in dict.fromkeys(needs) if needed)
        return Part(prefix + name, seed, where, kind, arm, before, plan.splits)

    found: list[Part] = []
    trained: list[str] = []
    if not plan.reference_is_arm:
        found.append(part(POSITIONS, "positions", ""))
    for arm in experiment_config.in_order(plan):
        found.append(part(arm.name, arm.command, arm.name, arm.init, arm.flops_of))
        trained += [arm.name] if arm.evaluated else []
        if arm.name == plan.reference:
            found.append(part(POSITIONS, "positions", "", arm.name))
        if any(other.kind == "positions" for other in found):
            found += [part(EVALUATE + a, "evaluate", a, a, POSITIONS) for a in trained]
            trained = []
    return found


# ---- configs -------------------------------------------------------------------------------------


def arm_config(config: config_lib.Config, arm: experiment_config.ArmConfig) -> config_lib.Config:
    """The config of one arm of one seed, without what depends on other runs.

    It knows nothing of the other arms, so that these may change without it.

    Raises:
      ValueError: a change that the config refuses.
    """
    try:
        found = config_lib.changed(config, arm.changes)
    except ValueError as error:
        raise ValueError(f"arm {arm.name}: {error}") from None
    return dataclasses.replace(
        found,
        seed=found.seed + arm.seed_offset,
        experiment=experiment_config.ExperimentConfig(),
    )


def training_config(
    config: config_lib.Config, root: pathlib.Path, arm: experiment_config.ArmConfig
) -> config_lib.Config:
    """An arm's config with what other runs below `root` decide: where it starts, how long it is."""
    found = arm_config(config, arm)
    if arm.command == "train" and arm.init:
        settings = dataclasses.replace(found.train, init=str(root / arm.init))
        found = dataclasses.replace(found, train=settings)
    if arm.flops_of:
        budget = summary(root, arm.flops_of)["ledger"]["training_flops"] * arm.flops_factor
        control = found.pretrain
        steps = math.ceil(budget / pretrain.step_flops(_model(found, root, arm), control))
        optimizer = dataclasses.replace(control.optimizer, decay_steps=steps)
        control = dataclasses.replace(control, steps=steps, optimizer=optimizer)
        found = dataclasses.replace(found, pretrain=control)
    return found


def _model(
    config: config_lib.Config, root: pathlib.Path, arm: experiment_config.ArmConfig
) -> model_config.ModelConfig:
    """The shape that the arm will have; fresh weights from a checkpoint are those of `flops_of`."""
    if not arm.init and config.model is not None:
        return config.model
    path = root / (arm.init or arm.flops_of) / "model.json"
    return config_lib.model_from_json(json.loads(path.read_text()))


def evaluation_config(
    config: config_lib.Config, root: pathlib.Path, arm: experiment_config.ArmConfig | None
) -> config_lib.Config:
    """An arm's config, without one the experiment's own, with the experiment's reference."""
    found, plan = config if arm is None else arm_config(config, arm), config.experiment
    reference = str(root / plan.reference) if plan.reference_is_arm else plan.reference
    return dataclasses.replace(
        found, evaluate=dataclasses.replace(found.evaluate, reference=reference)
    )


def summary(root: pathlib.Path, arm: str) -> dict[str, Any]:
    """summary.json of an arm's run."""
    return json.loads((root / arm / "summary.json").read_text())


# ---- checks --------------------------------------------------------------------------------------


def check(config: config_lib.Config) -> None:
    """Finds before the first part what would be missed hours later.

    Raises:
      ValueError: no arm to evaluate, a change that the config refuses, no gated positions, or a
        claim about text that is not evaluated, or about gated thinking of an arm without.
    """
    plan, settings = config.experiment, config.evaluate
    if not any(arm.evaluated for arm in plan.arms):
        raise ValueError("an experiment needs config.experiment.arms, one of them evaluated")
    if not settings.gate_documents:
        raise ValueError("an experiment needs config.evaluate.gate_documents")
    found = {arm.name: arm_config(config, arm) for arm in plan.arms}
    named = [part.name for part in settings.mixture(plan.split)]
    _one_of(plan.claim_part, named, "config.experiment.claim_part")
    bins = bin_names(settings.bins_nats)
    for claim in plan.claims:
        _one_of(claim.part, [evaluation.ALL, *named], f"claim {claim.name}: part")
        if not claim.bin.startswith("label:"):
            _one_of(claim.bin, ["", *bins], f"claim {claim.name}: bin")
        if "gated" in (claim.mode_a, claim.mode_b) or claim.bin == evaluation.GATE:
            for arm in (claim.a, claim.b):
                if not found[arm].evaluate.gate_documents:
                    raise ValueError(
                        f"claim {claim.name} is about gated thinking, but arm {arm} has "
                        "evaluate.gate_documents=0"
                    )


def bin_names(bins_nats: Sequence[float]) -> list[str]:
    """All that an evaluation has, but for labels."""
    limits = evaluation_positions.nested_and_disjoint(bins_nats)
    return [evaluation.ALL, evaluation.GATE, evaluation.ASKED, *limits]


def _one_of(value: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        names = ", ".join(filter(None, known)) or "(none)"
        raise ValueError(f"{what}={value!r} is not evaluated; choose one of {names}")
