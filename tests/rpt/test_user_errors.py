"""A user's mistake ends in one line that says what is wrong, and leaves nothing behind."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from rpt import cli, config, pretrain, sharding, train
from tests.rpt import fixture_models, test_weights_gguf, tiny_experiment

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "tests/rpt/tiny_experiment.py"


def experiment(**changes) -> config.Config:
    found = tiny_experiment.get_config()
    found.train.steps = found.pretrain.steps = 1
    found.pretrain.opening_steps = found.pretrain.optimizer.decay_steps = 0
    found.update_from_flattened_dict(changes)
    return config.from_config_dict(found)


def mixture(spec: str) -> dict:
    """The only corpus of both commands."""
    parts = (("corpus", spec, 1.0),)
    return {"train.mixture": parts, "pretrain.mixture": parts}


def below(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    found = [(path, path.lstat()) for path in folder.rglob("*")]
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found}


@pytest.fixture
def error(tmp_path, capsys):
    """Runs a program as the commands do; returns its one line, if nothing else came of it."""

    def run(program, where=tmp_path) -> str:
        before = below(where)
        with pytest.raises(SystemExit) as exit_:
            cli.report(program)
        assert exit_.value.code == 1
        out, err = capsys.readouterr()
        assert below(where) == before
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert len(err) < 500
        return err

    return run


@pytest.fixture(params=[train.train, pretrain.pretrain], ids=["train", "pretrain"])
def loop(request):
    return request.param


# ---- flags ---------------------------------------------------------------------------------------

FLAG_MISTAKES = {
    "unknown_field": (["--config.train.stepz=3"], "config has no field 'stepz'"),
    "unknown_section": (["--config.trian.steps=3"], "config has no field 'trian'"),
    "wrong_type": (["--config.train.steps=many"], "--config.train.steps=many: invalid literal"),
    "refused_value": (["--config.positions.mode=best"], "config.positions.mode must be one of"),
    "wrong_value": (["--config.rollout.group_size=0"], "config.rollout: group size"),
    "unknown_flag": (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
    "argument": (["workdir"], "unexpected argument 'workdir'"),
    "switch": ([f"--config={CONFIG}:int=x"], "unknown switch 'int'"),
    "no_config": (["--config=configs/none.py"], "No such file or directory: 'configs/none.py'"),
}

# One process: it takes seconds to import what the command needs, and no time to fork.
EACH = """
import json, os, runpy, sys
import rpt.train

cases, folder = json.loads(sys.argv[1]), sys.argv[2]
for name, arguments in cases.items():
    if child := os.fork():
        print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["train", *arguments]
    runpy.run_module("rpt.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def flag_mistakes(tmp_path_factory) -> tuple[dict[str, str], pathlib.Path]:
    """Exit status and a file of what was said, for each mistake on the command line."""
    folder = tmp_path_factory.mktemp("said")
    given = [f"--config={CONFIG}", f"--workdir={folder / 'workdir'}"]
    cases = {name: [*given, *arguments] for name, (arguments, _) in FLAG_MISTAKES.items()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EACH, json.dumps(cases), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines()), folder


@pytest.mark.parametrize("name", FLAG_MISTAKES)
def test_mistakes_on_the_command_line(flag_mistakes, name):
    statuses, folder = flag_mistakes
    said = (folder / name).read_text()
    assert statuses[name] == "1"
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert FLAG_MISTAKES[name][1] in said
    assert not (folder / "workdir").exists()


# ---- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        (b"", "is empty: it holds no document"),
        (b"GIF89a\x00\x01\xff", "is not text: NUL byte at byte 6"),
        (b"caf\xe9 au lait", "is not UTF-8 text"),
    ],
)
def test_a_corpus_that_cannot_be_read(error, loop, tmp_path, content, message):
    path = tmp_path / "corpus"
    if content is not None:
        path.write_bytes(content)
    settings = experiment(**mixture(f"text:{path}"))
    line = error(lambda: loop(settings, tmp_path / "run"))
    assert message in line
    assert str(path) in line


def test_no_corpus_at_all(error, loop, tmp_path):
    settings = experiment(**{"train.mixture": (), "pretrain.mixture": ()})
    assert "names no text" in error(lambda: loop(settings, tmp_path / "run"))


