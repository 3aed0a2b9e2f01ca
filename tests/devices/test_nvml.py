"""The NVML probe against a real shared library that plays the driver, through the unmodified binding."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from boundd.devices.nvml import BrokenDriverError, NoDriverError, NvmlProbe
from boundd.ports import DeviceProbe
from tests.devices.conftest import recovers

pytestmark = pytest.mark.anyio

GIB = 1024**3
NOT_SUPPORTED, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED = 3, 9, 13, 15, 16
VERSION_MISMATCH, ARGUMENT_VERSION_MISMATCH, UNKNOWN = 18, 25, 999


@pytest.fixture
async def probe(fake: Any) -> AsyncIterator[NvmlProbe]:
    """A probe of the fake, with a short deadline and no pause between children."""
    probe = NvmlProbe(fake.environ, deadline_s=0.5, first_backoff_s=0.0)
    yield probe
    await probe.aclose()


async def test_readings_are_right(fake: Any, probe: NvmlProbe) -> None:
    """Identity, order, memory and driver as the library has them; no process list unless asked."""
    checked: DeviceProbe = probe
    fake.allocate(0, 4711, 10 * GIB)
    first, second = await checked.read(processes=False)
    assert (first.uuid, first.index, first.name, first.driver) == ("GPU-a", 0, "Fake A100", "550.54.14")
    assert (second.uuid, second.index, second.name, second.backend) == ("GPU-b", 1, "Fake L4", "nvml")
    assert first.total_bytes == 80 * GIB
    assert first.free_bytes == 70 * GIB - 80 * GIB // 100
    assert first.process_bytes is None
    assert first.max_cells is None
    assert not first.unavailable


async def test_processes_only_when_asked(fake: Any, probe: NvmlProbe) -> None:
    """Each process's bytes; None for all that the driver doesn't tell, which includes 0."""
    fake.allocate(0, 4711, 10 * GIB)
    fake.allocate(0, 4712, 1 * GIB)
    fake.allocate(0, 4713, 0)
    fake.allocate(0, 4714, GIB, hidden=True)
    first, second = await probe.read(processes=True)
    assert first.process_bytes == {4711: 10 * GIB, 4712: GIB, 4713: None}
    assert second.process_bytes == {}
    fake.devices[0].bytes_unknown = 1
    fake.devices[1].process_error = NOT_SUPPORTED
    fake.release(0, 4713)
    first, second = await probe.read(processes=True)
    assert first.process_bytes == {4711: None, 4712: None}
    assert second.process_bytes is None
    assert not second.unavailable


@pytest.mark.parametrize("code", [NOT_SUPPORTED, 2, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH])
async def test_memory_falls_back_to_the_first_version(fake: Any, probe: NvmlProbe, code: int) -> None:
    """A driver that refuses the second version of the call still tells the same free memory."""
    before = (await probe.read(processes=False))[0]
    fake.devices[0].memory_v2_error = code
    after = (await probe.read(processes=False))[0]
    assert (after.free_bytes, after.total_bytes) == (before.free_bytes, before.total_bytes)


@pytest.mark.parametrize("field", ["handle_error", "identity_error", "memory_error"])
@pytest.mark.parametrize("code", [GPU_IS_LOST, RESET_REQUIRED, UNKNOWN])
async def test_a_lost_device_is_the_only_one_lost(fake: Any, probe: NvmlProbe, field: str, code: int) -> None:
    """Whichever call fails, the device keeps its identity, has no numbers, and the other one is untouched."""
    await probe.read(processes=False)
    setattr(fake.devices[0], field, code)
    first, second = await probe.read(processes=True)
    assert (first.uuid, first.name, first.index) == ("GPU-a", "Fake A100", 0)
    assert first.total_bytes is None
    assert first.free_bytes is None
    assert f"NVML error {code}" in first.unavailable
    assert second.free_bytes
    assert not second.unavailable
    setattr(fake.devices[0], field, 0)
    assert not (await probe.read(processes=False))[0].unavailable


async def test_a_device_lost_from_the_start_is_told(fake: Any, probe: NvmlProbe) -> None:
    """Without a UUID it has a placeholder, which its UUID replaces once it answers."""
    fake.devices[0].handle_error = GPU_IS_LOST
    first, second = await probe.read(processes=False)
    assert first.uuid == "UNKNOWN-0"
    assert "lost" in first.unavailable
    assert not second.unavailable
    fake.devices[0].handle_error = 0
    assert [reading.uuid for reading in await probe.read(processes=False)] == ["GPU-a", "GPU-b"]


async def test_unified_memory_is_the_hosts(fake: Any, probe: NvmlProbe) -> None:
    """Where the driver answers N/A, the numbers are the kernel's, the reading says so, and nothing is ever 0 bytes."""
    fake.devices[1].memory_error = NOT_SUPPORTED
    first, second = await probe.read(processes=False)
    host = psutil.virtual_memory()
    assert second.total_bytes == host.total
    assert second.free_bytes is not None
    assert 0 < second.free_bytes <= host.total
    assert "N/A" in second.remark
    assert "host" in second.remark
    assert not second.unavailable
    assert not first.remark


