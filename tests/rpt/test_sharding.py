"""Meshes of one device; the properties of many are in sharded.py."""

import pytest

from rpt import sharding


def test_one_device_takes_any_batch():
    mesh = sharding.make_mesh(sharding.MeshConfig(), batch_size=3)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match=r"does not use the 1 device\(s\) exactly"):
        sharding.make_mesh(sharding.MeshConfig(fsdp=2), batch_size=4)
