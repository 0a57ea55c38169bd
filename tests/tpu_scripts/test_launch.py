"""launch.sh against a stand-in for gcloud whose workers are folders and really run worker.sh."""

import shlex

import pytest

CAPACITY = (
    'ERROR: (gcloud.compute.tpus.tpu-vm.create) {\n  "code": 8,\n  "message": "There is no more '
    'capacity in the zone \\"us-east5-b\\"; you can try in another zone"\n}'
)
# Runs until it is stopped, and then saves; or until the power goes.
UNTIL_STOPPED = """
trap 'kill $!; echo saved; exit 0' TERM
echo began
sleep 100 & wait
"""
# As above the first time, and goes on from the checkpoint the second time.
RESUMES = (
    """
if [[ -e "$STANDIN/checkpoint_$WORKER" ]]; then
  echo "resumed from $(cat "$STANDIN/checkpoint_$WORKER")"
  exit 0
fi
echo 10 >"$STANDIN/checkpoint_$WORKER"
"""
    + UNTIL_STOPPED
)
START = ["-m", "rpt.train", "--workdir=gs://bucket/run"]


def only_line(done) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


# ---- it works ------------------------------------------------------------------------------------


def test_a_run_from_nothing_to_its_end(cloud):
    done = cloud.launch("--spot", "--", "--config=configs/mini.py")
    assert done.stdout == "step 1\nstep 2\n"
    assert "finished; the run is in gs://bucket/run" in done.stderr
    assert (
        "cost money; to end that: tpu_scripts/stop.sh --name=rpt --zone=us-east5-b" in done.stderr
    )
    first = ["describe", "create", "describe", "scp", "install", "start", "status", "log"]
    assert cloud.kinds()[: len(first)] == first
    create = cloud.calls()[1]
    assert create[4:] == [
        "rpt",
        "--zone=us-east5-b",
        "--quiet",
        "--accelerator-type=v6e-16",
        "--version=v2-alpha-tpuv6e",
        "--spot",
    ]
    for worker in (0, 1):
        assert cloud.starts(worker) == [[*START, "--config=configs/mini.py"]]
    assert not list(cloud.home.glob("workers/*/rpt-code-*"))


def test_what_worker_0_prints_is_printed_once_and_kept(cloud, tmp_path):
    cloud.program('for i in 1 2 3 4 5; do echo "$WORKER: $i"; command sleep 0.1; done; printf end')
    done = cloud.launch(f"--log={tmp_path}/log")
    assert done.stdout == "0: 1\n0: 2\n0: 3\n0: 4\n0: 5\nend"
    assert (tmp_path / "log").read_text() == done.stdout


def test_words_reach_the_program_as_they_were_given(cloud):
    words = [
        "--config.train.mixture=(('my text', 'jsonl:a b.jsonl?field=text&split=train', 1.0),)",
        "two  spaces",
        """both ' and " quotes""",
        "$HOME `id` $(id) \\ * ~ ; & | > # !",
        "",
        "-- ",
        "über",
    ]
    cloud.launch("--", *words)
    assert cloud.starts(0) == cloud.starts(1) == [[*START, *words]]


@pytest.mark.parametrize(
    "flags",
    [
        ["--spot", "--", "--config.train.mixture=(('a b', 'x', 1.0),)", "it's"],
        ["--queued", "--delete", "--valid-until=6h"],
        ["--project=my-project", "--internal-ip", "--create-flag=--network=net", "--delete"],
    ],
)
def test_dry_run_prints_what_a_run_would_call_and_calls_nothing(cloud, flags):
    done = cloud.launch("--dry-run", *flags)
    assert cloud.calls() == []
    assert not (cloud.checkout / "build").exists()
    printed = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert all(words[0] == "gcloud" for words in printed)
    cloud.launch(*flags)
    # While the program runs, a real run asks again and again.
    called = [call for call in cloud.calls() if "worker.sh log " not in str(call)]
    polls = [call for call in called if "worker.sh status" in str(call)]
    called = [call for i, call in enumerate(called) if call not in polls or call not in called[:i]]
    assert [words[1:] for words in printed if "worker.sh log " not in str(words)] == called


def test_a_tpu_that_is_there_is_used(cloud):
    cloud.set_state("node", "READY")
    cloud.launch()
    assert "create" not in cloud.kinds()


