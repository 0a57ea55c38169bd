"""Sources: random access to documents, opened by one line of text.

A spec is `name:path?key=value&key=value`; path and options may be missing, values are URL-quoted:

    text:/books/emma.txt?separator=blank   one document a file, or one between empty lines ('blank')
                                           or matches of a regular expression
    folder:/books?pattern=*.md             a document per matching file below, sorted, none hidden
    jsonl:/corpus/*.jsonl.gz?field=text    one JSON object a line; plain, .gz or .zst
    parquet:/corpus?field=text             one document a row
    hf:/saved?subset=train                 a folder that Hugging Face's datasets saved
    array_record:/corpus/*.array_record    records that are text, or ?form=json, form=example
    prepared:/folder                       what python -m data.prepare wrote
    tfds:wikipedia/20230601.en             a builder of tensorflow-datasets (extra: tfds)
    seqio:my_task?module=my.tasks          a seqio task or mixture (extra: seqio)
    pydoc?split=train                      sections of the documentation inside every CPython
    docstrings                             docstrings of the standard library, a document a module
    bible                                  the King James Version, if Debian's bible-kjv is there
    miniature:?...                         generated stories, data/miniature.py
    skills:?family=pointer                 other generated puzzles, data/skills.py
    interleave:?a=SPEC&b=SPEC              several sources in turn, their specs URL-quoted

A path is a file, a pattern with `*`, a folder, or the URL of one of these, whose files are copied
into the cache ($RPT_CACHE, else ~/.cache/rpt). `field=a,b` joins fields by an empty line, or by
`join=`.

All but the generated and interleaved ones take the options of data/transforms.py
(filters, removal of duplicates and of benchmark text, and `split=train|validation|test`),
`idle_thoughts=0.06` (an empty thought in or behind that share of words, data/generated.py), and
`on_fault=fail|skip`, `max_faults=100`, `max_bytes=16777216`: what is done about records that cannot
be used. Files are checked whole when they are opened, so that a bad line is found now and not after
an hour; what is already indexed for reading at random (ArrayRecord, TFDS, prepared folders) is
checked record by record, when read. A source may be huge: it is indexed, never listed.
docs/data-sources.md has more.
"""

import collections
import dataclasses
import urllib.parse
from collections.abc import Callable, Mapping

from data import (
    digests,
    documents,
    generated,
    miniature,
    records,
    skills,
    sources_arrayrecord,
    sources_columns,
    sources_installed,
    sources_jsonl,
    sources_prepared,
    sources_seqio,
    sources_text,
    sources_tfds,
    transforms,
)

Opener = Callable[[str, dict[str, str], records.Guard], records.Source]


@dataclasses.dataclass(frozen=True)
class Spec:
    """The parts of a spec; `options` are taken away as they are used."""

    name: str
    path: str
    options: dict[str, str]


def parse(spec: str, **extra: str) -> Spec:
    """Takes a spec apart; `extra` options are added to those of the spec.

    Raises:
        ValueError: unknown source, or options that are no key=value or given twice.
    """
    head, _, query = spec.partition("?")
    name, _, path = head.partition(":")
    known = (*SOURCES, *_MAKE_OWN_SPLITS, _INTERLEAVE)
    if name not in known:
        raise ValueError(f"unknown source {name!r} in {spec!r}; known: {', '.join(known)}")
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"options of {spec!r} must be key=value joined by '&'") from error
    options = dict(pairs)
    if len(options) < len(pairs) or options.keys() & extra.keys():
        raise ValueError(f"an option is given twice for {spec!r}")
    return Spec(name, path, options | extra)


def take_guard(options: dict[str, str]) -> records.Guard:
    """Takes the options about faults away.

    Raises:
        ValueError: one of them has an impossible value.
    """
    on_fault = options.pop("on_fault", "fail")
    numbers = {key: options.pop(key) for key in ("max_faults", "max_bytes") if key in options}
    for key, value in numbers.items():
        if not value.isdecimal():
            raise ValueError(f"{key}={value!r} must be a whole number")
    return records.Guard(on_fault, **{key: int(value) for key, value in numbers.items()})


def open_source(spec: str, **extra: str) -> records.Source:
    """Opens a source by its spec; `extra` options are added to those of the spec.

    Raises:
        FileNotFoundError: the file or folder is missing.
        ValueError: unknown source or option, empty corpus, or a file that is not what it should be
            (records.Fault).
    """
    return open_guarded(spec, **extra)[0]


