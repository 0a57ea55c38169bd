"""Arms, claims and seeds of an experiment, as data; checked for what needs no other section.

An experiment is a list of arms, each a run that starts fresh or from another arm's parameters, and
a list of claims, each a paired difference between two arms. rpt/experiment_plan.py makes runs of
them.
"""

import dataclasses
import re
from typing import Literal

Mode = Literal["no_think", "thought_argmax", "thought_sample", "gated"]
# Names of other things beside the arms' run directories, and what parts are called.
_RESERVED = r"evaluation|logs|pieces|compiled|positions|seed\d+|evaluate_.*"


@dataclasses.dataclass(frozen=True)
class Change:
    """One field of the config that is another in this arm.

    Attributes:
      path: dotted, such as 'positions.mode', or a whole section, such as 'pretrain'.
      value: what the config's field takes; fields that a section leaves out get their defaults.
    """

    path: str
    # A section is a dictionary, which has no hash.
    value: object = dataclasses.field(hash=False)

    def __post_init__(self):
        # The same whether it was built by a config or read from a file.
        object.__setattr__(self, "value", _with_tuples(self.value))


def _with_tuples(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(_with_tuples(item) for item in value)
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return value


@dataclasses.dataclass(frozen=True)
class ArmConfig:
    """One run of the experiment, and of each of its seeds.

    Attributes:
      name: of its run directory.
      title: in tables.
      command: 'pretrain' (rpt/pretrain.py) or 'train' (rpt/train.py).
      init: the arm whose last parameters it starts from; '' begins as the config says.
      flops_of: for 'pretrain': as many steps as execute that arm's own training FLOPs times
        `flops_factor`, rounded up; the learning rate decays linearly over all of them.
      flops_factor: see there.
      seed_offset: added to the experiment's seed.
      evaluated: False for what is no arm of the tables, such as the reference.
      curve: the scaling curve of which it is a point; '' is none.
      changes: of the config, in this order; not inherited from `init`.
    """

    name: str
    title: str
    command: Literal["pretrain", "train"]
    init: str = ""
    flops_of: str = ""
    flops_factor: float = 1.0
    seed_offset: int = 0
    evaluated: bool = True
    curve: str = ""
    changes: tuple[Change, ...] = ()

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.name) or re.fullmatch(_RESERVED, self.name):
            raise ValueError(f"{self.name!r} cannot be the name of an arm; choose another word")
        if self.flops_of and self.command != "pretrain":
            raise ValueError(f"arm {self.name}: only a pretrain arm has flops_of")
        if self.flops_factor <= 0:
            raise ValueError(f"arm {self.name}: flops_factor must be above 0")


@dataclasses.dataclass(frozen=True)
class ClaimConfig:
    """The paired difference a - b on identical positions.

    Attributes:
      name: in results.json.
      a, b: arms.
      mode_a, mode_b: without thought, with thought (answer by argmax or sampled), or thinking only
        above the threshold that validation chose.
      part: of the evaluation's mixture, or 'all'.
      bin: '' is the hardest; 'gate' is every position of the documents for gated thinking; 'asked'
        every one with a label but noise, at any entropy: the answers; else such as '>0.5' or
        'label:answer/5'.
      what: in words; '' makes them of titles, modes, bin and part.
      goal: one of the experiment's goals, which the report states first.
    """

    name: str
    a: str
    mode_a: Mode
    b: str
    mode_b: Mode
    part: str
    bin: str = ""
    what: str = ""
    goal: bool = False


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """What rpt.experiment runs and what it is to show, committed before the runs.

    Attributes:
      hypothesis: in words.
      claim_part: the part of the evaluation's mixture that the main tables are about.
      least_positions: fewer hard positions than this, in any seed, support no claim; nor do fewer
        positions of bin 'gate' or 'asked' a claim about that bin.
      split: what is reported. With 'validation' nothing reads test: trials, to choose settings by.
      seeds: each is an experiment of its own below seedN/, on documents of its own, and the report
        pools them and further ones that it finds there; none is the config's seed alone.
      reference: the frozen model behind bin_entropy: an arm, best with a seed_offset; or a
        checkpoint: 'fetch:NAME', or a path with a '/' to a run, a Hugging Face folder or a GGUF
        file.
      shown_depth: the greatest depth, as in the label 'answer/4', up to which stage 0 shows worked
        thoughts: tables sum up the depths to it and those above; 0 makes no such sums.
      arms: in the order of starting and of the tables, as far as they do not need each other.
      claims: in the order of the report.
      processes: parts that run side by side.
    """

    hypothesis: str = ""
    claim_part: str = ""
    least_positions: int = 1000
    split: Literal["validation", "test"] = "test"
    seeds: tuple[int, ...] = ()
    reference: str = ""
    shown_depth: int = 0
    arms: tuple[ArmConfig, ...] = ()
    claims: tuple[ClaimConfig, ...] = ()
    processes: int = 2

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        for what, given in {
            "seeds": self.seeds,
            "names of arms": names,
            "names of claims": [claim.name for claim in self.claims],
        }.items():
            if twice := [name for i, name in enumerate(given) if name in given[:i]]:
                raise ValueError(f"{what} must differ; {twice[0]!r} is there twice")
        if self.arms and not (self.reference_is_arm or _is_checkpoint(self.reference)):
            raise ValueError(
                f"reference={self.reference!r} is no arm (these are {_listed(names)}) and no "
                "checkpoint ('fetch:NAME', or a path with a '/')"
            )
        if self.shown_depth < 0:
            raise ValueError(f"shown_depth must not be negative, and is {self.shown_depth}")
        for arm in self.arms:
            for field, other in (("init", arm.init), ("flops_of", arm.flops_of)):
                if other and other not in names:
                    raise ValueError(
                        f"arm {arm.name}: {field}={other!r} is no arm; arms are {_listed(names)}"
                    )
        evaluated = [arm.name for arm in self.arms if arm.evaluated]
        for claim in self.claims:
            for arm in (claim.a, claim.b):
                if arm not in evaluated:
                    raise ValueError(
                        f"claim {claim.name}: {arm!r} is no evaluated arm; these are "
                        f"{_listed(evaluated)}"
                    )
        in_order(self)

    def arm(self, name: str) -> ArmConfig:
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def reference_is_arm(self) -> bool:
        return any(arm.name == self.reference for arm in self.arms)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that are read. Validation chooses thresholds, so it comes first."""
        return ("validation",) if self.split == "validation" else ("validation", "test")

    def title(self, name: str) -> str:
        return self.arm(name).title

    def chain(self, name: str) -> tuple[str, ...]:
        """The arm and those whose parameters it continues, the first of them first."""
        arm = self.arm(name)
        return (*(self.chain(arm.init) if arm.init else ()), name)


def _is_checkpoint(name: str) -> bool:
    return name.startswith("fetch:") or "/" in name


def in_order(plan: ExperimentConfig) -> list[ArmConfig]:
    """The arms, each after those that it needs, else in their own order.

    Raises:
      ValueError: arms that need each other.
    """
    left, found = list(plan.arms), []
    while left:
        done = {"", *(arm.name for arm in found)}
        ready = next((arm for arm in left if {arm.init, arm.flops_of} <= done), None)
        if ready is None:
            names = _listed([arm.name for arm in left])
            raise ValueError(f"arms wait for each other in a circle: {names}")
        found.append(ready)
        left.remove(ready)
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "(none)"
