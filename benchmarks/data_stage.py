"""One measurement of the data pipeline in a process without jax; see benchmarks/data.py.

Prints one line of JSON. Documents are counted in tokens of the bytes tokenizer, so bytes of text:
what is measured is the pipeline and not a vocabulary.
"""

import argparse
import importlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from data import documents, pipeline, prepare, sources, tokenizers

_ROWS, _ROW_TOKENS = 16, 1024


def plain(path: str) -> Iterator[int]:
    """Every line of a JSONL file, parsed: what reading costs without any pipeline."""
    with open(path, "rb") as file:
        for line in file:
            yield len(json.loads(line)["text"].encode())


def in_order(spec: str) -> Iterator[int]:
    source = sources.open_source(spec)
    for index in range(len(source)):
        yield len(source[index].text.encode())


def shuffled(spec: str) -> Iterator[int]:
    source = sources.open_source(spec)
    order = documents.Order(len(source), seed=0)
    for ordinal in range(len(source)):
        yield len(source[order[ordinal]].text.encode())


def stream_of(kind: str, spec: str, epochs: int | None) -> pipeline.Stream[Any]:
    mixture = [pipeline.Mix(sources.open_source(spec), 1.0, "corpus")]
    tokenizer = tokenizers.load("bytes")
    if kind == "packed":
        return pipeline.packed_batches(
            mixture, tokenizer, batch_size=_ROWS, seq_len=_ROW_TOKENS, seed=0, epochs=epochs
        )
    return pipeline.trunk_batches(
        mixture,
        tokenizer,
        batch_size=_ROWS,
        seq_len=_ROW_TOKENS,
        header_ids=np.zeros(1, np.int32),
        min_context=8,
        seed=0,
        epochs=epochs,
    )


def packed(spec: str) -> Iterator[int]:
    for batch in stream_of("packed", spec, 1):
        yield int((batch.segments_BS > 0).sum())


def trunks(spec: str) -> Iterator[int]:
    for batch in stream_of("trunks", spec, 1):
        yield int(batch.lengths_B.sum())


def bare_grain(pattern: str) -> Iterator[int]:
    """grain alone: an ArrayRecord source, its shuffle, and a map to ids; no packing."""
    files = sorted(str(path) for path in _glob(pattern))
    # A record of data/shards.py begins with 9 bytes that are no text.
    dataset = (
        grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files))
        .seed(0)
        .shuffle()
        .map(lambda raw: np.frombuffer(raw[9:], np.uint8).astype(np.int32))
        .to_iter_dataset()
    )
    for tokens in dataset:
        yield len(tokens)


def bare_seqio(pattern: str) -> Iterator[int]:
    """seqio alone: lines of text through its byte vocabulary, shuffled, not packed."""
    seqio = importlib.import_module("seqio")
    tensorflow = importlib.import_module("tensorflow")

    def to_text(dataset):
        return dataset.map(lambda line: {"targets": line}, tensorflow.data.AUTOTUNE)

    seqio.TaskRegistry.add(
        "lines",
        source=seqio.TextLineDataSource({"train": pattern}),
        preprocessors=[to_text, seqio.preprocessors.tokenize],
        output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)},
    )
    dataset = seqio.get_mixture_or_task("lines").get_dataset(
        sequence_length=None, split="train", shuffle=True, seed=0
    )
    for example in dataset.as_numpy_iterator():
        yield len(example["targets"])


def _glob(pattern: str) -> Iterator[pathlib.Path]:
    path = pathlib.Path(pattern)
    return path.parent.glob(path.name)


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """Of this process alone: what getrusage says begins with its parent's."""
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def measure(stage: str, path: str, seconds: float) -> dict[str, Any]:
    """Reads until the end or for so long behind the first item. The rates count opening too, where
    small sources are tokenised; what is made once (`first`) lies in the cache. CPU time is that of
    all threads: other work on the machine hardly changes it."""
    began, began_cpu = time.perf_counter(), time.process_time()
    items = STAGES[stage](path)
    tokens = next(items)
    opened = time.perf_counter()
    memory, reached = [resident_mb()], "the end"
    for count, more in enumerate(items):
        tokens += more
        if count % 256 == 0:
            memory.append(resident_mb())
            if time.perf_counter() - opened > seconds:
                reached = "the time limit"
                break
    passed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    early = memory[len(memory) // 10 :]
    return {
        "open_s": opened - began,
        "tokens": tokens,
        "tokens/s": tokens / passed,
        "cpu_ns/token": cpu / tokens * 1e9,
        "resident_MB_from": min(early),
        "resident_MB_to": max(early),
        "peak_MB": peak_mb(),
        "until": reached,
    }


def first(job: str, path: str) -> dict[str, Any]:
    """What is done once for a corpus: a JSONL file opened with an empty cache, or prepared."""
    spec = f"jsonl:{path}/corpus.jsonl"
    began, began_cpu = time.perf_counter(), time.process_time()
    if job == "open":
        with tempfile.TemporaryDirectory() as cache:
            os.environ["RPT_CACHE"] = cache
            sources.open_source(spec)
        written = True
    else:
        _, written = prepare.prepare(spec, f"{path}/prepared")
    return {
        "job": job if written else f"{job}: was there, verified",
        "seconds": time.perf_counter() - began,
        "cpu_ns/byte": (time.process_time() - began_cpu)
        / pathlib.Path(path, "corpus.jsonl").stat().st_size
        * 1e9,
        "peak_MB": peak_mb(),
    }


def resume(spec: str, share: float) -> dict[str, Any]:
    """Seconds until a stream stands at a share of its source and has its next batch."""
    began = time.perf_counter()
    stream = stream_of("packed", spec, None)
    opened = time.perf_counter() - began
    state = json.loads(json.dumps(stream.get_state()))
    state["shares"][0]["next"] = int(share * state["identity"]["elements"][0])
    began, began_cpu = time.perf_counter(), time.process_time()
    stream.set_state(state)
    next(stream)
    return {
        "open_s": opened,
        "to_next_batch_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - began_cpu,
    }


FIRST = ("open", "prepare")
STAGES = {
    "plain": plain,
    "in_order": in_order,
    "shuffled": shuffled,
    "packed": packed,
    "trunks": trunks,
    "bare_grain": bare_grain,
    "bare_seqio": bare_seqio,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=[*STAGES, "resume", *FIRST])
    parser.add_argument("path", help="of a stage what it reads; else the corpus's folder")
    parser.add_argument("amount", type=float, help="most seconds; of resume, the share")
    given = parser.parse_args()
    # Comparable from machine to machine.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if given.stage == "resume":
        print(json.dumps(resume(given.path, given.amount)))
    elif given.stage in FIRST:
        print(json.dumps(first(given.stage, given.path)))
    else:
        print(json.dumps(measure(given.stage, given.path, given.amount)))


if __name__ == "__main__":
    main()
