"""Counts of small programs whose FLOPs, bytes and exchanges can be worked out by hand.

Programs compiled for CPU and for 8 devices that are not there; letters: n rows, m columns.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rpt import hlo, hlo_costs, hlo_loops, sharding, topologies

needs_libtpu = pytest.mark.skipif(
    topologies.library() is None, reason="libtpu is not installed: make test installs it"
)
MESH = {"replica": 1, "fsdp": 4, "tensor": 2}


def text_of(function, *shapes) -> str:
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*structs).compile().as_text()


def module(*lines: str, more: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule small\n{more}\nENTRY %main (p: f32[8,4]) -> f32[8,4] {{\n{body}\n}}\n"


# ---- reading -------------------------------------------------------------------------------------


def test_types_are_read_with_the_memory_they_live_in():
    found = hlo.arrays_of(
        "(bf16[2,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[3]{0:T(128)}, u32[]{:S(2)}, pred[7])"
    )
    assert [(a.dtype, a.shape, a.in_hbm) for a in found] == [
        ("bf16", (2, 128), False), ("f32", (3,), True), ("u32", (), False), ("pred", (7,), True),
    ]  # fmt: skip
    assert [a.bytes for a in found] == [512, 12, 4, 7]


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.parse("hello")


# ---- FLOPs and loops -----------------------------------------------------------------------------


def test_a_product_is_two_flops_per_multiply_add():
    assert hlo_costs.count(text_of(jnp.matmul, (8, 32), (32, 16)), {}).flops == 2 * 8 * 32 * 16


def test_bodies_of_scans_count_as_often_as_they_run():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w), None), x, None, length=5)[0]

    counted = hlo_costs.count(text_of(outer, (8, 16), (16, 16)), {})
    assert counted.flops == 15 * 2 * 8 * 16 * 16


def test_a_loop_that_depends_on_data_runs_as_often_as_is_said():
    def loop(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    text = text_of(loop, (8, 16), (16, 16))
    assert hlo_costs.count(text, {}, unknown_trips=7).flops == 7 * 2 * 8 * 16 * 16


def test_a_loop_inside_of_one_that_depends_on_data_is_not_said_to_run_as_often():
    def inner(x, w):
        return jax.lax.while_loop(lambda x: x[0, 1] < 1, lambda x: x @ w, x)

    def outer(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: inner(x, w) @ w, x)

    counted = hlo_costs.count(text_of(outer, (8, 16), (16, 16)), {}, unknown_trips=7)
    assert counted.flops == 7 * 2 * 2 * 8 * 16 * 16
    assert len(counted.unknown_loops) == 1
    silent = hlo_costs.count(text_of(outer, (8, 16), (16, 16)), {})
    assert silent.flops == 2 * 2 * 8 * 16 * 16
    assert len(silent.unknown_loops) == 2


@pytest.mark.parametrize(
    ("direction", "order", "begin", "step", "trips"),
    [
        ("LT", "%i, %n", 0, 1, 5),
        ("LT", "%i, %n", 0, 2, 3),  # two turns in one body
        ("LT", "%i, %n", 1, 2, 2),
        ("LT", "%i, %n", 9, 1, 0),
        ("LT", "%i, %n", 0, 0, None),
        ("GT", "%i, %n", 0, 1, None),
        ("LT", "%n, %i", 0, 1, None),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_loop_tells_its_trips_where_it_counts_up_to_a_constant(
    fused, direction, order, begin, step, trips
):
    compare = f"ROOT %c = pred[] compare({order}), direction={direction}"
    state = "%s = (s32[], f32[8,4]) parameter(0)\n  %i = s32[] get-tuple-element(%s), index=0\n"
    limit = "  %n = s32[] constant(5)\n"
    if fused:
        more = (
            f"%less (i: s32[], n: s32[]) -> pred[] {{\n  %i = s32[] parameter(0)\n"
            f"  %n = s32[] parameter(1)\n  {compare}\n}}\n"
        )
        compare = "ROOT %f = pred[] fusion(%i, %n), kind=kLoop, calls=%less"
    lines = f"  %i = s32[] get-tuple-element(%b), index=0\n  %n = s32[] constant({step})\n"
    lines += "  %x = f32[8,4] get-tuple-element(%b), index=1\n"
    if fused:
        more += (
            "%next (x: f32[8,4], i: s32[], n: s32[]) -> (f32[8,4], s32[]) {\n"
            "  %x = f32[8,4] parameter(0)\n  %i = s32[] parameter(1)\n  %n = s32[] parameter(2)\n"
            "  %j = s32[] add(%n, %i)\n  ROOT %both = (f32[8,4], s32[]) tuple(%x, %j)\n}\n"
        )
        lines += "  %f = (f32[8,4], s32[]) fusion(%x, %i, %n), kind=kLoop, calls=%next\n"
        lines += "  %j = s32[] get-tuple-element(%f), index=1\n"
    else:
        lines += "  %j = s32[] add(%i, %n)\n"
    more = (more if fused else "") + (
        f"%condition (s: (s32[], f32[8,4])) -> pred[] {{\n  {state}{limit}  {compare}\n}}\n"
        "%body (b: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {\n"
        f"  %b = (s32[], f32[8,4]) parameter(0)\n{lines}"
        "  ROOT %next_state = (s32[], f32[8,4]) tuple(%j, %x)\n}\n"
    )
    state = (
        "%x = f32[8,4] parameter(0)",
        f"%begin = s32[] constant({begin})",
        "%p = (s32[], f32[8,4]) tuple(%begin, %x)",
        "ROOT %loop = (s32[], f32[8,4]) while(%p), condition=%condition, body=%body",
    )
    found = hlo.parse(module(*state, more=more))
    loop = found.entry.instructions["loop"]
    assert hlo_loops.trip_count(found, found.entry, loop) == trips


def test_a_window_counts_where_it_meets_the_input():
    """As the TPU compiler writes a product per entry of a shared axis: all but one place of the
    window is padding."""
    lines = (
        "%x = f32[2,128,2,64]{3,2,1,0} parameter(0)",
        "%w = f32[2,64,2,32]{3,2,1,0} parameter(1)",
        "ROOT %y = f32[2,128,2,32]{3,2,1,0} convolution(%x, %w), "
        "window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0b1f_0i1o->0b1f",
    )
    # Window size 1 along axis 0 of size 2, and 2 along axis 1: places (out 3 of which 2 kept).
    x = (2, 128, 2, 64)
    met_0, met_1 = 2, 3
    text = module(*(line.replace("w = f32[2,64", "w = f32[1,64") for line in lines))
    assert hlo_costs.count(text, {}).flops == 2 * x[1] * x[3] * 32 * met_0 * met_1


# ---- HBM -----------------------------------------------------------------------------------------


def test_memory_beside_the_compute_units_costs_no_hbm():
    text = module(
        "%p = f32[8,4]{1,0:T(8,128)} parameter(0)",
        "%a = f32[8,4]{1,0:T(8,128)S(1)} negate(%p)",
        "ROOT %b = f32[8,4]{1,0:T(8,128)} negate(%a)",
    )
    assert hlo_costs.count(text, {}).hbm_bytes == 2 * 8 * 4 * 4


def test_of_a_sliced_array_the_slice_is_read_and_an_update_in_place_writes_itself():
    fused = (
        "%inside (q: f32[100,4], i: s32[]) -> f32[100,4] {\n"
        "  %q = f32[100,4]{1,0} parameter(0)\n"
        "  %i = s32[] parameter(1)\n"
        "  %zero = s32[] constant(0)\n"
        "  %s = f32[1,4]{1,0} dynamic-slice(%q, %i, %zero), dynamic_slice_sizes={1,4}\n"
        "  ROOT %u = f32[100,4]{1,0} dynamic-update-slice(%q, %s, %zero, %zero)\n"
        "}\n"
    )
    text = module(
        "%p = f32[100,4]{1,0} parameter(0)",
        "%j = s32[]{:S(2)} parameter(1)",
        "ROOT %f = f32[100,4]{1,0} fusion(%p, %j), kind=kLoop, calls=%inside",
        more=fused,
    )
    assert hlo_costs.count(text, {}).hbm_bytes == 2 * 16


def test_an_array_that_a_product_reads_in_another_shape_is_read():
    """The compiler wraps the change of shape in a fusion of its own, which reads nothing."""
    fused = (
        "%reshaped (q: f32[8,4]) -> f32[4,8] {\n"
        "  %q = f32[8,4]{1,0} parameter(0)\n  ROOT %r = f32[4,8]{1,0} bitcast(%q)\n}\n"
        "%inside (a: f32[8,4]) -> f32[4,8] {\n"
        "  %a = f32[8,4]{1,0} parameter(0)\n"
        "  %b = f32[4,8]{1,0} fusion(%a), kind=kLoop, calls=%reshaped\n"
        "  ROOT %n = f32[4,8]{1,0} negate(%b)\n}\n"
    )
    text = module(
        "%p = f32[8,4]{1,0} parameter(0)",
        "ROOT %f = f32[4,8]{1,0} fusion(%p), kind=kOutput, calls=%inside",
        more=fused,
    )
    assert hlo_costs.count(text, {}).hbm_bytes == 2 * 8 * 4 * 4


def test_a_kernel_costs_what_it_declares():
    text = module(
        "%p = f32[8,4]{1,0} parameter(0)",
        'ROOT %k.1 = f32[8,4]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", '
        'backend_config={"custom_call_config":{"cost_estimate":{"flops":"77","bytes_accessed":"5"}}}',
    )
    assert hlo_costs.count(text, {}) == hlo_costs.Costs(77.0, 5.0)
    silent = hlo_costs.count(text.replace('"flops":"77",', ""), {})
    assert silent.undeclared == ("k",)


def test_vmem_is_what_each_kernel_uses_and_not_what_it_may():
    text = module(
        "%p = f32[8,4]{1,0} parameter(0)",
        '%k.1 = f32[8,4]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", '
        'backend_config={"scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"99"}],'
        '"used_scoped_memory_configs":[{"memory_space":"2","offset":"0","size":"5"},'
        '{"memory_space":"1","offset":"0","size":"77"}]}',
        'ROOT %k.2 = f32[8,4]{1,0} custom-call(%k.1), custom_call_target="tpu_custom_call"',
    )
    assert hlo.kernel_vmem_bytes(hlo.parse(text)) == {"k.1": 77, "k.2": 0}


# ---- between chips -------------------------------------------------------------------------------

ROWS = "%p = f32[8,4]{1,0} parameter(0)"


@pytest.mark.parametrize(
    ("line", "kind", "axes", "received"),
    [
        ("all-gather(%p), replica_groups=[2,4]<=[4,2]T(1,0), d", "all-gather", "fsdp", 3 * 128),
        ("all-gather(%p), replica_groups=[4,2]<=[8], d", "all-gather", "tensor", 128),
        ("all-reduce(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, t", "all-reduce", "fsdp", 192),
        ("all-reduce(%p), replica_groups={}, t", "all-reduce", "fsdp+tensor", 2 * 128 * 7 / 8),
        ("reduce-scatter(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}, t", "reduce-scatter", "fsdp",
         96),
        ("all-to-all(%p), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, d",
         "all-to-all", "tensor", 64),
        ("all-to-all(%p), replica_groups=mesh['a'=8] {'a':(4)2}, d", "all-to-all", "tensor", 64),
        ("collective-permute(%p), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}",
         "collective-permute", "tensor", 128),
    ],
)  # fmt: skip
def test_what_a_chip_receives(line, kind, axes, received):
    costs = hlo_costs.count(module(ROWS, f"ROOT %c = f32[8,4]{{1,0}} {line}"), MESH)
    assert costs.by_kind_and_axis() == {(kind, axes): received}


@pytest.mark.parametrize(
    ("start", "moved"),
    [
        # The operand is read, the result written.
        ("%c = f32[8,4]{1,0} all-reduce-start(%p), replica_groups={}, t", 128 + 128),
        ("%c = ((f32[8,4], f32[2,4]), (f32[32,4], f32[8,4])) all-gather-start(%p, %q), "
         "replica_groups=[2,4]<=[4,2]T(1,0), d", 128 + 32 + 4 * (128 + 32)),
        ("%c = (f32[8,4], f32[8,4], u32[], u32[]) collective-permute-start(%p), "
         "source_target_pairs={{0,1},{1,0}}", 128 + 128),
    ],
)  # fmt: skip
def test_the_start_of_a_collective_reads_its_operands_and_writes_its_results(start, moved):
    more = "%q = f32[2,4]{1,0} parameter(1)"
    assert hlo_costs.count(module(ROWS, more, f"ROOT {start}"), MESH).hbm_bytes == moved


def test_unknown_groups_are_an_error():
    line = "ROOT %c = f32[8,4]{1,0} all-gather(%p), replica_groups=everyone"
    with pytest.raises(ValueError, match="does not know"):
        hlo_costs.count(module(ROWS, line), MESH)


def test_an_all_reduce_fused_with_its_slice_is_a_reduce_scatter():
    fused = (
        "%all-reduce-scatter.1 (q: f32[8,4]) -> f32[2,4] {\n"
        "  %q = f32[8,4]{1,0} parameter(0)\n"
        "  %r = f32[8,4]{1,0} all-reduce(%q), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0)\n"
        "  ROOT %s = f32[2,4]{1,0} slice(%r), slice={[0:2], [0:4]}\n"
        "}\n"
    )
    line = "ROOT %f = f32[2,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"
    costs = hlo_costs.count(module(ROWS, line, more=fused), MESH)
    assert costs.by_kind_and_axis() == {("reduce-scatter", "fsdp"): 128 * 3 / 4}


def test_a_collective_that_is_spread_over_fusions_counts_once():
    fused = "".join(
        f"%part.{i} (q: f32[2,4]) -> f32[8,4] {{\n"
        "  %q = f32[2,4]{1,0} parameter(0)\n"
        "  ROOT %g = f32[8,4]{1,0} all-gather(%q), channel_id=9, "
        "replica_groups=[2,4]<=[4,2]T(1,0), "
        'backend_config={"async_collective_fusion_config":{}}\n}\n'
        for i in range(2)
    )
    lines = (
        "%p = f32[2,4]{1,0} parameter(0)",
        "%a = f32[8,4]{1,0} fusion(%p), kind=kCustom, calls=%part.0",
        "ROOT %b = f32[8,4]{1,0} fusion(%p), kind=kCustom, calls=%part.1",
    )
    costs = hlo_costs.count(module(*lines, more=fused), MESH)
    assert costs.by_kind_and_axis() == {("all-gather", "fsdp"): 3 * 32}


def test_a_collective_that_other_cores_run_counts():
    """As for TPU7x, where the SparseCores exchange beside the program."""
    called = (
        "%called (q: f32[2,4]) -> f32[8,4] {\n  %q = f32[2,4]{1,0} parameter(0)\n"
        "  ROOT %g = f32[8,4]{1,0} all-gather(%q), channel_id=1, "
        "replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}, use_global_device_ids=true\n"
        '}, execution_thread="sparsecore"\n'
    )
    lines = (
        "%p = f32[2,4]{1,0} parameter(0)",
        "%s = ((f32[2,4]{1,0}), f32[8,4]{1,0}) call-start(%p), "
        'async_execution_thread="sparsecore", to_apply=%called',
        "ROOT %d = f32[8,4]{1,0} call-done(%s)",
    )
    costs = hlo_costs.count(module(*lines, more=called), MESH)
    assert costs.by_kind_and_axis() == {("all-gather", "fsdp"): 3 * 32}


# ---- by the TPU compiler -------------------------------------------------------------------------


@functools.cache
def tpu_mesh() -> Mesh:
    return topologies.mesh("v5e:2x4", sharding.MeshConfig(fsdp=4, tensor=2))


@needs_libtpu
def test_gathered_weights_of_a_scan_are_counted_every_time():
    """FSDP by hand: 6 layers of [512, 512] over fsdp, each gathered once, 512 rows over fsdp."""
    L, D, rows = 6, 512, 4096

    def layers(x, w_LDD):
        def one(x, w):
            return jax.lax.with_sharding_constraint(x @ w, place("fsdp")), None

        return jax.lax.scan(one, x, w_LDD)[0]

    def place(*axes):
        return NamedSharding(tpu_mesh(), PartitionSpec(*axes))

    x = jax.ShapeDtypeStruct((rows, D), jnp.bfloat16, sharding=place("fsdp"))
    w = jax.ShapeDtypeStruct((L, D, D), jnp.bfloat16, sharding=place(None, "fsdp"))
    with jax.sharding.use_abstract_mesh(tpu_mesh().abstract_mesh):
        text = jax.jit(layers).lower(x, w).compile().as_text()
    costs = hlo_costs.count(text, dict(tpu_mesh().shape))
    assert costs.flops == L * 2 * (rows // 4) * D * D
    moved = costs.by_kind_and_axis()
    assert sum(moved.values()) == L * D * D * 2 * 3 / 4, moved
    assert {axes for _, axes in moved} == {"fsdp"}
    np.testing.assert_array_less(L * D * D // 4 * 2, costs.hbm_bytes)
