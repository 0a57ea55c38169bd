"""The kernels under a mesh.

Each function calls its kernel. Where a mesh is set (`jax.set_mesh`) it does so inside
`jax.shard_map`: the compiler cannot split a Pallas kernel, and a vocabulary that is split over the
mesh is combined by maxima and sums of rows, where the compiler alone might gather the logits.

    rows (B, or M = B * ...)   over replica and fsdp
    heads                      over tensor, where the key/value heads divide
    vocabulary                 over tensor, where it divides

What does not divide is computed by every device of that axis. Without a mesh, or with a mesh of one
device, the kernel is called as it is.

Weights that are split over fsdp are gathered where they are used, in the dtype of the computation,
and their gradients summed straight into shards, in the same dtype: `gathered` for those of a layer,
`_head` for the head inside of its kernels.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import layout
from jax.sharding import PartitionSpec

from kernels.branch_attention import api as _branch_attention
from kernels.logprob import api as _logprob
from kernels.sample import api as _sample
from kernels.trunk_attention import api as _trunk_attention
from rpt import sharding


@jax.named_scope("trunk_attention")
def trunk_attention(
    query_BSNH: jax.Array, key_BSKH: jax.Array, value_BSKH: jax.Array, segments_BS: jax.Array
) -> jax.Array:
    """See kernels/trunk_attention/api.py."""
    arrays = (query_BSNH, key_BSKH, value_BSKH, segments_BS)
    rows, heads = _rows(query_BSNH.shape[0]), _split(sharding.RULES["kv_heads"], key_BSKH.shape[2])
    by_head = PartitionSpec(rows, None, heads)
    specs = (by_head, by_head, by_head, PartitionSpec(rows))
    return _mapped(_trunk_attention.trunk_attention, arrays, specs, by_head)


@jax.named_scope("branch_attention")
def branch_attention(
    query_BRTNH: jax.Array,
    key_BRTKH: jax.Array,
    value_BRTKH: jax.Array,
    trunk: tuple[jax.Array, jax.Array],
    lo_BR: jax.Array,
    hi_BR: jax.Array,
) -> jax.Array:
    """See kernels/branch_attention/api.py."""
    arrays = (query_BRTNH, key_BRTKH, value_BRTKH, trunk, lo_BR, hi_BR)
    rows = _rows(query_BRTNH.shape[0])
    heads = _split(sharding.RULES["kv_heads"], key_BRTKH.shape[3])
    own, shared = PartitionSpec(rows, None, None, heads), PartitionSpec(rows, None, heads)
    specs = (own, own, own, (shared, shared), PartitionSpec(rows), PartitionSpec(rows))
    return _mapped(_branch_attention.branch_attention, arrays, specs, own)


@jax.named_scope("decode_attention")
def decode_attention(
    query_BRNH: jax.Array,
    trunk: _branch_attention.Trunk,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    past: _branch_attention.Past,
    length: jax.Array,
) -> jax.Array:
    """See kernels/branch_attention/api.py."""
    arrays = (query_BRNH, trunk, lo_BR, hi_BR, past, length)
    rows = _rows(query_BRNH.shape[0])
    K = past[0].shape[_branch_attention.PAST_AXES[0].index("K")]
    heads = _split(sharding.RULES["kv_heads"], K)

    def specs_of(kind: Any, axes: tuple[str, ...]) -> Any:
        names = {"B": rows, "K": heads}
        return kind(*[PartitionSpec(*map(names.get, letters)) for letters in axes])

    by_head, by_row = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    shared = specs_of(_branch_attention.Trunk, _branch_attention.TRUNK_AXES)
    own = specs_of(_branch_attention.Past, _branch_attention.PAST_AXES)
    specs = (by_head, shared, by_row, by_row, own, PartitionSpec())
    return _mapped(_branch_attention.decode_attention, arrays, specs, by_head)


@jax.named_scope("logprob")
def logprob(
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    *,
    temperature: float = 1.0,
    threshold_M: jax.Array | None = None,
) -> _logprob.LogProb:
    """See kernels/logprob/api.py."""
    rows, head = _rows(hidden_MD.shape[0]), _head_spec(unembedding_VD)

    def kernel(hidden_MD, unembedding_VD, labels_M, threshold_M):
        return _logprob.logprob(
            hidden_MD,
            _head(unembedding_VD, head, hidden_MD.dtype),
            labels_M,
            temperature=temperature,
            threshold_M=threshold_M,
            vocab_axis=head[0],
        )

    by_row = PartitionSpec(rows)
    specs = (by_row, PartitionSpec(*head), by_row, None if threshold_M is None else by_row)
    return _mapped(kernel, (hidden_MD, unembedding_VD, labels_M, threshold_M), specs, by_row)


@jax.named_scope("score")
def score(
    hidden_MD: jax.Array, unembedding_VD: jax.Array, labels_M: jax.Array, *, top: int
) -> _logprob.Scores:
    """See kernels/logprob/api.py."""
    rows, head = _rows(hidden_MD.shape[0]), _head_spec(unembedding_VD)

    def kernel(hidden_MD, unembedding_VD, labels_M):
        whole_VD = _head(unembedding_VD, head, hidden_MD.dtype)
        return _logprob.score(hidden_MD, whole_VD, labels_M, top=top, vocab_axis=head[0])

    by_row = PartitionSpec(rows)
    specs = (by_row, PartitionSpec(*head), by_row)
    return _mapped(kernel, (hidden_MD, unembedding_VD, labels_M), specs, by_row)


@jax.named_scope("sample")
def sample(
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    keys_M2: jax.Array,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
) -> _sample.Sample:
    """See kernels/sample/api.py."""
    rows, vocab = _rows(hidden_MD.shape[0]), _split(sharding.RULES["vocab"], len(unembedding_VD))
    kernel = functools.partial(
        _sample.sample, temperature=temperature, top_k=top_k, top_p=top_p, vocab_axis=vocab
    )
    by_row = PartitionSpec(rows)
    specs = (by_row, PartitionSpec(vocab), by_row)
    return _mapped(kernel, (hidden_MD, unembedding_VD, keys_M2), specs, by_row)


@jax.named_scope("gathered")
def gathered(weight: jax.Array, axes: tuple[str, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """A weight of a layer, cast and then whole along fsdp; its gradient is summed into shards.

    Args:
      weight: a parameter in its training layout.
      axes: its logical axes.
      dtype: of the computation.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cast = weight.astype(dtype)
    return cast if mesh.empty or mesh.shape["fsdp"] == 1 else _gathered(cast, axes)


