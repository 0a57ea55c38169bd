"""What all commands share."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from rpt import cli


def main(argv):
    jax.jit(lambda x: x * 2)(1.0).block_until_ready()


cli.run(main)
"""


@pytest.mark.parametrize("chosen", [True, False])
def test_compiled_programs_are_kept(tmp_path, chosen):
    settings = {
        **os.environ,
        "RPT_CACHE": str(tmp_path / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if not chosen:
        del settings["JAX_COMPILATION_CACHE_DIR"]
    subprocess.run([sys.executable, "-c", PROGRAM], env=settings, check=True)
    assert len(list(tmp_path.iterdir())) == 1
    assert any((tmp_path / ("chosen" if chosen else "cache/programs")).iterdir())