async def test_compute_modes(fake: Any, probe: NvmlProbe) -> None:
    """EXCLUSIVE_PROCESS takes one cell, PROHIBITED none; back in DEFAULT, both take any."""
    fake.devices[0].compute_mode, fake.devices[1].compute_mode = 3, 2
    first, second = await probe.read(processes=False)
    assert first.max_cells == 1
    assert not first.unavailable
    assert "PROHIBITED" in second.unavailable
    assert second.max_cells == 0
    assert second.free_bytes is None
    fake.devices[0].compute_mode = fake.devices[1].compute_mode = 0
    for reading in await probe.read(processes=False):
        assert (reading.max_cells, reading.unavailable) == (None, "")


async def test_mig_instances_are_devices_and_their_parent_is_not(fake: Any, probe: NvmlProbe) -> None:
    """The parent is unavailable with the reason; each instance has its own identity and memory."""
    fake.devices[0].mig_mode = 1
    fake.add("MIG-1", "Fake A100 MIG 3g.40gb", 40, mig_parent=0)
    fake.add("MIG-2", "Fake A100 MIG 3g.40gb", 40, mig_parent=0)
    readings = await probe.read(processes=False)
    assert [(reading.uuid, reading.index) for reading in readings] == [
        ("GPU-a", 0), ("MIG-1", 0), ("MIG-2", 0), ("GPU-b", 1)
    ]  # fmt: skip
    assert "MIG mode" in readings[0].unavailable
    assert readings[0].max_cells == 0
    assert readings[1].total_bytes == 40 * GIB
    assert not any(reading.unavailable for reading in readings[1:])


async def test_a_device_that_is_timed_on_is_not_asked_for_its_processes(fake: Any) -> None:
    """Its memory is read, its list is not: that would slow down what is being timed."""
    timed = {"GPU-a"}
    probe = NvmlProbe(fake.environ, deadline_s=2.0, is_timed=timed.__contains__)
    await probe.read(processes=False)
    fake.allocate(0, 4711, GIB)
    first, second = await probe.read(processes=True)
    assert (first.process_bytes, second.process_bytes) == (None, {})
    assert first.free_bytes is not None
    assert fake.devices[0].process_queries == 0
    timed.clear()
    assert (await probe.read(processes=True))[0].process_bytes == {4711: GIB}
    await probe.aclose()


async def test_a_device_that_vanishes_stays_known(fake: Any, probe: NvmlProbe) -> None:
    """The last device falls off the list: it is unavailable, not forgotten; then comes back."""
    await probe.read(processes=False)
    fake.header.device_count = 1
    first, second = await probe.read(processes=False)
    assert not first.unavailable
    assert (second.uuid, second.unavailable) == ("GPU-b", "the driver doesn't list it any more")
    fake.header.device_count = 2
    assert not (await probe.read(processes=False))[1].unavailable


