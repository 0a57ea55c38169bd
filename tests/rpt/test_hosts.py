"""Several real processes do what one does, in the same order, and notice when one of them is gone.

Processes of 2 devices each over gloo; hosts_process.py is one of them.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from rpt import config, hosts, loading, runs

SCRIPT = pathlib.Path(__file__).parent / "hosts_process.py"
CHANGES = {"train.batch_size": 8, "data.shards": 4, "logging.checkpoint_every_steps": 2}
TOLERANCE = 1e-5


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def begin(
    count: int, folder: pathlib.Path, given: dict[str, Any], devices: int = 2, port: int = 0
) -> list:
    """The processes of one run."""
    folder.mkdir(exist_ok=True)
    port = port or free_port()
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    given = {"loop": "train", **given, "changes": {**CHANGES, **given.get("changes", {})}}
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, where, folder, json.dumps(given)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for where in (
            [""] if count == 1 else [f"localhost:{port},{count},{i}" for i in range(count)]
        )
    ]


def run(count: int, folder: pathlib.Path, **given) -> dict[str, np.ndarray]:
    """Until all have ended; what they have seen, the rows of all below each other."""
    devices, port = given.pop("devices", 2), given.pop("port", 0)
    started = begin(count, folder, given, devices, port)
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    found = [dict(np.load(folder / f"seen-{index}.npz")) for index in range(count)]
    return {
        name: found[0][name]
        if name.startswith("gradient")
        else np.concatenate([each[name] for each in found])
        for name in found[0]
    }


def summary(folder: pathlib.Path) -> dict[str, Any]:
    """Without what samples.jsonl shows of thoughts: a process alone measures it, of its rows."""
    found = json.loads((folder / "run" / "summary.json").read_text())
    for kind in ("flops", "tokens"):
        del found["ledger"][kind]["eval"]
    return found


def assert_same_tokens(found, wanted) -> None:
    """All documents and tokens; a tie that rounding decides may change a branch in a hundred."""
    for name in wanted:
        if name.startswith(("documents", "rows")):
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        if name.startswith("tokens_BRT"):
            same_BR = (found[name] == wanted[name]).all(axis=-1)
            assert same_BR.mean() >= 0.99, name


def assert_same_gradients(found, wanted) -> None:
    """Relative to the largest entry of each leaf."""
    names = [name for name in wanted if name.startswith("gradient")]
    assert names
    for name in names:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(
            found[name] / scale, wanted[name] / scale, atol=TOLERANCE, err_msg=name
        )


def assert_several_are_one(count: int, tmp_path: pathlib.Path, steps: int) -> None:
    given = {"changes": {"train.steps": steps}}
    wanted = run(1, tmp_path / "one", devices=2 * count, **given)
    found = run(count, tmp_path / "several", replay=str(tmp_path / "one"), **given)
    assert set(found) == set(wanted)
    assert len(found["documents/0"]) == 8
    assert_same_tokens(found, wanted)
    assert_same_gradients(found, wanted)
    one, several = summary(tmp_path / "one"), summary(tmp_path / "several")
    for name in ("step", "ledger", "data"):
        assert several[name] == one[name], name
    for name, value in one["metrics"].items():
        if not name.startswith("seconds_"):
            assert several["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    # The first alone has written, and each its part of the arrays.
    lines = (tmp_path / "several" / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == steps
    arrays = tmp_path / "several" / "run" / "checkpoints" / str(steps) / "arrays"
    assert len(list(arrays.glob("ocdbt.process_*"))) == count


def test_two_processes_do_what_one_does(tmp_path):
    assert_several_are_one(2, tmp_path, steps=2)


@pytest.mark.slow
def test_four_processes_do_what_one_does(tmp_path):
    assert_several_are_one(4, tmp_path, steps=4)


@pytest.mark.slow
def test_pre_training_too(tmp_path):
    """With the opening mixture, two sources and packed rows; the processes divide the devices."""
    changes = {"pretrain.steps": 6, "pretrain.opening_steps": 3}
    wanted = run(1, tmp_path / "one", devices=4, loop="pretrain", changes=changes)
    found = run(2, tmp_path / "two", loop="pretrain", changes=changes)
    assert_same_tokens(found, wanted)
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    assert two["data"] == one["data"]
    assert two["metrics"]["ntp_nats"] == pytest.approx(one["metrics"]["ntp_nats"], rel=1e-5)


@pytest.mark.slow
def test_the_gate_too(tmp_path):
    """Its documents are dealt to the processes, with empty rows where they do not divide."""
    changes = {
        "train.seq_len": 192,
        "pretrain.opening_steps": 1,
        "pretrain.gate.mixture": [["plain", "miniature:?kind=plain&split=validation", 1.0]],
        "pretrain.gate.labels": ["answer/1", "answer/2"],
        "pretrain.gate.documents": 6,
        "pretrain.gate.threshold": 0.0,
        "pretrain.gate.first_step": 2,
        "pretrain.gate.max_steps": 4,
    }
    wanted = run(1, tmp_path / "one", devices=4, loop="pretrain", changes=changes)
    found = run(2, tmp_path / "two", loop="pretrain", changes=changes)
    gates = [summary(tmp_path / name)["gate"] for name in ("one", "two")]
    assert gates[0]["decay_start"] == 2
    assert gates[1] == gates[0]
    assert len(wanted["length_BR/0"]) == 6
    assert wanted["length_BR/0"].any()
    assert (found["length_BR/0"][6:] == 0).all()
    same_BR = (found["tokens_BRT/0"][:6] == wanted["tokens_BRT/0"]).all(axis=-1)
    assert same_BR.mean() >= 0.99


@pytest.mark.slow
def test_everything_that_is_agreed_on(tmp_path):
    """Warm-up, dynamic sampling, KL to a reference: rounds, shapes and normalisers of all hosts."""
    changes = {
        "train.steps": 3,
        "train.warmup_steps": 2,
        "objective.kl_weight": 0.1,
        "reward.dynamic_from_step": 1,
        "reward.target_groups": 99,
        "reward.max_rounds": 2,
    }
    wanted = run(1, tmp_path / "one", devices=4, changes=changes)
    found = run(2, tmp_path / "two", changes=changes)
    assert_same_tokens(found, wanted)
    one, two = (summary(tmp_path / name) for name in ("one", "two"))
    assert two["ledger"] == one["ledger"]
    assert two["metrics"]["rounds"] == one["metrics"]["rounds"] == 2


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes(tmp_path):
    """4 -> 2 -> 1: the same documents in the same order, each once, and the same learning."""
    wanted = run(1, tmp_path / "one", changes={"train.steps": 6})
    folder = tmp_path / "fewer"
    found = {}
    for count, stop_after in ((4, 2), (2, 2), (1, 99)):
        found |= run(count, folder, changes={"train.steps": 6}, stop_after=stop_after)
        if count > 1:
            assert not summary(folder)["finished"]
    assert summary(folder)["finished"]
    documents = [name for name in wanted if name.startswith("documents")]
    assert len(documents) == 6
    for name in documents:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    read = [tuple(row) for name in documents for row in found[name].tolist()]
    assert len(set(read)) == len(read) == 48
    assert summary(folder)["data"] == summary(tmp_path / "one")["data"]
    # Of other parameters or moments these would be others.
    assert_same_tokens(found, wanted)
    metrics = summary(folder)["metrics"]
    for name, value in summary(tmp_path / "one")["metrics"].items():
        if not name.startswith("seconds_"):
            assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_is_named_and_the_run_goes_on(tmp_path, victim):
    """The same command on the same port, where the coordination service is still to be found."""
    changes = {"train.steps": 4, "logging.checkpoint_every_steps": 1}
    port = free_port()
    started = begin(4, tmp_path, {"changes": changes, "kill": [victim, 2]}, port=port)
    started[victim].wait()
    died = time.monotonic()
    assert started[victim].returncode == -signal.SIGKILL
    for index, process in enumerate(started):
        if index == victim:
            continue
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 1, errors
        assert time.monotonic() - died < 60
        (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
        assert f"process {victim} of 4 is gone" in line
    run(4, tmp_path, changes=changes, port=port)
    assert (summary(tmp_path)["finished"], summary(tmp_path)["step"]) == (True, 4)


def test_an_error_on_one_host_is_told_to_the_others(tmp_path):
    started = begin(2, tmp_path, {"fail": 1})
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1], errors
    told, own = (
        [line for line in text.splitlines() if line.startswith("error:")] for text in errors
    )
    assert own == ["error: no such shard"]
    (line,) = told
    assert "process 1 of 2 is gone (no such shard); this one (0) ends too" in line


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "localhost:1,2", "localhost:1,2,2", "localhost,2,0"])
def test_a_place_that_cannot_be_read_is_refused(where):
    with pytest.raises(ValueError, match="is neither 'auto' nor ADDRESS:PORT,COUNT,ID"):
        hosts.several(where)


def test_commands_of_one_process_refuse_several(monkeypatch):
    hosts.refuse("rpt.export")
    monkeypatch.setenv("RPT_HOSTS", "localhost:1234,2,0")
    with pytest.raises(ValueError, match=r"rpt\.export runs in one process, and this is one of"):
        hosts.refuse("rpt.export")


def test_a_copy_without_git_says_the_commit_that_it_was_given(monkeypatch):
    def no_git(*args, **kwargs):
        raise OSError

    monkeypatch.setattr(subprocess, "run", no_git)
    assert runs.commit() == "unknown"
    monkeypatch.setenv("RPT_COMMIT", "abc123+")
    assert runs.commit() == "abc123+"


def test_shards_are_dealt_to_hosts_or_refused():
    settings = config.DataConfig(shards=3)
    with pytest.raises(ValueError, match=r"config\.data\.shards=3 does not divide a batch of 8"):
        loading.own_shards(settings, 8, 1)
    with pytest.raises(ValueError, match=r"cannot be dealt to 2 hosts.*set it to a multiple of 2"):
        loading.own_shards(settings, 9, 2)
    assert loading.own_shards(settings, 9, 1) == range(3)


def test_one_process_alone_agrees_with_itself():
    alone = hosts.ALONE
    assert alone.gather({"a": [1]}) == [{"a": [1]}]
    assert (alone.any(True), alone.any(False)) == (True, False)
    assert alone.total({"x": 2.5}) == {"x": 2.5}
    assert alone.largest([3, 0]) == [3, 0]
