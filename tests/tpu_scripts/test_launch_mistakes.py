"""launch.sh: a mistake is one line, and costs nothing."""

import shutil

import pytest


def only_line(done) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


BAD = {
    "--name=": "--name needs a value",
    "--name=Rpt": "--name=Rpt: a lower-case letter",
    "--name=x;id": "--name=x;id: a lower-case letter",
    "--zone=us-east5": "--zone=us-east5 is no zone",
    "--type=": "--type needs a value",
    "--type=v6e": "is no accelerator type",
    "--type=tpu7x-8": "has no TPU7x",
    "--type=v9x-8": "give --version too",
    "--version=a b": "is no runtime version",
    "--project=My Project": "is no project id",
    "--workdir=/tmp/run": "must be gs://BUCKET/PATH",
    "--workdir=gs://bucket": "must be gs://BUCKET/PATH",
    "--workdir=gs://bucket/a b": "must be gs://BUCKET/PATH",
    "--module=rpt.trian": "rpt/trian.py does not exist",
    "--module=rpt/train.py": "is no module",
    "--valid-until=soon": "is no duration",
    "--create-flag=network": "is no flag",
    "--max-creates=0": "would never ask",
    "--max-creates=many": "is not a whole number",
    "--max-restarts=-1": "is not a whole number",
    "--ssh-retries=x": "is not a whole number",
    "--ready-minutes=1.5": "is not a whole number",
    "--poll-seconds=x": "is not a whole number",
    "--backoff-seconds=x": "is not a whole number",
    "--backoff-max-seconds=x": "is not a whole number",
    "--grace-seconds=x": "is not a whole number",
    "--env-file=missing": "cannot be read",
    "--log=missing/log": "there is no folder",
    "--spot=yes": "--spot takes no value",
    "--sport": "unknown flag --sport",
    "-v": "unexpected argument '-v'",
    "configs/mini.py": "unexpected argument 'configs/mini.py'",
    "-- --workdir=gs://other/run": "give --workdir before the --",
    "-- --config=configs/none.py": "configs/none.py does not exist",
    "-- --config=/etc/passwd": "a path within the checkout",
    "-- --config=build/x.py": "git ignores build/x.py",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_mistake_is_one_line_and_nothing_is_called(cloud, flags):
    (cloud.checkout / "build").mkdir()
    (cloud.checkout / "build/x.py").write_text("")
    words = flags.split(" ", 1) if flags.startswith("-- ") else [flags]
    done = cloud.launch(*words, status=1)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert BAD[flags] in line
    assert cloud.calls() == []


@pytest.mark.parametrize("missing", ["--name", "--zone", "--type", "--workdir"])
def test_what_is_needed_is_asked_for(cloud, missing):
    flags = ["--name=rpt", "--zone=us-east5-b", "--type=v6e-8", "--workdir=gs://bucket/run"]
    done = cloud.run("launch.sh", *[f for f in flags if not f.startswith(missing)], status=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {missing} is missing")


def test_a_file_of_secrets_that_others_can_read_is_refused(cloud, tmp_path):
    (tmp_path / "secrets").write_text("HF_TOKEN=x")
    (tmp_path / "secrets").chmod(0o644)
    line = only_line(cloud.launch(f"--env-file={tmp_path}/secrets", status=1))
    assert "chmod 600" in line


@pytest.mark.parametrize(
    "message",
    [
        "PERMISSION_DENIED: Permission 'tpu.nodes.get' denied on resource",
        "UNAUTHENTICATED: Request had invalid authentication credentials.",
        "INVALID_ARGUMENT: The parent is malformed",
        "You do not currently have an active account selected.",
        "There was a problem refreshing your current auth tokens: Reauthentication failed.",
        "The required property [project] is not currently set.",
    ],
)
def test_no_login_and_no_permission_end_at_once(cloud, message):
    said = f"ERROR: (gcloud.compute.tpus.tpu-vm.describe) {message}"
    cloud.rule("describe", fail=1, message=said + "\nPlease run: gcloud auth login")
    assert message in only_line(cloud.launch(status=1))
    assert cloud.pauses() == []
    assert len(cloud.calls()) == 1


def test_what_a_worker_says_is_no_word_of_gcloud(cloud):
    cloud.rule("ssh install", 1, fail=255, message="pip: ERROR: PERMISSION_DENIED")
    assert cloud.launch().stdout == "step 1\nstep 2\n"


def test_a_checkout_that_cannot_be_packed(cloud):
    cloud.tool("tar", "echo tar: no space >&2; exit 2")
    done = cloud.launch(status=1)
    assert "the checkout could not be packed into" in only_line(done)
    assert "tar: no space" in done.stderr
    assert "scp" not in cloud.kinds()


@pytest.mark.parametrize(
    "message",
    [
        "Quota limit 'TPUV6EPerProjectPerZone' has been exceeded. Limit: 0 in zone us-east5-b.",
        "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied",
        'INVALID_ARGUMENT: Accelerator type "v6e-16" is not available',
        "something that nobody has seen before",
    ],
)
def test_a_mistake_is_not_tried_again(cloud, message):
    cloud.rule("create", fail=1, message=f"ERROR: (gcloud.compute.tpus.tpu-vm.create) {message}")
    assert message in only_line(cloud.launch(status=1))
    assert cloud.pauses() == []


def test_workers_that_never_could_be_reached_are_a_mistake(cloud):
    cloud.rule("scp", fail=1, message="ERROR: [/usr/bin/scp] exited with return code [255].")
    done = cloud.launch("--ssh-retries=1", status=1)
    assert "cannot be reached" in only_line(done)
    assert cloud.kinds().count("create") == 1


def test_a_failed_installation_names_the_worker(cloud):
    (cloud.home / "pip_fails_on_1").write_text("")
    done = cloud.launch(status=1)
    assert "failed on worker 1 (exit status 4)" in only_line(done)
    assert "pip says something" in done.stderr


def test_one_host_where_one_host_is_needed(cloud):
    assert "has 2 workers" in only_line(cloud.launch("--single-host", status=1))
    assert cloud.starts(0) == []


def test_without_gcloud(cloud):
    (cloud.home / "bin/gcloud").unlink()
    tools = cloud.home / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "sed", "tr", "git"):
        (tools / name).symlink_to(str(shutil.which(name)))
    cloud.environment["PATH"] = str(tools)
    assert "gcloud is not on the PATH" in only_line(cloud.launch(status=1))
