"""TPU kernel: a tile of logits lives in VMEM only, and so does its noise.

M rows, D width, V vocabulary (of this shard); m, v: those of a block; N candidates.
Tiles are [v, m], as those of kernels/logprob/pallas_tpu.py: rows of the problem lie along lanes.

Grid (M blocks, V blocks), the first parallel, the second in order. A step computes a tile of
tempered logits on the MXU and goes through it in chunks that fit the registers:

    plain       z, exp(z - peak); hash of the ids, two logarithms, z + noise: per row the running
                peak, mass, winner (score, id, z) and most probable id, all [1, m]
    truncated   z, exp(z - peak); z is inserted into the sorted list of its bin (its place in
                512 consecutive ids): no noise, since few of the logits will be kept
    greedy      the most probable id

Truncated, the lists go to `candidates`, which proves and samples in XLA; rows without proof make
the whole block of rows go through `bisection` in XLA. All sums and comparisons are float32.

HBM: W once per M block, M / m * V * D, and h once; the lists are written once, 8 depth * bins * M
bytes, 24 KiB per row, where the reference writes and reads logits, noise and a sort of [M, V]
float32 several times.

VMEM, in bytes, with D rounded up to lanes (128), h and w the bytes of an element of hidden and
unembedding (`_vmem_bytes`):

    h block              2 m D h          twice: the next one arrives meanwhile
    W block              2 v D w
    W block cast         v D h            where its dtype is not hidden's
    tile of logits       2 x 4 v m        the scratch, and the product before it is stored
    lists                2 x 8 depth bins m     truncated only: values and ids

Blocks that reach beyond M or V hold whatever was there: rows are independent, ids from V on are
masked.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.sample import candidates, chunked, noise, tiles
from kernels.sample.result import NEVER, Request, Sample, greedy

# (v, m) from best to least: the first whose VMEM fits. Chosen by the arithmetic above and compiled
# for v4, v5e, v5p, v6e and TPU7x; not yet timed on a chip.
_BLOCKS = ((512, 256), (512, 128), (256, 128), (128, 128), (64, 128))
# All generations let a kernel take 16 MiB; the rest is for the compiler's own temporaries.
_VMEM_BYTES = 14 * 2**20
_LANES = 128
# Places of a tile that a chunk has: 64 x 128 float32 are 8 registers.
_CHUNK = 64
# At 100 tokens kept, one row in a million has more than six of them in one bin.
_BINS, _DEPTH = 512, 6
# Rows whose lists are in HBM at a time: 24 MiB.
_LISTED_ROWS = 1024


def unsupported(request: Request, hidden_MD: jax.Array, unembedding_VD: jax.Array) -> str | None:
    """Why the kernel cannot take these, or None."""
    for name, x in (("hidden", hidden_MD), ("unembedding", unembedding_VD)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} must be float32 or bfloat16, not {x.dtype}"
    if 0 in (*hidden_MD.shape, *unembedding_VD.shape):
        return f"empty operands {hidden_MD.shape}, {unembedding_VD.shape}"
    if _fitting(request, hidden_MD, unembedding_VD) is None:
        return f"width {hidden_MD.shape[1]} needs more than {_VMEM_BYTES} bytes of VMEM"
    return None


def sample(
    request: Request, hidden_MD: jax.Array, unembedding_VD: jax.Array, keys_M2: jax.Array
) -> Sample:
    """See `api.sample`."""
    axis = request.vocab_axis
    if request.temperature and request.truncates:
        one = functools.partial(_truncated, request, unembedding_VD)
        return chunked.by_rows(one, _LISTED_ROWS, hidden_MD, keys_M2)
    state = streamed(request, hidden_MD, unembedding_VD, keys_M2)
    best = tiles.Winner(*(x[0] for x in state[:3]))
    best_M = tiles.combine_winner(axis, best).id_M
    if request.temperature == 0:
        return greedy(best_M)
    peak_M, mass_M = tiles.combine_mass(axis, best.z_M, state[3][0])
    drawn = tiles.combine_winner(axis, tiles.Winner(*(x[0] for x in state[4:])))
    whole_M = jnp.full_like(peak_M, NEVER)
    return candidates.finish(drawn, best_M, whole_M, peak_M, mass_M, mass_M)


def _truncated(request, unembedding_VD, hidden_MD, keys_M2) -> Sample:
    M = hidden_MD.shape[0]
    peak, mass, z, ids, forgotten = streamed(request, hidden_MD, unembedding_VD, keys_M2)
    found = candidates.Candidates(
        z.reshape(-1, M), ids.reshape(-1, M), forgotten[0], peak[0], mass[0]
    )
    drawn, proven_M, peak_M, mass_M = candidates.sample(request, found, keys_M2)
    stream = tiles.stream(request, hidden_MD, unembedding_VD, keys_M2)
    return chunked.complete(stream, drawn, proven_M, peak_M, mass_M)


def streamed(request: Request, hidden_MD, unembedding_VD, keys_M2) -> list[jax.Array]:
    """The kernel's results: see `_results`."""
    (M, D), V = hidden_MD.shape, unembedding_VD.shape[0]
    v, m = _blocks(request, hidden_MD, unembedding_VD)
    first = jnp.int32(0)
    if request.vocab_axis is not None:
        first = jax.lax.axis_index(request.vocab_axis).astype(jnp.int32) * V
    results = _results(request, _bins(v))
    logs = 3 if request.temperature and not request.truncates else 1
    return pl.pallas_call(
        functools.partial(_kernel, request, V),
        grid=(pl.cdiv(M, m), pl.cdiv(V, v)),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((2, m), lambda i, j: (0, i)),
            pl.BlockSpec((m, D), lambda i, j: (i, 0)),
            pl.BlockSpec((v, D), lambda i, j: (j, 0)),
        ],
        out_specs=[
            pl.BlockSpec((*lead, m), lambda i, j, lead=lead: (*(0 for _ in lead), i))
            for lead, _, _ in results
        ],
        out_shape=[jax.ShapeDtypeStruct((*lead, M), dtype) for lead, dtype, _ in results],
        scratch_shapes=[pltpu.VMEM((v, m), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * M * D * V,
            transcendentals=logs * M * V,
            bytes_accessed=hidden_MD.nbytes
            + pl.cdiv(M, m) * unembedding_VD.nbytes
            + sum(4 * M * _product(lead) for lead, _, _ in results),
        ),
        name="sample",
    )(first[None], keys_M2.T, hidden_MD, unembedding_VD)


