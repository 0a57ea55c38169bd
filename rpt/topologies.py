"""The real TPU compiler without a TPU: meshes of described devices, for which programs compile.

    devices = topologies.devices("v5e:2x4")
    mesh = topologies.mesh("v5e:2x4", sharding.MeshConfig(fsdp=4, tensor=2))
    with jax.set_mesh(mesh): compiled = program.lower(*shapes_with_shardings).compile()

libtpu compiles on any x86-64 Linux machine. It is found as `pip install -e '.[tpu]'` installs it,
or in `libtpu/` beside a virtual environment's `bin/`, where `make test` puts it: installed as usual
it would have jax look for a TPU, and complain, at every start of a machine that has none.
"""

import importlib.util
import os
import pathlib
import sys
from typing import Any

from jax.experimental import topologies as _topologies
from jax.sharding import Mesh

from rpt import sharding

# The smallest slice of each generation that the compiler describes.
GENERATIONS = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}


def library() -> str | None:
    """The path of libtpu.so, or None."""
    given = os.environ.get("TPU_LIBRARY_PATH")
    if given:
        return given
    beside = pathlib.Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
    if beside.is_file():
        return str(beside)
    spec = importlib.util.find_spec("libtpu")
    return None if spec is None else str(pathlib.Path(str(spec.origin)).parent / "libtpu.so")


def devices(topology: str) -> list[Any]:
    """The described devices of a slice such as 'v5p:4x4x4'.

    Raises:
      ValueError: libtpu is not installed, or there is no such slice.
    """
    path = library()
    if path is None:
        raise ValueError(
            "compiling for TPU needs libtpu, which is not installed: pip install -e '.[tpu]'"
        )
    os.environ["TPU_LIBRARY_PATH"] = path
    # No TPU VM stands behind the description, and another process may hold the library's lock.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # As JAX sees a v4: one device a chip, whose two cores are used as one.
    megacore = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        description = _topologies.get_topology_desc(
            topology_name=topology, platform="tpu", **megacore
        )
    except Exception as error:
        raise ValueError(
            f"libtpu knows no slice {topology!r}; they look like v5e:2x4 or v5p:4x4x4"
        ) from error
    return list(description.devices)


def mesh(topology: str, config: sharding.MeshConfig) -> Mesh:
    """The mesh that `sharding.make_mesh` would make on the slice."""
    found = devices(topology)
    return sharding.arranged(found, sharding.mesh_shape(config, len(found)))
