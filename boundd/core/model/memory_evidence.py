"""The evidence for why an attempt ran out of memory: the numbers that `memory.diagnosis` decided by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StoppedByCap:
    """The allocator's cap stopped the attempt, as the worker reported it.

    The attempt requested `requested_bytes` while the device had `free_bytes` free. If `free_bytes` is None, it held
    `held_bytes` of its cap, and requested more if `requested_bytes` is known. `whole_device`: the cap was the
    device's whole memory.
    """

    cap_bytes: int
    held_bytes: int | None
    requested_bytes: int | None
    free_bytes: int | None
    whole_device: bool
    kind: Literal["stopped_by_cap"] = "stopped_by_cap"


@dataclass(frozen=True, slots=True)
class NeighbourOver:
    """Another attempt on the device held more than its reservation."""

    label: str
    held_bytes: int
    over_bytes: int
    kind: Literal["neighbour_over"] = "neighbour_over"


@dataclass(frozen=True, slots=True)
class ForeignHeld:
    """Foreign processes held memory that was reserved for the attempt, and left `left_bytes` of it."""

    foreign_bytes: int
    left_bytes: int
    reservation_bytes: int
    kind: Literal["foreign_held"] = "foreign_held"


@dataclass(frozen=True, slots=True)
class DeviceFull:
    """The device had too little free memory for a request within the attempt's reservation. Who held it was not
    seen."""

    requested_bytes: int
    free_bytes: int
    reservation_bytes: int
    kind: Literal["device_full"] = "device_full"


@dataclass(frozen=True, slots=True)
class AllThereIs:
    """The attempt was alone, with all the memory that the device could give."""

    reservation_bytes: int
    kind: Literal["all_there_is"] = "all_there_is"


@dataclass(frozen=True, slots=True)
class NobodyElse:
    """No neighbour and no foreign process was seen to take more than its share, so the estimate is assumed to be too
    low."""

    reservation_bytes: int
    kind: Literal["nobody_else"] = "nobody_else"


@dataclass(frozen=True, slots=True)
class StoredText:
    """The evidence as text, as stores before schema version 5 kept it."""

    text: str
    kind: Literal["text"] = "text"


MemoryEvidence = StoppedByCap | NeighbourOver | ForeignHeld | DeviceFull | AllThereIs | NobodyElse | StoredText