def test_secrets_are_in_a_file_and_nowhere_else(cloud, tmp_path):
    secret = tmp_path / "secrets"
    secret.write_text("HF_TOKEN='s3cret word'\n")
    secret.chmod(0o600)
    cloud.program('printf %s "$HF_TOKEN" >"$STANDIN/seen_$WORKER"')
    done = cloud.launch(f"--env-file={secret}")
    assert (cloud.home / "seen_1").read_text() == "s3cret word"
    assert "s3cret" not in done.stdout + done.stderr + str(cloud.calls())
    assert (cloud.home / "workers/1/.rpt-env").stat().st_mode & 0o777 == 0o600


def test_paths_are_from_where_it_is_called(cloud, tmp_path):
    cloud.called_from = tmp_path
    (tmp_path / "secrets").write_text("HF_TOKEN=x")
    (tmp_path / "secrets").chmod(0o600)
    cloud.launch("--env-file=secrets", "--log=log")
    assert (tmp_path / "log").read_text() == "step 1\nstep 2\n"
    assert (cloud.home / "workers/0/.rpt-env").read_text() == "HF_TOKEN=x"


# ---- getting a TPU -------------------------------------------------------------------------------


def test_no_capacity_then_a_tpu(cloud):
    cloud.rule("create", 1, 2, 3, fail=1, message=CAPACITY)
    done = cloud.launch()
    assert cloud.pauses()[:3] == [30, 60, 120]
    assert "no more capacity" in done.stderr
    assert done.stdout == "step 1\nstep 2\n"


def test_no_capacity_at_all(cloud):
    cloud.rule("create", fail=1, message=CAPACITY)
    done = cloud.launch(
        "--max-creates=4", "--backoff-seconds=7", "--backoff-max-seconds=20", status=4
    )
    assert cloud.pauses() == [7, 14, 20]
    assert "no TPU after 4 tries" in only_line(done)


def test_a_tpu_that_never_gets_ready(cloud):
    cloud.set_state("node", "REPAIRING")
    done = cloud.launch("--ready-minutes=0", status=4)
    assert "has been REPAIRING" in only_line(done)


def test_waits_in_the_queue(cloud):
    cloud.set_state("queue", "WAITING_FOR_RESOURCES")
    cloud.rule("queue describe", 3, queue="PROVISIONING")
    cloud.rule("queue describe", 4, queue="ACTIVE", node="READY")
    cloud.launch("--queued", "--ready-minutes=1")
    assert cloud.pauses()[:4] == [20] * 4
    assert "queue create" not in cloud.kinds()


def test_a_queued_request_that_failed_is_made_anew(cloud):
    cloud.set_state("queue", "FAILED")
    cloud.launch("--queued")
    (delete,) = [c for c in cloud.calls() if c[2:4] == ["queued-resources", "delete"]]
    assert "--force" in delete
    (create,) = [c for c in cloud.calls() if c[2:4] == ["queued-resources", "create"]]
    assert "--node-id=rpt" in create
    assert "--valid-until-duration=24h" in create


def test_api_faults_are_tried_again(cloud):
    cloud.rule("describe", 1, 2, fail=1, message="ERROR: 503 backend error")
    cloud.launch()
    assert cloud.pauses()[:2] == [30, 60]


# ---- what goes wrong meanwhile -------------------------------------------------------------------


def test_preempted_and_resumed(cloud):
    cloud.program(RESUMES)
    cloud.rule("ssh status", 3, node="PREEMPTED")
    done = cloud.launch("--spot", "--", "--config.seed=1 2")
    assert "resumed from 10\n" in done.stdout
    for worker in (0, 1):
        assert cloud.starts(worker) == [[*START, "--config.seed=1 2"]] * 2
    kinds = cloud.kinds()
    assert kinds.count("create") == 2
    after = kinds[kinds.index("delete") - 1 :]
    assert after[:7] == ["describe", "delete", "describe", "create", "describe", "scp", "install"]
    assert "restart 1 of 50 in 30 s" in done.stderr


def test_a_queued_tpu_that_is_preempted(cloud):
    cloud.program(RESUMES)
    cloud.rule("ssh status", 2, node=None, queue="SUSPENDED")
    done = cloud.launch("--queued", "--spot")
    assert "resumed from 10\n" in done.stdout
    assert cloud.kinds().count("queue create") == 2


