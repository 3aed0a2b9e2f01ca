"""How devices are named on the command line and in the config: by UUID, index or name.

The index is NVML's, which is the order on the PCI bus. A MIG instance is also named `index:number`, and a profile
(`3g.40gb`) names every instance of that profile. The name of a parent device in MIG mode means all its instances
too, because cells run on instances. A UUID can be shortened, as CUDA allows, if it is still unique.
"""

from __future__ import annotations

from collections.abc import Sequence

from boundd.core.model.devices import DeviceReading

UUID_PREFIXES = ("gpu-", "mig-")
MIG = " mig "
"""Separates the parent device's name from the profile in an instance's name, in any case: `NVIDIA A100 MIG 3g.20gb`."""


def devices_named(readings: Sequence[DeviceReading], text: str) -> tuple[DeviceReading, ...]:
    """The devices that `text` names, in the order of `readings`. A parent device brings its MIG instances."""
    wanted = text.strip().casefold()
    exact = [reading for reading in readings if wanted in _names(reading)]
    if not exact and wanted.startswith(UUID_PREFIXES) and wanted not in UUID_PREFIXES:
        started = [reading for reading in readings if reading.uuid.casefold().startswith(wanted)]
        exact = started if len(started) == 1 else []
    wholes = {reading.uuid for reading in exact}
    chosen = wholes | {reading.uuid for reading in readings if reading.parent in wholes}
    return tuple(reading for reading in readings if reading.uuid in chosen)


def without_instances(readings: Sequence[DeviceReading]) -> tuple[DeviceReading, ...]:
    """The readings without the MIG instances whose parent device is among them."""
    there = {reading.uuid for reading in readings}
    return tuple(reading for reading in readings if reading.parent not in there)


def _names(reading: DeviceReading) -> frozenset[str]:
    """Every name of a device, in lower case."""
    name = reading.name.casefold()
    names = {reading.uuid.casefold(), name}
    if reading.slot is None:
        return frozenset(names | {str(reading.index)})
    _, found, profile = name.rpartition(MIG)
    names |= {f"{reading.index}:{reading.slot}"} | ({profile, f"mig {profile}"} if found else set())
    return frozenset(names)