@pytest.mark.parametrize("documents", [3, 10_001])
def test_documents_shorter_than_the_minimum_context(error, tmp_path, documents):
    """Also where there are too many of them to look at all."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i:07}"}) + "\n" for i in range(documents)))
    settings = experiment(**mixture(f"jsonl:{path}"))
    line = error(lambda: train.train(settings, tmp_path / "run"))
    assert "no document of the source 'corpus' is long enough" in line


def test_a_corrected_mistake_is_forgotten(error, tmp_path):
    """The same directory, the corpus now there."""
    path, run = tmp_path / "corpus.txt", tmp_path / "run"
    settings = experiment(**mixture(f"text:{path}"))
    error(lambda: pretrain.pretrain(settings, run))
    path.write_text("It was the best of times, it was the worst of times. " * 9)
    assert pretrain.pretrain(settings, run)["finished"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.template": "nowhere.txt"}, "nowhere.txt"),
        ({"train.init": "nowhere"}, "nowhere is no run directory"),
        ({"positions.proxy": "nowhere"}, "nowhere: neither a run directory nor a checkpoint"),
        ({"train.seq_len": 8}, "must exceed min_context 8"),
        ({"train.warmup_steps": 1, "rollout.think_tokens": 2}, "leaves no room for a thought"),
    ],
)
def test_settings_of_rpt_that_cannot_be(error, tmp_path, changes, message):
    settings = experiment(**changes)
    assert message in error(lambda: train.train(settings, tmp_path / "run"))


def test_a_template_without_a_beginning_of_the_thought(error, tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{{document}}{{thought}}</think>{{answer}}")
    settings = experiment(**{"data.template": str(path)})
    assert "at least one token" in error(lambda: train.train(settings, tmp_path / "run"))


# ---- weights -------------------------------------------------------------------------------------


def from_weights(path: pathlib.Path) -> config.Config:
    return experiment(**{"data.weights": str(path)})


def test_vocabulary_of_tokenizer_and_weights(error, loop, tmp_path):
    line = error(lambda: loop(from_weights(fixture_models.FIXTURES / "llama3"), tmp_path / "run"))
    assert "the tokenizer has 260 ids but the weights embed only" in line


@pytest.mark.parametrize("kept", [4, 300, 0.5, 0.99])
def test_truncated_safetensors(error, tmp_path, kept):
    folder = tmp_path / "weights"
    shutil.copytree(fixture_models.FIXTURES / "llama3", folder)
    truncate(folder / "model.safetensors", kept)
    line = error(lambda: train.train(from_weights(folder), tmp_path / "run"))
    assert "model.safetensors is truncated or no safetensors file" in line


@pytest.mark.parametrize("kept", [4, 300, 0.5, 0.99])
def test_truncated_gguf(error, tmp_path, kept):
    path = tmp_path / "model.gguf"
    model, params = test_weights_gguf.weights.load(fixture_models.FIXTURES / "qwen3")
    test_weights_gguf.write_gguf(path, model, params)
    truncate(path, kept)
    line = error(lambda: train.train(from_weights(path), tmp_path / "run"))
    assert "model.gguf is truncated or no GGUF file" in line


def truncate(path: pathlib.Path, kept: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: kept if isinstance(kept, int) else int(len(raw) * kept)])


# ---- the run directory and the mesh --------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """A run of one step of pretrain."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    pretrain.pretrain(experiment(), folder)
    return folder


def test_a_directory_of_another_config(error, finished):
    settings = experiment(**{"pretrain.optimizer.learning_rate": 1.0})
    line = error(lambda: pretrain.pretrain(settings, finished), finished)
    assert "another config (config.pretrain.optimizer.learning_rate differs)" in line
    assert "choose another --workdir" in line


def test_a_directory_of_another_command(error, finished):
    """One config serves both commands."""
    line = error(lambda: train.train(experiment(), finished), finished)
    assert "holds a run of rpt.pretrain, not of rpt.train" in line


def test_a_directory_that_is_no_run(error, loop, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear all")
    assert "is not empty and holds no run" in error(lambda: loop(experiment(), tmp_path))


def test_a_directory_that_cannot_be_written(error, loop, tmp_path):
    """Below a file: permissions would not stop root, under whom tests may run."""
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", tmp_path / "file"):
        line = error(lambda workdir=workdir: loop(experiment(), workdir))
        assert f"cannot write to {workdir}" in line


def test_a_damaged_run(error, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for file in (run / "checkpoints" / "1" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    (run / "config.json").write_text((run / "config.json").read_text()[:100])
    assert "config.json is damaged" in error(lambda: pretrain.pretrain(experiment(), run))
    shutil.copy(finished / "config.json", run)
    with pytest.raises(ValueError, match=r"checkpoints/1 is damaged \(arrays/.* is no good check"):
        pretrain.pretrain(experiment(), run)


def test_a_batch_that_the_mesh_does_not_divide(error, loop, tmp_path, monkeypatch):
    settings = experiment(**{"train.batch_size": 6, "pretrain.batch_size": 6})
    monkeypatch.setattr(sharding.jax, "device_count", lambda: 4)
    line = error(lambda: loop(settings, tmp_path / "run"))
    assert "batch of 6 rows does not divide over replica*fsdp=4 devices" in line
    assert "multiple of 4" in line


def test_a_mesh_of_other_devices(error, loop, tmp_path):
    line = error(lambda: loop(experiment(**{"mesh.fsdp": 3}), tmp_path / "run"))
    assert "does not use the 1 device(s) exactly" in line
