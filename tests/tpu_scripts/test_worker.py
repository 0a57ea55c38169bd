"""worker.sh alone: a folder is the home of a worker."""

import os
import subprocess

import pytest

PROGRAM = "trap 'kill $!; echo saved; exit 0' TERM; echo began; sleep 100 & wait"


@pytest.fixture
def worker(cloud):
    home = cloud.home / "workers/0"
    code = home / "rpt-launch/code-abc"
    code.parent.mkdir(parents=True)
    code.symlink_to(cloud.checkout)
    environment = {**os.environ, **cloud.environment, "HOME": str(home), "WORKER": "0"}
    environment["PATH"] = f"{cloud.home}/worker_bin:{os.environ['PATH']}"

    def run(*words: str, status: int = 0) -> str:
        command = ["bash", cloud.checkout / "tpu_scripts/worker.sh", *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    run("install", "abc")
    return run


def until(worker, state: str) -> str:
    while True:
        line = worker("status")
        if f"state={state}" in line:
            return line
        assert "state=running" in line, line


def test_nothing_has_run_yet(worker):
    assert worker("status") == "rpt-status worker=0 state=none exit=0 time=0\n"
    assert worker("log", "0") == "\nrpt-log 0\n"
    assert worker("tail") == "it printed nothing\n"
    assert "state=none" in worker("stop", "1")


def test_an_old_python_is_replaced(worker, cloud):
    (cloud.home / "python_is_old").write_text("1")
    (cloud.home / "workers/0/rpt-launch/installed").unlink()
    (cloud.home / "workers/0/rpt-launch/venv/bin/python").unlink()
    worker("install", "abc")
    lines = (cloud.home / "installed_0").read_text().splitlines()
    assert lines[-3] == "-m pip install --user uv>=0.9,<1"
    assert lines[-2].startswith("-m uv venv --seed --python 3.12 ")
    assert lines[-1].endswith("code-abc[tpu]")


def test_the_log_goes_on_where_it_was_left(worker, cloud):
    cloud.program("echo one; echo two")
    worker("start", "abc", "none", "rpt.train")
    assert "exit=0" in until(worker, "exited")
    assert worker("log", "0") == "one\ntwo\n\nrpt-log 8\n"
    assert worker("log", "4") == "two\n\nrpt-log 8\n"
    assert worker("log", "8") == "\nrpt-log 8\n"


def test_a_long_log_comes_in_pieces(worker, cloud):
    cloud.program("head -c 1500000 /dev/zero | tr '\\0' x")
    worker("start", "abc", "none", "rpt.train")
    until(worker, "exited")
    assert worker("log", "0") == "x" * 1_000_000 + "\nrpt-log 1000000\n"
    assert worker("log", "1000000") == "x" * 500_000 + "\nrpt-log 1500000\n"


def test_stop_lets_the_program_save(worker, cloud):
    cloud.program(PROGRAM)
    worker("start", "abc", "none", "rpt.train")
    while "began" not in worker("log", "0"):
        pass
    assert "state=asked exit=0" in worker("stop", "20")
    assert worker("log", "0").startswith("began\nsaved\n")
    assert "state=asked" in worker("stop", "20")


def test_stop_ends_a_program_that_does_not_listen(worker, cloud):
    cloud.program("trap '' TERM; echo began; while true; do sleep 0.05; done")
    worker("start", "abc", "none", "rpt.train")
    while "began" not in worker("log", "0"):
        pass
    worker("stop", "0.1")
    assert "state=asked" in until(worker, "asked")


def test_a_stop_in_no_time_at_all_is_a_kill(worker, cloud):
    cloud.program(PROGRAM)
    worker("start", "abc", "none", "rpt.train")
    while "began" not in worker("log", "0"):
        pass
    worker("stop", "0")
    until(worker, "asked")
    assert "saved" not in worker("log", "0")


def test_start_twice_is_start_once(worker, cloud):
    cloud.program(PROGRAM)
    assert worker("start", "abc", "none", "rpt.train", "a b") == "rpt-started worker=0 new\n"
    assert worker("start", "abc", "none", "rpt.train", "a b") == "rpt-started worker=0 already\n"
    assert "runs something else: python -m rpt.train a\\ b" in worker(
        "start", "abc", "none", "rpt.train", "a", "b", status=3
    )


def test_a_process_number_of_an_earlier_boot_is_not_the_program(worker, cloud):
    run = cloud.home / "workers/0/rpt-launch/run"
    run.mkdir()
    (run / "command").write_text("rpt.train ")
    (run / "pid").write_text(str(os.getpid()))
    assert "state=lost" in worker("status")
    (run / "pid").unlink()
    assert "state=lost" in worker("status")


def test_a_broken_file_of_secrets_is_a_failure_and_no_silence(worker, cloud):
    (cloud.home / "workers/0/.rpt-env").write_text("false\n")
    worker("start", "abc", "env", "rpt.train")
    assert "exit=1" in until(worker, "exited")


def test_the_workers_of_a_slice_are_to_find_each_other(worker, cloud):
    cloud.program('echo "hosts $RPT_HOSTS"')
    worker("start", "abc", "none", "rpt.train")
    until(worker, "exited")
    assert worker("log", "0").startswith("hosts auto\n")
