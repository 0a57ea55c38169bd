"""Reads a builder's TFRecord files, seqio tasks and a mixture; prints what it found as JSON."""

import functools
import json
import os
import pathlib
import sys

import pytest
import sentencepiece

from data import sources
from tests.data import corpora, restoring, tfds_corpus

folder = pathlib.Path(sys.argv[1])


def mistake(spec):
    try:
        sources.open_source(spec)
    except ValueError as error:
        return str(error)
    return ""


corpus = [text for text in corpora.TEXTS for _ in range(5)]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*corpus, *(f"only target {i} of a task" for i in range(100))]),
    model_prefix=str(folder / "model"),
    vocab_size=120,
    hard_vocab_limit=False,
    minloglevel=2,
)
builder = tfds_corpus.write(folder / "tfds", "tfrecord")
os.environ["TEST_TFRECORD"] = f"{builder.data_path}/small_text-train.tfrecord-00000-of-00001"
record_spec = f"tfds:{builder.data_path}?max_bytes=30"
found = {
    "tfrecord": corpora.texts_of(sources.open_source(f"tfds:{builder.data_path}")),
    "too_long": dict(sources.open_source(record_spec, on_fault="skip").counts),
    "too_long_message": mistake(record_spec),
}
module = "module=tests.data.seqio_tasks"
for name in ("texts", "tokens", "both", "only_texts"):
    found[name] = corpora.texts_of(sources.open_source(f"seqio:{name}?{module}"))
found["again"] = corpora.texts_of(sources.open_source("seqio:both?" + module))
found["mistakes"] = [
    mistake(f"seqio:absent?{module}"),
    mistake(f"seqio:texts?{module}&subset=dev"),
    mistake("seqio:texts?module=no.such.module"),
    mistake(f"seqio:texts?{module}&field=body"),
]
with pytest.MonkeyPatch.context() as patch:
    for spec, seq_len in (
        (f"tfds:{builder.data_path}", 16),
        (f"seqio:texts?{module}", 8),
        (f"seqio:both?{module}", 8),
    ):
        restoring.check(patch, functools.partial(sources.open_source, spec), seq_len)

# A damaged file.
(file,) = pathlib.Path(str(builder.data_path)).glob("*train.tfrecord*")
file.write_bytes(file.read_bytes()[:-40])
info = pathlib.Path(str(builder.data_path)) / "dataset_info.json"
info.write_text(info.read_text() + "\n")
found["cut_message"] = mistake(f"tfds:{builder.data_path}")
cut = sources.open_source(f"tfds:{builder.data_path}", on_fault="skip")
found["cut"] = [corpora.texts_of(cut), dict(cut.counts)]

# The same behind a task of seqio.
spec = f"seqio:records?{module}"
found["records_cut_message"] = mistake(spec)
cut = sources.open_source(spec, on_fault="skip")
found["records_cut"] = [corpora.texts_of(cut), dict(cut.counts)]
print(json.dumps(found))
