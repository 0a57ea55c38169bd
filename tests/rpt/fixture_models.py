"""What the tests of weights, export and parity share: fixtures on disk, logits, comparisons."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import tokenizers
from kernels.logprob import api as logprob
from rpt.model import transformer

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
VARIANTS = ("llama3", "qwen2", "qwen2_yarn", "qwen3")


@dataclasses.dataclass(frozen=True)
class TinyTokenizer(tokenizers.ByteTokenizer):
    """A tokenizer whose ids fit the fixtures' 64 rows."""

    @property
    def vocab_size(self) -> int:
        return 60

    @property
    def bos_id(self) -> int | None:
        return 58

    @property
    def eos_id(self) -> int | None:
        return 59


def logits(config, params, tokens_S) -> np.ndarray:
    tokens = jnp.asarray(tokens_S)[None]
    positions = jnp.arange(tokens.shape[1])[None]
    run = jax.jit(transformer.trunk, static_argnums=0)
    hidden, _ = run(config, params, tokens, jnp.ones_like(tokens), positions)
    return np.asarray(logprob.logits(hidden, transformer.unembedding(config, params)))[0]


def golden(variant: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(FIXTURES / variant / "golden.npz", allow_pickle=False) as file:
        return file["tokens"], file["logits"]


def assert_same_trees(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def assert_one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value)


def copy(variant: str, folder: pathlib.Path, **changes) -> pathlib.Path:
    """The fixture with other values in config.json; None removes a key."""
    shutil.copytree(FIXTURES / variant, folder)
    raw = json.loads((folder / "config.json").read_text()) | changes
    raw = {key: value for key, value in raw.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def truncate(path: pathlib.Path, keep: float) -> None:
    """Keeps the first `keep` bytes, a share of them, or all but some."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if 0 < keep < 1 else int(keep)])
