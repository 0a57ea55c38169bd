"""Shapes of the models that the kernels are specified, tested and measured for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """V vocabulary, D width, F feed-forward width, L layers, N query heads, K key/value heads, H
    head width."""

    V: int
    D: int
    F: int
    L: int
    N: int
    K: int
    H: int


MODELS = {
    "smollm2_135m": ModelShape(V=49152, D=576, F=1536, L=30, N=9, K=3, H=64),
    "qwen2.5_1.5b": ModelShape(V=151936, D=1536, F=8960, L=28, N=12, K=2, H=128),
    "llama3.1_8b": ModelShape(V=128256, D=4096, F=14336, L=32, N=32, K=8, H=128),
    "qwen2.5_14b": ModelShape(V=152064, D=5120, F=13824, L=48, N=40, K=8, H=128),
}
