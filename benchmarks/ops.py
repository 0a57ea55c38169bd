"""Every op, implementation and real shape on this machine.

    python -m benchmarks.ops --implementations=chunked --models=smollm2_135m

Per call: time, rate of the least FLOPs and bytes that any implementation needs, and its share of
this machine's roofline, which is measured in the same process: a product of 4,096 x 4,096 for
FLOP/s, a copy of 256 MB for GB/s. `temporaries` is the compiler's figure.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import cases, report
from kernels import dispatch
from rpt import cli

_IMPLEMENTATIONS = flags.DEFINE_list("implementations", ["reference", "chunked"], "Which ones.")
_MODELS = flags.DEFINE_list("models", ["smollm2_135m"], "Shapes whose name begins so.")
_OPS = flags.DEFINE_list("ops", [], "Ops whose name begins so; all when empty.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the activations.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls, after one that compiles.")
_SIZE = flags.DEFINE_integer("roofline_size", 4096, "Rows and columns of the product.")


def roofline(dtype: str) -> tuple[float, float]:
    """FLOP/s and bytes/s of this machine."""
    n = _SIZE.value
    matrix = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    seconds = report.seconds(lambda: product(matrix), _REPEATS.value)
    flops = 2 * n**3 / seconds
    block = jnp.ones(2**26, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = report.seconds(lambda: copy(block), _REPEATS.value)
    return flops, 2 * block.nbytes / seconds


def arrays(case: cases.Case) -> tuple[Any, ...]:
    """The inputs: random numbers, ids below the smallest vocabulary, and what `integers` say."""
    generator = np.random.default_rng(0)

    def one(struct: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(struct.dtype, jnp.floating):
            values = generator.standard_normal(struct.shape, np.float32) * 0.1
            return jnp.asarray(values, struct.dtype)
        return jnp.asarray(generator.integers(1, 2**15, struct.shape), struct.dtype)

    filled = [
        jnp.full(x.shape, case.integers[i], x.dtype) if i in case.integers else jax.tree.map(one, x)
        for i, x in enumerate(case.inputs)
    ]
    return tuple(filled)


def main(argv: list[str]) -> None:
    del argv
    unknown = set(_IMPLEMENTATIONS.value) - set(dispatch.IMPLEMENTATIONS)
    if unknown:
        raise ValueError(
            f"--implementations={','.join(unknown)}: choose from "
            f"{', '.join(dispatch.IMPLEMENTATIONS)}"
        )
    most_flops, most_bytes = roofline(_DTYPE.value)
    rows = []
    for implementation in _IMPLEMENTATIONS.value:
        for case in cases.cases(jnp.dtype(_DTYPE.value), implementation):
            if not case.spec.startswith(tuple(_MODELS.value)):
                continue
            if not case.op.startswith(tuple(_OPS.value) or ("",)):
                continue
            inputs = arrays(case)
            compiled = jax.jit(case.function).lower(*inputs).compile()
            seconds = report.seconds(
                lambda compiled=compiled, inputs=inputs: compiled(*inputs),
                _REPEATS.value,
            )
            least = max(case.flops / most_flops, case.bytes / most_bytes)
            rows.append(
                {
                    "op": case.op,
                    "implementation": implementation,
                    "spec": case.spec,
                    "ms": 1e3 * seconds,
                    "GFLOP/s": case.flops / seconds / 1e9,
                    "GB/s": case.bytes / seconds / 1e9,
                    "share of roofline": least / seconds,
                    "temporaries MB": compiled.memory_analysis().temp_size_in_bytes / 1e6,
                }
            )
    if not rows:
        raise ValueError("no op has such a name and shape; leave out --ops and --models for all")
    title = (
        f"ops in {_DTYPE.value}; roofline of this machine {most_flops / 1e9:.0f} GFLOP/s, "
        f"{most_bytes / 1e9:.1f} GB/s"
    )
    report.show(title, rows)


if __name__ == "__main__":
    cli.run(main)
