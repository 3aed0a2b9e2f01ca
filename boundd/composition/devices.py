"""The devices that a config, the command line and the environment choose."""

from __future__ import annotations

import os

import anyio

from boundd.catalogue.backends import AUTO
from boundd.config import Settings
from boundd.core.memory.process_listing import unusable_while_held
from boundd.core.model.devices import DeviceReading
from boundd.devices.discover import Choice, open_probe
from boundd.ports import DeviceProbe
from boundd.protocol.device_processes import is_in_host_pid_namespace
from boundd.protocol.environment import CUDA_VISIBLE_DEVICES
from boundd.service.processes import check_lists


class ChosenDevices:
    """A probe that shows only the devices that were chosen."""

    def __init__(self, probe: DeviceProbe, choice: Choice) -> None:
        self._probe = probe
        self._choice = choice

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """The chosen devices' readings."""
        return self._choice.of(await self._probe.read(processes=processes))

    async def aclose(self) -> None:
        """End the probe."""
        await self._probe.aclose()


def probe_devices(settings: Settings | None) -> list[DeviceReading]:
    """One reading of the devices that a config would use, or, without one, of what the machine has.

    Raises:
        DeviceError: there is no device to work on.
    """

    async def read() -> list[DeviceReading]:
        backend = AUTO if settings is None else settings.device_backend
        probe = await open_probe(backend, () if settings is None else settings.simulated_devices, os.environ)
        try:
            readings = await ChosenDevices(probe, choice_of(settings)).read(processes=True)
        finally:
            await probe.aclose()
        # Nothing of ours runs as far as this process knows, so whoever has a device that takes one process is told.
        seen = check_lists(readings, {}, {}, in_host_namespace=is_in_host_pid_namespace())
        return [unusable_while_held(reading, seen.holders.get(reading.uuid, "")) for reading in readings]

    return anyio.run(read)


def choice_of(settings: Settings | None, gpus: tuple[str, ...] = ()) -> Choice:
    """The devices of the config, within what the command line and the daemon's CUDA_VISIBLE_DEVICES leave."""
    bound = os.environ.get(CUDA_VISIBLE_DEVICES)
    if settings is None:
        return Choice(visible=bound)
    return Choice(settings.device_include, settings.device_exclude, gpus, bound)
