"""One experiment as frozen dataclasses: what configs/*.py say, checked and hashable.

`from_config_dict` is the only place that meets a ConfigDict. Sections map one to one onto the
dataclasses below; a field that does not exist, or a value that a class refuses, is one line.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import ml_collections

from rpt import (
    config_build,
    experiment_config,
    objectives,
    optimizers,
    positions,
    profiling,
    rewards,
    sharding,
)
from rpt import rollout as rollout_lib
from rpt import watch as watch_lib
from rpt.model import config as model_config


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One part of a mixture: a name for reports, a spec of data.sources, a weight."""

    name: str
    spec: str
    weight: float


Mixture = tuple[SourceConfig, ...]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where text comes from.

    Attributes:
      weights: what the model starts from: a Hugging Face folder, a GGUF file (of this machine or
        gs://...), 'fetch:NAME', or '' for a fresh model of `model`.
      tokenizer: 'weights' (the one that comes with them), 'bytes', a path, or 'miniature:V' (a
        byte-level BPE of V tokens trained on the miniature and pydoc).
      template: a file with header, tail, close and suffix.
      add_bos: whether every trunk row begins with the tokenizer's bos token.
      shards: of every training stream, a multiple of the number of hosts, each of which reads its
        own. The order of the data depends on it, and not on the hosts (docs/data-order.md).
      dtype, remat: of a model that comes with `weights`, as in ModelConfig.
    """

    weights: str = ""
    tokenizer: str = "weights"
    template: str = ""
    add_bos: bool = True
    shards: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """When stage 0 may end: with-thought accuracy on validation answers of shallow depth.

    Attributes:
      mixture: validation sources with labels; the weights do not matter.
      labels: which labelled tokens count, such as 'answer/1'; none means no gate.
      threshold: accuracy to reach in every part of the mixture.
      every_steps: how often to look, from `first_step` on.
      max_steps: where the decay begins even if the gate was never passed.
      documents: how many are measured of each part.
    """

    mixture: Mixture = ()
    labels: tuple[str, ...] = ()
    threshold: float = 0.9
    first_step: int = 0
    every_steps: int = 100
    max_steps: int = 0
    documents: int = 64

    def __post_init__(self):
        if self.every_steps < 1 or self.documents < 1:
            raise ValueError("every_steps and documents must be at least 1")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Next-token prediction on packed rows.

    `steps` counts all, the decay at the end included; with a gate the decay begins once it is
    passed, so the number varies.
    """

    mixture: Mixture = ()
    opening_mixture: Mixture = ()
    opening_steps: int = 0
    steps: int = 0
    batch_size: int = 16
    seq_len: int = 256
    optimizer: optimizers.OptimizerConfig = optimizers.OptimizerConfig()
    gate: GateConfig = GateConfig()


@dataclasses.dataclass(frozen=True)
class PositionsConfig:
    """Where to think; entropies in nats, see rpt/positions.py.

    Attributes:
      proxy: run directory, checkpoint or 'fetch:NAME' whose frozen model gives the filter
        entropies; 'init' is the policy before its first step, of which the run keeps a copy; '' is
        the policy.
      index: instead, the folder of a difficulty index that a proxy has made (rpt/index.py).
      labels: only tokens with one of these labels, all of them if none is given; 'answer' is also
        'answer/3'. With mode 'random' that is reinforcement learning on verifiable answers.
    """

    mode: Literal["entropy", "random"] = "entropy"
    cuts_per_document: int = 4
    low_nats: float = 1.5
    high_nats: float = 100.0
    random_fraction: float = 0.0
    min_context: int = 8
    proxy: str = ""
    index: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        if self.proxy and self.index:
            raise ValueError("give a proxy or an index of what a proxy said, not both")
        if self.cuts_per_document < 1 or self.min_context < 1:
            raise ValueError("cuts_per_document and min_context must be at least 1")
        positions.check_band(self.low_nats, self.high_nats)
        positions.check_random_fraction(self.random_fraction)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The reward and what becomes of it within a group, see rpt/rewards.py, rpt/advantages.py.

    Attributes:
      groups_per_document: trained on per step, those of highest reward variance; 0 is all that
        have any. A bound per document keeps the documents of a batch equally full.
      dynamic_from_step: from here on, cuts are sampled again until `target_groups` groups have
        a gradient or `max_rounds` rounds are over (DAPO); -1 never.
    """

    name: str = "prefix_match"
    all_wrong_reward: float = 0.0
    normalise: Literal["std", "none"] = "std"
    ddof: Literal[0, 1] = 1
    epsilon: float = 1e-6
    leave_one_out: bool = False
    groups_per_document: int = 0
    dynamic_from_step: int = -1
    target_groups: int = 0
    max_rounds: int = 1

    def __post_init__(self):
        if self.name not in rewards.REWARDS:
            known = ", ".join(rewards.REWARDS)
            raise ValueError(f"unknown reward {self.name!r}; choose one of {known}")
        if self.all_wrong_reward > 0:
            raise ValueError(f"all_wrong_reward must be at most 0, not {self.all_wrong_reward}")
        if self.max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, not {self.max_rounds}")
        if self.dynamic_from_step >= 0 and (self.target_groups < 1 or self.max_rounds < 2):
            raise ValueError(
                "dynamic sampling (dynamic_from_step) needs target_groups >= 1 and max_rounds >= 2"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Reinforcement pre-training, one document per trunk row.

    Attributes:
      init: run directory (also gs://...) to take parameters and tokenizer from, or '' to start
        from data.weights.
      micro_branches: branches per document in one micro-batch of the update.
      t_multiple: the positions that a micro-batch runs are a multiple of this; on TPU at least of
        8, better of 128.
      warmup_steps: supervised steps before RPT on self-generated well-formed thoughts, see
        rpt/warmup.py; 0 has none.
      warmup_cuts_per_document: each with one thought.
      warmup_learning_rate: of the warm-up's AdamW.
    """

    init: str = ""
    mixture: Mixture = ()
    steps: int = 0
    batch_size: int = 16
    seq_len: int = 96
    micro_branches: int = 64
    t_multiple: int = 8
    optimizer: optimizers.OptimizerConfig = optimizers.OptimizerConfig()
    warmup_steps: int = 0
    warmup_cuts_per_document: int = 8
    warmup_learning_rate: float = 1e-4


Ablation = Literal["none", "drop", "shuffle", "swap", "truncate", "filler"]


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on positions of held-out documents, see rpt/evaluate.py.

    Attributes:
      validation, test: mixtures; documents are taken in a fixed order.
      reference: run directory, Hugging Face folder, GGUF file or 'fetch:NAME' of the frozen model
        behind bin_entropy.
      documents: of each part of the mixture, times its weight; where there are fewer, further
        windows of long ones.
      gate_documents: documents of each part, times its weight, of which every position is thought
        at, for the gated curve.
      positions_per_document: thought at in the hardest bin, at most.
      other_positions_per_document: thought at in each other bin, at most.
      thoughts: per position.
      temperature: of the thoughts and of the sampled answers.
      batch_size: trunk rows.
      bins_nats: ascending limits of the bins of bin_entropy; above the last is hard.
      ablations: what is done to the thoughts of the hard bin before the answer is read again, see
        rpt/evaluation_ablations.py.
      filler: text of the one token that the ablation 'filler' puts in place of every other.
      seed: of the order of documents, the thoughts and the bootstrap; the same for all arms. An
        experiment takes its own seed instead, so that each of its seeds draws other documents.
    """

    validation: Mixture = ()
    test: Mixture = ()
    reference: str = ""
    documents: int = 64
    gate_documents: int = 16
    positions_per_document: int = 8
    other_positions_per_document: int = 4
    thoughts: int = 4
    temperature: float = 1.0
    batch_size: int = 16
    bins_nats: tuple[float, ...] = (0.5, 1.0, 1.5)
    ablations: tuple[Ablation, ...] = ()
    filler: str = "."
    seed: int = 0

    def __post_init__(self):
        if min(self.documents, self.thoughts, self.batch_size) < 1:
            raise ValueError("documents, thoughts and batch_size must be at least 1")
        if not self.bins_nats or list(self.bins_nats) != sorted(set(self.bins_nats)):
            raise ValueError(f"bins_nats must ascend, not {self.bins_nats}")
        if self.positions_per_document < self.other_positions_per_document:
            raise ValueError(
                "positions_per_document must not be below other_positions_per_document"
            )

    def mixture(self, split: str) -> Mixture:
        """What is evaluated of 'validation' or 'test'."""
        return {"validation": self.validation, "test": self.test}[split]


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Steps between lines, checkpoints and samples; what is kept."""

    log_every_steps: int = 1
    checkpoint_every_steps: int = 100
    keep_last: int = 2
    samples_every_steps: int = 20
    scaling_checkpoints_per_decade: int = 0

    def __post_init__(self):
        every = ("log_every_steps", "checkpoint_every_steps", "samples_every_steps")
        for name in (*every, "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment. Frozen at a resume except `RESUMABLE`, whose changes are logged."""

    seed: int = 0
    model: model_config.ModelConfig | None = None
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig = PretrainConfig()
    train: TrainConfig = TrainConfig()
    positions: PositionsConfig = PositionsConfig()
    rollout: rollout_lib.RolloutConfig = rollout_lib.RolloutConfig(group_size=8, think_tokens=64)
    reward: RewardConfig = RewardConfig()
    objective: objectives.ObjectiveConfig = objectives.ObjectiveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    experiment: experiment_config.ExperimentConfig = experiment_config.ExperimentConfig()
    mesh: sharding.MeshConfig = sharding.MeshConfig()
    logging: LoggingConfig = LoggingConfig()
    watch: watch_lib.WatchConfig = watch_lib.WatchConfig()
    profile: profiling.ProfileConfig = profiling.ProfileConfig()


# Dotted prefixes; '*' is any part of a mixture. First what trains the same, but for rounding:
SURROUNDINGS = (
    *("data.shards", "mesh.", "logging.", "watch.", "profile.", "evaluate.", "experiment."),
)
# What may differ when a run directory is continued:
RESUMABLE = (
    *("train.steps", "train.mixture.*.weight"),
    *("pretrain.steps", "pretrain.mixture.*.weight", "pretrain.opening_mixture.*.weight"),
    *SURROUNDINGS,
)


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
    """Checks and converts.

    Raises:
      ValueError: an unknown field, a wrong type or a refused value, named by its dotted path.
    """
    return config_build.build(Config, config.to_dict(), "config")


def as_json(value: Any) -> dict[str, Any]:
    """A config, or a section of one, as it comes back from a file: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def from_json(value: dict[str, Any]) -> Config:
    """The inverse of `as_json` on a Config: a run's config.json.

    Raises:
      ValueError: as `from_config_dict`.
    """
    return config_build.build(Config, value, "config")


def changed(config: Config, changes: Iterable[experiment_config.Change]) -> Config:
    """The config with these fields set, one after the other.

    Raises:
      ValueError: a path that leads to no field, or a value that the field refuses.
    """
    value = dataclasses.asdict(config)
    for change in changes:
        *sections, name = change.path.split(".")
        section: Any = value
        for inner in sections:
            section = section.get(inner) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            raise ValueError(f"config.{change.path} is no field that could be changed")
        section[name] = change.value
    return from_json(value)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted paths at which two JSON-like configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        by_index, new = ({str(i): v for i, v in enumerate(value)} for value in (old, new))
        return differences(by_index, new, prefix)
    return [] if old == new else [prefix.rstrip(".")]


def is_among(path: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted path is one of SURROUNDINGS or RESUMABLE."""
    return any(
        path == p.rstrip(".") or path.startswith(p) or fnmatch.fnmatchcase(path, p)
        for p in prefixes
    )


def model_from_json(value: dict[str, Any]) -> model_config.ModelConfig:
    """The inverse of dataclasses.asdict on a ModelConfig."""
    return config_build.build(model_config.ModelConfig, value, "model")
