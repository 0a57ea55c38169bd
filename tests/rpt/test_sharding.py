"""Meshes of one device; the properties of many are in sharded.py."""

import dataclasses

import jax
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


def test_slices_of_several_hosts_lie_along_replica_too():
    """Two hosts of two chips in every slice; jax lists them in any order."""
    devices = [Device(i, i // 4, process_index=i // 2) for i in (5, 2, 7, 0, 1, 4, 3, 6)]
    mesh = sharding.host_by_host(devices, (2, 2, 2))
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    with pytest.raises(ValueError, match="replica=3 does not divide over 2 slices"):
        sharding.host_by_host(devices, (3, 4, 2))
    # Rows go by process, whichever slice is first; and hosts that take turns cannot be laid out.
    turned = [dataclasses.replace(device, slice_index=1 - device.slice_index) for device in devices]
    mesh = sharding.host_by_host(turned, (2, 2, 2))
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    dealt = [Device(i, i % 2, process_index=i) for i in range(4)]
    with pytest.raises(ValueError, match="of one slice are not numbered one after another"):
        sharding.host_by_host(dealt, (2, 2, 1))
    # Other machines call other things a slice.
    others = [dataclasses.replace(device, platform="cuda") for device in dealt]
    assert sharding.host_by_host(others, (1, 4, 1)).devices.size == 4


def test_the_mesh_of_several_processes_asks_for_slices(monkeypatch):
    devices = [Device(i, i // 4, process_index=i // 2) for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="replica=1 does not divide over 2 slices"):
        sharding.make_mesh(sharding.MeshConfig(tensor=2), batch_size=8)
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, tensor=2), batch_size=8)
    assert [device.id for device in mesh.devices.flat] == list(range(8))


def test_one_device_takes_any_batch():
    mesh = sharding.make_mesh(sharding.MeshConfig(), batch_size=3)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match=r"does not use the 1 device\(s\) exactly"):
        sharding.make_mesh(sharding.MeshConfig(fsdp=2), batch_size=4)
