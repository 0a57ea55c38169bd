"""The whole step as the TPU compiler makes it: what is exchanged and what is in memory.

Letters: B documents, S trunk positions, V vocabulary, D width.
"""

import functools
import json
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels.logprob import api as logprob
from kernels.logprob import chunked
from rpt import aot, hlo, hlo_costs, programs, topologies
from rpt.model import transformer
from tests.rpt import compiled_programs
from tests.rpt.compiled_programs import ROWS, SLICES, D, V

pytestmark = pytest.mark.skipif(
    topologies.library() is None, reason="libtpu is not installed: make test installs it"
)

HEAD = {D, D // 2, D // 4}
COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
SHAPE = re.compile(r"\b(f32|bf16)\[([\d,]+)\]")


@functools.cache
def compiled(name: str) -> dict[str, str]:
    """The optimised HLO of every program of a step, for one slice."""
    found = compiled_programs.compiled(name)
    return {program: each.as_text() or "" for program, each in found.items()}


def logit_shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Arrays of whole rows of logits (of a shard of the vocabulary), whatever their axes: reshaped
    to lanes and flattened too. Matrices of the head are as large and have an axis of the width."""
    found = []
    for dtype, dims in SHAPE.findall(text):
        shape = tuple(map(int, dims.split(",")))
        if math.prod(shape) % (V // 2) == 0 and not HEAD & set(shape):
            found.append((dtype, shape))
    return found


@pytest.mark.parametrize("name", SLICES)
def test_every_program_of_a_step_compiles(name):
    grows = {"decode_first", "grow"} if name.startswith("v5e") else set()
    assert set(compiled(name)) == grows | {
        "score", "sampling_copy", "prepare_trunk", "start", "prefill", "decode", "trunk_forward",
        "accumulate", "trunk_backward", "optimizer",
    }  # fmt: skip


@pytest.mark.parametrize("name", SLICES)
def test_the_kernels_are_those_for_tpu(name):
    for program in ("decode", "trunk_forward", "accumulate", "trunk_backward"):
        assert "tpu_custom_call" in compiled(name)[program], program


def test_logits_would_be_seen():
    """The test's own eyes: of the reference, at the numbers of rows that decoding has."""
    assert not HEAD & ROWS
    device = topologies.devices(topologies.GENERATIONS["v5e"])[0]
    whole = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    for M in (128, 256):
        hidden, head, labels = (
            jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
            for shape, dtype in (((M, D), "bfloat16"), ((V, D), "bfloat16"), ((M,), "int32"))
        )
        call = functools.partial(logprob.logprob, implementation="reference")
        text = jax.jit(call).lower(hidden, head, labels).compile().as_text()
        assert ("f32", (M, V)) in logit_shapes(text)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((128, V), True),
        ((64, V // 2), True),
        ((128, V // 128, 128), True),
        ((64 * (V // 2),), True),
        ((V, D), False),
        ((V // 2, D // 4), False),
        ((512, D), False),
        ((512, 4, 128), False),
    ],
)
def test_logits_are_seen_whatever_their_axes(shape, seen):
    dims = ",".join(map(str, shape))
    line = f"  %fusion.1 = f32[{dims}]{{1,0:T(8,128)}} fusion(bf16[128,{D}] %states), kind=kLoop"
    assert logit_shapes(line) == ([("f32", shape)] if seen else [])


@pytest.mark.parametrize("name", SLICES)
def test_no_logits_travel(name):
    for program, text in compiled(name).items():
        for line in text.splitlines():
            if COLLECTIVE.search(line):
                assert not logit_shapes(line.split("metadata")[0]), (program, line)


@pytest.mark.parametrize("name", SLICES)
def test_no_array_of_logits_is_larger_than_a_tile(name):
    for program, text in compiled(name).items():
        for dtype, shape in logit_shapes(text):
            # A vector of ids or masks over the vocabulary is no array of logits.
            assert math.prod(shape) <= max(chunked.TILE_LOGITS, V), (program, dtype, shape)


@pytest.mark.parametrize("name", SLICES)
def test_no_hidden_state_is_moved_row_by_row(name):
    """A reshape that is left in the optimised program to rows that do not fill registers moves each
    to another place of one, by code that grows with the rows: hours of compiling where there are
    many."""
    widths = {D, D // 2, D // 4}
    for program in ("score", "trunk_forward", "accumulate", "trunk_backward"):
        parsed = hlo.parse(compiled(name)[program])
        for computation in parsed.computations.values():
            for each in computation.instructions.values():
                *rows, width = each.array.shape or (0,)
                if each.opcode == "reshape" and width in widths and math.prod(rows) >= 64:
                    assert math.prod(rows) % 8 == 0, (program, each)


@pytest.mark.parametrize("name", SLICES)
def test_decoding_has_no_past_in_float32(name):
    """It would be written and read in every step, five times the bytes of the past itself."""
    parsed = hlo.parse(compiled(name)["decode"])
    pasts = [a for i in parsed.entry.instructions.values() if i.opcode == "parameter"
             for a in i.arrays if len(a.shape) == 5]  # fmt: skip
    assert {a.dtype for a in pasts} == {"bf16"}
    sizes = {math.prod(a.shape) for a in pasts}
    for computation in parsed.computations.values():
        for each in computation.instructions.values():
            for array in each.arrays:
                assert array.dtype != "f32" or math.prod(array.shape) not in sizes, each


@pytest.mark.parametrize("name", SLICES)
def test_decoding_moves_no_weights(name):
    """The sampling copy is gathered once, before: in a decode step only activations travel."""
    sizes = dict(topologies.mesh(name, SLICES[name]).shape)
    moved = {
        program: aot.weights_moved(hlo_costs.count(text, sizes), compiled_programs.MODEL, sizes)
        for program, text in compiled(name).items()
    }
    assert not moved["decode"]
    assert not moved["prefill"]
    if sizes["fsdp"] > 1:
        assert moved["sampling_copy"], "weights would not be seen"


@pytest.fixture(scope="module", params=SLICES)
def reported(request) -> tuple[str, aot.Report]:
    """What rpt.compile says of the programs that are compiled already."""
    name = request.param

    def compile_step(*given, compiled_one, **more):
        for program, each in compiled_programs.compiled(name).items():
            compiled_one(program, each, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "compile_step", compile_step)
        return name, aot.compile_report(
            compiled_programs.config_of(name), compiled_programs.MODEL, name,
            topologies.mesh(name, SLICES[name]), tail=compiled_programs.TAIL,
            close=compiled_programs.CLOSE,
        )  # fmt: skip


def test_growing_holds_the_cache_and_one_layer_of_the_old_one(reported):
    name, report = reported
    if not name.startswith("v5e"):
        pytest.skip("the cache of this slice has one size")
    found = {each.name: each for each in report.programs}
    grow, config, model = found["grow"], compiled_programs.config_of(name), compiled_programs.MODEL
    rows = config.train.batch_size // (report.mesh["replica"] * report.mesh["fsdp"])
    heads = rows * config.positions.cuts_per_document * config.rollout.group_size
    heads *= model.num_kv_heads // report.mesh["tensor"]
    old, new = (2 * heads * size * model.head_width * 2 for size in (14, 29))
    assert grow.runs == model.num_layers
    assert grow.arguments >= old
    assert grow.results >= new
    # The other layers, the sampling copy and the optimiser's state live meanwhile.
    state = found["optimizer"].arguments / 4
    assert grow.held >= (model.num_layers - 1) * new + found["sampling_copy"].results + state


def test_what_a_report_says_of_small_programs(reported):
    """No logits move, only truncated sampling has a loop of unknown length, and each program
    exchanges what it needs."""
    name, report = reported
    truncated = compiled_programs.config_of(name).rollout.top_k > 0
    for each in report.programs:
        assert not aot.logits_moved(each.costs, compiled_programs.MODEL, report.mesh), each.name
        decodes = each.name in ("decode_first", "decode")
        assert len(each.costs.unknown_loops) == (truncated and decodes), each.name
        # What is added to takes the place of what it was.
        assert each.name != "accumulate" or each.results < 0.01 * each.arguments
    for program, (counted, needed) in report.fsdp_exchanges.items():
        if report.mesh["fsdp"] > 1:
            assert 0.95 * needed < counted < 1.2 * needed, (program, counted, needed)


def test_an_update_gathers_weights_twice_and_sums_gradients_into_shards():
    """All matrices, along fsdp: for the forward, for the rematerialised backward, and back. What is
    left over are rows of the embedding and norms."""
    name, head = "v5e:2x4", V * D
    sizes = dict(topologies.mesh(name, SLICES[name]).shape)
    layers = transformer.num_parameters(compiled_programs.MODEL) - head
    whole = 2 * (sizes["fsdp"] - 1) / sizes["fsdp"] / sizes["tensor"]
    # The head is gathered once per pass: that of the trunk is kept for its backward program.
    gathered = {
        "trunk_forward": layers + head,
        "accumulate": 2 * layers + head,
        "trunk_backward": layers,
    }
    for program, expected in gathered.items():
        moved = hlo_costs.count(compiled(name)[program], sizes).by_kind_and_axis()
        assert moved["all-gather", "fsdp"] <= 1.1 * whole * expected, program
        if program != "trunk_forward":
            assert moved["reduce-scatter", "fsdp"] >= 0.95 * whole * (layers + head), program
            assert moved["all-reduce", "fsdp"] < 0.1 * whole * (layers + head), program


def test_traces_name_their_parts():
    """What a profile shows: the scopes that the model, the losses and the kernels open."""
    text = compiled("v5e:2x4")
    for program, scopes in {
        "score": ["trunk", "layers/attention", "layers/ff", "trunk_attention", "score"],
        "decode": ["attention", "ff", "decode_attention", "advance", "sample"],
        "trunk_forward": ["trunk", "ntp_loss", "logprob"],
        "accumulate": ["branch", "branch_attention", "policy_loss", "logprob", "gathered"],
    }.items():
        names = set(re.findall(r'op_name="([^"]*)"', text[program]))
        for scope in scopes:
            assert any(re.search(rf"\b{scope}\b", name) for name in names), (program, scope)


@pytest.mark.parametrize("name", SLICES)
def test_memory_and_exchanges_are_as_recorded(name):
    """A change that is meant is recorded by python -m tests.rpt.compiled_programs."""
    golden = json.loads(compiled_programs.GOLDEN.read_text())
    if golden["version"] != compiled_programs.version():
        pytest.skip(f"recorded with {golden['version']}, not {compiled_programs.version()}")
    found = json.loads(json.dumps(compiled_programs.summary(name)))
    for program, expected in golden[name].items():
        assert found[program] == expected, program
    assert found.keys() == golden[name].keys()
