"""The data pipeline: tokens per second by stage, memory over a corpus, and what a resume costs.

    python -m benchmarks.data                                 10 and 100 MB
    python -m benchmarks.data --megabytes=10,100,2000         and 2 GB: memory stays flat
    python -m benchmarks.data --megabytes=2000 --seconds=inf      every stage to the end

A corpus of English-like documents of about 2 KB is generated as JSONL, prepared as ArrayRecord
(`python -m data.prepare`) and read by every stage, each in a process of its own and without jax:

    open, prepare   what is done once: the JSONL opened with an empty cache, and prepared
    plain       every line of the JSONL parsed, no pipeline
    bare_grain  grain alone over the same ArrayRecord files: its shuffle and a map to ids
    bare_seqio  seqio alone over the same texts as lines (where it is installed)
    in_order, shuffled      documents of a source
    packed, trunks          batches of 16 rows of 1,024 tokens, in the order of a run

Tokens are bytes of text (the bytes tokenizer), so that no vocabulary is measured. The rates count
opening, with what `open` made in the cache; there sources of up to 10,000 documents are tokenised.
`cpu_ns/token` is of all threads and hardly depends on what else the machine does. Resident memory
is sampled from a tenth of the way on; two cores at most are used.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import flags

from benchmarks import data_stage, report
from rpt import cli

_MEGABYTES = flags.DEFINE_list("megabytes", ["10", "100"], "Sizes of the corpus.")
_SECONDS = flags.DEFINE_float("seconds", 20, "Most for one stage.")
_FOLDER = flags.DEFINE_string("folder", "", "Where corpora are kept; a temporary one when empty.")


def generate(folder: pathlib.Path, megabytes: int) -> None:
    """corpus.jsonl, lines.txt with the same texts, and prepared/."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus, lines = folder / "corpus.jsonl", folder / "lines.txt"
    if not corpus.is_file() or corpus.stat().st_size < 1e6 * megabytes:
        generator = np.random.default_rng(0)
        sizes = generator.integers(2, 11, 5000)
        words = np.array(
            ["".join(generator.choice(list("etaoinshrdlu"), size=n)) for n in sizes], object
        )
        shares = 1 / np.arange(1, 5001)
        shares /= shares.sum()
        written = 0
        with corpus.open("w") as as_json, lines.open("w") as as_lines:
            while written < 1e6 * megabytes:
                drawn = words[generator.choice(5000, size=(64, 300), p=shares)]
                for row in drawn:
                    text = " ".join(row)
                    as_json.write(json.dumps({"text": text}) + "\n")
                    as_lines.write(text + "\n")
                    written += len(text) + 13


def stage(name: str, path: str, amount: float) -> dict[str, Any]:
    """benchmarks/data_stage.py in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data_stage", name, path, str(amount)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"stage {name} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as temporary:
        for megabytes in map(int, _MEGABYTES.value):
            folder = pathlib.Path(_FOLDER.value or temporary) / str(megabytes)
            measure(folder.absolute(), megabytes)


def measure(folder: pathlib.Path, megabytes: int) -> None:
    generate(folder, megabytes)
    jsonl, prepared = f"jsonl:{folder}/corpus.jsonl", f"prepared:{folder}/prepared"
    once = [stage(job, str(folder), 0) for job in data_stage.FIRST]
    report.show(f"{megabytes} MB: once", once)
    runs = [
        ("plain", f"{folder}/corpus.jsonl"),
        ("bare_grain", f"{folder}/prepared/*.array_record"),
    ]
    if importlib.util.find_spec("seqio"):
        runs.append(("bare_seqio", f"{folder}/lines.txt"))
    for name in ("in_order", "shuffled", "packed", "trunks"):
        runs += [(name, jsonl), (name, prepared)]
    rows = []
    for name, path in runs:
        kind = path.partition(":")[0] if ":" in path else pathlib.Path(path).suffix[1:]
        rows.append({"stage": name, "of": kind, **stage(name, path, _SECONDS.value)})
    report.show(f"{megabytes} MB", rows)
    resumed = [
        {"of": path.partition(":")[0], "at": share, **stage("resume", path, share)}
        for path in (jsonl, prepared)
        for share in (0.0, 0.5, 0.95)
    ]
    report.show(f"{megabytes} MB: a stream that goes on", resumed)


if __name__ == "__main__":
    cli.run(main)
