"""What a step will need and about how long it will take, read from its compiled programs.

Nothing here has run: memory is the compiler's, FLOPs and bytes are counted in its programs
(`rpt/hlo_costs.py`), seconds are those over the chip's published rates (`rpt/chips.py`). The time
of a program is that of the slowest of compute, HBM and links between chips (ICI), each at its full
rate and perfectly overlapped. The step is the dearest that there is: every thought uses its budget
and every group has a gradient. What is not in it at all `not_counted` says.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from rpt import branch_cache, chips, hlo, hlo_costs, phases, programs, rewards, rollout, sharding
from rpt import config as config_lib
from rpt.model import config as model_config
from rpt.model import decoding, transformer

# The programs of an update, and whether each runs the forward pass, the backward pass or both.
UPDATE = {
    "trunk_forward": ("forward",),
    "accumulate": ("forward", "backward"),
    "trunk_backward": ("backward",),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a step, per chip.

    Attributes:
      runs: how often a step runs it.
      arguments, results, temporaries: bytes of HBM by the compiler; results without those that
        take an argument's place.
      held: bytes of other arrays of the step that live meanwhile: parameters, optimiser state, ...
      costs: of one run.
      seconds: of one run, by 'compute', 'HBM' and 'ICI'.
    """

    name: str
    runs: int
    arguments: float
    results: float
    temporaries: float
    held: float
    costs: hlo_costs.Costs
    seconds: dict[str, float]
    compile_seconds: float

    @property
    def peak(self) -> float:
        return self.arguments + self.results + self.temporaries + self.held

    @property
    def bound(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def step_seconds(self) -> float:
        return self.runs * self.seconds[self.bound]


@dataclasses.dataclass(frozen=True)
class Report:
    """A step on a slice. `refused` says what the compiler said when a program did not fit; the
    programs after it are missing then. `tokens` are those of all branches, as they are decoded;
    `fsdp_bounds` what one run of a program must receive, see there; `not_counted` what the config
    asks of a step beside these programs."""

    topology: str
    mesh: dict[str, int]
    chip: chips.Chip
    programs: tuple[Program, ...]
    tokens: int
    fsdp_bounds: dict[str, float]
    not_counted: tuple[str, ...] = ()
    refused: str = ""

    @property
    def largest(self) -> Program:
        return max(self.programs, key=lambda each: each.peak)

    @property
    def fits(self) -> bool:
        return not self.refused and self.largest.peak <= self.chip.hbm_bytes

    @property
    def step_seconds(self) -> float:
        return sum(each.step_seconds for each in self.programs)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds

    @property
    def fsdp_exchanges(self) -> dict[str, tuple[float, float]]:
        """By program of the update, of all its runs: bytes that a chip receives along replica and
        fsdp, and those that it must."""
        found = {}
        for each in self.programs:
            if each.name in self.fsdp_bounds:
                counted = sum(
                    c.total_bytes
                    for c in each.costs.collectives
                    if set(c.axes) & set(sharding.BATCH_AXES)
                )
                found[each.name] = (each.runs * counted, each.runs * self.fsdp_bounds[each.name])
        return found


def model_of(config: config_lib.Config, shape: model_config.ModelConfig | None):
    """The model to compile: the config's own, or `shape` in the config's dtype and remat.

    Raises:
      ValueError: neither is given.
    """
    if config.model is not None:
        return config.model
    if shape is None:
        raise ValueError(
            "this config takes its model from data.weights; say its shape with --model=NAME"
        )
    return dataclasses.replace(shape, dtype=config.data.dtype, remat=config.data.remat)


def compile_report(
    config: config_lib.Config,
    model: model_config.ModelConfig,
    topology: str,
    mesh: Mesh,
    *,
    tail: int = 8,
    close: int = 8,
    progress: Callable[[Program, str], None] = lambda program, text: None,
) -> Report:
    """Compiles a step and counts it.

    Args:
      config, model: what is trained.
      topology: the slice's name, for its rates.
      mesh: over the slice's devices.
      tail, close: tokens that the template puts before a thought and behind it.
      progress: called with every program once it is compiled, and its optimised HLO.

    Raises:
      ValueError: an unknown slice, or a batch that the mesh does not divide.
    """
    sizes = dict(mesh.shape)
    rows = math.prod(sizes[axis] for axis in sharding.BATCH_AXES)
    if config.train.batch_size % rows:
        raise ValueError(
            f"batch of {config.train.batch_size} rows does not divide over replica*fsdp={rows} "
            f"devices; make it a multiple of {rows} or change config.mesh"
        )
    tables = programs.table_shapes(model.vocab_size, tail, close)
    counter = _Counter(config, model, chips.chip_of(topology), mesh, tables)
    refused = ""

    def count(name: str, compiled: jax.stages.Compiled, seconds: float) -> None:
        text = compiled.as_text() or ""
        progress(counter.add(name, compiled.memory_analysis(), text, seconds), text)

    try:
        programs.compile_step(config, model, tables, mesh, compiled_one=count)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = " ".join(str(error).split())[:400]
    T = rollout.total_positions(config.rollout, tables)
    return Report(
        topology=topology,
        mesh=sizes,
        chip=counter.chip,
        programs=tuple(counter.found.values()),
        tokens=config.train.batch_size * counter.branches * (T - tail),
        fsdp_bounds=fsdp_bounds(model, mesh),
        not_counted=not_counted(config),
        refused=refused,
    )


def not_counted(config: config_lib.Config) -> tuple[str, ...]:
    """What a step does, by its config, that is no program here."""
    reward, proxy = config.reward, config.positions.proxy
    dense = reward.name in rewards.NEEDS_FIRST_TOKEN_PROBS
    asked = {
        "a proxy's trunk pass and parameters": bool(proxy),
        "the KL reference's forward passes and parameters": config.objective.kl_weight > 0,
        f"the trunk pass of the reward {reward.name}": dense,
        f"up to {reward.max_rounds - 1} further rounds of sampling from step "
        f"{reward.dynamic_from_step} on": reward.dynamic_from_step >= 0,
    }
    always = ("moving ended branches away", "samples for people", "the host's rewards and reading")
    return (*[what for what, is_asked in asked.items() if is_asked], *always)


def fsdp_bounds(model: model_config.ModelConfig, mesh: Mesh | AbstractMesh) -> dict[str, float]:
    """Bytes that a chip must receive in one run of each program of an update whose parameters are
    split over fsdp, in the model's dtype.

    A forward pass gathers the matrices of the layers and the head. A backward pass gathers those of
    the layers again unless remat is 'none', which keeps them; the head is kept in any case. It
    reduces every gradient to its shard, and with replicas sums the shards over them. Of an
    embedding that is not the head only rows are looked up and written: activations.
    """
    shapes = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))
    axes = transformer.logical_axes(model)
    placed = sharding.parameter_shardings(mesh, axes, shapes)
    size = np.dtype(jax.numpy.dtype(model.dtype)).itemsize
    n, replicas = mesh.shape["fsdp"], mesh.shape["replica"]
    needs = dict.fromkeys(UPDATE, 0.0)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, shape), where in zip(leaves, jax.tree.leaves(placed), strict=True):
        local = size * math.prod(where.shard_shape(shape.shape))
        split, name = "fsdp" in _names(where.spec), path[0].key
        looked_up = name == "embedding" and not model.tied_head
        moved = local * (n - 1) if split and not looked_up else 0.0
        rest = replicas if split else replicas * n
        summed = moved + local * 2 * (rest - 1) / rest
        again = name == "layers" and model.remat != "none"
        for program, passes in UPDATE.items():
            needs[program] += moved * ("forward" in passes)
            needs[program] += (again * moved + summed) * ("backward" in passes)
    return needs


