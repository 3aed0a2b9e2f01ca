"""Readings that contradict what is known: a device that gives one is unavailable until it makes sense again.

Pure: what is known is handed in, and comes back with the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Told:
    """What a driver told of a device when it first made sense: its model, its memory, and whether that is the host's.

    Told by another driver, it may differ: some of the memory is the driver's own to count.
    """

    driver: str
    name: str
    total_bytes: int
    is_shared: bool


def contradiction(entry: Mapping[str, Any], driver: str, told: Told | None) -> str:
    """What an entry of `nvml_child` that could be read says against what was told; empty where nothing does."""
    if told is None or told.driver != driver:
        return ""
    if entry["name"] != told.name:
        return f"the driver calls it {entry['name']} now, and called it {told.name} before"
    if bool(entry.get("shared")) != told.is_shared:
        if told.is_shared:
            return f"the driver tells {_gib(entry['total'])} of memory of its own now, and told none before"
        return f"the driver answers N/A for its memory now, and told {_gib(told.total_bytes)} before"
    if not told.is_shared and entry["total"] != told.total_bytes:
        return (
            f"the driver tells {entry['total']:,} bytes of memory now, and told {told.total_bytes:,} before; if that "
            "is meant, restart boundd"
        )
    return ""


def told_by(entry: Mapping[str, Any], driver: str) -> Told:
    """What is remembered of an entry that could be read and contradicts nothing."""
    return Told(driver, entry["name"], entry["total"], bool(entry.get("shared")))


def without_twins(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries with each UUID once: one that several devices have names none of them, since workers are sent to a
    device by its UUID."""
    kept: dict[str, Mapping[str, Any]] = {}
    places: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        uuid = entry["uuid"] or f"#{number}"  # devices that can't tell theirs are no twins
        kept.setdefault(uuid, entry)
        places.setdefault(uuid, []).append(place_of(entry))
    for uuid, found in places.items():
        if len(found) > 1:
            why = f"the driver gives this UUID to {len(found)} devices ({', '.join(found)})"
            kept[uuid] = {**{key: kept[uuid][key] for key in ("index", "uuid", "name")}, "unavailable": why}
    return list(kept.values())


def place_of(entry: Mapping[str, Any]) -> str:
    """Where a device is, for people: its index, and for a MIG instance its number there."""
    slot = entry.get("slot")
    return str(entry["index"]) if slot is None else f"{entry['index']}:{slot}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"
