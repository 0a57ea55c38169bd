"""The promise: data/ works where jax is not installed."""

import pathlib
import subprocess
import sys

import data

BLOCKED = """
import importlib, importlib.abc, json, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"jax", "jaxlib", "flax", "orbax", "optax", "rpt", "kernels"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""

PIPELINE = """
import numpy as np
import data
names = [module.name for module in pkgutil.iter_modules(data.__path__)]
for name in names:
    importlib.import_module(f"data.{name}")
from data import pipeline, records, tokenizers
source = records.from_texts([f"document {i} of a few words" for i in range(20)])
mixture = [pipeline.Mix(source, 1.0, "few"), pipeline.Mix(source, 2.0, "more")]
tokenizer = tokenizers.train_bpe([source[0].text], 270)
packed = pipeline.packed_batches(mixture, tokenizer, batch_size=2, seq_len=64, seed=0)
trunk = pipeline.trunk_batches(
    mixture, tokenizer, batch_size=2, seq_len=64, header_ids=np.array([0]), min_context=2, seed=0
)
assert next(packed).loss_mask_BS.any() and next(trunk).lengths_B.all()
json.dumps([packed.get_state(), trunk.get_state()])
print(" ".join(names))
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code],
        cwd=pathlib.Path(data.__path__[0]).parent,
        capture_output=True,
        text=True,
    )


def test_data_works_without_jax():
    done = run(PIPELINE)
    assert done.returncode == 0, done.stderr
    assert {"documents", "pipeline", "sources", "splits", "tokenizers"} <= set(done.stdout.split())


def test_the_block_blocks():
    for name in ("jax", "flax.linen", "rpt"):
        assert "is blocked" in run(f"import {name}").stderr