def decode_steps(sizes: Sequence[int], tail: int) -> dict[str, float]:
    """How many steps of a rollout that uses its whole budget the two decode programs stand for.

    A step reads the whole cache, whose size the rollout lets grow, so its cost is linear in the
    size: a step at a size between the smallest and the largest is shared out between them.

    Args:
      sizes: of the cache, ascending.
      tail: positions before the first sampled one.
    """
    smallest, largest = sizes[0], sizes[-1]
    steps = {"decode_first": 0.0, "decode": 0.0}
    begin = tail
    for size in sizes:
        share = (size - smallest) / (largest - smallest) if largest > smallest else 1.0
        steps["decode"] += (size - begin) * share
        steps["decode_first"] += (size - begin) * (1 - share)
        begin = size
    return steps


def links(mesh: Mesh, chip: chips.Chip, axes: tuple[str, ...]) -> int:
    """Links of a chip that carry a collective along mesh axes: for every axis of the torus along
    which the chips of a group differ one, or two where the group is a whole axis that is closed to
    a ring. Links that groups share count for each, so a time from it is a lower bound."""
    devices = np.asarray(mesh.devices)
    coords = np.array([d.coords for d in devices.flat]).reshape(*devices.shape, -1)
    extent = coords.reshape(-1, coords.shape[-1]).max(0) + 1
    first: Any = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    group = coords[first].reshape(-1, coords.shape[-1])
    places = [len(set(column)) for column in group.T]
    ring = [n == size and size % chip.wrap == 0 for n, size in zip(places, extent, strict=True)]
    return max(1, sum(1 + closed for n, closed in zip(places, ring, strict=True) if n > 1))