def test_preempted_during_the_installation(cloud):
    cloud.rule("ssh install", 1, node="PREEMPTED")
    done = cloud.launch()
    assert done.stdout == "step 1\nstep 2\n"
    assert cloud.kinds().count("create") == 2


def test_quota_that_the_preempted_tpu_still_holds_is_waited_for(cloud):
    cloud.program(RESUMES)
    cloud.rule("ssh status", 2, node="PREEMPTED")
    cloud.rule("create", 2, fail=1, message="ERROR: Quota limit has been exceeded")
    cloud.launch()
    assert cloud.kinds().count("create") == 3


def test_restarts_are_used_up(cloud):
    cloud.program(UNTIL_STOPPED)
    cloud.rule("ssh status", node="PREEMPTED")
    done = cloud.launch("--max-restarts=2", "--ssh-retries=0", "--delete", status=4)
    assert "2 restarts are used up" in only_line(done)
    assert cloud.pauses() == [30, 60]
    assert cloud.kinds().count("create") == 3
    assert cloud.state() is None


def test_a_program_that_fails_on_one_worker_stops_the_others(cloud):
    cloud.workers = 3
    cloud.program(
        'if [[ $WORKER == 2 ]]; then echo "error: no such field"; exit 7; fi' + UNTIL_STOPPED
    )
    done = cloud.launch(status=3)
    assert only_line(done) == (
        "error: the program failed on worker 2 (exit status 7); the other workers were stopped"
    )
    assert "error: no such field" in done.stdout
    assert done.stdout.startswith("began\nsaved\n")
    for worker in (0, 1):
        ended = cloud.home / f"workers/{worker}/rpt-launch/run/ended"
        assert ended.read_text().startswith("stopped 0 ")
    assert cloud.kinds().count("create") == 1
    assert len(cloud.starts(0)) == 1


def test_the_first_to_fail_is_named(cloud):
    # Worker 1's clock says that it ended before the others.
    (cloud.home / "worker_bin/date").write_text("#!/bin/bash\necho $((WORKER == 1 ? 100 : 200))\n")
    (cloud.home / "worker_bin/date").chmod(0o755)
    cloud.workers = 3
    cloud.program("exit $((WORKER + 3))")
    assert "worker 1 (exit status 4)" in only_line(cloud.launch(status=3))


def test_a_failure_because_of_a_preemption_is_none(cloud):
    cloud.program(RESUMES.replace("echo began", "[[ $WORKER == 0 ]] || exit 1"))
    cloud.rule("ssh stop", node="PREEMPTED")
    done = cloud.launch()
    assert "resumed from 10\n" in done.stdout


def test_a_host_that_went_down_is_no_failure(cloud):
    cloud.program(RESUMES)
    cloud.rule("ssh status", 2, kill=1)
    done = cloud.launch()
    assert "worker=1 state=lost" in done.stderr
    assert "resumed from 10\n" in done.stdout
    assert cloud.kinds().count("create") == 1


def test_a_run_that_the_system_stopped_has_not_finished(cloud):
    cloud.program(RESUMES.replace("echo began", "kill -TERM $PPID"))
    done = cloud.launch()
    assert "state=stopped" in done.stderr
    assert "resumed from 10\n" in done.stdout
    assert len(cloud.starts(0)) == 2


@pytest.mark.parametrize("call", ["scp", "ssh install", "ssh start", "ssh status", "ssh log"])
def test_ssh_that_fails_now_and_then_does_no_harm(cloud, call):
    cloud.rule(call, 1, 2, fail=255, message="ERROR: [/usr/bin/ssh] exited with return code [255].")
    done = cloud.launch()
    assert done.stdout == "step 1\nstep 2\n"
    assert len(cloud.starts(0)) == 1
    assert cloud.kinds().count("create") == 1


def test_a_worker_that_cannot_be_reached_any_more_costs_the_tpu(cloud):
    cloud.program(RESUMES)
    cloud.rule("ssh status", 2, 3, 4, unreachable=1)
    done = cloud.launch("--ssh-retries=2")
    assert "worker 1 (exit status 255) cannot be reached" in done.stderr
    assert "resumed from 10\n" in done.stdout
    assert cloud.kinds().count("create") == 2
    assert cloud.pauses().count(30) >= 2


