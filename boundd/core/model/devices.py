"""Devices and their readings.

A device is identified by its UUID; the index changes at a reboot and is for display only. A failed reading makes a
device unavailable, with the reason. It never means 0 bytes or a full device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from boundd.catalogue.backends import BACKENDS, Backend
from boundd.core.model.host import THIS_NODE
from boundd.core.model.quarantines import Quarantine

UNKNOWN_NAME = "unknown NVIDIA device"
"""What a device is called that can't tell its name."""
UNKNOWN_PREFIX = "UNKNOWN-"
"""Prefix of the placeholder UUID of a device that doesn't report its UUID."""
MISSING_PREFIX = "MISSING-"
"""Prefix of the placeholder UUID of a device that the config names by index or name and that doesn't exist."""


class DeviceState(StrEnum):
    """Whether cells may be placed on a device."""

    READY = "ready"
    CORDONED = "cordoned"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device at one instant.

    `total_bytes` and `free_bytes` are None if and only if `unavailable` gives a reason. `process_bytes` maps the
    pids of the host to the device memory that each holds: a value of None means that the driver doesn't report it,
    and None in place of the mapping means that the process list was not read. `max_cells` limits the attempts at a
    time: 1 for the CPU and for compute mode EXCLUSIVE_PROCESS, 0 for a device that never takes any, such as one
    divided into MIG instances. None means that only memory limits them.
    """

    uuid: str
    index: int
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    process_bytes: Mapping[int, int | None] | None = None
    max_cells: int | None = None
    unavailable: str = ""
    backend: str = "nvml"
    """`nvml`, `cpu` or `simulated`. A result from a simulated device is marked as such."""
    driver: str = ""
    driver_fault: str = ""
    """A fault of the device as the driver reports it, such as an XID error; empty if there is none. Whenever this
    text changes, the device is quarantined until an operator uncordons it."""
    remark: str = ""
    """A remark on the numbers for people, such as that the memory is the host's."""
    unreadable: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Kinds of process lists (compute, graphics, MPS) that were requested and could not be read, and why."""
    reserved_bytes: int | None = None
    """Memory in use by the driver itself; None if the driver doesn't report it."""
    node: str = THIS_NODE
    """The machine that the device is in, whose memory and cores its workers take."""
    parent: str = ""
    """For a MIG instance, the UUID of its parent device."""
    slot: int | None = None
    """For a MIG instance, its number on the parent device."""

    @property
    def kind(self) -> Backend:
        """The properties of this kind of device."""
        return BACKENDS[self.backend]

    @property
    def is_simulated(self) -> bool:
        """Whether the device is simulated. A fake driver says so in the device's name."""
        return self.backend == "simulated" or "simulated" in self.name.casefold()

    @property
    def is_placeholder(self) -> bool:
        """Whether this stands for a device whose UUID is unknown."""
        return self.uuid.startswith((UNKNOWN_PREFIX, MISSING_PREFIX))

    @property
    def used_bytes(self) -> int:
        """Bytes in use; 0 for a device that could not be read, so check `unavailable` first."""
        return (self.total_bytes or 0) - (self.free_bytes or 0)


@dataclass(frozen=True, slots=True)
class QuickDeath:
    """One cell's quick death on a device. `elsewhere` is set once the cell was seen to run on another device."""

    device: str
    key: str
    at_boot_s: float
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """A device with its latest reading and its quarantine."""

    reading: DeviceReading
    quarantine: Quarantine | None = None
    """Set while the device takes no new cells. In the user interface this is a cordon."""
    observed_bytes: Mapping[str, int | None] = field(default_factory=dict)
    """Attempt id to the device memory that its processes hold, read in the same pass as `free_bytes`; None if
    unknown."""

    @property
    def uuid(self) -> str:
        """The device's identity."""
        return self.reading.uuid

    @property
    def state(self) -> DeviceState:
        """CORDONED while quarantined, UNAVAILABLE if the latest reading says so, else READY."""
        if self.quarantine is not None:
            return DeviceState.CORDONED
        return DeviceState.UNAVAILABLE if self.reading.unavailable else DeviceState.READY