def logits_moved(
    costs: hlo_costs.Costs, model: model_config.ModelConfig, mesh: Mapping[str, int]
) -> list[hlo_costs.Collective]:
    """Collectives of arrays with the vocabulary, or a shard of it over any axes of the mesh, as an
    axis, but for the head and its shards, told by their width and their size: none is expected."""
    V, D = model.vocab_size, model.width
    sizes = (mesh["replica"], mesh["fsdp"], mesh["tensor"])
    shards = {math.prod(chosen) for r in range(4) for chosen in itertools.combinations(sizes, r)}
    # A shard of the vocabulary that is as long as another axis cannot be told from it.
    others = {
        x // n for x in (D, model.ff_width, model.num_heads * model.head_width) for n in shards
    }
    vocab = {V, V // mesh["tensor"]} | {V // n for n in shards if V % n == 0} - others
    head, widths = {V * D // n for n in shards}, {D // n for n in shards}

    def logits(array: hlo.Array) -> bool:
        is_head = math.prod(array.shape) in head and widths & set(array.shape)
        return bool(vocab & set(array.shape)) and not is_head and array.dtype in ("f32", "bf16")

    return [each for each in costs.collectives if any(map(logits, each.arrays))]


def weights_moved(
    costs: hlo_costs.Costs, model: model_config.ModelConfig, mesh: Mapping[str, int]
) -> list[hlo_costs.Collective]:
    """Collectives of a decode program that hand on a matrix of the sampling copy, or a shard of it:
    none is expected. Sums do not count: those of activations may be as large as a matrix."""
    parameters = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))
    copy = jax.eval_shape(functools.partial(decoding.sampling_copy, model), parameters)
    matrices = [x for x in jax.tree.leaves(copy) if x.ndim > 1 and model.width in x.shape]
    devices = math.prod(mesh.values())
    shards = {x.size // n for x in matrices for n in range(1, devices + 1) if devices % n == 0}
    return [
        each
        for each in costs.collectives
        if each.kind not in ("all-reduce", "reduce-scatter")
        and any(math.prod(a.shape) in shards for a in each.arrays)
    ]


def summary(memory: Any, text: str, mesh: Mapping[str, int]) -> dict[str, Any]:
    """What should not grow unseen: HBM by the compiler, FLOPs, bytes received by kind and axis."""
    costs = hlo_costs.count(text, mesh)
    received = {f"{kind} {axes}": round(n) for (kind, axes), n in costs.by_kind_and_axis().items()}
    return {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": round(costs.flops),
        "received": received,
    }


def _names(spec: PartitionSpec) -> set[str]:
    return {name for part in spec if part for name in ([part] if isinstance(part, str) else part)}


class _Counter:
    """Programs as they are compiled, with what lives beside each."""

    def __init__(self, config, model, chip: chips.Chip, mesh: Mesh, tables: phases.Tables):
        self.chip, self.mesh, self.layers = chip, mesh, model.num_layers
        self.branches = config.positions.cuts_per_document * config.rollout.group_size
        trained = config.reward.groups_per_document * config.rollout.group_size or self.branches
        self.micro_batches = -(-trained // config.train.micro_branches)
        T, tail = rollout.total_positions(config.rollout, tables), tables.tail_ids.shape[0]
        sizes = branch_cache.ladder(config.rollout.chunk_tokens + tail, T)
        self._steps = decode_steps(sizes, tail)
        growths = len(sizes) - 1
        self._runs = {"accumulate": self.micro_batches, "grow": growths * self.layers}
        self.found: dict[str, Program] = {}
        self._kept: dict[str, tuple[float, float]] = {}

    def add(self, name: str, memory: Any, text: str, compile_seconds: float) -> Program:
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        costs = hlo_costs.count(text, self.mesh.shape, unknown_trips=self._steps.get(name, 1))
        self._kept[name] = (memory.argument_size_in_bytes, memory.output_size_in_bytes)
        program = Program(
            name=name,
            runs=self._runs.get(name, 1),
            arguments=memory.argument_size_in_bytes,
            results=results,
            temporaries=memory.temp_size_in_bytes,
            held=0.0,
            costs=costs,
            seconds=self._seconds(costs),
            compile_seconds=compile_seconds,
        )
        self.found[name] = program
        self._hold()
        return self.found[name]

    def _seconds(self, costs: hlo_costs.Costs) -> dict[str, float]:
        rate = self.chip.link_bytes_per_second
        ici = sum(
            each.total_bytes / (links(self.mesh, self.chip, each.axes) * rate)
            for each in costs.collectives
            if each.axes
        )
        return {
            "compute": costs.flops / self.chip.bf16_flops,
            "HBM": costs.hbm_bytes / self.chip.hbm_bytes_per_second,
            "ICI": ici,
        }

    def _hold(self) -> None:
        """Adds to every program what it does not see but what lives: filled in as sizes are known,
        last by the optimiser, whose arguments are the parameters, its state and the gradients."""
        if "optimizer" not in self._kept:
            return
        results = self._kept["optimizer"][1]
        copied, params = self._kept["sampling_copy"][1], self._kept["sampling_copy"][0]
        state = max(results - params, 0.0)
        kv = self._kept["prepare_trunk"][0]
        backward = max(self._kept["trunk_forward"][1] - kv, 0.0)
        # Between chunks: as they began, and as they are.
        branches = self.found["decode"].results
        # The last of the layers grows beside the others, of which each has its new size.
        grown = (self.layers - 1) * self._kept.get("grow", (0.0, 0.0))[1]
        held = {
            "score": state,
            "sampling_copy": state + kv,
            "prepare_trunk": state + params + copied,
            "start": state + params + copied + 2 * kv,
            "prefill": state + params + kv,
            "grow": state + params + copied + 2 * kv + 2 * branches + grown,
            "decode_first": state + params + kv + branches,
            "decode": state + params + kv + branches,
            "trunk_forward": state,
            "accumulate": state + backward,
            "trunk_backward": state + params,
            "optimizer": 0.0,
        }
        self.found = {
            name: dataclasses.replace(each, held=held[name]) for name, each in self.found.items()
        }
