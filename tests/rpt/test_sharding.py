"""Meshes of one device; the properties of many are in sharded.py."""

import dataclasses

import pytest

from rpt import sharding


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a TPU device as meshes look at: 2 x 2 chips of one core each in every slice."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0

    @property
    def coords(self) -> list[int]:
        return [self.id % 2, self.id // 2 % 2, 0]


def test_slices_lie_along_replica():
    """So that only sums over replicas cross the network between slices."""
    devices = [Device(i, i // 4) for i in range(8)]
    mesh = sharding.arranged(devices, (2, 2, 2))
    for replica, part in enumerate(mesh.devices):
        assert {device.slice_index for device in part.flat} == {replica}
    with pytest.raises(ValueError, match="replica=1 does not divide over 2 slices"):
        sharding.arranged(devices, (1, 4, 2))


def test_one_device_takes_any_batch():
    mesh = sharding.make_mesh(sharding.MeshConfig(), batch_size=3)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match=r"does not use the 1 device\(s\) exactly"):
        sharding.make_mesh(sharding.MeshConfig(fsdp=2), batch_size=4)
