"""Watching the devices: regular readings, one at once where the loop asks for it, and a last look at an end."""

from __future__ import annotations

from contextlib import suppress

import anyio

from boundd.core.lifecycle.loop import STORE_RETRY_S
from boundd.core.model.events import DevicesUnreadable
from boundd.ports import DeviceError, StoreBusyError
from boundd.service.device_reader import DeviceReader
from boundd.service.loop_driver import LoopDriver
from boundd.service.processes import DeviceProcesses

INTERVAL_S = 1.0
"""From one regular reading to the next: one costs microseconds, but it holds a driver-wide lock."""
REST_S = 0.25
"""At least so long between readings: what an ended attempt held is seen at once, and not by a reading for each of many
short ones, which walks through /proc and plans."""


class DeviceWatch:
    """Reads the devices for a driver of the loop."""

    def __init__(self, reader: DeviceReader, driver: LoopDriver) -> None:
        self._reader = reader
        self._driver = driver
        self._wanted = anyio.Event()
        self._one_at_a_time = anyio.Lock()

    def want_reading(self) -> None:
        """Have the next reading taken at once."""
        self._wanted.set()

    async def run(self) -> None:
        """Read regularly, until cancelled."""
        while True:
            await anyio.sleep(REST_S)
            with anyio.move_on_after(INTERVAL_S - REST_S):
                await self._wanted.wait()
            self._wanted = anyio.Event()
            # What couldn't be stored has been told; what couldn't be read is read at the next pass.
            with suppress(StoreBusyError, OSError, DeviceError):
                await self.read()

    async def read(self, *, lists: bool = False) -> DeviceProcesses:
        """Read all devices, and their processes where that is worth it, or asked for (`lists`), and submit that.

        Raises:
            StoreBusyError: what follows from the reading could not be stored.
            DeviceError: no device can be read; that has been submitted as well.
            OSError: the system refuses to tell of processes now.
        """
        # One at a time: a reading must not be taken up after a later one.
        async with self._one_at_a_time:
            try:
                reading, seen = await self._reader.read(
                    self._driver.state, host=self._driver.loop.reads_host, lists=lists
                )
            except DeviceError as error:
                await self._driver.submit(DevicesUnreadable(str(error)))
                raise
            await self._driver.submit(reading)
            return seen

    async def attest(self, attempt_id: str) -> str:
        """Look once more at who is on the GPU of an attempt that has just ended; why nobody can say whether it had the
        device to itself, empty where that was seen from before its start to now."""
        uuid = self._driver.state.attempts[attempt_id].device
        device = self._driver.state.devices.get(uuid)
        if device is not None and not device.reading.kind.lists_processes:
            return ""
        while True:
            try:
                seen = await self.read(lists=True)
                break
            except StoreBusyError:
                await anyio.sleep(STORE_RETRY_S)
            except (OSError, DeviceError) as error:
                return f"the driver could not be asked at its end: {error}"
        attempt = self._driver.state.attempts[attempt_id]
        if attempt.unattested:
            return attempt.unattested
        if uuid not in seen.listed:
            return "the driver did not list the processes of its device at its end"
        return "" if attempt.witnessed else "none of its processes was seen in the driver's lists"
