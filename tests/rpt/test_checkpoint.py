"""A checkpoint is whole, verified, or not there; damage and full disks cost the newest at most."""

import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from rpt import checkpoint, files, manifests


def state(step: int) -> checkpoint.TrainState:
    params = {"embedding": jnp.full((8, 4), step, jnp.float32), "bias": jnp.arange(3.0) + step}
    return checkpoint.TrainState(step, params, {"moment": jnp.ones(5) * step}, {"seen": step})


def save(workdir: pathlib.Path, *steps: int, keep_last: int = 2) -> None:
    store = checkpoint.Checkpoints(workdir, keep_last)
    for step in steps:
        store.save(state(step))
    store.close()


def restore(workdir: pathlib.Path, keep_last: int = 2):
    return checkpoint.Checkpoints(workdir, keep_last).restore(state(0))


def names(workdir: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def assert_is(found: checkpoint.TrainState | None, step: int) -> None:
    assert found is not None
    assert (found.step, found.host) == (step, {"seen": step})
    np.testing.assert_array_equal(found.params["embedding"], state(step).params["embedding"])
    np.testing.assert_array_equal(found.opt_state["moment"], state(step).opt_state["moment"])


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("two")
    save(folder, 3, 6)
    return folder


@pytest.fixture
def copy(two, tmp_path) -> pathlib.Path:
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


def test_the_newest_comes_back_and_the_last_few_stay(tmp_path):
    assert restore(tmp_path) == (None, [])
    save(tmp_path, 1, 2, 3)
    assert names(tmp_path) == ["2", "3"]
    found, lines = restore(tmp_path)
    assert_is(found, 3)
    assert lines == []


def test_a_manifest_names_every_file(two):
    folder = two / "checkpoints" / "6"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert len(found) > 5
    assert manifests.damage(folder) is None
    content = (folder / manifests.NAME).read_text()
    assert all(f'"{name}"' in content for name in found - {manifests.NAME})


def damages(path: pathlib.Path):
    """Ways to damage one file: shorter, empty, one bit at the start, middle and end, gone."""
    whole = path.read_bytes()
    yield "truncated", lambda: path.write_bytes(whole[:-1])
    yield "empty", lambda: path.write_bytes(b"")
    for place in {0, len(whole) // 2, len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[place] ^= 1
        yield f"bit of byte {place}", lambda flipped=flipped: path.write_bytes(flipped)
    yield "gone", path.unlink
    path.write_bytes(whole)


def test_damage_of_any_file_is_found_and_named(copy):
    folder = copy / "checkpoints" / "6"
    tried = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        name = str(path.relative_to(folder))
        for way, damage in damages(path):
            damage()
            step, found = checkpoint.newest_good(copy / "checkpoints")
            assert step == 3, (name, way)
            assert found[6].file == name, (name, way)
            tried += 1
        assert checkpoint.newest_good(copy / "checkpoints") == (6, {})
    assert tried > 40


def test_a_damaged_checkpoint_leads_to_the_one_before(copy):
    (path,) = (copy / "checkpoints" / "6" / "host").glob("metadata")
    path.write_bytes(path.read_bytes()[:-1])
    found, lines = restore(copy)
    assert_is(found, 3)
    (line,) = lines
    assert "checkpoints/6 is damaged (host/metadata: it has" in line
    assert line.endswith("going on from step 3")
    # It can be saved again, and what was damaged goes when it is no longer the newest.
    assert names(copy) == ["3", "6.damaged"]
    save(copy, 6)
    assert names(copy) == ["3", "6", "6.damaged"]
    assert_is(restore(copy)[0], 6)
    save(copy, 9, 12)
    assert names(copy) == ["12", "9"]


def test_all_damaged_is_an_error_that_stays(copy):
    for step in (3, 6):
        (copy / "checkpoints" / str(step) / "host" / "metadata").write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(ValueError, match="there is no good checkpoint to go on from") as error:
            restore(copy)
        assert str(error.value).count("host/metadata") == 2
        assert "\n" not in str(error.value)
    assert names(copy) == ["3", "6"]


def test_parameters_alone_are_verified_too(copy, capsys):
    like = state(0).params
    (copy / "checkpoints" / "6" / "host" / "metadata").write_bytes(b"x")
    found = checkpoint.load_params(copy, like)
    np.testing.assert_array_equal(found["bias"], state(3).params["bias"])
    assert "checkpoints/6 is damaged (host/metadata" in capsys.readouterr().err
    with pytest.raises(ValueError, match="checkpoints/6 is damaged"):
        checkpoint.load_params(copy, like, step=6)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 4"):
        checkpoint.load_params(copy, like, step=4)
    assert names(copy) == ["3", "6"]  # a reader changes nothing


def test_what_a_kill_leaves_behind_is_swept(copy):
    """Half of a save, of Orbax's temporary folder, and of a removal."""
    folder = copy / "checkpoints"
    for name in ("9.saving", "9.saving.orbax-checkpoint-tmp", "1.deleting"):
        shutil.copytree(folder / "6", folder / name)
    assert_is(restore(copy)[0], 6)
    assert names(copy) == ["3", "6"]
    save(copy, 9)
    assert names(copy) == ["6", "9"]


# ---- failures ------------------------------------------------------------------------------------


def test_a_failed_save_surfaces_at_the_next_step_and_costs_nothing(copy, monkeypatch):
    store = checkpoint.Checkpoints(copy, 1)

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifests, "write", full)
    store.save(state(9))
    store._complete._thread.join()
    with pytest.raises(checkpoint.SaveFailed, match="checkpoint of step 9 could not be") as error:
        store.check()
    assert "No space left" in str(error.value)
    assert "the last one is of step 6" in str(error.value)
    store.check()  # once
    assert names(copy) == ["3", "6"]
    monkeypatch.undo()
    store.save(state(9))
    store.close()
    assert names(copy) == ["9"]


def test_retention_waits_for_the_new_one(copy, monkeypatch):
    """With one to keep, the old one goes only after the new one's manifest is on disk."""
    seen = []
    write = manifests.write

    def watch(folder):
        seen.append(names(copy))
        write(folder)

    monkeypatch.setattr(manifests, "write", watch)
    save(copy, 9, 12, keep_last=1)
    assert seen == [["3", "6", "9.saving"], ["12.saving", "9"]]
    assert names(copy) == ["12"]


def test_retention_waits_for_the_disk(copy, monkeypatch):
    """A power cut leaves the old one, or all of the new one under its name."""
    told, settle, rename = [], files.settle, files.rename
    monkeypatch.setattr(files, "settle", lambda path: told.append(("settle", names(copy))))
    monkeypatch.setattr(
        files, "rename", lambda *given: (told.append(("rename", names(copy))), rename(*given))
    )
    save(copy, 9, keep_last=1)
    assert told == [("settle", ["3", "6", "9.saving"]), ("rename", ["3", "6", "9.saving"])]
    assert names(copy) == ["9"]
    monkeypatch.setattr(files, "settle", settle)

    def broken(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(checkpoint.SaveFailed, match="Input/output error"):
        save(copy, 12, keep_last=1)
    assert names(copy) == ["9"]