async def test_devices_that_change_places_keep_their_identity(fake: Any, probe: NvmlProbe) -> None:
    """The order changes: what belongs to a UUID goes with it."""
    await probe.read(processes=False)
    for field in ("uuid", "name", "total", "reserved"):
        first, second = getattr(fake.devices[0], field), getattr(fake.devices[1], field)
        setattr(fake.devices[0], field, second)
        setattr(fake.devices[1], field, first)
    readings = {reading.uuid: reading for reading in await probe.read(processes=False)}
    assert (readings["GPU-a"].index, readings["GPU-a"].total_bytes) == (1, 80 * GIB)
    assert (readings["GPU-b"].index, readings["GPU-b"].total_bytes) == (0, 24 * GIB)


class LoopLag:
    """The longest that the event loop was held up while something ran, in seconds.

    On a busy machine any loop is held up now and then, by its neighbours. What blocks the loop itself does so every
    time, so the least of several tries is ours.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def during(self, work: Callable[[], Awaitable[object]]) -> None:
        """Run it, with a tick every 10 ms beside it."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._tick)
            await anyio.sleep(0.03)
            await work()
            await anyio.sleep(0.03)  # for the tick that comes late
            group.cancel_scope.cancel()

    async def _tick(self) -> None:
        last_s = time.monotonic()
        while True:
            await anyio.sleep(0.01)
            now_s = time.monotonic()
            self.longest_s, last_s = max(self.longest_s, now_s - last_s - 0.01), now_s


async def least_lag_s(work: Callable[[], Awaitable[object]], enough_s: float, tries: int = 8) -> float:
    """The least of the lags of several tries; no more of them once one is below `enough_s`."""
    least_s = math.inf
    for _ in range(tries):
        lag = LoopLag()
        await lag.during(work)
        least_s = min(least_s, lag.longest_s)
        if least_s < enough_s:
            break
    return least_s


async def test_a_hung_driver_never_stalls_the_loop(fake: Any) -> None:
    """Starting a child, asking it, waiting for it in vain, killing it: the loop is held up for less than 100 ms.

    Every try goes through all of that. With the call to NVML in the daemon's own process, as the control below makes
    it, each would take the whole deadline.
    """
    probe = NvmlProbe(fake.environ, deadline_s=0.4, first_backoff_s=0.0)
    await probe.read(processes=False)
    killed: set[int] = set()

    async def hang() -> None:
        fake.devices[0].hang = 0
        assert await recovers(probe)
        assert probe._child is not None
        killed.add(probe._child.pid)
        fake.devices[0].hang = 1
        readings = await probe.read(processes=True)
        assert {reading.unavailable for reading in readings} == {"the driver did not answer within 0.4 s"}

    lag_s = await least_lag_s(hang, 0.1)
    print(f"the loop's lag beside a hung driver: {lag_s * 1000:.0f} ms")
    assert lag_s < 0.1
    assert killed
    await probe.aclose()


async def test_a_blocked_loop_is_seen() -> None:
    """The control: what blocks for 400 ms shows in every try."""

    async def block() -> None:
        time.sleep(0.4)  # noqa: ASYNC251 - this is what must never be

    assert await least_lag_s(block, 0.1, tries=3) > 0.3


async def test_a_hung_driver_costs_the_probe(fake: Any, probe: NvmlProbe) -> None:
    """Within the deadline all are unavailable, the child is gone, and a later read recovers."""
    await probe.read(processes=False)
    assert probe._child is not None
    pid = probe._child.pid
    fake.devices[0].hang = 1
    readings = await probe.read(processes=False)
    assert [reading.uuid for reading in readings] == ["GPU-a", "GPU-b"]
    assert {reading.unavailable for reading in readings} == {"the driver did not answer within 0.5 s"}
    fake.devices[0].hang = 0
    assert await recovers(probe)
    await probe.read(processes=False)  # each read reaps what has ended since the one before
    assert not Path(f"/proc/{pid}").exists()  # noqa: ASYNC240


