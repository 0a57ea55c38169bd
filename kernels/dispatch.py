"""Which implementation of an op runs: decided by the platform that a program is lowered for.

    implementation=None   'pallas' where the program is lowered for TPU and the op's kernel takes
                          the shapes, 'chunked' everywhere else
    'reference'           the oracle: plain jax, everything in memory at once
    'chunked'             plain XLA in bounded memory, on any platform
    'pallas'              the TPU kernel; off TPU it runs in Pallas' interpret mode only

The choice is made at lowering and not from the default backend, because programs for TPU are also
compiled on machines that have none.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

Implementation = Literal["reference", "chunked", "pallas"]
IMPLEMENTATIONS = ("reference", "chunked", "pallas")


def run(
    implementation: Implementation | None,
    functions: dict[Implementation, Callable[..., Any]],
    *arrays: Any,
    unsupported: str | None = None,
) -> Any:
    """Calls the chosen one of `functions` with `arrays`; all return the same types.

    Args:
      implementation: the caller's wish, None for the default of the platform.
      functions: by name; what they need beside arrays is bound already.
      arrays: pytrees of arrays.
      unsupported: why the Pallas kernel cannot take these shapes, in a few words; None if it can.

    Raises:
      ValueError: an implementation that does not exist, or that cannot take these shapes.
    """
    if implementation is None:
        if unsupported is not None:
            return functions["chunked"](*arrays)
        return jax.lax.platform_dependent(
            *arrays, tpu=functions["pallas"], default=functions["chunked"]
        )
    if implementation not in functions:
        raise ValueError(
            f"unknown implementation {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "pallas" and unsupported is not None:
        raise ValueError(f"the Pallas kernel cannot run here: {unsupported}")
    return functions[implementation](*arrays)
