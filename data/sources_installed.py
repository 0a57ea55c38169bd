"""Text that is already on the machine: pydoc, docstrings and bible sources. None takes a path."""

import ast
import importlib
import pathlib
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping

from data import records, splits

_VERSE = re.compile(r"^(\w+?)(\d+):(\d+) (.*)$")
_NOT_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3")


def _check_no_path(path: str, what: str) -> None:
    if path:
        raise ValueError(f"the source {what!r} takes no path, but has {path!r}")


def open_pydoc(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """Sections of `pydoc_data.topics`, without repetition."""
    del options, guard
    _check_no_path(path, "pydoc")
    topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    return records.from_texts(splits.distinct_sections(list(topics.values())))


def open_docstrings(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """One document per module of the standard library: its docstrings in order.

    The modules are parsed and not imported.
    """
    del options, guard
    _check_no_path(path, "docstrings")
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if any(part in _NOT_LIBRARY for part in parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:  # Some versions ship templates that are no modules.
            continue
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found = list(_docstrings(tree, name))
        if found:
            texts.append("\n\n".join(f"{where}\n\n{text}" for where, text in found) + "\n")
    return records.from_texts(texts)


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and (text := ast.get_docstring(node)):
        yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, documented):
            yield from _docstrings(child, f"{name}.{getattr(child, 'name', '')}")


def open_bible(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """One document a chapter, as Debian's program `bible` prints it."""
    del options, guard
    _check_no_path(path, "bible")
    program = shutil.which("bible")
    if program is None:
        raise FileNotFoundError("there is no program bible: apt install bible-kjv bible-kjv-text")
    done = subprocess.run(
        [program, "-f", "gen1:1-rev22:21"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    texts = chapters(done.stdout)
    if done.returncode or not texts:
        raise ValueError(f"{program} printed no verses: {' '.join(done.stderr.split())[:200]}")
    return records.from_texts(texts)


def chapters(verses: str) -> list[str]:
    """Chapters of lines like 'Ge1:1 In the beginning ...': a heading, then a verse a line."""
    out: dict[tuple[str, str], list[str]] = {}
    for line in verses.splitlines():
        if match := _VERSE.match(line):
            book, chapter, verse, text = match.groups()
            out.setdefault((book, chapter), []).append(f"{verse} {text}")
    return [
        f"{book} {chapter}\n\n" + "\n".join(lines) + "\n" for (book, chapter), lines in out.items()
    ]
