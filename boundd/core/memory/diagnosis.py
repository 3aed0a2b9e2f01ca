"""Why an attempt ran out of memory, told by its own record, its cap, and the readings around it.

Rules, in this order. Its own account comes first: what it asked for would have gone past its cap, or the device had the
bytes to spare, so it was the cap that stopped it. Then the readings: a neighbour over its reservation, or a foreign
process in what was reserved, is pressure. Where it was stopped by a cap that was all of the device, it is too big.
Where nobody can tell, the estimate is taken to be too low, because its cure loses nothing: more memory, then a device
to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boundd.catalogue.models import MIB
from boundd.core.memory.footprint import CONTEXT_BYTES
from boundd.core.memory.headroom import foreign_bytes
from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import Device
from boundd.core.model.memory_evidence import (
    AllThereIs,
    DeviceFull,
    ForeignHeld,
    MemoryEvidence,
    NeighbourOver,
    NobodyElse,
    StoppedByCap,
)
from boundd.core.model.outcomes import MemoryCause, Verdict
from boundd.core.model.state import State

SLACK_BYTES = 64 * MIB
"""Readings and reservations are said to differ only where they do by more: a context's size varies a little."""
CAP_REACHED_PERCENT = 90


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause, the numbers that it was told by, and the neighbours that outgrew their reservations."""

    cause: MemoryCause
    evidence: MemoryEvidence
    outgrown: tuple[Attempt, ...] = ()


def diagnose(state: State, attempt: Attempt, verdict: Verdict) -> Diagnosis:
    """Why a live attempt, whose verdict says that memory ran out, did."""
    device = state.devices.get(attempt.device)
    neighbours = tuple(other for other in state.attempts_on(attempt.device) if other.id != attempt.id)
    outgrown = tuple(other for other in neighbours if over_bytes(other) > SLACK_BYTES)
    own = _stopped_by_cap(attempt, verdict)
    if own is not None:
        return Diagnosis(MemoryCause.TOO_BIG if own.whole_device else MemoryCause.ESTIMATE_TOO_LOW, own)
    pressed = _pressed_by(device, attempt, neighbours, outgrown)
    if pressed is not None:
        return Diagnosis(MemoryCause.PRESSURE, pressed, outgrown)
    short = _device_was_short(attempt, verdict)
    if short is not None:
        return Diagnosis(MemoryCause.PRESSURE, short)
    if attempt.whole_device:
        return Diagnosis(MemoryCause.TOO_BIG, AllThereIs(attempt.reservation_bytes))
    return Diagnosis(MemoryCause.ESTIMATE_TOO_LOW, NobodyElse(attempt.reservation_bytes))


def over_bytes(attempt: Attempt) -> int:
    """By how much an attempt was seen over its reservation."""
    return max(0, attempt.observed_peak_bytes - attempt.reservation_bytes)


def _stopped_by_cap(attempt: Attempt, verdict: Verdict) -> StoppedByCap | None:
    """How its own account tells that it was its cap; None where it doesn't."""
    cap = attempt.cap_bytes
    if cap is None:
        return None
    error = verdict.error
    requested = error.requested_bytes if error is not None else None
    free = error.free_bytes if error is not None else None
    held = _held(verdict)
    if requested is not None and free is not None and free >= requested:
        return StoppedByCap(cap, held, requested, free, attempt.whole_device)
    past_cap = held is not None and held + (requested or 0) > cap
    at_cap = requested is None and held is not None and held * 100 >= cap * CAP_REACHED_PERCENT
    return StoppedByCap(cap, held, requested, None, attempt.whole_device) if past_cap or at_cap else None


def _pressed_by(
    device: Device | None, attempt: Attempt, neighbours: Sequence[Attempt], outgrown: Sequence[Attempt]
) -> NeighbourOver | ForeignHeld | None:
    """Who was seen in what was reserved; None where nobody was."""
    if outgrown:
        worst = max(outgrown, key=lambda other: (over_bytes(other), other.id))
        return NeighbourOver(worst.label, worst.observed_peak_bytes, over_bytes(worst))
    total = device.reading.total_bytes if device is not None else None
    if device is None or total is None:
        return None
    # What the device has beside what is foreign and what the neighbours were promised is the attempt's to take.
    foreign = foreign_bytes(device, (attempt, *neighbours))
    promised = sum(other.reservation_bytes for other in neighbours)
    left = total - foreign - promised
    if left + SLACK_BYTES < attempt.reservation_bytes:
        return ForeignHeld(foreign, max(0, left), attempt.reservation_bytes)
    return None


def _device_was_short(attempt: Attempt, verdict: Verdict) -> DeviceFull | None:
    """The device was full although the attempt was within its reservation, and nobody was caught.

    The process list may not have been read since, so by the readings alone a foreign process can pass for the attempt.
    """
    error = verdict.error
    if error is None or error.requested_bytes is None or error.free_bytes is None:
        return None
    held = _held(verdict)
    if error.free_bytes >= error.requested_bytes or (held is None and not attempt.had_company):
        return None
    if held is not None and held + error.requested_bytes + CONTEXT_BYTES > attempt.reservation_bytes + SLACK_BYTES:
        return None
    return DeviceFull(error.requested_bytes, error.free_bytes, attempt.reservation_bytes)


def _held(verdict: Verdict) -> int | None:
    """What its allocator held at most, by its own account: 0 where its first request was refused, None if untold."""
    reserved = verdict.peak_reserved_bytes
    return reserved if reserved is not None else verdict.peak_allocated_bytes
