"""For every format and for chains of transforms: exact resumption, and shards that are the corpus.

TFDS and seqio go through the same check in processes of their own (test_tensorflow.py).
"""

import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

import data
from data import prepare, sources
from tests.data import corpora, restoring

FILES = (
    *("jsonl", "jsonl_gz", "jsonl_zst", "parquet", "hf", "array_record", "array_record_json"),
    *("folder", "text", "text_blank", "text_separated", "prepared"),
)
WORDS = [[f"w{i}x{k}" for k in range(8)] for i in range(64)]
# Equal, near, short, to be rewritten: something for every step of a chain.
MESSY = [
    *(" ".join(words) for words in WORDS),
    " ".join(WORDS[0]) + " ",
    " ".join([*WORDS[1][:7], "other"]),
    "too short",
    "cafe\u0301 \x00" + " ".join(WORDS[2][::-1]),
]
CHAINS = {
    "filters": "unicode=NFC&control=strip&min_words=4",
    "duplicates": "duplicates=near&near_threshold=0.5",
    "split": "split=train&validation=0.1&test=0.1",
    "everything": "unicode=NFKC&min_words=4&duplicates=exact&decontaminate={benchmark}"
    "&decontaminate_words=8&split=train&validation=0.1&test=0.1",
}
# Source and row length.
OTHERS = {
    "docstrings": ("docstrings:json", 256),
    "miniature": ("miniature:?size=60", 48),
    "skills": ("skills:?size=60", 48),
    "interleaved": (sources.interleave(a="miniature:?size=40", b="skills:?size=30"), 48),
    "idle": ("docstrings:json?idle_thoughts=0.1", 256),
    "pydoc": ("pydoc?unicode=NFC&max_words=300&duplicates=near&split=train", 1024),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    specs = corpora.write_all(folder)
    prepare.prepare(specs["jsonl"], folder / "prepared", shard_count=3)
    return specs | {"prepared": f"prepared:{folder}/prepared"}


@pytest.mark.parametrize("name", FILES)
def test_formats(corpus, monkeypatch, name):
    open_source = functools.partial(sources.open_source, corpus[name])
    assert corpora.texts_of(open_source()) == corpora.TEXTS
    restoring.check(monkeypatch, open_source)


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    (folder / "benchmark.txt").write_text("In a test: " + MESSY[6])
    benchmark = urllib.parse.quote(f"text:{folder}/benchmark.txt")
    corpora.write_jsonl(folder / "jsonl", MESSY)
    corpora.write_hf(folder / "hf", MESSY)
    return {
        (of, name): f"{of}:{folder}/{of}?{chain.format(benchmark=benchmark)}"
        for of in ("jsonl", "hf")
        for name, chain in CHAINS.items()
    }


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("of", ["jsonl", "hf"])
def test_chains_of_transforms(monkeypatch, chains, name, of):
    open_source = functools.partial(sources.open_source, chains[of, name])
    assert 50 < len(open_source()) < len(MESSY)
    restoring.check(monkeypatch, open_source, 36)


@pytest.mark.parametrize("name", OTHERS)
def test_other_sources(monkeypatch, name):
    spec, seq_len = OTHERS[name]
    restoring.check(monkeypatch, functools.partial(sources.open_source, spec), seq_len)


def contents(specs):
    """The digest of every source, and one of its documents themselves."""
    found = []
    for source in map(sources.open_source, specs):
        documents = repr([source[index] for index in range(len(source))])
        found.append([source.digest(), hashlib.sha256(documents.encode()).hexdigest()])
    return found


def test_another_process_opens_the_same(chains):
    """Whose hashes of strings are others, so whose sets have another order."""
    specs = [*chains.values(), *(spec for spec, _ in OTHERS.values())]
    code = (
        "import json, sys; from tests.data import test_every_source as own; "
        "print(json.dumps(own.contents(json.loads(sys.argv[1]))))"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(specs)],
        cwd=pathlib.Path(data.__path__[0]).parent,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == contents(specs)


@pytest.mark.parametrize("make", [restoring.packed, restoring.trunks])
def test_endless_mixtures_of_formats(corpus, make):
    """A small source is read at the start, so this is of windows in memory beside those on disk."""
    own = [sources.open_source(corpus[name]) for name in ("parquet", "folder", "jsonl_gz")]
    restoring.goes_on_exactly(lambda: make(own, 48))
