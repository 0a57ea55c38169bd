"""The documents speak of the code as it is: names, paths, commands, fields and links."""

import ast
import dataclasses
import importlib.util
import pathlib
import re
import shlex
import typing

import pytest
from absl import flags
from ml_collections import config_flags

from rpt import config as config_lib
from rpt import ledger, rewards, sharding
from rpt.model import config as model_config

ROOT = pathlib.Path(__file__).parent.parent
DOCS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
METRICS = DOCS["docs/metrics.md"]


# ---- metrics -------------------------------------------------------------------------------------


def keys_of_dict(node: ast.Dict) -> set[str]:
    """Literal keys; an f-string becomes its literal parts with '*' for the rest."""
    found = set()
    for key in node.keys:
        if isinstance(key, ast.Constant):
            found.add(str(key.value))
        elif isinstance(key, ast.JoinedStr):
            found.add(pattern(key))
    return found


def pattern(node: ast.JoinedStr) -> str:
    return "".join(str(p.value) if isinstance(p, ast.Constant) else "*" for p in node.values)


def function(module: str, name: str) -> ast.AST:
    tree = ast.parse((ROOT / "rpt" / f"{module}.py").read_text())
    (found,) = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name
    ]
    return found


def returned(module: str, name: str) -> set[str]:
    """Keys of the dict that a function returns, those of comprehensions inside it as patterns."""
    found: set[str] = set()
    for node in ast.walk(function(module, name)):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
            found |= keys_of_dict(node.value)
            found |= {
                pattern(part.key)
                for part in ast.walk(node.value)
                if isinstance(part, ast.DictComp) and isinstance(part.key, ast.JoinedStr)
            }
    assert found, f"{module}.{name} returns no literal dict"
    return found


def assigned(module: str, function_name: str, variable: str) -> set[str]:
    """Keys of `variable = {...}` and of `variable["key"] = ...` in a function."""
    found: set[str] = set()
    for node in ast.walk(function(module, function_name)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Name) and target.id == variable:
                found |= keys_of_dict(node.value) if isinstance(node.value, ast.Dict) else set()
            is_item = isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant)
            if is_item and isinstance(target.value, ast.Name) and target.value.id == variable:
                found.add(str(target.slice.value))
    assert found, f"{module}.{function_name} fills no {variable}"
    return found


def laps() -> set[str]:
    return {
        f"seconds_{node.args[0].value}"
        for node in ast.walk(function("train", "_step"))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "lap"
        and isinstance(node.args[0], ast.Constant)
    }


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def metric_names() -> set[str]:
    names = (
        returned("stepmetrics", "of_experience")
        | returned("stepmetrics", "of_update")
        | returned("stepmetrics", "of_data")
        | returned("stepmetrics", "seconds")
        | assigned("train", "_step", "metrics")
        | assigned("pretrain", "_step", "metrics")
    )
    assert {name for name in names if "*" in name} == {"answers_*"}, "a pattern this test must know"
    return (names - {"answers_*"}) | {f"answers_{c}" for c in rewards.CATEGORIES} | laps()


def summary_names() -> set[str]:
    gate = {
        node.target.id
        for node in ast.walk(function("pretrain", "_GateState"))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    both = assigned("train", "_end", "own") | assigned("pretrain", "_end", "own")
    both |= assigned("session", "finish", "summary")
    inner = {"training_flops", "passed", *ledger.KINDS}
    return both | gate | inner | fields(ledger.Ledger)


def documented() -> set[str]:
    """First cells of the tables."""
    return set(re.findall(r"^\| `([\w/]+)` \|", METRICS, re.MULTILINE))


def test_every_metric_is_documented():
    names = metric_names()
    assert len(names) > 35
    assert names <= documented(), sorted(names - documented())


def test_every_field_of_a_summary_is_documented():
    missing = {name for name in summary_names() if f"`{name}`" not in METRICS}
    assert not missing


def test_nothing_is_documented_that_is_not_written():
    # Counted by the data pipeline, one name per source of the mixture among them.
    counts = {"windows", "inexact_documents", "weight_changes"}
    counts |= {"windows/NAME", "epochs/NAME", "weight/NAME", "left_out/NAME/REASON"}
    counts |= {"noted/NAME/FACT"}
    assert documented() <= metric_names() | summary_names() | counts


# ---- paths, commands, fields, links --------------------------------------------------------------


def tree() -> list[tuple[int, list[str]]]:
    """(indent, paths) of every line of the README's tree; a path ends where two spaces begin."""
    (block,) = re.findall(r"## The tree\n+```\n(.*?)```", DOCS["README.md"], re.DOTALL)
    lines = []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        lines.append((indent, re.split(r"\s{2,}", line.strip())[0].split()))
    return lines


def tree_globs() -> list[str]:
    folder, found = "", []
    for indent, paths in tree():
        if indent == 0:
            folder = paths[0]
            found += paths
        else:
            found += [folder + path for path in paths]
    return found


def test_the_tree_names_what_exists():
    globs = tree_globs()
    assert len(globs) > 40
    missing = [glob for glob in globs if not list(ROOT.glob(glob.rstrip("/")))]
    assert not missing


@pytest.mark.parametrize("package", ["rpt", "kernels", "data", "configs"])
def test_the_tree_names_every_module(package):
    named = {path for glob in tree_globs() for path in ROOT.glob(glob.rstrip("/"))}
    modules = {p for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py"}
    assert not [str(p.relative_to(ROOT)) for p in modules - named]


@pytest.mark.parametrize("document", DOCS)
def test_commands_are_modules(document):
    for module in set(re.findall(r"-m (rpt[.\w]*)", DOCS[document])):
        assert importlib.util.find_spec(module), f"{document}: python -m {module}"


@pytest.mark.parametrize("document", DOCS)
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4})make ([\w-]+)", DOCS[document], re.MULTILINE))
    assert named <= targets, f"{document}: {named - targets}"


