"""A full disk leaves the last good checkpoint as it is, says so, and room again is all it takes."""

import contextlib
import os
import pathlib
import resource
import shutil
import subprocess
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from rpt import checkpoint

KIB = 1024


def state(step: int, kib: int) -> checkpoint.TrainState:
    """Of random numbers, which no compression makes smaller."""
    values = np.random.default_rng(step).normal(size=kib * KIB // 4)
    return checkpoint.TrainState(step, {"x": jnp.asarray(values, jnp.float32)}, {}, {"seen": step})


def save_now(store: checkpoint.Checkpoints, what: checkpoint.TrainState) -> None:
    store.save(what)
    store.wait()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[None]:
    """1 MiB, mounted at the folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def small_files(folder: pathlib.Path) -> Iterator[None]:
    """Where mounting is not permitted: no file may grow beyond 512 KiB."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * KIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [small_disk, small_files])
def test_a_full_disk_costs_the_new_checkpoint_only(limit, tmp_path):
    workdir = tmp_path / "run"
    with limit(workdir):
        store = checkpoint.Checkpoints(workdir, keep_last=1)
        store.save(state(3, 200))
        store.wait()
        with pytest.raises(checkpoint.SaveFailed, match="the checkpoint of step 6 could") as error:
            save_now(store, state(6, 2000))
        assert "the last one is of step 3" in str(error.value)
        assert "\n" not in str(error.value)
        assert os.listdir(workdir / "checkpoints") == ["3"]
        # The next start finds the last good one, and saves again where there is room.
        store = checkpoint.Checkpoints(workdir, keep_last=1)
        found, lines = store.restore(state(0, 200))
        assert found is not None
        assert (found.step, found.host, lines) == (3, {"seen": 3}, [])
        np.testing.assert_array_equal(found.params["x"], state(3, 200).params["x"])
        store.save(state(9, 200))
        store.close()
        assert os.listdir(workdir / "checkpoints") == ["9"]