def open_guarded(spec: str, **extra: str) -> tuple[records.Source, records.Guard]:
    """The same, and the guard that the spec asks for: it knows the faults met while opening, and is
    to decide on those that are met while reading (records.readable)."""
    parsed = parse(spec, **extra)
    name, options = parsed.name, parsed.options
    if name == _INTERLEAVE:
        return _open_interleaved(options)
    if name in _MAKE_OWN_SPLITS:
        if parsed.path:
            raise ValueError(f"the source {name!r} takes no path, but has {parsed.path!r}")
        return _MAKE_OWN_SPLITS[name](options), records.Guard()
    transform = transforms.take(options, spec)
    idle = generated.take_idle(options)
    guard = take_guard(options)
    source = SOURCES[name](parsed.path, options, guard)
    if options:
        raise ValueError(f"unknown option {min(options)!r} for the source {name!r} in {spec!r}")
    if guard.counts:
        source = records.Counted(source, dict(guard.counts))
    if len(source) == 0:
        raise ValueError(
            f"the source {spec!r} is empty: it holds no document with any text"
            + (f" ({records.described(source.counts)})" if source.counts else "")
        )
    return idle(transform(source, guard)), guard


def open_mix(spec: str, weight: float, name: str) -> documents.Mix:
    """A source as a part of a mixture; what its spec says about faults holds while it is read, too.

    Raises:
        FileNotFoundError, ValueError: as `open_source`.
    """
    source, guard = open_guarded(spec)
    return documents.Mix(source, weight, name, guard.on_fault, guard.max_faults)


def without_policy(spec: str) -> str:
    """The spec without what is done about faults: that may change when something goes on."""
    parsed = parse(spec)
    take_guard(parsed.options)
    query = urllib.parse.urlencode(sorted(parsed.options.items()), safe="/*,:")
    return f"{parsed.name}:{parsed.path}" + (f"?{query}" if query else "")


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """Document i is one of source i modulo their number, until the shortest one ends.

    What is left of the others is counted as `interleave/rest`.
    """

    parts: tuple[records.Source, ...]

    @property
    def counts(self) -> Mapping[str, int]:
        found = collections.Counter({"interleave/rest": sum(map(len, self.parts)) - len(self)})
        return +sum((collections.Counter(part.counts) for part in self.parts), found)

    def __len__(self) -> int:
        return len(self.parts) * min(map(len, self.parts))

    def __getitem__(self, index: int) -> records.Record:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.parts[index % len(self.parts)][index // len(self.parts)]

    def digest(self) -> int:
        return digests.of_parts([part.digest() for part in self.parts])


def _open_interleaved(specs: dict[str, str]) -> tuple[records.Source, records.Guard]:
    """The sources in turn, and one guard for the faults that are met while reading any of them."""
    if len(specs) < 2:
        raise ValueError(
            "interleave needs two specs or more: interleave:?a=SPEC&b=SPEC, URL-quoted"
        )
    parts, guards = zip(*map(open_guarded, specs.values()))
    policies = {guard.on_fault for guard in guards}
    if len(policies) > 1:
        raise ValueError("interleave: give all of its specs the same on_fault, or none")
    most = sum(guard.max_faults for guard in guards)
    met = sum(len(guard.faults) for guard in guards)
    return Interleaved(parts), records.Guard(policies.pop(), max_faults=most, before=met)


def interleave(**specs: str) -> str:
    """The spec of several sources in turn."""
    return f"{_INTERLEAVE}:?" + urllib.parse.urlencode(specs)


SOURCES: dict[str, Opener] = {
    "text": sources_text.open_text,
    "folder": sources_text.open_folder,
    "jsonl": sources_jsonl.open_jsonl,
    "parquet": sources_columns.open_parquet,
    "hf": sources_columns.open_hf,
    "array_record": sources_arrayrecord.open_array_record,
    "prepared": sources_prepared.open_prepared,
    "tfds": sources_tfds.open_tfds,
    "seqio": sources_seqio.open_seqio,
    "pydoc": sources_installed.open_pydoc,
    "docstrings": sources_installed.open_docstrings,
    "bible": sources_installed.open_bible,
}
_INTERLEAVE = "interleave"
_MAKE_OWN_SPLITS: dict[str, Callable[[dict[str, str]], records.Source]] = {
    "miniature": miniature.open_miniature,
    "skills": skills.open_skills,
}
