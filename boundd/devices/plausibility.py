"""Plausibility checks on what the driver says of a device.

A device whose reading contradicts an earlier one is unavailable until its readings agree again. The functions are pure:
the caller keeps what is known of each device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What must not change about a device: its model, the size of its memory, and whether that is the host's memory.

    It is taken from the first plausible reading. After a change of `driver` (its version) it may differ, because the
    driver reserves a part of the memory.
    """

    driver: str
    name: str
    total_bytes: int
    is_shared: bool


def contradiction(entry: Mapping[str, Any], driver: str, known: DeviceIdentity | None) -> str:
    """How an entry of `nvml_child` contradicts what is known of the device, in words; empty if it doesn't."""
    if known is None or known.driver != driver:
        return ""
    if entry["name"] != known.name:
        return f"the driver calls it {entry['name']} now, and called it {known.name} before"
    if bool(entry.get("shared")) != known.is_shared:
        if known.is_shared:
            return f"the driver reports {_gib(entry['total'])} of memory of its own now, and reported none before"
        return f"the driver answers N/A for its memory now, and reported {_gib(known.total_bytes)} before"
    if not known.is_shared and entry["total"] != known.total_bytes:
        return (
            f"the driver reports {entry['total']:,} bytes of memory now, and reported {known.total_bytes:,} before; if "
            "the change is intended, restart boundd"
        )
    return ""


def identity_of(entry: Mapping[str, Any], driver: str) -> DeviceIdentity:
    """The identity of a device, from an entry that passed `contradiction`."""
    return DeviceIdentity(driver, entry["name"], entry["total"], bool(entry.get("shared")))


def without_duplicates(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries with each UUID once. Devices that share a UUID become one unavailable entry, because a worker is told
    its device by UUID and could end up on either."""
    kept: dict[str, Mapping[str, Any]] = {}
    places: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        uuid = entry["uuid"] or f"#{number}"  # devices without a readable UUID are not duplicates of each other
        kept.setdefault(uuid, entry)
        places.setdefault(uuid, []).append(place_of(entry))
    for uuid, found in places.items():
        if len(found) > 1:
            why = f"the driver gives this UUID to {len(found)} devices ({', '.join(found)})"
            kept[uuid] = {**{key: kept[uuid][key] for key in ("index", "uuid", "name")}, "unavailable": why}
    return list(kept.values())


def place_of(entry: Mapping[str, Any]) -> str:
    """A device's index, for people; for a MIG instance `INDEX:INSTANCE`."""
    slot = entry.get("slot")
    return str(entry["index"]) if slot is None else f"{entry['index']}:{slot}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"
