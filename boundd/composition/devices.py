"""The devices that a config chooses."""

from __future__ import annotations

import os
from typing import cast

import anyio

from boundd.config import Settings
from boundd.core.model.devices import DeviceReading
from boundd.devices.discover import Backend, open_probe, select
from boundd.ports import DeviceProbe


class ChosenDevices:
    """A probe that shows only the devices of the config's `include` and `exclude`."""

    def __init__(self, probe: DeviceProbe, settings: Settings) -> None:
        self._probe = probe
        self._include = settings.device_include
        self._exclude = settings.device_exclude

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """The chosen devices' readings."""
        return select(await self._probe.read(processes=processes), self._include, self._exclude)

    async def aclose(self) -> None:
        """End the probe."""
        await self._probe.aclose()


def probe_devices(settings: Settings | None) -> list[DeviceReading]:
    """One reading of the devices that a config would use, or, without one, of what the machine has.

    Raises:
        DeviceError: there is no device to work on.
    """

    async def read() -> list[DeviceReading]:
        backend: Backend = "auto" if settings is None else backend_of(settings)
        probe = await open_probe(backend, () if settings is None else settings.simulated_devices, os.environ)
        try:
            return list(await (probe if settings is None else ChosenDevices(probe, settings)).read(processes=False))
        finally:
            await probe.aclose()

    return anyio.run(read)


def backend_of(settings: Settings) -> Backend:
    """The kind of devices that the config asks for."""
    return cast("Backend", settings.device_backend)
