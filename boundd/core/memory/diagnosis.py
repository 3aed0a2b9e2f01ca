"""Diagnosis of out-of-memory failures: why an attempt ran out, and by which numbers.

The rules, in order:

- The worker's own report comes first. If its request would have exceeded its cap, or if the device had enough free
  memory for it, the cap stopped it: the estimate was too low, or the attempt is too big if the cap was the whole
  device.
- If the readings show a neighbour over its reservation, or a foreign process in the attempt's reservation, the cause is
  pressure.
- If the attempt had the whole device, it is too big.
- Otherwise the estimate is assumed to be too low, because the cure for that loses nothing: more memory, then a device
  of its own.
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
"""A reading exceeds a reservation only if it is larger by more than this, because the size of a CUDA context varies
a little."""
CAP_REACHED_PERCENT = 90


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause, its evidence, and the neighbours that outgrew their reservations."""

    cause: MemoryCause
    evidence: MemoryEvidence
    outgrown: tuple[Attempt, ...] = ()


def diagnose(state: State, attempt: Attempt, verdict: Verdict) -> Diagnosis:
    """Diagnose a live attempt whose verdict is out of memory."""
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
    """Bytes by which an attempt was seen to exceed its reservation."""
    return max(0, attempt.observed_peak_bytes - attempt.reservation_bytes)


def _stopped_by_cap(attempt: Attempt, verdict: Verdict) -> StoppedByCap | None:
    """Whether the worker's report shows that its cap stopped it, with the numbers."""
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
    """Which neighbour or foreign process was seen in the attempt's reservation, if any."""
    if outgrown:
        worst = max(outgrown, key=lambda other: (over_bytes(other), other.id))
        return NeighbourOver(worst.label, worst.observed_peak_bytes, over_bytes(worst))
    total = device.reading.total_bytes if device is not None else None
    if device is None or total is None:
        return None
    # The attempt may use the device's memory less foreign memory and its neighbours' reservations.
    foreign = foreign_bytes(device, (attempt, *neighbours))
    promised = sum(other.reservation_bytes for other in neighbours)
    left = total - foreign - promised
    if left + SLACK_BYTES < attempt.reservation_bytes:
        return ForeignHeld(foreign, max(0, left), attempt.reservation_bytes)
    return None


def _device_was_short(attempt: Attempt, verdict: Verdict) -> DeviceFull | None:
    """Whether the device was full although the attempt was within its reservation.

    The process list may be older than the failure, so the readings alone can mistake a foreign process for the
    attempt.
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
    """The allocator's peak as the worker reported it: 0 if its first request was refused, None if it reported
    nothing."""
    reserved = verdict.peak_reserved_bytes
    return reserved if reserved is not None else verdict.peak_allocated_bytes
