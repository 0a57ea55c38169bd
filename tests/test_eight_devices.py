"""Runs the properties of every sharded*.py on 8 virtual devices, in a process of its own.

The number of devices is fixed when jax starts, and the rest of the suite is about one.
"""

import ast
import os
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import pytest

TESTS = pathlib.Path(__file__).parent
FILES = sorted(TESTS.glob("*/sharded*.py"))
PROPERTIES = [
    f"{path.relative_to(TESTS).with_suffix('')}::{node.name}"
    for path in FILES
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[str]]:
    """For each property, the failures of its cases: '' where a case passed."""
    report = tmp_path_factory.mktemp("sharded") / "report.xml"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *map(str, FILES), f"--junitxml={report}"],
        cwd=TESTS.parent,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert report.is_file(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.attrib["classname"].removeprefix(f"{TESTS.name}.").replace(".", "/")
        name = f"{module}::{case.attrib['name'].split('[')[0]}"
        found.setdefault(name, []).append("".join(child.text or child.tag for child in case))
    return found


@pytest.mark.parametrize("name", PROPERTIES)
def test_on_eight_devices(outcomes, name):
    failures = [failure for failure in outcomes[name] if failure]
    assert not failures, "\n\n".join(failures)
