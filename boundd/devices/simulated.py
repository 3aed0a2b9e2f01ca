"""Devices that exist only by name, to try a matrix or the service without a GPU.

They know nothing but what they were told: memory never fills by itself, no process is ever seen on them. Everything
measured on one carries the backend `simulated`.
"""

from __future__ import annotations

from collections.abc import Sequence

from boundd.core.model.devices import DeviceReading
from boundd.ports import DeviceError


class SimulatedProbe:
    """A device `SIM-<n>` for each (name, bytes of memory) of `specs`.

    Raises:
        DeviceError: no specs, or one whose memory isn't a positive number of bytes.
    """

    def __init__(self, specs: Sequence[tuple[str, int]]) -> None:
        if not specs:
            raise DeviceError("no simulated devices are configured: name at least one, with its memory")
        for index, (name, memory_bytes) in enumerate(specs):
            if memory_bytes <= 0:
                raise DeviceError(f"simulated device {index} ({name}): its memory must be positive, not {memory_bytes}")
        self._specs = tuple(specs)

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """Every device, with all of its memory free; with `processes`, an empty process list."""
        return tuple(
            DeviceReading(
                uuid=f"SIM-{index}",
                index=index,
                name=name,
                total_bytes=memory_bytes,
                free_bytes=memory_bytes,
                process_bytes={} if processes else None,
                backend="simulated",
            )
            for index, (name, memory_bytes) in enumerate(self._specs)
        )

    async def aclose(self) -> None:
        """Nothing is held, so nothing needs closing."""
