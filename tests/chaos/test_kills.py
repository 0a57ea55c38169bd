"""Killed at random moments, a run ends as if nobody had touched it: a short and a long version."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "kills.py"


def chaos(loop: str, kills: int, folder: pathlib.Path, seed: int = 0) -> dict:
    arguments = [f"--loop={loop}", f"--kills={kills}", f"--folder={folder}", f"--seed={seed}"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_few_kills_change_nothing(tmp_path):
    found = chaos("pretrain", 2, tmp_path)
    assert found["kills"] >= 2
    assert found["runs"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("loop", "kills"), [("pretrain", 100), ("train", 30)])
def test_many_kills_change_nothing(tmp_path, loop, kills):
    found = chaos(loop, kills, tmp_path)
    assert found["kills"] >= kills
    assert found["kills_in_a_save"] > 0
    assert found["terminations"] > 0
