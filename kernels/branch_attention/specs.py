"""Shapes at which branch attention is compiled, measured and tested.

Letters as in kernels/branch_attention/api.py.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kernels import models
from kernels.branch_attention import cache


@dataclasses.dataclass(frozen=True)
class Spec:
    """One call of `branch_attention`, or of `decode_attention` where U is given (then T is 1)."""

    B: int
    S: int
    R: int
    T: int
    N: int
    K: int
    H: int
    U: int | None = None

    def inputs(self, dtype) -> tuple:
        """The arguments, in order."""

        def array(*shape: int) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        B, S, R, T, N, K, H = self.B, self.S, self.R, self.T, self.N, self.K, self.H
        cut = jax.ShapeDtypeStruct((B, R), jnp.int32)
        if self.U is None:
            trunk = (array(B, S, K, H), array(B, S, K, H))
            return (array(B, R, T, N, H), *[array(B, R, T, K, H)] * 2, trunk, cut, cut)
        trunk = cache.Trunk(array(B, K, S, H), array(B, K, S, H))
        past = cache.Past(array(B, R, K, H, self.U), array(B, R, K, self.U, H))
        length = jax.ShapeDtypeStruct((), jnp.int32)
        return (array(B, R, N, H), trunk, cut, cut, past, length)

    @property
    def forward_flops(self) -> int:
        """Of logits and mixes where every branch sees the whole trunk: what a cut hides is less."""
        own = self.T * (self.T + 1) // 2 if self.U is None else self.U
        return 4 * self.B * self.R * self.N * self.H * (self.T * self.S + own)

    @property
    def backward_flops(self) -> int:
        """Logits again, and the gradients of logits, queries, keys and values."""
        return self.forward_flops * 5 // 2

    def forward_bytes(self, dtype) -> int:
        """Every operand read once, the result written."""
        return self._operands(dtype) + self._queries(dtype)

    def backward_bytes(self, dtype) -> int:
        """Operands, result and its gradient read once, the gradients written once."""
        return 2 * self._operands(dtype) + 2 * self._queries(dtype)

    def _queries(self, dtype) -> int:
        return self.B * self.R * self.T * self.N * self.H * jnp.dtype(dtype).itemsize

    def _operands(self, dtype) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.inputs(dtype)))


def _model(name: str) -> dict[str, int]:
    shape = models.MODELS[name]
    return {"N": shape.N, "K": shape.K, "H": shape.H}


# A micro-batch of an update: short thoughts on a short document, to long ones on a long document.
TRAINING = {
    "smollm2_135m": Spec(B=1, S=512, R=64, T=32, **_model("smollm2_135m")),
    "smollm2_135m_long": Spec(B=1, S=4096, R=32, T=256, **_model("smollm2_135m")),
    "qwen2.5_1.5b": Spec(B=1, S=1024, R=64, T=32, **_model("qwen2.5_1.5b")),
    "llama3.1_8b": Spec(B=1, S=2048, R=32, T=256, **_model("llama3.1_8b")),
    "qwen2.5_14b": Spec(B=1, S=4096, R=32, T=256, **_model("qwen2.5_14b")),
}

DECODE = {
    "smollm2_135m": Spec(B=1, S=512, R=128, T=1, U=64, **_model("smollm2_135m")),
    "smollm2_135m_many": Spec(B=2, S=4096, R=512, T=1, U=256, **_model("smollm2_135m")),
    "qwen2.5_1.5b": Spec(B=1, S=1024, R=128, T=1, U=64, **_model("qwen2.5_1.5b")),
    "llama3.1_8b": Spec(B=1, S=2048, R=32, T=1, U=256, **_model("llama3.1_8b")),
    "qwen2.5_14b": Spec(B=1, S=4096, R=512, T=1, U=256, **_model("qwen2.5_14b")),
}

# For interpret mode: two documents within one block each, and several blocks of positions and tiles
# of 128.
TINY = {
    "one_block": Spec(B=2, S=18, R=5, T=3, N=4, K=2, H=8),
    "beyond_blocks": Spec(B=1, S=400, R=4, T=40, N=1, K=1, H=8),
}