def _results(request: Request, bins: int) -> list[tuple[tuple[int, ...], type, float]]:
    """Leading shape, dtype and first value of each result, which the kernel accumulates."""
    row, ids = ((1,), jnp.float32, NEVER), ((1,), jnp.int32, 0)
    mass = ((1,), jnp.float32, 0.0)
    if request.temperature == 0:
        return [row, ids, row]
    if request.truncates:
        lists = (_DEPTH, bins)
        return [row, mass, (lists, jnp.float32, NEVER), (lists, jnp.int32, 0), row]
    return [row, ids, row, mass, row, ids, row]


def _kernel(request, V, first_ref, keys_ref, hidden_ref, unembedding_ref, *refs):
    *result_refs, z_ref = refs
    step = pl.program_id(1)
    v, m = z_ref.shape
    hidden_mD = hidden_ref[...]
    products_vm = jax.lax.dot_general(
        unembedding_ref[...].astype(hidden_mD.dtype),
        hidden_mD,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    z_ref[...] = request.tempering(products_vm)
    results = _results(request, _bins(v))

    @pl.when(step == 0)
    def _():
        for ref, (_, dtype, value) in zip(result_refs, results, strict=True):
            ref[...] = jnp.full(ref.shape, value, dtype)

    size = _CHUNK if v % _CHUNK == 0 else v

    def chunk(i, carry):
        start = pl.multiple_of(i * size, size)
        z_cm = z_ref[pl.ds(start, size), :]
        ids_cm = step * v + start + jax.lax.broadcasted_iota(jnp.int32, (size, m), 0)
        if V % v:
            z_cm = jnp.where(ids_cm < V, z_cm, NEVER)
        ids_cm += first_ref[0]
        if request.temperature == 0:
            _greedy_chunk(result_refs, z_cm, ids_cm)
        elif request.truncates:
            slots = _bins(v) // v
            slot = pl.multiple_of(step % slots * v + start, size)
            _list_chunk(result_refs, slot, z_cm, ids_cm)
        else:
            _plain_chunk(result_refs, keys_ref, z_cm, ids_cm)
        return carry

    jax.lax.fori_loop(0, v // size, chunk, 0)


def _greedy_chunk(refs, z_cm, ids_cm):
    _win(refs[:3], z_cm, z_cm, ids_cm)


def _plain_chunk(refs, keys_ref, z_cm, ids_cm):
    before = refs[0][...]
    _win(refs[:3], z_cm, z_cm, ids_cm)
    _add_mass(before, refs[0][...], refs[3], z_cm)
    gumbel_cm = noise.gumbel_at(keys_ref[0:1, :], keys_ref[1:2, :], ids_cm)
    _win(refs[4:], z_cm + gumbel_cm, z_cm, ids_cm)


def _list_chunk(refs, slot, z_cm, ids_cm):
    peak_ref, mass_ref, list_ref, list_ids_ref, forgotten_ref = refs
    before = peak_ref[...]
    peak_ref[...] = jnp.maximum(before, jnp.max(z_cm, axis=0, keepdims=True))
    _add_mass(before, peak_ref[...], mass_ref, z_cm)
    where = pl.ds(slot, z_cm.shape[0])
    for place in range(_DEPTH):
        old_cm, old_ids_cm = list_ref[place, where, :], list_ids_ref[place, where, :]
        up_cm = z_cm > old_cm
        list_ref[place, where, :] = jnp.where(up_cm, z_cm, old_cm)
        list_ids_ref[place, where, :] = jnp.where(up_cm, ids_cm, old_ids_cm)
        z_cm = jnp.where(up_cm, old_cm, z_cm)
        ids_cm = jnp.where(up_cm, old_ids_cm, ids_cm)
    left = jnp.max(z_cm, axis=0, keepdims=True)
    forgotten_ref[...] = jnp.maximum(forgotten_ref[...], left)


def _win(refs, score_cm, z_cm, ids_cm):
    """The running winner (score, id, z): ids come in order, so the earlier stays on a tie."""
    score_ref, id_ref, z_ref = refs
    score = jnp.max(score_cm, axis=0, keepdims=True)
    last = jnp.iinfo(jnp.int32).max
    winner = jnp.min(jnp.where(score_cm == score, ids_cm, last), axis=0, keepdims=True)
    z = jnp.max(jnp.where(ids_cm == winner, z_cm, NEVER), axis=0, keepdims=True)
    better = score > score_ref[...]
    score_ref[...] = jnp.where(better, score, score_ref[...])
    id_ref[...] = jnp.where(better, winner, id_ref[...])
    z_ref[...] = jnp.where(better, z, z_ref[...])


def _add_mass(before, peak, mass_ref, z_cm):
    added = jnp.sum(jnp.exp(z_cm - peak), axis=0, keepdims=True)
    mass_ref[...] = mass_ref[...] * jnp.exp(before - peak) + added


def _bins(v: int) -> int:
    return _BINS if _BINS % v == 0 else v


def _product(shape: tuple[int, ...]) -> int:
    return functools.reduce(lambda a, b: a * b, shape, 1)


def _blocks(request: Request, hidden_MD, unembedding_VD) -> tuple[int, int]:
    """(v, m); a problem smaller than a block is one block."""
    fitting = _fitting(request, hidden_MD, unembedding_VD)
    assert fitting is not None, "asked for before: unsupported"
    return min(fitting[0], unembedding_VD.shape[0]), min(fitting[1], hidden_MD.shape[0])


def _fitting(request: Request, hidden_MD, unembedding_VD) -> tuple[int, int] | None:
    h, w = hidden_MD.dtype.itemsize, unembedding_VD.dtype.itemsize
    D = -(-hidden_MD.shape[1] // _LANES) * _LANES
    for blocks in _BLOCKS:
        if _vmem_bytes(request, blocks, D, h, w) <= _VMEM_BYTES:
            return blocks
    return None


def _vmem_bytes(request: Request, blocks: tuple[int, int], D: int, h: int, w: int) -> int:
    """The module's table."""
    v, m = blocks
    total = 2 * m * D * h + 2 * v * D * w + 2 * 4 * v * m
    if h != w:
        total += v * D * h
    if request.truncates:
        total += 2 * 8 * _DEPTH * _bins(v) * m
    return total
