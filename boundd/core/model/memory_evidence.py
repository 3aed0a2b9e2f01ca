"""How it was told why an attempt ran out of memory, as data: which numbers spoke for the cause (`memory.diagnosis`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StoppedByCap:
    """Its allocator's cap stopped it, by its own account.

    It asked for `requested_bytes` while the device had `free_bytes` to give; or, where `free_bytes` is None, it held
    `held_bytes` of its cap, and asked for more where `requested_bytes` is known. `whole_device`: the cap was all that
    the device had.
    """

    cap_bytes: int
    held_bytes: int | None
    requested_bytes: int | None
    free_bytes: int | None
    whole_device: bool
    kind: Literal["stopped_by_cap"] = "stopped_by_cap"


@dataclass(frozen=True, slots=True)
class NeighbourOver:
    """Another attempt on the device was seen to hold more than was reserved for it."""

    label: str
    held_bytes: int
    over_bytes: int
    kind: Literal["neighbour_over"] = "neighbour_over"


@dataclass(frozen=True, slots=True)
class ForeignHeld:
    """Processes that are not boundd's were seen in what was reserved; `left_bytes` of it were left."""

    foreign_bytes: int
    left_bytes: int
    reservation_bytes: int
    kind: Literal["foreign_held"] = "foreign_held"


@dataclass(frozen=True, slots=True)
class DeviceFull:
    """The device had too little free for a request within its reservation, and nobody was caught."""

    requested_bytes: int
    free_bytes: int
    reservation_bytes: int
    kind: Literal["device_full"] = "device_full"


@dataclass(frozen=True, slots=True)
class AllThereIs:
    """It was alone, with all the memory that the device had to give."""

    reservation_bytes: int
    kind: Literal["all_there_is"] = "all_there_is"


@dataclass(frozen=True, slots=True)
class NobodyElse:
    """Nobody was seen to take more than theirs: the estimate is taken to be too low."""

    reservation_bytes: int
    kind: Literal["nobody_else"] = "nobody_else"


@dataclass(frozen=True, slots=True)
class StoredText:
    """What a release before 0005 kept, in its own words."""

    text: str
    kind: Literal["text"] = "text"


MemoryEvidence = StoppedByCap | NeighbourOver | ForeignHeld | DeviceFull | AllThereIs | NobodyElse | StoredText
