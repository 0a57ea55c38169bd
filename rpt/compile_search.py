"""Settings that fit a slice and promise most tokens a second, in a bounded number of compiles.

One coordinate after the other: meshes, remat policies, micro-batches, first cache sizes, batches.
Each is tried with the best found so far of the others. A candidate that does not fit counts as 0
tokens a second.
"""

import dataclasses
from collections.abc import Callable, Iterator

from rpt import config as config_lib
from rpt import sharding
from rpt.model import config as model_config


@dataclasses.dataclass(frozen=True)
class Candidate:
    mesh: sharding.MeshConfig
    remat: model_config.Remat
    micro_branches: int
    chunk_tokens: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`rate` in predicted tokens a second; `reason` says where it does not fit, or why it could not
    be compiled."""

    fits: bool
    rate: float
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Trial:
    candidate: Candidate
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a candidate must respect: the devices of the slice, and heads that a tensor axis can
    split."""

    devices: int
    model: model_config.ModelConfig


def start(config: config_lib.Config, model: model_config.ModelConfig, devices: int) -> Candidate:
    """The config's own settings, its mesh with no axis left open."""
    mesh = sharding.MeshConfig(*sharding.mesh_shape(config.mesh, devices))
    return Candidate(
        mesh,
        model.remat,
        config.train.micro_branches,
        config.rollout.chunk_tokens,
        config.train.batch_size,
    )


def search(
    first: Candidate, limits: Limits, evaluate: Callable[[Candidate], Outcome], most: int
) -> list[Trial]:
    """All that was tried, in order; at most `most` evaluations."""
    trials: dict[Candidate, Outcome] = {}

    def tried(candidate: Candidate) -> None:
        if candidate not in trials and len(trials) < most:
            trials[candidate] = evaluate(candidate)

    tried(first)
    for neighbours in (_meshes, _remats, _micro_branches, _chunks, _batches):
        centre = max(trials, key=lambda c: trials[c].rate)
        for candidate in neighbours(centre, limits):
            tried(candidate)
    return [Trial(candidate, outcome) for candidate, outcome in trials.items()]


def best(trials: list[Trial]) -> Trial | None:
    fitting = [trial for trial in trials if trial.outcome.fits]
    return max(fitting, key=lambda trial: trial.outcome.rate) if fitting else None


def why_none(trials: list[Trial], topology: str) -> str:
    """What to do where nothing fits: the reason of the config's own settings says which."""
    return (
        f"nothing of {len(trials)} settings that were tried runs on {topology}; the config's own: "
        f"{trials[0].outcome.reason}. Where it does not fit, take a larger slice, shorter thoughts "
        "or more --search_steps"
    )


def _meshes(centre: Candidate, limits: Limits) -> Iterator[Candidate]:
    """The tensor axes that divide the key/value heads, with fsdp over the rest."""
    tensor = 1
    while tensor <= min(limits.devices, limits.model.num_kv_heads):
        rows = limits.devices // tensor
        divides = limits.model.num_kv_heads % tensor == 0 and limits.devices % tensor == 0
        if divides and centre.batch_size % rows == 0:
            yield dataclasses.replace(centre, mesh=sharding.MeshConfig(1, rows, tensor))
        tensor *= 2


def _remats(centre: Candidate, limits: Limits) -> Iterator[Candidate]:
    del limits
    kinds: tuple[model_config.Remat, ...] = ("full", "dots", "none")
    for remat in kinds:
        yield dataclasses.replace(centre, remat=remat)


def _micro_branches(centre: Candidate, limits: Limits) -> Iterator[Candidate]:
    del limits
    for size in (centre.micro_branches * 2, centre.micro_branches * 4, centre.micro_branches // 2):
        if size >= 1:
            yield dataclasses.replace(centre, micro_branches=size)


def _chunks(centre: Candidate, limits: Limits) -> Iterator[Candidate]:
    """More sizes of the cache read less of it, and compile more programs."""
    del limits
    for size in (centre.chunk_tokens // 2, centre.chunk_tokens * 2):
        if size >= 1:
            yield dataclasses.replace(centre, chunk_tokens=size)


def _batches(centre: Candidate, limits: Limits) -> Iterator[Candidate]:
    del limits
    rows = centre.mesh.replica * centre.mesh.fsdp
    for size in (centre.batch_size * 2, centre.batch_size // 2):
        if size >= 1 and size % rows == 0:
            yield dataclasses.replace(centre, batch_size=size)
