"""TPU kernels: a tile of logits lives in VMEM only, forward and backward.

Maths: kernels/logprob/maths.py. M rows, D width, V vocabulary; m, v: those of a block.
Tiles are [v, m]: rows of the problem lie along lanes, so that everything known per row is a vector
[1, m] without padding, and sums over the vocabulary are sums of whole registers.

    kernel     grid                     resident    streamed    accumulates in float32
    forward    (M blocks, V blocks)     h block     W           max, sum, excess, label [1, m]
    dhidden    (M blocks, V blocks)     h block     W           dh [m, D]
    dhead      (V blocks, M blocks)     W block     h           dW [v, D]

The first axis is parallel, the second in order. Each backward kernel computes the logits again:
8 M D V operations in place of the reference's 4, so that neither needs its sum in HBM.

HBM: forward reads W once per M block, M / m * V * D, and h once; dhidden the same and writes dh;
dhead reads h once per V block and W once, and writes dW. The reference writes and reads the
[M, V] float32 logits and their softmax several times: 4 M V bytes each, which for D = 1,536 is
more time than the matmul takes.

VMEM, in bytes, with D rounded up to lanes (128), h, w and o the bytes of an element of hidden,
unembedding and result (`_vmem_bytes`):

    h block              2 m D h        twice: the next one arrives meanwhile
    W block              2 v D w
    W block cast         v D h          where its dtype is not hidden's
    result               2 m D o        dhidden (dhead: 2 v D o)
    accumulator          4 m D          dhidden (dhead: 4 v D), where the result is not float32
    tile of logits       4 x 4 v m      logits, shifted, weight, mask

Blocks that reach beyond M or V hold whatever was there: what is summed over is masked.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.logprob import maths

# (v, m) from best to least: the first whose VMEM fits. Chosen by the arithmetic above and compiled
# for v4, v5e, v5p, v6e and TPU7x; not yet timed on a chip.
_BLOCKS = ((512, 512), (256, 512), (256, 256), (128, 256), (128, 128), (64, 128))
# All generations let a kernel take 16 MiB; the rest is for the compiler's own temporaries.
_VMEM_BYTES = 14 * 2**20
_LANES = 128


def unsupported(hidden_MD: jax.Array, unembedding_VD: jax.Array) -> str | None:
    """Why the kernels cannot take these, or None."""
    for name, x in (("hidden", hidden_MD), ("unembedding", unembedding_VD)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} must be float32 or bfloat16, not {x.dtype}"
    if 0 in (*hidden_MD.shape, *unembedding_VD.shape):
        return f"empty operands {hidden_MD.shape}, {unembedding_VD.shape}"
    for kernel in _RESULTS:
        if _fitting(kernel, hidden_MD, unembedding_VD) is None:
            return f"width {hidden_MD.shape[1]} needs more than {_VMEM_BYTES} bytes of VMEM"
    return None


def forward(
    tempering: maths.Tempering,
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    threshold_M: jax.Array | None,
) -> maths.Partial:
    """Sums over this unembedding; labels_M count from its first row, and may lie outside."""
    (M, D), V = hidden_MD.shape, unembedding_VD.shape[0]
    v, m = _blocks("forward", hidden_MD, unembedding_VD)
    hidden, unembedding, row = _specs(v, m, D, vocab_axis=1)
    rows = _rows(labels_M, threshold_M, M)
    part = pl.pallas_call(
        functools.partial(_forward_kernel, tempering, V),
        grid=(pl.cdiv(M, m), pl.cdiv(V, v)),
        in_specs=[hidden, unembedding, *[row] * len(rows)],
        out_specs=[row] * 4,
        out_shape=[jax.ShapeDtypeStruct((1, M), jnp.float32)] * 4,
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=pl.CostEstimate(
            flops=2 * M * D * V,
            transcendentals=M * V,
            bytes_accessed=hidden_MD.nbytes + pl.cdiv(M, m) * unembedding_VD.nbytes + 24 * M,
        ),
        name="logprob_forward",
    )(hidden_MD, unembedding_VD, *rows)
    return maths.Partial(*[x[0] for x in part])


def backward(
    tempering: maths.Tempering,
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    threshold_M: jax.Array | None,
    pull: maths.Pull,
) -> tuple[jax.Array, jax.Array]:
    """dh and dW in the dtypes of their arguments."""
    arrays = (tempering, hidden_MD, unembedding_VD, labels_M, threshold_M, pull)
    return _gradient("dhidden", *arrays), _gradient("dhead", *arrays)


def _gradient(
    kernel, tempering, hidden_MD, unembedding_VD, labels_M, threshold_M, pull
) -> jax.Array:
    (M, D), V = hidden_MD.shape, unembedding_VD.shape[0]
    v, m = _blocks(kernel, hidden_MD, unembedding_VD)
    row_blocks, vocab_blocks = pl.cdiv(M, m), pl.cdiv(V, v)
    if kernel == "dhidden":
        body, result, size, grid = _dhidden_kernel, hidden_MD, m, (row_blocks, vocab_blocks)
        traffic = hidden_MD.nbytes * 2 + row_blocks * unembedding_VD.nbytes
    else:
        body, result, size, grid = _dhead_kernel, unembedding_VD, v, (vocab_blocks, row_blocks)
        traffic = unembedding_VD.nbytes * 2 + vocab_blocks * hidden_MD.nbytes
    hidden, unembedding, row = _specs(v, m, D, vocab_axis=1 if kernel == "dhidden" else 0)
    # Rows beyond M are summed over by dhead: their coefficients are zeros.
    rows = (*_rows(labels_M, threshold_M, row_blocks * m), *_rows(*pull, row_blocks * m))
    narrow = result.dtype != jnp.float32
    return pl.pallas_call(
        functools.partial(body, tempering, V, M, threshold_M is not None),
        grid=grid,
        in_specs=[hidden, unembedding, *[row] * len(rows)],
        out_specs=hidden if kernel == "dhidden" else unembedding,
        out_shape=jax.ShapeDtypeStruct(result.shape, result.dtype),
        scratch_shapes=[pltpu.VMEM((size, D), jnp.float32)] if narrow else [],
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=pl.CostEstimate(
            flops=4 * M * D * V, transcendentals=M * V, bytes_accessed=traffic + 24 * M
        ),
        name=f"logprob_{kernel}",
    )(hidden_MD, unembedding_VD, *rows)


def _forward_kernel(tempering, V, hidden_ref, unembedding_ref, labels_ref, *refs):
    threshold_ref, part_refs = refs[:-4], refs[-4:]
    step = pl.program_id(1)
    logits_vm, is_label_vm, kept_vm = _logits(
        tempering, V, step, hidden_ref[...], unembedding_ref[...], labels_ref, threshold_ref
    )
    tile = maths.Partial(
        *maths.partial_sums(logits_vm, kept_vm, axis=0),
        jnp.sum(jnp.where(is_label_vm, logits_vm, 0.0), axis=0, keepdims=True),
    )

    @pl.when(step == 0)
    def _():
        for ref, x in zip(part_refs, tile, strict=True):
            ref[...] = x

    @pl.when(step > 0)
    def _():
        before = maths.Partial(*[ref[...] for ref in part_refs])
        for ref, x in zip(part_refs, maths.merge(before, tile), strict=True):
            ref[...] = x


def _dhidden_kernel(tempering, V, M, truncated, hidden_ref, unembedding_ref, *refs):
    del M  # Rows beyond M are not written.
    row_refs, result_ref, accumulator_ref = _split(refs, truncated)
    step = pl.program_id(1)
    hidden_mD = hidden_ref[...]
    unembedding_vD = _inside(unembedding_ref[...], step, V).astype(hidden_mD.dtype)
    dproducts_vm = _dproducts(tempering, V, step, hidden_mD, unembedding_vD, truncated, row_refs)
    dhidden_mD = _dot(dproducts_vm.astype(hidden_mD.dtype), unembedding_vD, (0, 0))
    _accumulate(dhidden_mD, accumulator_ref, result_ref)


def _dhead_kernel(tempering, V, M, truncated, hidden_ref, unembedding_ref, *refs):
    row_refs, result_ref, accumulator_ref = _split(refs, truncated)
    hidden_mD = _inside(hidden_ref[...], pl.program_id(1), M)
    unembedding_vD = unembedding_ref[...].astype(hidden_mD.dtype)
    block = pl.program_id(0)
    dproducts_vm = _dproducts(tempering, V, block, hidden_mD, unembedding_vD, truncated, row_refs)
    dhead_vD = _dot(dproducts_vm.astype(hidden_mD.dtype), hidden_mD, (1, 0))
    _accumulate(dhead_vD, accumulator_ref, result_ref)


def _split(refs, truncated):
    """Refs of rows, of the result, and where it is summed: in itself if it is float32."""
    count = 1 + truncated + len(maths.Pull._fields)
    return refs[:count], refs[count], refs[-1]


def _dproducts(tempering, V, block, hidden_mD, unembedding_vD, truncated, row_refs):
    labels_ref, *rest = row_refs
    logits_vm, is_label_vm, kept_vm = _logits(
        tempering, V, block, hidden_mD, unembedding_vD, labels_ref, rest[:truncated]
    )
    pull = maths.Pull(*[ref[...] for ref in rest[truncated:]])
    return maths.pull_back(tempering, pull, logits_vm, is_label_vm, kept_vm)


def _logits(tempering, V, block, hidden_mD, unembedding_vD, labels_ref, threshold_ref):
    """The tile, where it is the label, and what of it is kept (None: all)."""
    logits_vm = tempering(_dot(unembedding_vD.astype(hidden_mD.dtype), hidden_mD, (1, 1)))
    size = logits_vm.shape[0]
    ids_vm = block * size + jax.lax.broadcasted_iota(jnp.int32, logits_vm.shape, 0)
    is_label_vm = ids_vm == labels_ref[...]
    exists_vm = None
    if V % size:
        exists_vm = ids_vm < V
        is_label_vm &= exists_vm
    threshold = threshold_ref[0][...] if threshold_ref else None
    return logits_vm, is_label_vm, maths.kept(logits_vm, threshold, is_label_vm, exists_vm)


def _inside(block, index, total: int):
    """Zeros where a block reaches beyond `total`: there may be NaN, and 0 times it is NaN."""
    size = block.shape[0]
    if total % size == 0:
        return block
    places = index * size + jax.lax.broadcasted_iota(jnp.int32, block.shape, 0)
    return jnp.where(places < total, block, jnp.zeros_like(block))


def _accumulate(x, accumulator_ref, result_ref):
    @pl.when(pl.program_id(1) == 0)
    def _():
        accumulator_ref[...] = x

    @pl.when(pl.program_id(1) > 0)
    def _():
        accumulator_ref[...] += x

    if accumulator_ref is not result_ref:

        @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
        def _():
            result_ref[...] = accumulator_ref[...].astype(result_ref.dtype)


def _dot(a, b, contracting: tuple[int, int]):
    axes = ((contracting[0],), (contracting[1],))
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _rows(*arrays_and_length) -> list[jax.Array]:
    """Vectors [M] as [1, length], with zeros after them."""
    *arrays, length = arrays_and_length
    return [jnp.pad(x, (0, length - x.shape[0]))[None] for x in arrays if x is not None]


def _specs(v: int, m: int, D: int, vocab_axis: int):
    """Blocks of hidden, unembedding and row vectors; vocab_axis: the grid's."""

    def rows(*step):
        return step[1 - vocab_axis]

    return (
        pl.BlockSpec((m, D), lambda *step: (rows(*step), 0)),
        pl.BlockSpec((v, D), lambda *step: (step[vocab_axis], 0)),
        pl.BlockSpec((1, m), lambda *step: (0, rows(*step))),
    )