@pytest.mark.parametrize("document", DOCS)
def test_named_files_exist(document):
    mentioned = re.findall(
        r"[`=]((?:rpt|data|kernels|configs|tests|docs)/[\w./]*\w\.(?:py|md|txt))", DOCS[document]
    )
    missing = {path for path in mentioned if not (ROOT / path).exists()}
    assert not missing - {"configs/NAME.py"}


def field_of(kind: typing.Any, path: list[str]) -> bool:
    """Whether a dotted path leads to a field, through sections and optional sections."""
    if not path:
        return True
    options = [kind, *typing.get_args(kind)]
    sections = [option for option in options if dataclasses.is_dataclass(option)]
    return any(
        path[0] in fields(section) and field_of(typing.get_type_hints(section)[path[0]], path[1:])
        for section in sections
    )


@pytest.mark.parametrize("document", DOCS)
def test_config_fields_exist(document):
    # What a command prints about a mistake may name a field that there is not.
    text = re.sub(r"^ +error: .*$", "", DOCS[document], flags=re.MULTILINE)
    for path in set(re.findall(r"\bconfig\.([a-z][\w.]*\w)", text)):
        if path.split(".")[0] in ("py", "json", "section"):  # config.json and the like
            continue
        assert field_of(config_lib.Config, path.split(".")), f"{document}: config.{path}"


def test_what_may_change_at_a_resume_is_documented():
    for name in config_lib.RESUMABLE:
        shown = f"`{name}*`" if name.endswith(".") else f"`{name}`"
        for document in ("docs/architecture.md", "docs/troubleshooting.md"):
            assert shown in DOCS[document], f"{document} lacks {shown}"


# ---- examples on TPUs ----------------------------------------------------------------------------


def launched(text: str) -> list[list[str]]:
    """The words of the commands that start a training run on an accelerator type."""
    joined = re.sub(r"\\\n[# ]*", " ", text)
    lines = [line.lstrip("# ") for line in joined.splitlines()]
    commands = [line for line in lines if re.search(r"-type=\w+-\d+ ", line)]
    # xpk has the program's command in quotes.
    found = [" ".join(shlex.split(line, comments=True)).split() for line in commands]
    return [words for words in found if any(word.startswith("--config=") for word in words)]


EXAMPLES = [
    *launched(DOCS["docs/tpu.md"]),
    *launched((ROOT / "tpu_scripts/launch.sh").read_text().split("\nset -euo")[0]),
]


def slice_of(accelerator: str) -> tuple[int, int]:
    """Chips and hosts. Of v4 and v5p the type counts cores; up to 8 chips of v5e and v6e are one
    host, and all other hosts have 4."""
    generation, number = accelerator.split("-")
    if generation in ("v4", "v5p"):
        return int(number) // 2, max(int(number) // 8, 1)
    assert generation in ("v5litepod", "v6e")
    return int(number), 1 if int(number) <= 8 else int(number) // 4


@pytest.mark.parametrize("words", EXAMPLES, ids=lambda words: words[0])
def test_an_example_fits_its_slice(words):
    (accelerator,) = [w.partition("=")[2] for w in words if re.match("--(tpu-)?type=", w)]
    chips, hosts = slice_of(accelerator)
    given, values = ["rpt", *(w for w in words if w.startswith("--config"))], flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=given)
    values(given)
    found = config_lib.from_config_dict(holder.value)
    replica, fsdp, tensor = sharding.mesh_shape(found.mesh, chips)
    assert found.train.batch_size % (replica * fsdp) == 0
    assert chips // hosts % tensor == 0
    assert found.data.shards % hosts == 0
    assert found.train.batch_size % found.data.shards == 0
    # The disk of a TPU is empty; what is installed there reads a bucket.
    assert found.data.weights.startswith("gs://") or not found.data.weights
    assert re.search(r'"tpu": \[.*"gcsfs', (ROOT / "setup.py").read_text())


def test_the_examples_are_found():
    assert [words[0] for words in EXAMPLES].count("tpu_scripts/launch.sh") >= 3
    assert any(words[:3] == ["xpk", "workload", "create"] for words in EXAMPLES)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCS)
def test_relative_links_resolve(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCS[document]):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{document}: {link}"


# ---- these tests can fail ------------------------------------------------------------------------


def test_an_undocumented_name_would_be_found():
    assert {"gate_accuracy", "seconds_rollout", "answers_right"} <= metric_names()
    assert "gate_acuracy" not in documented()


def test_a_wrong_field_would_be_found():
    assert field_of(config_lib.Config, ["model", "remat"])
    assert field_of(config_lib.Config, ["train", "optimizer", "grad_norm_clip"])
    assert not field_of(config_lib.Config, ["train", "step"])
    assert field_of(model_config.ModelConfig, ["width"])


def test_results_are_figures_with_their_commands():
    block = (ROOT / "README.md").read_text().split("<!-- results -->")[1]
    block = block.split("<!-- /results -->")[0]
    assert len(re.findall(r"\.\d{3}", block)) > 30
    assert "make demo" in block
    results = (ROOT / "docs" / "results.md").read_text()
    assert "make demo CONFIG=configs/mini.py:seed=2" in results
    # What the README says stands in the results, digit for digit.
    means = [number for number in re.findall(r"[+]?\.\d{3}", block) if number.startswith("+")]
    assert means
    assert all(number.replace("+.", "+0.") in results for number in means)
