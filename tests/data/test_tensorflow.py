"""TFDS builders and seqio tasks, for real, in processes of their own."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

import data

EXAMPLES = [f"example {i} of a builder, é 漢" for i in range(25)]
TARGETS = [f"target {i} of a task" for i in range(12)]


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    reason = f"needs {', '.join(missing)}: pip install -e '.[tfds,seqio]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


def found_by(program, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.data.{program}", str(folder)],
        cwd=pathlib.Path(data.__path__[0]).parent,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs("tensorflow_datasets")
def test_array_record_builder_without_tensorflow(tmp_path):
    found = found_by("tfds_without_tensorflow", tmp_path)
    # In the order of the files, which TFDS shuffles when it writes them.
    assert sorted(found["by_name"]) == sorted(EXAMPLES)
    assert found["part"] == found["by_name"][:10]
    numbers = [text.split()[1] for text in found["by_name"]]
    assert found["by_folder"] == [
        f"title {number}:{text}" for number, text in zip(numbers, found["by_name"])
    ]
    body, dev, maybe, elsewhere, absent, too_long = found["mistakes"]
    assert "has no field 'body' (fields: text, title)" in body
    assert "has no subset 'dev' (subsets: train, test)" in dev
    assert "choose yes or no" in maybe
    assert "is not in" in elsewhere
    assert "data_dir=" in elsewhere
    assert absent == "TFDS cannot open 'no_such_set': Dataset no_such_set not found."
    assert "small_text/1.0.0[train]: example 0 is a record of" in too_long
    assert len(found["cuts"]) == 3
    for reason, message in found["cuts"]:
        assert reason == "truncated"
        assert "example 3 cannot be read: " in message
        assert f"{found['file']} is no whole ArrayRecord file: cut off" in message
    assert found["same"] == [True, False]


@needs("tensorflow_datasets", "tensorflow", "seqio")
def test_tfrecord_builder_tasks_and_mixture(tmp_path):
    found = found_by("with_tensorflow", tmp_path, TEST_SENTENCEPIECE=str(tmp_path / "model.model"))
    assert sorted(found["tfrecord"]) == sorted(EXAMPLES)
    long = [text for text in EXAMPLES if len(text.encode()) > 30]
    assert found["too_long"] == {"fault/too_long": len(long)}
    assert "is a record of 31 bytes" in found["too_long_message"]
    texts, counts = found["cut"]
    assert texts == found["tfrecord"][:24]
    assert counts == {"fault/truncated": 1}
    assert found["cut_message"].startswith("small_text/1.0.0[train], after example 23, cannot be")
    assert "{{" not in found["cut_message"]
    texts, counts = found["records_cut"]
    assert texts == found["tfrecord"][:24]
    assert counts == {"fault/truncated": 1}
    message = found["records_cut_message"]
    assert message.startswith("seqio records[train], after example 23, cannot be read on: ")

    # Text from before tokenisation, and what tokens stand for where there is none.
    assert found["texts"] == found["only_texts"] == TARGETS
    assert found["tokens"] == [f"only {target}" for target in TARGETS[:4]]
    # seqio's mixture: each task in its own order, at its rate, until one is used up.
    assert found["again"] == found["both"]
    ours = [text for text in found["both"] if text.startswith("only")]
    others = [text for text in found["both"] if not text.startswith("only")]
    assert ours == found["tokens"][: len(ours)]
    assert others == TARGETS[: len(others)]
    assert len(ours) == 4 or len(others) == 12
    absent, dev, module, body = found["mistakes"]
    assert "seqio knows no task or mixture 'absent'" in absent
    assert "has no subset 'dev' (subsets: train)" in dev
    assert "module=no.such.module cannot be imported" in module
    assert "example 0 has no string field 'body'" in body
