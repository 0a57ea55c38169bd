"""Writes and reads a builder in the ArrayRecord format where TensorFlow cannot be imported."""

import importlib.machinery
import json
import sys


class Without(importlib.machinery.PathFinder):
    """Finds all modules but TensorFlow and jax."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "jax"}:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without

import pathlib  # noqa: E402

import pytest  # noqa: E402

from data import records, sources  # noqa: E402
from tests.data import corpora, restoring, tfds_corpus  # noqa: E402

folder = sys.argv[1]
builder = tfds_corpus.write(folder, "array_record")
by_name = sources.open_source(f"tfds:small_text?data_dir={folder}")
by_folder = sources.open_source(f"tfds:{builder.data_path}?field=title,text&join=:")
digest = by_name.digest()
part = sources.open_source(f"tfds:small_text:1.0.0?data_dir={folder}&subset=train[:40%25]")
mistakes = []
for spec in (
    f"tfds:small_text?data_dir={folder}&field=body",
    f"tfds:small_text?data_dir={folder}&subset=dev",
    f"tfds:small_text?data_dir={folder}&download=maybe",
    f"tfds:small_text?data_dir={folder}/elsewhere",
    f"tfds:no_such_set?data_dir={folder}",
    f"tfds:small_text?data_dir={folder}&max_bytes=8",
):
    try:
        corpora.texts_of(sources.open_source(spec))
    except ValueError as error:
        mistakes.append(str(error))
with pytest.MonkeyPatch.context() as patch:
    restoring.check(patch, lambda: sources.open_source(f"tfds:small_text?data_dir={folder}"), 16)

(file,) = pathlib.Path(str(builder.data_path)).glob("*train.array_record*")
whole, cuts = file.read_bytes(), []
for size in (len(whole) - 1, 2**16, 100):
    file.write_bytes(whole[:size])
    cut = sources.open_source(f"tfds:{builder.data_path}")
    try:
        cut[3]
    except records.Fault as fault:
        cuts.append([fault.reason, str(fault)])
same = []
for changed in (b"", b"x"):
    # The size stays.
    file.write_bytes(whole[:100] + changed + whole[100 + len(changed) :])
    again = sources.open_source(f"tfds:small_text?data_dir={folder}")
    same.append(again.digest() == digest)
file.write_bytes(whole)
print(
    json.dumps(
        {
            "by_name": corpora.texts_of(by_name),
            "by_folder": corpora.texts_of(by_folder),
            "part": corpora.texts_of(part),
            "mistakes": mistakes,
            "cuts": cuts,
            "same": same,
            "file": file.name,
        }
    )
)