async def test_a_slow_driver_within_the_deadline_is_read(fake: Any, probe: NvmlProbe) -> None:
    """Slow is not hung."""
    fake.devices[0].slow_ms = 200
    assert not any(reading.unavailable for reading in await probe.read(processes=False))


async def test_children_are_not_started_in_a_hurry(fake: Any) -> None:
    """Against a driver that stays hung, reads between two attempts answer at once, with the reason."""
    probe = NvmlProbe(fake.environ, deadline_s=0.3, first_backoff_s=60)
    await probe.read(processes=False)
    fake.devices[0].hang = fake.devices[1].hang = 1
    with anyio.fail_after(60):
        while not all("when it was asked" in each.unavailable for each in await probe.read(processes=False)):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    began = time.monotonic()
    assert "did not answer" in (await probe.read(processes=False))[1].unavailable
    assert time.monotonic() - began < 0.1
    await probe.aclose()


@pytest.mark.parametrize("how", ["killed", "crashes"])
async def test_a_child_that_dies_is_replaced(fake: Any, probe: NvmlProbe, how: str) -> None:
    """Killed from outside or by a bug in the library: a reason, then readings again."""
    await probe.read(processes=False)
    assert probe._child is not None
    if how == "killed":
        os.kill(probe._child.pid, signal.SIGKILL)
    else:
        fake.devices[0].crash = 1
    readings = await probe.read(processes=False)
    assert ("SIGKILL" if how == "killed" else "SIGABRT") in readings[0].unavailable
    fake.devices[0].crash = 0
    assert await recovers(probe)


async def test_a_cancelled_reading_leaves_no_stale_answer(fake: Any, probe: NvmlProbe) -> None:
    """The answer to a question that nobody waits for any more is not taken for that to the next one."""
    await probe.read(processes=False)
    fake.devices[0].slow_ms = 200
    with anyio.move_on_after(0.05):
        await probe.read(processes=True)
    fake.devices[0].slow_ms = 0
    assert (await probe.read(processes=False))[0].process_bytes is None


async def test_no_driver(tmp_path: Path) -> None:
    """Where the library isn't there, that is what is said."""
    probe = NvmlProbe({"LD_LIBRARY_PATH": str(tmp_path)})
    with pytest.raises(NoDriverError, match=r"no NVIDIA driver: libnvidia-ml\.so\.1"):
        await probe.read(processes=False)
    await probe.aclose()


async def test_broken_drivers(fake: Any, tmp_path: Path) -> None:
    """A library that can't be loaded, can't start, or lists nothing is broken, and the message says what to do."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    probe = NvmlProbe({"LD_LIBRARY_PATH": str(tmp_path)})
    with pytest.raises(BrokenDriverError, match="broken"):
        await probe.read(processes=False)
    await probe.aclose()
    for code, advice in ((VERSION_MISMATCH, "reboot"), (DRIVER_NOT_LOADED, "modprobe"), (UNKNOWN, "dmesg")):
        fake.header.init_error = code
        probe = NvmlProbe(fake.environ)
        with pytest.raises(BrokenDriverError, match=advice):
            await probe.read(processes=False)
        await probe.aclose()
    fake.header.init_error, fake.header.device_count = 0, 0
    probe = NvmlProbe(fake.environ)
    with pytest.raises(BrokenDriverError, match="lists no device"):
        await probe.read(processes=False)
    await probe.aclose()


async def test_a_driver_that_hangs_from_the_start(fake: Any) -> None:
    """It is broken after the start's deadline, not for ever."""
    fake.header.init_hang = 1
    probe = NvmlProbe(fake.environ, start_deadline_s=0.6)
    with pytest.raises(BrokenDriverError, match=r"within 0\.6 s"):
        await probe.read(processes=False)
    await probe.aclose()


