"""Runs the properties of sharded.py on 8 virtual devices, in a process of its own.

The number of devices is fixed when jax starts, and the rest of the suite is about one.
"""

import ast
import os
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from rpt import sharding

SHARDED = pathlib.Path(__file__).parent / "sharded.py"
PROPERTIES = [
    node.name
    for node in ast.parse(SHARDED.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[str]]:
    """For each property, the failures of its cases: '' where a case passed."""
    report = tmp_path_factory.mktemp("sharded") / "report.xml"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(SHARDED), f"--junitxml={report}"],
        cwd=SHARDED.parents[2],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert report.is_file(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failure = "".join(child.text or child.tag for child in case)
        found.setdefault(case.attrib["name"].split("[")[0], []).append(failure)
    return found


@pytest.mark.parametrize("name", PROPERTIES)
def test_on_eight_devices(outcomes, name):
    failures = [failure for failure in outcomes[name] if failure]
    assert not failures, "\n\n".join(failures)


def test_one_device_takes_any_batch():
    mesh = sharding.make_mesh(sharding.MeshConfig(), batch_size=3)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match=r"does not use the 1 device\(s\) exactly"):
        sharding.make_mesh(sharding.MeshConfig(fsdp=2), batch_size=4)
