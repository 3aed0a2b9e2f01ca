"""What people call devices: by UUID, index or name; of a device in MIG mode, the whole or one of its instances.

Rules: who names a whole names its instances too, since those are what takes cells. The index is NVML's, which is the
order on the PCI bus; an instance is also `index:number`, and its profile (`3g.40gb`) names every instance of that
profile. A UUID may be shortened as CUDA lets it be, as long as one device is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

from boundd.core.model.devices import DeviceReading

UUID_PREFIXES = ("gpu-", "mig-")
MIG = " mig "
"""Between the whole's name and the profile in an instance's, in any case: `NVIDIA A100 MIG 3g.20gb`."""


def devices_named(readings: Sequence[DeviceReading], text: str) -> tuple[DeviceReading, ...]:
    """The devices that `text` names, in their order, the instances of a whole with it; none where it names nothing."""
    wanted = text.strip().casefold()
    exact = [reading for reading in readings if wanted in _names(reading)]
    if not exact and wanted.startswith(UUID_PREFIXES) and wanted not in UUID_PREFIXES:
        started = [reading for reading in readings if reading.uuid.casefold().startswith(wanted)]
        exact = started if len(started) == 1 else []
    wholes = {reading.uuid for reading in exact}
    chosen = wholes | {reading.uuid for reading in readings if reading.parent in wholes}
    return tuple(reading for reading in readings if reading.uuid in chosen)


def without_instances(readings: Sequence[DeviceReading]) -> tuple[DeviceReading, ...]:
    """The readings less the instances of a whole that is among them."""
    there = {reading.uuid for reading in readings}
    return tuple(reading for reading in readings if reading.parent not in there)


def _names(reading: DeviceReading) -> frozenset[str]:
    """Everything that a device is called, in lower case."""
    name = reading.name.casefold()
    names = {reading.uuid.casefold(), name}
    if reading.slot is None:
        return frozenset(names | {str(reading.index)})
    _, found, profile = name.rpartition(MIG)
    names |= {f"{reading.index}:{reading.slot}"} | ({profile, f"mig {profile}"} if found else set())
    return frozenset(names)