# The gradient of a sharding constraint has the same constraint: the compiler would sum whole
# gradients on every device and slice them afterwards, which is twice the exchange.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    kept = [None if axis == "fsdp" else axis for axis in _spec(axes, weight)]
    return jax.lax.with_sharding_constraint(weight, PartitionSpec(*kept))


def _gathered_forward(weight, axes):
    return _gathered(weight, axes), None


def _gathered_backward(axes, residuals, gradient):
    del residuals
    return (jax.lax.with_sharding_constraint(gradient, _spec(axes, gradient)),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def split_rows(tree: Any) -> Any:
    """Arrays whose first axis is B, split there over replica and fsdp where it divides."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree

    def one(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(_rows(x.shape[0])))

    return jax.tree.map(one, tree)


def split_key_values(tree_LBSKH: Any) -> Any:
    """The trunk's keys and values, or what is summed of their shape: rows and heads split as in
    `trunk_attention`."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree_LBSKH

    def one(x: jax.Array) -> jax.Array:
        heads = _split(sharding.RULES["kv_heads"], x.shape[3])
        spec = PartitionSpec(None, _rows(x.shape[1]), None, heads)
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(one, tree_LBSKH)


def split_parameters(tree: Any, logical_axes: Any) -> Any:
    """A tree like the parameters in their training layout."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    shardings = sharding.parameter_shardings(mesh, logical_axes, tree)
    return jax.lax.with_sharding_constraint(tree, shardings)


def split_tensor(array: jax.Array, axis: int | None, count: int = 0) -> jax.Array:
    """One axis over tensor, where `count` (else its size) divides; everything else whole."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    names: list[str | None] = [None] * array.ndim
    if axis is not None:
        names[axis] = _split("tensor", count or array.shape[axis])
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*names))


def _spec(axes: tuple[str, ...], weight: jax.Array) -> PartitionSpec:
    return sharding.parameter_spec(jax.sharding.get_abstract_mesh(), axes, weight.shape)


def _head_spec(unembedding_VD: jax.Array) -> tuple[str | None, str | None]:
    """The mesh axes over which the vocabulary and the width of the head are split."""
    V, D = unembedding_VD.shape
    return _split(sharding.RULES["vocab"], V), _split(sharding.RULES["embed"], D)


def _head(unembedding_VD: jax.Array, axes: tuple[str | None, str | None], dtype) -> jax.Array:
    """Inside of shard_map: the head whole along its width."""
    return unembedding_VD if axes[1] is None else _whole(unembedding_VD.astype(dtype), axes[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(shard: jax.Array, axis: str) -> jax.Array:
    return jax.lax.all_gather(shard, axis, axis=1, tiled=True)


def _whole_forward(shard, axis):
    return _whole(shard, axis), None


def _whole_backward(axis, residuals, gradient):
    del residuals
    # In memory as it is named: shards of the minor axis would be padded, and the TPU compiler then
    # sums whole gradients and slices them. (Of heads beyond about 400 MB it does so in any case.)
    rows = layout.with_layout_constraint(gradient.T, layout.Layout((0, 1)))
    return (jax.lax.psum_scatter(rows, axis, scatter_dimension=0, tiled=True).T,)


_whole.defvjp(_whole_forward, _whole_backward)


def _mapped(kernel: Callable[..., Any], arrays: tuple[Any, ...], specs: Any, out: Any) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(*arrays)
    # Replication is proved by the tests and not by the checker, which knows no Pallas kernel.
    return jax.shard_map(kernel, in_specs=specs, out_specs=out, check_vma=False)(*arrays)


def _rows(count: int) -> tuple[str, ...] | None:
    """The mesh axes that split rows, where they divide them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    size = 1
    for axis in sharding.BATCH_AXES:
        size *= mesh.shape[axis]
    return sharding.BATCH_AXES if count % size == 0 else None


def _split(axis: str, count: int) -> str | None:
    """The mesh axis, where it splits anything and divides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape[axis] == 1 or count % mesh.shape[axis]:
        return None
    return axis
