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
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def _check_no_path(path: str, what: str) -> None:
    if path:
        raise ValueError(f"the source {what!r} takes no path, but has {path!r}")


def open_pydoc(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """Sections of `pydoc_data.topics`, without repetition."""
    del options
    _check_no_path(path, "pydoc")
    topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    sections = splits.distinct_sections(topics.values())
    for reason, number in sections.counts.items():
        guard.count(reason, number)
    return records.from_texts(sections.texts)


def open_docstrings(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """One document per module of the standard library: its docstrings in order.

    The modules are parsed and not imported. The path is a package, as in docstrings:json, or empty
    for all. A module without a docstring counts as 'empty'.
    """
    del options
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    tops = (
        [root / path] if path else [top for top in root.iterdir() if top.name not in _NOT_LIBRARY]
    )
    if not re.fullmatch(r"\w*", path) or (path and not tops[0].is_dir()):
        raise ValueError(f"docstrings:{path} is no package of the standard library")
    found = [file for top in tops for file in _modules(top)]
    texts = []
    for file in sorted(found):
        if set(file.relative_to(root).parts) & _NOT_LIBRARY:
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:  # Some versions ship templates that are no modules.
            guard.count("not_python")
            continue
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        sections = [f"{where}\n\n{text}" for where, text in _docstrings(tree, name)]
        if sections:
            texts.append("\n\n".join(sections) + "\n")
        else:
            guard.count("empty")
    return records.from_texts(texts)


def _modules(top: pathlib.Path) -> list[pathlib.Path]:
    return [*top.rglob("*.py")] if top.is_dir() else [top] if top.suffix == ".py" else []


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and (text := ast.get_docstring(node)):
        yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, documented):
            yield from _docstrings(child, f"{name}.{getattr(child, 'name', '')}")


def open_bible(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """One document a chapter, as Debian's program `bible` prints it."""
    del options
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
    texts, others = chapters(done.stdout)
    if done.returncode or not texts:
        raise ValueError(f"{program} printed no verses: {' '.join(done.stderr.split())[:200]}")
    guard.count("noted/lines_without_verse", others)
    return records.from_texts(texts)


def chapters(verses: str) -> tuple[list[str], int]:
    """Chapters of lines like 'Ge1:1 In the beginning ...': a heading, then a verse a line.

    Returns:
        The chapters, and how many other lines there are that are not empty.
    """
    out: dict[tuple[str, str], list[str]] = {}
    others = 0
    for line in verses.splitlines():
        if match := _VERSE.match(line):
            book, chapter, verse, text = match.groups()
            out.setdefault((book, chapter), []).append(f"{verse} {text}")
        else:
            others += bool(line.strip())
    texts = [
        f"{book} {chapter}\n\n" + "\n".join(lines) + "\n" for (book, chapter), lines in out.items()
    ]
    return texts, others
