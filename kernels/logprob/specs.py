"""Shapes at which logprob is compiled, measured and tested.

M rows, D width, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kernels import models


@dataclasses.dataclass(frozen=True)
class Spec:
    """One call: its shapes and options."""

    M: int
    D: int
    V: int
    truncated: bool = False
    soft_cap: float | None = None

    def inputs(self, dtype, parameter_dtype=jnp.float32) -> tuple[jax.ShapeDtypeStruct | None, ...]:
        """hidden_MD in `dtype`, unembedding_VD in `parameter_dtype`, labels_M, threshold_M."""
        rows = jax.ShapeDtypeStruct((self.M,), jnp.float32)
        return (
            jax.ShapeDtypeStruct((self.M, self.D), dtype),
            jax.ShapeDtypeStruct((self.V, self.D), parameter_dtype),
            jax.ShapeDtypeStruct((self.M,), jnp.int32),
            rows if self.truncated else None,
        )

    @property
    def forward_flops(self) -> int:
        """Of the matmul."""
        return 2 * self.M * self.D * self.V

    @property
    def backward_flops(self) -> int:
        """Logits again, dh and dW: what is least without [M, V] in memory."""
        return 3 * self.forward_flops

    def forward_bytes(self, dtype, parameter_dtype=jnp.float32) -> int:
        """Operands read once, vectors written."""
        operands = _size(self.M * self.D, dtype) + _size(self.V * self.D, parameter_dtype)
        return operands + 4 * self.M * (4 + self.truncated)

    def backward_bytes(self, dtype, parameter_dtype=jnp.float32) -> int:
        """Operands read once, their gradients written once."""
        operands = _size(self.M * self.D, dtype) + _size(self.V * self.D, parameter_dtype)
        return 2 * operands + 4 * self.M * (6 + self.truncated)


def _size(elements: int, dtype) -> int:
    return elements * jnp.dtype(dtype).itemsize


# A micro-batch of an update: 4,096 tokens of branches.
REAL = {name: Spec(M=4096, D=model.D, V=model.V) for name, model in models.MODELS.items()}
# With all that the kernels can do besides: a threshold and a cap.
REAL["qwen2.5_1.5b_truncated_cap"] = dataclasses.replace(
    REAL["qwen2.5_1.5b"], truncated=True, soft_cap=30.0
)

# For interpret mode: rows and vocabulary within one block, at its edges, and beyond it.
TINY = {
    "one_block": Spec(M=10, D=6, V=17),
    "beyond_blocks": Spec(M=130, D=24, V=301, truncated=True),
    "soft_cap": Spec(M=24, D=16, V=137, soft_cap=3.0),
}
