"""Imports point one way, and packages hold no code of their own."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
OURS = {"rpt", "kernels", "data", "configs", "tests", "benchmarks", "tpu_scripts"}
MAY_IMPORT = {
    "rpt": {"rpt", "kernels", "data"},
    "kernels": {"kernels"},
    "data": {"data"},
    # Defaults of fields come from the dataclasses that a config becomes; data writes specs.
    "configs": {"configs", "rpt", "data"},
}


def sources(package: str) -> list[pathlib.Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no sources under {package}"
    return files


def imported(source: str) -> set[str]:
    """Top-level names of every import in the text, also of those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    for path in sources(package):
        wrong = (imported(path.read_text()) & OURS) - MAY_IMPORT[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_configs_hold_no_program():
    """A config names things; it computes nothing and needs no accelerator library."""
    for path in sources("configs"):
        outside = imported(path.read_text()) - set(sys.stdlib_module_names)
        wrong = outside - {"ml_collections", "configs", "rpt", "data"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_data_needs_no_jax():
    """data/ works where jax and its family are missing."""
    for path in sources("data"):
        wrong = imported(path.read_text()) & {"jax", "jaxlib", "flax", "optax", "orbax"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_init_files_hold_only_a_docstring(package):
    for path in sources(package):
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"
            assert len(tree.body) == 1, f"{path.relative_to(ROOT)} holds code"


def test_tests_are_no_packages():
    """A tests/kernels/__init__.py would shadow the package `kernels`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_imports_inside_functions_are_seen():
    source = "import os.path\ndef f():\n    from rpt.model import rope\n    import kernels.sample\n"
    assert imported(source) == {"os", "rpt", "kernels"}
