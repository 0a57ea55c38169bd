"""Shapes at which sample is compiled, measured and tested. M rows, D width, V vocabulary."""

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
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def options(self) -> dict[str, float]:
        """Keyword arguments of `api.sample`."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def inputs(self, dtype, parameter_dtype=None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """hidden_MD in `dtype`, unembedding_VD in `parameter_dtype` (None: the same), keys_M2."""
        return (
            jax.ShapeDtypeStruct((self.M, self.D), dtype),
            jax.ShapeDtypeStruct((self.V, self.D), parameter_dtype or dtype),
            jax.ShapeDtypeStruct((self.M, 2), jnp.uint32),
        )

    @property
    def flops(self) -> int:
        """Of the matmul."""
        return 2 * self.M * self.D * self.V

    def bytes(self, dtype, parameter_dtype=None) -> int:
        """Operands read once, vectors written."""
        hidden, unembedding, keys = self.inputs(dtype, parameter_dtype)
        operands = sum(x.size * x.dtype.itemsize for x in (hidden, unembedding, keys))
        return operands + 5 * 4 * self.M


# A decoding step of 128 branches.
PLAIN = {name: Spec(M=128, D=model.D, V=model.V) for name, model in models.MODELS.items()}
TRUNCATED = {
    f"{name}_truncated": dataclasses.replace(spec, temperature=0.8, top_k=50, top_p=0.95)
    for name, spec in PLAIN.items()
}
REAL = PLAIN | TRUNCATED

# For interpret mode: rows and vocabulary within one block, at its edges, and beyond it.
TINY = {
    "one_block": Spec(M=10, D=6, V=17),
    "beyond_blocks": Spec(M=130, D=24, V=1300, temperature=0.7),
    "top_k": Spec(M=24, D=16, V=1300, top_k=7),
    "top_k_and_top_p": Spec(M=130, D=8, V=600, temperature=0.8, top_k=40, top_p=0.8),
    "greedy": Spec(M=9, D=8, V=700, temperature=0.0),
}
