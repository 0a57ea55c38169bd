"""Turns any source into ArrayRecord shards: `python -m data.prepare --source=SPEC --out=FOLDER`.

The folder is read with `prepared:FOLDER`, at random, without reading it first. Its manifest.json
has the source's spec, counts (documents, bytes, tokens with --tokenizer), what was left out by
reason, the SHA-256 of every shard, the tokenizer's digest and a note on the licence. The spec may
have all options of data/sources.py, splits and filters included: the folder holds their result.

Interrupted, the same command goes on at the first unfinished shard. Finished, it checks every byte
and says so. A folder made from something else is never touched.

    python -m data.prepare --source='jsonl:corpus/*.jsonl.zst?on_fault=skip' --out=prepared/corpus
    python -m data.prepare --recipe=pydoc --out=prepared/pydoc --tokenizer=bytes
"""

import argparse
import contextlib
import importlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data import commands, digests, recipes, records, shards, sources, tokenizers

# Told how many records there are, once the source is open; gives what is told each one.
Begun = Callable[[int], shards.Progress]

_SECONDS_BETWEEN_LINES = 5.0
_RECORDS_BETWEEN_UPDATES = 256


def prepare(
    spec: str,
    out: str | pathlib.Path,
    *,
    shard_count: int | None = None,
    license: str | None = None,
    tokenizer: str | None = None,
    progress: Begun | None = None,
) -> tuple[dict[str, Any], bool]:
    """Prepares a source; the manifest, and whether anything was written.

    Args:
        shard_count: shards of equal numbers of documents; None begins one every 256 MiB of text.
        tokenizer: counts tokens; what `data.tokenizers.load` takes.
        progress: hears how far the writing is.

    Raises:
        FileNotFoundError, ValueError: as `sources.open_source` and `shards.write`.
    """
    source, guard = sources.open_guarded(spec)
    if shard_count is not None and not 1 <= shard_count <= len(source):
        raise ValueError(f"cannot make {shard_count} shards of {len(source)} documents")
    loaded = None if tokenizer is None else tokenizers.load(tokenizer)
    ends = None
    if shard_count is not None:
        ends = [len(source) * (shard + 1) // shard_count for shard in range(shard_count)]
    digest = None if loaded is None else loaded.digest()
    identity = {
        "source": sources.without_policy(spec),
        "documents": len(source),
        "digest": digests.shown(source.digest()),
        "max_bytes": guard.max_bytes,
        "shard_count": shard_count,
        "tokenizer_digest": digest,
    }
    plan = shards.Plan(
        identity,
        _items(source),
        ends,
        {"source": spec, "license": license, "tokenizer": tokenizer, "tokenizer_digest": digest},
        None if loaded is None else (lambda text: len(loaded.encode(text))),
        source.counts,
        tuple(guard.faults),
    )
    told = None if progress is None else progress(len(source))
    manifest, written = shards.write(pathlib.Path(out).expanduser(), plan, guard, told)
    if not manifest["documents"]:
        raise ValueError(f"{out} holds no document: all were left out {manifest['skipped']}")
    return manifest, written


def _items(source: records.Source) -> shards.Items:
    def items(start: int) -> Iterator[records.Record | records.Fault]:
        for index in range(start, len(source)):
            try:
                yield source[index]
            except records.Fault as fault:
                yield fault

    return items


@contextlib.contextmanager
def _shown_progress() -> Iterator[Begun]:
    """A bar of rich's, if it is installed and someone looks; else plain lines now and then."""
    try:
        console = importlib.import_module("rich.console").Console(stderr=True)
        library = importlib.import_module("rich.progress")
    except ImportError:
        console = library = None
    if library is None or console is None or not console.is_terminal:
        yield _plain_progress
        return
    columns = [
        library.TextColumn("{task.description}"),
        library.BarColumn(),
        library.TaskProgressColumn(),
        library.TimeRemainingColumn(),
    ]
    # A folder that is only verified leaves no bar that stands at 0.
    with library.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("opening the source", total=None)

        def begin(total: int) -> shards.Progress:
            bar.update(task, description="", total=total)

            def show(documents: int, text_bytes: int, position: int) -> None:
                if position % _RECORDS_BETWEEN_UPDATES == 0 or position == total:
                    line = _progress_line(documents, text_bytes)
                    bar.update(task, description=line, completed=position)

            return show

        yield begin


def _plain_progress(total: int) -> shards.Progress:
    last = time.monotonic()

    def show(documents: int, text_bytes: int, position: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            line = f"{position / total:.0%}: {_progress_line(documents, text_bytes)}"
            print(line, file=sys.stderr, flush=True)

    return show


def _progress_line(documents: int, text_bytes: int) -> str:
    return f"{documents} documents, {text_bytes / 2**20:.1f} MiB of text"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="recipes:\n" + "\n".join(f"    {n:12} {r.spec}" for n, r in recipes.RECIPES.items()),
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", help="spec of a source (data/sources.py)")
    what.add_argument("--recipe", help="a known corpus, see below")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--shards", type=int, help="number of shards; default: one per 256 MiB")
    parser.add_argument("--license", help="a note for the manifest; a recipe brings its own")
    parser.add_argument("--tokenizer", help="counts tokens: bytes, or a tokenizer's file or folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        license = arguments.license
        spec = arguments.source
        if arguments.recipe is not None:
            spec = recipes.spec_of(arguments.recipe)
            license = license or recipes.RECIPES[arguments.recipe].license
        with _shown_progress() as progress:
            manifest, written = prepare(
                spec,
                arguments.out,
                shard_count=arguments.shards,
                license=license,
                tokenizer=arguments.tokenizer,
                progress=progress,
            )
    except (ValueError, OSError) as error:
        print(f"error: {commands.one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on at the first unfinished shard")
        return 130
    tokens = f", {manifest['tokens']} tokens" if "tokens" in manifest else ""
    print(
        f"{arguments.out}: {'written' if written else 'already prepared, verified'}: "
        f"{manifest['documents']} documents, {manifest['text_bytes']} bytes{tokens} in "
        f"{len(manifest['shards'])} shards; {records.described(shards.counts_of(manifest))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
