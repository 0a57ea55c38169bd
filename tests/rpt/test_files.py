"""Files of a run directory, whole or not at all; a bucket is stood in for by a folder."""

import errno
import os
import stat

import pytest
from etils.epath import backend, gpath

from rpt import checkpoint, files, manifests


class Folder(backend._OsPathBackend):
    """gs://bucket/... below a folder of this machine. As in a bucket, nothing is appended to."""

    def __init__(self, root: str):
        self._root = root

    def _local(self, path) -> str:
        return os.fspath(path).replace("gs://bucket", self._root)

    def exists(self, path):
        return super().exists(self._local(path))

    def isdir(self, path):
        return super().isdir(self._local(path))

    def listdir(self, path):
        return super().listdir(self._local(path))

    def makedirs(self, path, **kwargs):
        return super().makedirs(self._local(path), **kwargs)

    def open(self, path, mode):
        assert "a" not in mode
        return super().open(self._local(path), mode)

    def stat(self, path):
        return super().stat(self._local(path))

    def replace(self, path, target):
        raise AssertionError("a rename in a bucket is a copy")

    rename = replace


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    stand_in = Folder(str(tmp_path))
    monkeypatch.setattr(gpath._GPath, "_backend", property(lambda path: stand_in))
    return files.folder("gs://bucket/run")


def test_a_path_is_of_this_machine_or_of_a_bucket(tmp_path):
    assert not files.is_remote(files.folder(str(tmp_path)))
    assert not files.is_remote(files.folder("runs/x"))
    assert files.is_remote(files.folder("gs://bucket/run") / "checkpoints")
    assert os.fspath(files.folder("gs://bucket/run") / "x") == "gs://bucket/run/x"


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    files.write(tmp_path / "x", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "x", b"new")
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_what_is_settled_is_on_its_disk_with_its_name(tmp_path, monkeypatch):
    """Each file and folder, and the folder that it is renamed in."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    folder = tmp_path / "6.saving"
    (folder / "arrays" / "d").mkdir(parents=True)
    (folder / "arrays" / "d" / "x").write_bytes(b"1")
    (folder / "metadata").write_bytes(b"2")
    files.settle(folder)
    below = [folder, *folder.rglob("*")]
    assert len(below) == 5
    assert sorted(synced) == sorted(path.stat().st_ino for path in below)
    synced.clear()
    files.rename(folder, tmp_path / "6")
    assert (tmp_path / "6" / "metadata").read_bytes() == b"2"
    assert synced == [tmp_path.stat().st_ino]


def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path, monkeypatch):
    fsync, failure = os.fsync, OSError(errno.EINVAL, "Invalid argument")

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise failure
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    files.settle(tmp_path)
    failure = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        files.settle(tmp_path)


def test_lines_and_manifests_in_a_bucket(bucket, tmp_path):
    bucket.mkdir(parents=True)
    lines = files.Appender(bucket / "metrics.jsonl")
    lines.write("one")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # not yet
    lines.flush()
    lines.write("two")
    lines.close()
    again = files.Appender(bucket / "metrics.jsonl")
    again.write("three")
    again.close()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "one\ntwo\nthree\n"
    for step in ("3", "6"):
        (bucket / "checkpoints" / step / "arrays").mkdir(parents=True)
        files.write(bucket / "checkpoints" / step / "arrays" / "d", b"content")
    assert checkpoint.steps(bucket / "checkpoints") == []  # none is complete
    manifests.write(bucket / "checkpoints" / "3")
    assert checkpoint.newest_good(bucket / "checkpoints") == (3, {})
    manifests.write(bucket / "checkpoints" / "6")
    files.write(bucket / "checkpoints" / "6" / "arrays" / "d", b"cont")
    step, damaged = checkpoint.newest_good(bucket / "checkpoints")
    assert step == 3
    assert damaged[6].file == "arrays/d"