# Which of (v, m) and which operand a kernel's result is like.
_RESULTS = {"forward": None, "dhidden": 1, "dhead": 0}
_COMPILER_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))


def _blocks(kernel: str, hidden_MD, unembedding_VD) -> tuple[int, int]:
    """(v, m); a problem smaller than a block is one block."""
    fitting = _fitting(kernel, hidden_MD, unembedding_VD)
    assert fitting is not None, "asked for before: unsupported"
    return min(fitting[0], unembedding_VD.shape[0]), min(fitting[1], hidden_MD.shape[0])


def _fitting(kernel: str, hidden_MD, unembedding_VD) -> tuple[int, int] | None:
    dtypes = hidden_MD.dtype.itemsize, unembedding_VD.dtype.itemsize
    D = -(-hidden_MD.shape[1] // _LANES) * _LANES
    for blocks in _BLOCKS:
        if _vmem_bytes(kernel, blocks, D, *dtypes) <= _VMEM_BYTES:
            return blocks
    return None


def _vmem_bytes(kernel: str, blocks: tuple[int, int], D: int, h: int, w: int) -> int:
    """The module's table."""
    v, m = blocks
    total = 2 * m * D * h + 2 * v * D * w + 4 * 4 * v * m
    if h != w:
        total += v * D * h
    place = _RESULTS[kernel]
    if place is not None:
        size, o = ((v, w), (m, h))[place]
        total += 2 * size * D * o + (4 * size * D if o != 4 else 0)
    return total
