"""What rpt.compile prints: memory, bounds, links, and whether a step fits."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh

from configs import llama3_1_8b, mini, qwen2_5_1_5b, r1_distill_qwen_14b
from kernels import models
from rpt import aot, chips, compile_tables, experiment_config, hlo, hlo_costs, sharding, topologies
from rpt import config as config_lib
from rpt.model import config as model_config
from rpt.model import transformer

ROOT = pathlib.Path(__file__).parent.parent.parent
needs_libtpu = pytest.mark.skipif(
    topologies.library() is None, reason="libtpu is not installed: make test installs it"
)
SHAPES = {
    "qwen2.5_1.5b": qwen2_5_1_5b,
    "llama3.1_8b": llama3_1_8b,
    "qwen2.5_14b": r1_distill_qwen_14b,
}


def program(name: str = "decode", **fields) -> aot.Program:
    values = {
        "runs": 1, "arguments": 1e9, "results": 0.0, "temporaries": 0.0, "held": 0.0,
        "costs": hlo_costs.Costs(), "seconds": {"compute": 1.0, "HBM": 2.0, "ICI": 0.5},
        "compile_seconds": 0.0,
    }  # fmt: skip
    return aot.Program(name=name, **(values | fields))


def report(*programs: aot.Program, **fields) -> aot.Report:
    values = {
        "topology": "v5e:2x4", "mesh": {"replica": 1, "fsdp": 4, "tensor": 2},
        "chip": chips.CHIPS["v5e"], "tokens": 100, "fsdp_bounds": {},
    }  # fmt: skip
    return aot.Report(programs=programs, **(values | fields))


def test_the_slowest_of_three_bounds_a_program_and_runs_multiply_it():
    made = report(program(), program("accumulate", runs=3))
    assert made.programs[0].bound == "HBM"
    assert made.step_seconds == 2.0 + 3 * 2.0
    assert made.tokens_per_second == 100 / 8


def test_what_lives_elsewhere_counts_for_whether_it_fits():
    assert report(program(arguments=9e9)).fits
    full = report(program(arguments=9e9, held=8e9))
    assert not full.fits
    assert "does not fit: decode needs 17 GB" in compile_tables.of_report(full, MODEL)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # A step at size 16 costs what two thirds of one at 8 and a third of one at 32 do.
        ((8, 16, 32), {"decode_first": 4 + 8 * 2 / 3, "decode": 8 / 3 + 16}),
        ((8, 32), {"decode_first": 4, "decode": 24}),
        ((32,), {"decode_first": 0, "decode": 28}),
    ],
)
def test_a_rollout_reads_the_cache_that_it_has(sizes, expected):
    """From 4 positions on, which the template gives."""
    found = aot.decode_steps(sizes, 4)
    assert found == pytest.approx(expected)
    assert sum(found.values()) == sizes[-1] - 4
    # The bytes that are read: of every step all positions of its cache.
    begins = (4, *sizes[:-1])
    read = sum((size - begin) * size for begin, size in zip(begins, sizes, strict=True))
    assert found["decode_first"] * sizes[0] + found["decode"] * sizes[-1] == pytest.approx(read)


def test_what_a_config_asks_beside_the_programs_is_named():
    plain = aot.not_counted(config_lib.Config())
    config = config_lib.changed(
        config_lib.Config(),
        [
            experiment_config.Change(*change)
            for change in (
                ("positions.proxy", "init"),
                ("objective.kl_weight", 0.1),
                ("reward.name", "dense"),
                ("reward.target_groups", 4),
                ("reward.max_rounds", 3),
                ("reward.dynamic_from_step", 7),
            )
        ],
    )
    more = " ".join(set(aot.not_counted(config)) - set(plain))
    for part in ("proxy", "KL reference", "reward dense", "up to 2 further rounds", "step 7"):
        assert part in more
        assert part not in " ".join(plain)


def test_what_the_compiler_refuses_does_not_fit():
    refused = report(program(), refused="Ran out of memory")
    assert not refused.fits
    assert "does not fit: Ran out" in compile_tables.of_report(refused, MODEL)


MODEL = model_config.ModelConfig(
    vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_width=8, ff_width=48,
    dtype="bfloat16", remat="full",
)  # fmt: skip


def test_the_bound_of_fsdp_by_hand():
    """Everything but the norms of a head alone is split over width 32, here over 4 chips; half of
    it lies on the other chip of the tensor axis."""
    D, L = 32, 2
    split = 64 * D + L * (D * 4 * 8 * 2 + D * 2 * 8 * 2 + 3 * D * 48)
    norms = (2 * L + 1) * D
    once = 2 * (split // 2 + norms) * 3 / 4
    layers = once - 2 * (64 * D // 2 + D) * 3 / 4
    mesh = AbstractMesh((1, 4, 2), sharding.MESH_AXES)
    assert aot.fsdp_bounds(MODEL, mesh) == {
        "trunk_forward": once,
        "accumulate": once + layers + once,
        "trunk_backward": layers + once,
    }
    # Two replicas of 4 x 1 sum shards over each other.
    mesh = AbstractMesh((2, 4, 1), sharding.MESH_AXES)
    one = 2 * (split + norms)
    assert aot.fsdp_bounds(MODEL, mesh)["trunk_forward"] == one * 3 / 4
    layers = one - 2 * (64 * D + D)
    summed = one * 3 / 4 + one / 4 * 2 * 1 / 2
    assert aot.fsdp_bounds(MODEL, mesh)["trunk_backward"] == layers * 3 / 4 + summed


def test_what_is_kept_or_looked_up_needs_no_gather():
    """remat 'none' keeps gathered layers, 'dots' products only; of an embedding that is no head
    rows travel, as activations."""
    mesh = AbstractMesh((1, 4, 1), sharding.MESH_AXES)
    bounds = {
        remat: aot.fsdp_bounds(dataclasses.replace(MODEL, remat=remat), mesh)
        for remat in ("full", "dots", "none")
    }
    assert bounds["dots"] == bounds["full"]
    kept = bounds["none"]
    assert kept["trunk_backward"] == kept["trunk_forward"] == bounds["full"]["trunk_forward"]
    assert kept["accumulate"] == kept["trunk_forward"] + kept["trunk_backward"]
    untied = dataclasses.replace(MODEL, tied_head=False)
    assert aot.fsdp_bounds(untied, mesh) == bounds["full"]


def test_the_exchange_of_each_program_stands_beside_what_it_needs():
    """A ratio of all hides that one program exchanges more and another less."""

    def exchanging(name, n, **fields):
        costs = hlo_costs.Costs(
            collectives=tuple(
                hlo_costs.Collective("all-gather", (axis,), n, 1, ()) for axis in ("fsdp", "tensor")
            )
        )
        return program(name, costs=costs, **fields)

    made = report(
        exchanging("trunk_forward", 1e9),
        exchanging("accumulate", 3e9, runs=4),
        exchanging("trunk_backward", 7e9),
        exchanging("decode", 5e9),
        fsdp_bounds={"trunk_forward": 2e9, "accumulate": 3e9, "trunk_backward": 4e9},
    )
    said = compile_tables.of_report(made, MODEL)
    assert "20 GB; FSDP needs 18 GB; ratio 1.11" in said
    assert "trunk_forward 1 GB, needed 2, ratio 0.50" in said
    assert "accumulate 12 GB, needed 12, ratio 1.00" in said
    assert "trunk_backward 7 GB, needed 4, ratio 1.75" in said


def test_loops_of_unknown_length_are_named():
    known = compile_tables.of_report(report(program()), MODEL)
    costs = hlo_costs.Costs(unknown_loops=("while.3",))
    assert "while.3 (score)" in compile_tables.of_report(
        report(program("score", costs=costs)), MODEL
    )
    assert "counted once" not in known


def test_logits_on_their_way_are_seen():
    def moved(*shape):
        array = hlo.Array("f32", shape, True)
        costs = hlo_costs.Costs(
            collectives=(hlo_costs.Collective("all-gather", ("tensor",), 1.0, 1, (array,)),)
        )
        return aot.logits_moved(costs, wide, {"replica": 1, "fsdp": 4, "tensor": 2})

    wide = dataclasses.replace(MODEL, vocab_size=50_000)
    assert moved(128, 25_000)
    assert moved(128, 50_000)
    # Rows as many as the width or a shard of it, and the vocabulary over fsdp or both.
    assert moved(4, 32, 25_000)
    assert moved(16, 8, 50_000)
    assert moved(128, 12_500)
    assert moved(128, 6_250)
    # The head, shards of it, states.
    assert not moved(50_000, 32)
    assert not moved(25_000, 8)
    assert not moved(1, 25_000, 32)
    assert not moved(128, 32)


def test_weights_on_their_way_are_seen():
    """A matrix, or a shard of it, in any shape; sums of activations are no weights."""
    mesh = {"replica": 1, "fsdp": 4, "tensor": 2}
    D, F = MODEL.width, MODEL.ff_width

    def moved(kind, *shape):
        array = hlo.Array("bf16", shape, True)
        each = hlo_costs.Collective(kind, ("fsdp",), 1.0, 1, (array,))
        return aot.weights_moved(hlo_costs.Costs(collectives=(each,)), MODEL, mesh)

    assert moved("all-gather", F // 2, D)
    assert moved("all-gather", 1, F // 2, D // 4)
    assert moved("collective-permute", D, 2, F // 8)
    assert not moved("all-gather", 5, D)
    assert not moved("all-reduce", F // 2, D)


@pytest.mark.parametrize("name", SHAPES)
def test_a_config_has_the_shape_of_its_model(name):
    config = config_lib.from_config_dict(SHAPES[name].get_config())
    assert config.model is not None
    expected = model_config.named(name)
    for field in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "ff_width",
                  "head_width", "qkv_bias", "tied_head"):  # fmt: skip
        assert getattr(config.model, field) == getattr(expected, field), field


@pytest.mark.parametrize(
    ("module", "billions"), [(qwen2_5_1_5b, 1.54), (llama3_1_8b, 8.03), (r1_distill_qwen_14b, 14.8)]
)
def test_a_config_has_as_many_parameters_as_its_docstring_says(module, billions):
    config = config_lib.from_config_dict(module.get_config())
    assert config.model is not None
    assert transformer.num_parameters(config.model) / 1e9 == pytest.approx(billions, abs=0.05)
    assert f"{billions:g} billion" in (module.__doc__ or "")


def test_a_config_without_a_shape_needs_one():
    config = config_lib.from_config_dict(mini.get_config())
    bare = dataclasses.replace(config, model=None)
    with pytest.raises(ValueError, match="--model"):
        aot.model_of(bare, None)
    given = aot.model_of(bare, model_config.named("smollm2_135m"))
    assert given.num_layers == models.MODELS["smollm2_135m"].L


def test_unknown_generations_are_named():
    with pytest.raises(ValueError, match="v9:2x2"):
        chips.chip_of("v9:2x2")


@needs_libtpu
def test_links_of_an_axis():
    """A v5p cube closes its axes to rings, a small v5e slice does not. 4 of tensor take one axis of
    the cube, and 16 of fsdp the other two."""
    cube = topologies.mesh("v5p:4x4x4", sharding.MeshConfig(fsdp=16, tensor=4))
    assert aot.links(cube, chips.CHIPS["v5p"], ("tensor",)) == 2
    assert aot.links(cube, chips.CHIPS["v5p"], ("fsdp",)) == 4
    assert aot.links(cube, chips.CHIPS["v5p"], ("fsdp", "tensor")) == 6
    flat = topologies.mesh("v5e:2x4", sharding.MeshConfig(fsdp=8))
    assert aot.links(flat, chips.CHIPS["v5e"], ("fsdp",)) == 2


@needs_libtpu
@pytest.mark.parametrize("generation", topologies.GENERATIONS)
def test_every_generation_has_a_mesh_of_devices_as_its_rates_count_them(generation):
    """A device is a chip of a v4, whose cores are joined, and half a chip of a TPU7x."""
    found = topologies.mesh(topologies.GENERATIONS[generation], sharding.MeshConfig(tensor=2))
    assert found.size == (8 if generation == "tpu7x" else 4)


def compile_command(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rpt.compile", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@needs_libtpu
def test_the_command_says_what_does_not_fit(tmp_path):
    """More documents than the first program has room for: nothing else is compiled."""
    out = tmp_path / "report.json"
    ended = compile_command(
        "--config=configs/mini.py", "--topology=v5e:2x2", f"--out={out}",
        "--config.train.batch_size=2097152",
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "does not fit" in ended.stdout
    assert json.loads(out.read_text())["fits"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config=configs/mini.py"], "--topology"),
        (["--topology=v5e:2x4"], "--config"),
        (["--config=configs/smollm2_pydoc.py", "--topology=v5e:2x4"], "--model"),
    ],
)
def test_mistakes_are_one_line(flags, said):
    ended = compile_command(*flags)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
