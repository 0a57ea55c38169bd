"""What a run begins with: its own checkpoint, another run, or weights; in a bucket, too."""

import dataclasses
import json
import pathlib

import fsspec
import jax
import numpy as np
import pytest

from data import cache, tokenizers
from rpt import checkpoint, cli, files, hosts, loading, weights
from tests.rpt import fixture_models, test_files, test_user_errors


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("RPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_run(folder: pathlib.Path, model) -> None:
    """A run directory, but for what is in its checkpoint."""
    (folder / "checkpoints" / "3").mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(model)))
    (folder / "config.json").write_text(json.dumps({"data": {"template": "mine.txt"}}))
    (folder / "template.txt").write_text("as it was")
    tokenizers.ByteTokenizer().save(folder / "tokenizer")


@pytest.mark.parametrize("gone", ["init", "weights"])
def test_a_run_that_has_a_checkpoint_needs_nothing_else(tmp_path, tiny_model, gone):
    nowhere = tmp_path / "nowhere"
    changes = {"data.weights": str(nowhere)} if gone == "weights" else {}
    experiment = test_user_errors.experiment(**changes)
    init = nowhere if gone == "init" else None
    with pytest.raises(FileNotFoundError, match="nowhere"):
        loading.begin(experiment, tmp_path / "run", init)
    make_run(tmp_path / "run", tiny_model)
    found = loading.begin(experiment, tmp_path / "run", init)
    assert found.model == tiny_model
    assert found.tokenizer.digest() == tokenizers.ByteTokenizer().digest()
    wanted = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loading._shapes(tiny_model))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found.params) == wanted


def test_all_hosts_do_what_the_first_one_sees(tmp_path, tiny_model):
    """Of a shared disk one may see the checkpoint later than another."""

    class Second(hosts.Hosts):
        def from_first(self, value):
            assert value is False
            return True

    make_run(tmp_path / "run", tiny_model)
    (tmp_path / "run" / "checkpoints" / "3").rmdir()
    team, experiment = Second(1, 2), test_user_errors.experiment()
    found = loading.begin(experiment, tmp_path / "run", tmp_path / "nowhere", team)
    assert found.model == tiny_model


def test_weights_in_a_bucket(monkeypatch, cache_folder):
    """Copied to this machine, once."""
    local = fixture_models.FIXTURES / "llama3"
    remote = fsspec.filesystem("memory")
    for path in local.iterdir():
        remote.pipe(f"/weights/llama3/{path.name}", path.read_bytes())
    found = loading.weights_path("memory://weights/llama3")
    assert cache_folder in found.parents
    (model, params), (wanted_model, wanted) = weights.load(found), weights.load(local)
    assert model == wanted_model
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    monkeypatch.setattr(remote.__class__, "get_file", None)
    assert loading.weights_path("memory://weights/llama3") == found


def test_a_run_in_a_bucket(tmp_path, tiny_model, monkeypatch):
    """As a run to begin with; its arrays are Orbax's to read."""
    make_run(tmp_path / "run", tiny_model)
    stand_in = test_files.Folder(str(tmp_path))
    monkeypatch.setattr(test_files.gpath._GPath, "_backend", property(lambda path: stand_in))
    monkeypatch.setattr(files, "_check_client", lambda scheme, text: None)
    at = str(tmp_path)
    monkeypatch.setattr(cache, "fetch", lambda url: pathlib.Path(url.replace("gs://bucket", at)))
    monkeypatch.setattr(checkpoint, "load_params", lambda workdir, like, step: str(workdir))
    found = loading.load_run(files.folder("gs://bucket/run"))
    assert found == loading.load_any("gs://bucket/run")
    assert found.model == tiny_model
    assert found.params == "gs://bucket/run"
    assert pathlib.Path(found.experiment["data"]["template"]).read_text() == "as it was"


def test_a_bucket_that_nothing_installed_can_read(monkeypatch, capsys):
    def missing(scheme):
        raise ImportError(f"Please install gcsfs to access {scheme}")

    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(files.fsspec, "get_filesystem_class", missing)
    with pytest.raises(SystemExit):
        cli.report(lambda: files.folder("gs://bucket/run"))
    line = capsys.readouterr().err
    assert line.startswith("error: gs://bucket/run cannot be opened: Please install gcsfs")
    assert line.count("\n") == 1
