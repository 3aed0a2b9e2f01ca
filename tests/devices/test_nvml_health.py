"""What the driver holds against a device's health: events as they happen, and counters for what nobody heard of."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from boundd.devices.nvml import NvmlProbe
from tests.devices.conftest import recovers

pytestmark = pytest.mark.anyio

NOT_SUPPORTED, GPU_IS_LOST, UNKNOWN = 3, 15, 999


@pytest.fixture
async def attentive(fake: Any) -> AsyncIterator[NvmlProbe]:
    """A probe that looks at the counters of memory errors in every pass."""
    probe = NvmlProbe(fake.environ, deadline_s=2.0, first_backoff_s=0.0, health_interval_s=0.0)
    yield probe
    await probe.aclose()


@pytest.mark.parametrize("xid", [48, 62, 64, 74, 79, 94, 95, 119, 120, 140, 154])
async def test_an_xid_of_the_device_is_held_against_it(fake: Any, attentive: NvmlProbe, xid: int) -> None:
    """It stays held against it through later passes and in the next child; the other device is well."""
    await attentive.read(processes=False)
    fake.raise_xid(0, xid)
    first, second = await attentive.read(processes=False)
    assert first.driver_fault.startswith(f"XID {xid} (")
    assert not first.unavailable
    assert not second.driver_fault
    assert (await attentive.read(processes=False))[0].driver_fault == first.driver_fault
    assert attentive._child is not None
    os.kill(attentive._child.pid, signal.SIGKILL)
    assert await recovers(attentive)
    assert (await attentive.read(processes=False))[0].driver_fault == first.driver_fault
    fake.raise_xid(0, xid)
    assert (await attentive.read(processes=False))[0].driver_fault == f"{first.driver_fault}, 2 times"


async def test_xids_of_the_application_are_ignored(fake: Any, attentive: NvmlProbe) -> None:
    """A worker that crashed is no reason to doubt the device, and neither is what was before anybody listened."""
    fake.raise_xid(0, 79)
    await attentive.read(processes=False)
    for xid in (13, 31, 43, 45, 68, 109):
        fake.raise_xid(0, xid)
    assert not (await attentive.read(processes=False))[0].driver_fault


async def test_a_device_that_falls_off_the_bus_tells_why(fake: Any, attentive: NvmlProbe) -> None:
    """XID 79 and then no answer at all: unavailable and unwell; once it is back it is heard of again."""
    await attentive.read(processes=False)
    fake.raise_xid(0, 79)
    fake.devices[0].lost = GPU_IS_LOST
    first, second = await attentive.read(processes=False)
    assert (first.uuid, first.driver_fault) == ("GPU-a", "XID 79 (the GPU has fallen off the bus)")
    assert "NVML error 15" in first.unavailable
    assert not second.unavailable
    fake.devices[0].lost = 0
    first, _ = await attentive.read(processes=False)
    assert not first.unavailable
    fake.raise_xid(0, 48)
    assert "XID 48" in (await attentive.read(processes=False))[0].driver_fault


async def test_uncorrected_memory_errors_are_held_against_it(fake: Any, attentive: NvmlProbe) -> None:
    """By the counters, for what no event told of; a device without ECC has none."""
    fake.devices[0].ecc_uncorrected, fake.devices[0].remap_pending = 3, 1
    fake.devices[1].ecc_error = NOT_SUPPORTED
    first, second = await attentive.read(processes=False)
    assert "3 uncorrected ECC error(s)" in first.driver_fault
    assert "next reset" in first.driver_fault
    assert not first.unavailable
    assert (second.driver_fault, second.unavailable) == ("", "")
    fake.devices[0].ecc_uncorrected = fake.devices[0].remap_pending = 0
    assert not (await attentive.read(processes=False))[0].driver_fault


async def test_a_driver_without_events_is_read_all_the_same(fake: Any, attentive: NvmlProbe) -> None:
    """Some have none; nothing is held against anybody for that."""
    fake.devices[0].event_error = NOT_SUPPORTED
    fake.devices[1].event_error = UNKNOWN
    for reading in await attentive.read(processes=False):
        assert (reading.driver_fault, reading.unavailable) == ("", "")


async def test_mig_instances_share_the_errors_of_the_whole(fake: Any, attentive: NvmlProbe) -> None:
    """The event names the parent; it is the instances that take cells."""
    fake.devices[0].mig_mode = 1
    fake.add("MIG-1", "Fake A100 MIG 3g.40gb", 40, mig_parent=0)
    await attentive.read(processes=False)
    fake.raise_xid(0, 95)
    parent, instance, other = await attentive.read(processes=False)
    assert "XID 95" in parent.driver_fault
    assert "XID 95" in instance.driver_fault
    assert not other.driver_fault
