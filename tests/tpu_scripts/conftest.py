"""A checkout, a PATH with stand-ins, and a Cloud TPU in a folder."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
SCRIPTS = HERE.parent.parent / "tpu_scripts"

# Writes down how it was called; is an environment's python, pip, uv and the program, all in one.
PYTHON = """#!/bin/bash
case "$1 $2" in
  "-c "*) exit "$(cat "$STANDIN/python_is_old" 2>/dev/null || echo 0)" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m uv") mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;&
  "-m pip" | "-m uv") echo "$*" >>"$STANDIN/installed_$WORKER"
    echo "pip says something"
    [[ ! -e "$STANDIN/pip_fails_on_$WORKER" ]] ;;
  *) printf '%s\\0' "$@" >"$STANDIN/start_${WORKER}_$(date +%N)_$$"
    exec bash "$STANDIN/program" ;;
esac
"""


@dataclasses.dataclass
class Cloud:
    """The stand-in and the scripts that are run against it."""

    home: pathlib.Path
    checkout: pathlib.Path
    rules: list[str] = dataclasses.field(default_factory=list)
    workers: int = 2
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    called_from: pathlib.Path | None = None

    def rule(self, on: str, *nth: int, message: str = "", **what: int | str | None) -> None:
        """What goes wrong at the nth call of a kind (at every one): see standin_gcloud.sh."""
        which = " ".join(map(str, nth)) or "*"
        for action, value in what.items():
            self.rules.append(f"{on}\t {which} \t{action}\t{'' if value is None else value}\n")
        if message:
            (self.home / "message").write_text(message + "\n")

    def program(self, text: str) -> None:
        (self.home / "program").write_text(text)

    def tool(self, name: str, text: str) -> None:
        """A program of the machine that launches."""
        write_script(self.home / "bin" / name, "#!/bin/bash\n" + text)

    def run(self, script: str, *flags: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a script, which must end with this status."""
        (self.home / "worker_count").write_text(str(self.workers))
        (self.home / "rules").write_text("".join(self.rules))
        command = [str(self.checkout / "tpu_scripts" / script), *flags]
        process = subprocess.Popen(
            command,
            cwd=self.called_from,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What was started in the background has Ctrl-C ignored, and passes that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            out, error = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        done = subprocess.CompletedProcess(command, process.returncode, out, error)
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def launch(self, *flags: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        before, dashes, after = split(flags)
        place = ["--name=rpt", "--zone=us-east5-b", "--type=v6e-16"]
        workdir = [] if any("--module" in f for f in before) else ["--workdir=gs://bucket/run"]
        return self.run("launch.sh", *place, *workdir, *before, *dashes, *after, status=status)

    def stop(self, *flags: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("stop.sh", "--name=rpt", "--zone=us-east5-b", *flags, status=status)

    def calls(self) -> list[list[str]]:
        files = sorted(self.home.glob("calls/*"), key=lambda path: int(path.name))
        return [path.read_text().split("\0")[:-1] for path in files]

    def kinds(self) -> list[str]:
        """What was called, in order, without repetitions in a row."""
        found: list[str] = []
        for words in self.calls():
            kind = " ".join(words[2:4]).replace("tpu-vm ", "").replace("queued-resources", "queue")
            if kind == "ssh":
                kind = re.findall(r"worker\.sh (\w+)", " ".join(words))[0]
            found += [kind] if not found or found[-1] != kind else []
        return found

    def state(self, name: str = "node") -> str | None:
        path = self.home / name
        return path.read_text() if path.exists() else None

    def set_state(self, name: str, value: str) -> None:
        (self.home / name).write_text(value)

    def starts(self, worker: int = 0) -> list[list[str]]:
        """The words with which the program was started there, every time."""
        files = sorted(
            self.home.glob(f"start_{worker}_*"), key=lambda path: path.stat().st_mtime_ns
        )
        return [path.read_text().split("\0")[:-1] for path in files]

    def pauses(self) -> list[int]:
        path = self.home / "pauses"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


def split(flags: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    words = list(flags)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at : at + 1], words[at + 1 :]


def write_script(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def make_checkout(root: pathlib.Path) -> None:
    shutil.copytree(SCRIPTS, root / "tpu_scripts")
    modules = ["rpt/train", "rpt/fetch", "benchmarks/ops", "benchmarks/step", "benchmarks/decode"]
    for name in [f"{module}.py" for module in modules] + ["setup.py", "configs/mini.py"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / ".gitignore").write_text("build/\nruns/\n")
    subprocess.run(["git", "init", "--quiet", "--template=", root], check=True)


@pytest.fixture
def cloud(tmp_path: pathlib.Path):
    home, checkout = tmp_path / "cloud", tmp_path / "a checkout"
    (home / "calls").mkdir(parents=True)
    (home / "bin").mkdir()
    make_checkout(checkout)
    (home / "bin/gcloud").symlink_to(HERE / "standin_gcloud.sh")
    # Nobody waits; a test sees how long it would have been.
    write_script(
        home / "bin/sleep",
        '#!/bin/bash\necho "$1" >>"$STANDIN/pauses"\n'
        '[[ ! -e "$STANDIN/interrupt" ]] || kill -INT "$PPID"\n'
        '[[ ! -e "$STANDIN/on_pause" ]] || bash "$STANDIN/on_pause"\n',
    )
    write_script(home / "worker_bin/python3", PYTHON)
    write_script(home / "worker_bin/curl", '#!/bin/bash\necho "$WORKER"\n')
    found = Cloud(home, checkout)
    found.program("echo step 1\necho step 2")
    found.environment = {
        "STANDIN": str(home),
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "SYSTEM_PATH": os.environ["PATH"],
    }
    yield found
    for path in home.glob("workers/*/rpt-launch/run/pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            continue
