"""Every op at its real shapes, as something to compile or to time."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kernels.branch_attention import api as branch_attention
from kernels.branch_attention import specs as branch_specs
from kernels.dispatch import Implementation
from kernels.logprob import api as logprob
from kernels.logprob import specs as logprob_specs
from kernels.sample import api as sample
from kernels.sample import specs as sample_specs


@dataclasses.dataclass(frozen=True)
class Case:
    """One call, `function(*inputs)`, and the least that any implementation computes and moves.

    `inputs` are shapes; `integers` are the values of those inputs, by their index, that decide how
    much is computed: every branch sees the whole trunk and a full past.
    """

    op: str
    spec: str
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    integers: dict[int, int]
    flops: int
    bytes: int


def cases(dtype: Any, implementation: Implementation) -> Iterator[Case]:
    """All ops at all real shapes; `dtype` is that of the activations, parameters of heads that are
    trained are float32."""
    for name, spec in logprob_specs.REAL.items():
        inputs = spec.inputs(dtype)
        forward = functools.partial(_logprob, implementation, spec.soft_cap)
        flops, moved = spec.forward_flops, spec.forward_bytes(dtype)
        yield Case("logprob", name, forward, inputs, {}, flops, moved)
        both = _with_gradients(forward, differentiated=(0, 1))
        flops, moved = flops + spec.backward_flops, moved + spec.backward_bytes(dtype)
        yield Case("logprob + gradients", name, both, inputs, {}, flops, moved)
    for name, spec in sample_specs.REAL.items():
        draw = functools.partial(sample.sample, **spec.options, implementation=implementation)
        yield Case("sample", name, draw, spec.inputs(dtype), {}, spec.flops, spec.bytes(dtype))
    for name, spec in branch_specs.TRAINING.items():
        inputs, seen = spec.inputs(dtype), {4: 0, 5: spec.S}
        attend = functools.partial(branch_attention.branch_attention, implementation=implementation)
        flops, moved = spec.forward_flops, spec.forward_bytes(dtype)
        yield Case("branch_attention", name, attend, inputs, seen, flops, moved)
        both = _with_gradients(attend, differentiated=(0, 1, 2, 3))
        flops, moved = flops + spec.backward_flops, moved + spec.backward_bytes(dtype)
        yield Case("branch_attention + gradients", name, both, inputs, seen, flops, moved)
    for name, spec in branch_specs.DECODE.items():
        attend = functools.partial(branch_attention.decode_attention, implementation=implementation)
        flops, moved = spec.forward_flops, spec.forward_bytes(dtype)
        assert spec.U is not None
        inputs, seen = spec.inputs(dtype), {2: 0, 3: spec.S, 5: spec.U}
        yield Case("decode_attention", name, attend, inputs, seen, flops, moved)


def _logprob(implementation, soft_cap, hidden_MD, unembedding_VD, labels_M, threshold_M):
    return logprob.logprob(
        hidden_MD,
        unembedding_VD,
        labels_M,
        threshold_M=threshold_M,
        soft_cap=soft_cap,
        implementation=implementation,
    )


def _with_gradients(function: Callable[..., Any], differentiated: tuple[int, ...]):
    def both(*inputs):
        def total(*arguments):
            return sum(
                jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(function(*arguments))
            )

        return jax.value_and_grad(total, argnums=differentiated)(*inputs)

    return both