@pytest.mark.parametrize(
    ("call", "nth", "status", "said"),
    [
        ("scp", (2, 3), 255, "the workers of rpt cannot be reached"),
        ("ssh install", (2,), 4, "the installation failed on worker 0"),
    ],
)
def test_workers_that_cannot_be_had_back_after_a_preemption_cost_the_tpu(
    cloud, call, nth, status, said
):
    cloud.program(RESUMES)
    cloud.rule("ssh status", 3, node="PREEMPTED")
    cloud.rule(call, *nth, fail=status, message="ERROR: Connection timed out")
    done = cloud.launch("--ssh-retries=1")
    assert said in done.stderr
    assert "resumed from 10\n" in done.stdout
    assert cloud.kinds().count("create") == 3


def test_deleted_by_someone_is_not_made_again(cloud):
    cloud.program(UNTIL_STOPPED)
    cloud.rule("ssh status", 2, node=None)
    assert "was deleted meanwhile" in only_line(cloud.launch(status=5))
    assert cloud.kinds().count("create") == 1


def test_stopped_by_someone_is_not_started_again(cloud):
    cloud.program(UNTIL_STOPPED)
    (cloud.home / "on_pause").write_text(
        "cd $STANDIN && rm on_pause && PATH=$STANDIN/worker_bin:$PATH\n"
        "for i in 0 1; do HOME=$STANDIN/workers/$i WORKER=$i bash workers/$i/worker.sh stop 9; done"
    )
    assert "stopped by" in only_line(cloud.launch(status=5))
    assert len(cloud.starts(0)) == 1


def test_stop_during_the_wait_for_a_tpu(cloud):
    cloud.rule("create", fail=1, message=CAPACITY)
    stop = cloud.checkout / "tpu_scripts/stop.sh"
    (cloud.home / "on_pause").write_text(
        f'rm $STANDIN/on_pause; "{stop}" --name=rpt --zone=us-east5-b'
    )
    assert "stop.sh was called" in only_line(cloud.launch(status=5))
    assert cloud.kinds().count("create") == 1


# ---- once more -----------------------------------------------------------------------------------


def test_ctrl_c_leaves_the_run_on_and_the_same_command_watches_it_again(cloud):
    cloud.program(
        'echo began; until [[ -e "$STANDIN/end" ]]; do command sleep 0.02; done; echo end'
    )
    (cloud.home / "interrupt").write_text("")
    done = cloud.launch("--delete", status=130)
    assert "the run goes on" in done.stderr
    assert cloud.state() == "READY"
    (cloud.home / "interrupt").unlink()
    (cloud.home / "on_pause").write_text(f"touch {cloud.home}/end")
    done = cloud.launch()
    assert "it runs already" in done.stderr
    assert done.stdout == "began\nend\n"
    assert len(cloud.starts(0)) == len(cloud.starts(1)) == 1


def test_another_run_is_not_disturbed(cloud):
    cloud.program(UNTIL_STOPPED)
    (cloud.home / "interrupt").write_text("")
    cloud.launch("--", "--config.seed=1", status=130)
    message = only_line(cloud.launch("--", "--config.seed=2", status=1))
    assert "another program runs on rpt" in message
    assert "--config.seed=1" in message
    assert len(cloud.starts(0)) == 1


def test_the_installation_is_done_once(cloud):
    cloud.launch()
    cloud.launch()
    assert len((cloud.home / "installed_0").read_text().splitlines()) == 1
    (cloud.checkout / "setup.py").write_text("# other packages\n")
    cloud.launch()
    assert len((cloud.home / "installed_0").read_text().splitlines()) == 2


def test_the_code_that_is_run_is_the_code_that_is_here(cloud):
    cloud.program("ls; cat rpt/train.py")
    (cloud.checkout / "rpt/train.py").write_text("first")
    (cloud.checkout / "configs/my config.py").write_text("")
    (cloud.checkout / "runs").mkdir()
    done = cloud.launch("--", "--config=configs/my config.py:seed=1")
    assert done.stdout.endswith("first")
    assert "runs\n" not in done.stdout
    (cloud.checkout / "rpt/train.py").write_text("second")
    assert cloud.launch().stdout.endswith("second")
