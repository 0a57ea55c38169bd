"""Runs a proxy over a corpus once and writes the difficulty index (data/difficulty.py).

    python -m rpt.index --source='pydoc?split=train' --proxy=runs/stage0 --out=indexes/pydoc \
        --seq_len=96 --min_context=8 --template=configs/templates/mini.txt

Select training positions by it with --config.positions.index=indexes/pydoc. To get what the proxy
would say online, give the run's seq_len, min_context and template. Stopped, the same command goes
on at the first shard that is not whole, and the bytes are those of a run that was not stopped.
Documents that cannot be read are left out if the spec says `on_fault=skip`, and counted in the
manifest.

Letters: B trunk rows, S trunk positions.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from data import difficulty, digests, pipeline, records, sources
from rpt import checkpoint, cli, formats, ledger, loading, scoring, sharding

# Windows are scored by length, so many batches at once: short documents then share short rows.
_GROUP_BATCHES = 16
# Row lengths are multiples of seq_len / 4, so that few programs are compiled.
_ROW_LENGTHS = 4


class Document(NamedTuple):
    document_id: int
    tokens: np.ndarray


class _Window(NamedTuple):
    """A piece of document number `document` of a group; it decides tokens from `first` on."""

    document: int
    start: int
    first: int
    tokens: np.ndarray


def score_documents(
    proxy: loading.Loaded,
    mesh: Mesh,
    about: difficulty.About,
    documents: Iterable[Document],
    batch_size: int,
    cost: dict[str, int],
) -> Iterator[difficulty.Entry]:
    """The scores of every document, in order.

    Args:
      proxy: its parameters placed on the mesh.
      mesh: whose devices share the rows.
      about: header and windows.
      documents: any number.
      batch_size: rows.
      cost: 'scored_tokens' and 'flops' are added to.
    """
    group: list[Document] = []
    windows: list[_Window] = []
    for document in documents:
        for start, first in about.windows(len(document.tokens)):
            piece = document.tokens[start : start + about.room]
            windows.append(_Window(len(group), start, first, piece))
        group.append(document)
        if len(windows) >= _GROUP_BATCHES * batch_size:
            yield from _score_group(proxy, mesh, about, group, windows, batch_size, cost)
            group, windows = [], []
    yield from _score_group(proxy, mesh, about, group, windows, batch_size, cost)


def _score_group(proxy, mesh, about, group, windows, batch_size, cost):
    found = [
        difficulty.Scores(*(np.full(len(document.tokens), np.nan, np.float32) for _ in range(2)))
        for document in group
    ]
    header = len(about.header_ids)
    windows = sorted(windows, key=lambda window: len(window.tokens))
    for place in range(0, len(windows), batch_size):
        rows = windows[place : place + batch_size]
        arrays = _rows(about, rows, batch_size)
        scores, _ = scoring.score_trunk(
            proxy.model, proxy.params, *sharding.shard_rows(mesh, arrays)
        )
        entropy_BS = np.asarray(scores.filter_entropy_BS)
        log_prob_BS = np.asarray(scores.target_log_prob_BS)
        cost["scored_tokens"] += entropy_BS.size
        cost["flops"] += ledger.trunk_flops(proxy.model, *entropy_BS.shape, passes=1)
        for b, window in enumerate(rows):
            # Nothing predicts the very first token of a row.
            first = window.first + (window.first + header == 0)
            end = window.start + len(window.tokens)
            inside = slice(header + first - window.start, header + len(window.tokens))
            found[window.document].entropy[first:end] = entropy_BS[b, inside]
            found[window.document].log_prob[first:end] = log_prob_BS[b, inside]
    for document, scores in zip(group, found, strict=True):
        yield difficulty.Entry(document.document_id, scores)


def _rows(about, windows, batch_size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segments and positions [B, S]; S as short as its windows allow."""
    header = np.array(about.header_ids, np.int32)
    step = -(-about.seq_len // _ROW_LENGTHS)
    longest = len(header) + max(len(window.tokens) for window in windows)
    length = min(-(-max(longest, 2) // step) * step, about.seq_len)
    tokens_BS = np.zeros((batch_size, length), np.int32)
    used_B = np.zeros(batch_size, np.int32)
    for b, window in enumerate(windows):
        row = np.concatenate([header, window.tokens])
        tokens_BS[b, : len(row)], used_B[b] = row, len(row)
    segments_BS = (np.arange(length) < used_B[:, None]).astype(np.int32)
    return tokens_BS, segments_BS, np.arange(length, dtype=np.int32) * segments_BS


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command's flags say."""

    source: str
    proxy: str
    out: pathlib.Path
    template: str = ""
    add_bos: bool = True
    seq_len: int = 1024
    min_context: int = 8
    batch_size: int = 16
    shard_documents: int = 4096


def build(settings: Settings, stop: cli.StopSignal | None = None) -> dict[str, Any]:
    """Writes the index, or the shards of it that are missing; returns its manifest.

    Raises:
      ValueError, FileNotFoundError: source, proxy, template or folder are not what they should be.
      cli.Stopped: the signal came before the last shard.
    """
    source, guard = sources.open_guarded(settings.source)
    opened = len(guard.faults)
    proxy = loading.load_any(settings.proxy)
    header = formats.load_template(settings.template).header if settings.template else ""
    about = difficulty.About(
        source=sources.without_policy(settings.source),
        documents=len(source),
        documents_digest=digests.shown(source.digest()),
        tokenizer_digest=proxy.tokenizer.digest(),
        proxy=settings.proxy,
        proxy_sha256=checkpoint.params_sha256(proxy.params),
        header_ids=tuple(loading.header_ids(proxy.tokenizer, header, settings.add_bos).tolist()),
        seq_len=settings.seq_len,
        min_context=settings.min_context,
        shard_documents=settings.shard_documents,
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(), settings.batch_size)
    writer = difficulty.Writer(settings.out, about)
    if writer.is_complete:
        return difficulty.read_manifest(settings.out)
    guard.replay({}, writer.faults)
    with jax.set_mesh(mesh):
        proxy = proxy._replace(params=loading.place(mesh, proxy.model, proxy.params))
        progress = _Progress(about.documents, writer.shards_done * about.shard_documents)
        for shard in about.shards[writer.shards_done :]:
            cost = {"scored_tokens": 0, "flops": 0}
            documents = _read(source, guard, shard, proxy, progress, stop)
            entries = score_documents(proxy, mesh, about, documents, settings.batch_size, cost)
            writer.write_shard(entries, cost, guard)
    return writer.finish(guard.counts_with(source.counts, opened))


def _read(source, guard, shard, proxy, progress, stop) -> Iterator[Document]:
    """A document for every index of the shard, without tokens where it cannot be read."""
    tokenizer = proxy.tokenizer
    nothing = Document(pipeline.NO_DOCUMENT, np.zeros(0, np.int32))
    following = shard.start
    for index, record in records.readable(source, guard, shard):
        if stop is not None and stop.received:
            raise cli.Stopped(f"stopped at document {index}; the same command goes on")
        yield from itertools.repeat(nothing, index - following)
        following = index + 1
        encode = tokenizer.encode_markup if record.markup else tokenizer.encode
        tokens = encode(record.text)
        progress.move(index + 1, len(tokens))
        yield Document(record.document_id, tokens)
    yield from itertools.repeat(nothing, shard.stop - following)


class _Progress:
    """A line every ten seconds."""

    def __init__(self, documents: int, start: int):
        self._documents, self._start, self._tokens = documents, start, 0
        self._began = self._last = time.monotonic()

    def move(self, document: int, tokens: int) -> None:
        self._tokens += tokens
        now = time.monotonic()
        if now - self._last > 10:
            self._last = now
            seconds = now - self._began
            left = seconds / (document - self._start) * (self._documents - document)
            print(
                f"index {document}/{self._documents} documents  "
                f"{self._tokens / seconds:.0f} tokens/s  {left:.0f} s left",
                flush=True,
            )


def main(argv: list[str]) -> None:
    del argv
    values = flags.FLAGS
    names = [field.name for field in dataclasses.fields(Settings)]
    given: dict[str, Any] = {name: values[name].value for name in names}
    manifest = build(Settings(**{**given, "out": pathlib.Path(given["out"])}), cli.StopSignal())
    tokens = sum(shard["tokens"] for shard in manifest["shards"])
    print(
        f"{manifest['about']['documents']} documents, {tokens} tokens indexed in {given['out']}; "
        f"{records.described(manifest['counts'])}"
    )


def _define_flags() -> None:
    flags.DEFINE_string("source", None, "Spec of data/sources.py.", required=True)
    flags.DEFINE_string(
        "proxy", None, "Run directory, checkpoint folder, GGUF file or fetch:NAME.", required=True
    )
    flags.DEFINE_string("out", None, "Folder of the index.", required=True)
    flags.DEFINE_string("template", "", "File whose header precedes every window.")
    flags.DEFINE_bool("add_bos", True, "Whether rows begin with the tokenizer's bos.")
    flags.DEFINE_integer("seq_len", Settings.seq_len, "Longest row, header included.")
    flags.DEFINE_integer("min_context", Settings.min_context, "Overlap of windows, in tokens.")
    flags.DEFINE_integer("batch_size", Settings.batch_size, "Rows at once.")
    flags.DEFINE_integer("shard_documents", Settings.shard_documents, "Documents per file.")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