async def test_a_driver_that_vanishes_makes_all_unavailable(fake: Any, probe: NvmlProbe) -> None:
    """Known devices stay, with the reason, in the running child and in the next; then they come back."""
    await probe.read(processes=False)
    fake.header.count_error = fake.header.init_error = DRIVER_NOT_LOADED
    for _ in range(3):
        readings = await probe.read(processes=False)
        assert [reading.uuid for reading in readings] == ["GPU-a", "GPU-b"]
        assert all("Driver Not Loaded" in reading.unavailable for reading in readings)
    fake.header.count_error = fake.header.init_error = 0
    assert await recovers(probe)


async def test_a_slow_restart_is_waited_for(fake: Any) -> None:
    """A child that needs longer to start than a reading may take is left alone and used once it is ready."""
    probe = NvmlProbe(fake.environ, deadline_s=0.3, first_backoff_s=0.0)
    await probe.read(processes=False)
    assert probe._child is not None
    os.kill(probe._child.pid, signal.SIGKILL)
    fake.header.init_ms = 700
    assert "SIGKILL" in (await probe.read(processes=False))[0].unavailable
    assert "still initialising" in (await probe.read(processes=False))[0].unavailable
    assert await recovers(probe)
    await probe.aclose()


async def test_closing_ends_the_child_even_a_hung_one(fake: Any, probe: NvmlProbe) -> None:
    """Its input ends, and so does it, in the middle of a call that never returns."""
    await probe.read(processes=False)
    assert probe._child is not None
    pid = probe._child.pid
    fake.devices[0].hang = 1
    with anyio.move_on_after(0.1):
        await probe.read(processes=False)
    began = time.monotonic()
    await probe.aclose()
    assert time.monotonic() - began < 0.9
    assert not Path(f"/proc/{pid}").exists()  # noqa: ASYNC240
    with pytest.raises(RuntimeError, match="closed"):
        await probe.read(processes=False)


@pytest.mark.parametrize("fault", ["hang", "crash"])
async def test_a_device_on_which_the_driver_hangs_leaves_the_others(fake: Any, fault: str) -> None:
    """Twice in a row costs everybody a reading each; then that one is left out, and tried again in a child of its own.

    Without it, each reading hung anew, and no device was used as long as one was broken.
    """
    probe = NvmlProbe(fake.environ, deadline_s=0.5, first_backoff_s=0.01)
    await probe.read(processes=False)
    setattr(fake.devices[0], fault, 1)
    for _ in range(2):
        assert all(reading.unavailable for reading in await probe.read(processes=False))
    for _ in range(3):
        first, second = await probe.read(processes=False)
        assert (first.uuid, first.free_bytes) == ("GPU-a", None)
        assert first.unavailable.endswith("when it was asked for this device; the others are read without it")
        assert not second.unavailable
        await anyio.sleep(0.4)  # it is tried again meanwhile, in vain
    setattr(fake.devices[0], fault, 0)
    assert await recovers(probe)
    await probe.aclose()


async def test_a_driver_that_hangs_once_is_held_against_no_device(fake: Any, probe: NvmlProbe) -> None:
    """It may be busy with something else: the next reading has everybody."""
    await probe.read(processes=False)
    fake.devices[1].hang = 1
    assert all(reading.unavailable for reading in await probe.read(processes=False))
    fake.devices[1].hang = 0
    assert not any(reading.unavailable for reading in await probe.read(processes=False))


async def test_a_device_that_hangs_from_the_start_leaves_the_others(fake: Any) -> None:
    """The first reading finds it out, and the box is used."""
    fake.devices[1].hang = 1
    fake.add("GPU-c", "Fake L4", 24)
    probe = NvmlProbe(fake.environ, deadline_s=0.5, first_backoff_s=60)
    first, second, third = await probe.read(processes=False)
    assert (second.uuid, "when it was asked for this device" in second.unavailable) == ("UNKNOWN-1", True)
    assert not first.unavailable
    assert not third.unavailable
    await probe.aclose()
