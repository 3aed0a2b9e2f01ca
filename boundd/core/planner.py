"""The planner: state and an instant in, decisions and reasons out.

Cells are taken in the matrix' order. One that must be alone and finds no empty device holds the emptiest one, so that
later cells don't fill it up again: it drains rather than starving.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from boundd.core.attempts import Attempt, CellRecord, CellState, attempt_id
from boundd.core.devices import DeviceState
from boundd.core.events import Now
from boundd.core.lifecycle import Trigger, next_cell_state
from boundd.core.placement import Placement, best_placement, matrix_device_model, must_be_alone
from boundd.core.state import Deferral, State

EXPLAINED_CELLS = 100
"""So many waiting cells get a reason for each device. Once no device can take any cell, the rest of a large matrix is
told just that, because asking every device for every one of a million cells at every step would be the whole work."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start now, why the rest waits, and when to look again. `state` holds the new attempts already."""

    state: State
    started: tuple[Attempt, ...]
    joined: tuple[Attempt, ...]
    """Attempts that had a device to themselves and have company now."""
    next_wake_boot_s: float | None


def plan(state: State, now: Now) -> Plan:
    """Start every cell that can start now."""
    if state.stopping or state.paused:
        reason = "the daemon is stopping" if state.stopping else "paused: `boundctl resume` goes on"
        waiting = {record.cell.key: Deferral(reason) for record in state.pending()}
        return Plan(replace(state, deferrals=waiting), (), (), None)
    deferrals: dict[str, Deferral] = {}
    started: list[Attempt] = []
    joined: dict[str, Attempt] = {}
    held: dict[str, str] = {}
    full = False
    for record in tuple(state.pending()):
        if record.not_before_boot_s > now.boot_s:
            wait_s = record.not_before_boot_s - now.boot_s
            deferrals[record.cell.key] = Deferral(f"backoff: {wait_s:.0f} s left")
            continue
        if full:
            deferrals[record.cell.key] = Deferral("every device is taken by cells before it")
            continue
        answer = best_placement(state, record, held)
        if isinstance(answer, Placement):
            state, attempt, company = _place(state, record, answer, now)
            started.append(attempt)
            joined.update({other.id: other for other in company})
            continue
        deferrals[record.cell.key] = Deferral("no device takes it now" if answer else "there is no device", answer)
        if must_be_alone(record):
            _hold_one(state, record, held)
        full = len(deferrals) >= EXPLAINED_CELLS and _nothing_fits_any_more(state, held)
    newly = {attempt.id for attempt in started}
    return Plan(
        replace(state, deferrals=deferrals),
        tuple(state.attempts[attempt.id] for attempt in started),
        tuple(other for key, other in joined.items() if key not in newly),
        _next_wake(state, now),
    )


def _place(state: State, record: CellRecord, placement: Placement, now: Now) -> tuple[State, Attempt, list[Attempt]]:
    number = record.attempts + 1
    company = state.attempts_on(placement.device)
    attempt = Attempt(
        id=attempt_id(record.cell, number),
        key=record.cell.key,
        label=record.cell.label,
        number=number,
        device=placement.device,
        reservation_bytes=placement.reservation_bytes,
        cap_bytes=placement.cap_bytes,
        batch_size=record.wanted_batch_size,
        exclusive=placement.exclusive,
        timeout_s=record.policy.timeout_s,
        grace_s=record.policy.grace_s,
        started_unix_s=now.unix_s,
        started_boot_s=now.boot_s,
        whole_device=placement.whole_device,
        had_company=bool(company),
    )
    running = replace(record, state=next_cell_state(record.state, Trigger.PLACE), attempts=number)
    joined = [replace(other, had_company=True) for other in company if not other.had_company]
    attempts = state.attempts.set(attempt.id, attempt)
    for other in joined:
        attempts = attempts.set(other.id, other)
    return replace(state, cells=state.cells.set(record.cell.key, running), attempts=attempts), attempt, joined


def _hold_one(state: State, record: CellRecord, held: dict[str, str]) -> None:
    """Keep the emptiest usable device free of later cells, unless one is held for this cell already."""
    model = matrix_device_model(state)
    usable = [
        device
        for device in state.devices_by_index()
        if device.state is DeviceState.READY
        and device.uuid not in held
        and (model is None or device.reading.name == model)
    ]
    if usable:
        emptiest = min(
            usable, key=lambda device: (sum(a.reservation_bytes for a in state.attempts_on(device.uuid)), device.uuid)
        )
        held[emptiest.uuid] = record.cell.label


def _nothing_fits_any_more(state: State, held: dict[str, str]) -> bool:
    """True where no device can take any further cell: there is no need to ask for each of a million."""
    return all(
        device.state is not DeviceState.READY
        or device.uuid in held
        or any(attempt.exclusive for attempt in state.attempts_on(device.uuid))
        or _at_limit(state, device.uuid, device.reading.max_cells)
        for device in state.devices.values()
    )


def _at_limit(state: State, device: str, limit: int | None) -> bool:
    return limit is not None and len(state.attempts_on(device)) >= limit


def _next_wake(state: State, now: Now) -> float | None:
    waits = [
        record.not_before_boot_s
        for record in state.matrix()
        if record.state is CellState.PENDING and record.not_before_boot_s > now.boot_s
    ]
    return min(waits, default=None)
