"""`step(state, event, now) -> (state, effects)`: everything that boundd decides, decided here.

Effects are in order: what is committed first, then what is done because of it. Where a commit fails, the shell keeps
the old state, and the event has not happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from immutables import Map

from boundd.core.lifecycle.ending import cordoned, end_attempt
from boundd.core.lifecycle.retry import batch_to_retry
from boundd.core.memory.diagnosis import SLACK_BYTES, over_bytes
from boundd.core.memory.raising import LEVELS
from boundd.core.model import events as ev
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, EndReason
from boundd.core.model.devices import Device, DeviceReading
from boundd.core.model.effects import Action, Commit, Effect, EndWorker, Note, ResultsChanged, Spawn, WakeAt
from boundd.core.model.events import Event, Now
from boundd.core.model.outcomes import AttemptError, ErrorKind
from boundd.core.model.queues import Cells
from boundd.core.model.records import Record, SaveAttempt, SaveCell, SaveCordon, SavePaused, SavePoint
from boundd.core.model.state import State
from boundd.core.model.transitions import (
    ENDED_CELL_STATES,
    IMPORT_ERROR,
    AttemptTrigger,
    Trigger,
    next_attempt_state,
    next_cell_state,
)
from boundd.core.scheduler.planner import Plan, plan
from boundd.core.scheduler.quarantine import seen_running
from boundd.core.scheduler.unkillable import cordoned_for

Step = tuple[State, tuple[Effect, ...]]


def step(state: State, event: Event, now: Now) -> Step:
    """What the event makes of the state, and what is to be done about it.

    Raises:
        AssertionError: the event can't happen in this state; nothing has changed.
    """
    handler: Callable[[State, Any, Now], Step] = _HANDLERS[type(event)]
    return handler(state, event, now)


def _config_loaded(state: State, event: ev.ConfigLoaded, now: Now) -> Step:
    known, changed, records = state.cells, {}, []
    for cell, policy in event.cells:
        before = known.get(cell.key)
        record = CellRecord(cell, policy) if before is None else replace(before, cell=cell, policy=policy)
        changed[cell.key] = record
        if before is None or before.cell.label != cell.label:
            records.append(SaveCell(record))
    order = tuple(cell.key for cell, _ in event.cells)
    cells = Cells.of(known.records.update(changed), order)
    # A config that is read again and again must not make anybody wait from the beginning.
    refused_since = Map({needs: since for needs, since in state.refused_since.items() if needs in cells.queues})
    new = replace(
        state, rules=event.rules, settings=event.settings, cells=cells, order=order, refused_since=refused_since
    )
    counts = {f"boundd.cells_{name}": count for name, count in sorted(new.count_by_state().items())}
    note = Note(Action.MATRIX_LOADED, f"the matrix has {len(new.order)} cells", fields=counts)
    return new, (*_commit(records), note, ResultsChanged())


def _devices_read(state: State, event: ev.DevicesRead, now: Now) -> Step:
    devices, notes = state.devices, []
    cordons = dict(state.cordons)
    records: list[Record] = []
    seen = {reading.uuid for reading in event.readings}
    for reading in event.readings:
        before = devices.get(reading.uuid)
        if before is None and reading.parent in state.devices and reading.parent in cordons:
            # The whole was taken out of service before it was divided like this.
            cordons[reading.uuid] = cordons[reading.parent]
            records.append(SaveCordon(reading.uuid, cordons[reading.uuid]))
        if _falls_ill(before, reading) and reading.uuid not in cordons:
            cordons[reading.uuid] = f"the driver reports {reading.ailment}"
            records.append(SaveCordon(reading.uuid, cordons[reading.uuid]))
            notes.append(
                Note(Action.DEVICE_CORDONED, f"{reading.name}: {cordons[reading.uuid]}", "error", device=reading.uuid)
            )
        device = Device(reading, cordons.get(reading.uuid), event.observed_bytes.get(reading.uuid, {}))
        devices = devices.set(reading.uuid, device)
        notes += _device_notes(before, device)
    for uuid in sorted(set(state.devices) - seen):
        before = state.devices[uuid]
        if before.reading.is_placeholder:
            devices = devices.delete(uuid)  # its device tells its UUID now
            continue
        gone = replace(before.reading, total_bytes=None, free_bytes=None, unavailable="no longer reported")
        devices = devices.set(uuid, replace(before, reading=gone))
        notes += _device_notes(before, devices[uuid])
    host = event.host if event.host is not None else state.host
    disk_free_bytes = event.disk_free_bytes if event.disk_free_bytes is not None else state.disk_free_bytes
    read, outgrown = _grown(
        replace(state, devices=devices, host=host, cordons=cordons, disk_free_bytes=disk_free_bytes)
    )
    notes += _disk_notes(state, read)
    joined = [a for a in read.attempts.values() if a.device in event.foreign and not a.foreign_seen]
    for attempt in sorted(joined, key=lambda attempt: attempt.id):
        seen_foreign = replace(attempt, foreign_seen=True)
        read = replace(read, attempts=read.attempts.set(attempt.id, seen_foreign))
        records.append(SaveAttempt(seen_foreign))
        message = f"a process that is not boundd's is on the device of {attempt.label}"
        notes.append(replace(_note(Action.FOREIGN_PROCESS, message, attempt), level="warning"))
    return replace(read, attempts=_witnessed(read, event)), (*_commit(records), *notes, *outgrown)


def _witnessed(state: State, event: ev.DevicesRead) -> Map[str, Attempt]:
    """The attempts with what this pass attests of their devices; the first reason against it stays."""
    attempts = state.attempts
    for attempt in state.attempts.values():
        why = attempt.unattested or event.unattested.get(attempt.device, "")
        seen = attempt.witnessed or attempt.id in event.witnessed
        if (why, seen) != (attempt.unattested, attempt.witnessed):
            attempts = attempts.set(attempt.id, replace(attempt, unattested=why, witnessed=seen))
    return attempts


def _devices_unreadable(state: State, event: ev.DevicesUnreadable, now: Now) -> Step:
    devices = state.devices
    for uuid, device in devices.items():
        unread = replace(device.reading, total_bytes=None, free_bytes=None, unavailable=event.why)
        devices = devices.set(uuid, replace(device, reading=unread))
    is_news = any(not device.reading.unavailable for device in state.devices.values())
    note = Note(Action.DEVICE_UNAVAILABLE, f"no device can be read: {event.why}", "error")
    return replace(state, devices=devices), ((note,) if is_news else ())


def _disk_notes(before: State, after: State) -> list[Note]:
    """A word when the disk's room begins to hold new work back, and when it no longer does."""
    if bool(before.disk_shortage) == bool(after.disk_shortage):
        return []
    fields = {"boundd.disk_free_bytes": after.disk_free_bytes}
    if after.disk_shortage:
        return [Note(Action.DISK_PROBLEM, after.disk_shortage, "warning", fields=fields)]
    return [Note(Action.DISK_RECOVERED, "the disk has room again: attempts are started", fields=fields)]


def _falls_ill(before: Device | None, reading: DeviceReading) -> bool:
    """Whether the driver holds something against the device that it didn't at the reading before: what a person has
    put back into service stays there, until there is more."""
    return bool(reading.ailment) and (before is None or before.reading.ailment != reading.ailment)


def _grown(state: State) -> tuple[State, list[Note]]:
    """The attempts with the most that they were seen to hold, and a word about each that has outgrown its reservation.

    On the CPU device an attempt has the whole host, and a resident set counts pages that are shared.
    """
    attempts, notes = state.attempts, []
    for _, attempt in sorted(state.attempts.items()):
        device = state.devices.get(attempt.device)
        held = device.observed_bytes.get(attempt.id) if device is not None else None
        if device is None or held is None or held <= attempt.observed_peak_bytes or device.reading.backend == "cpu":
            continue
        grown = replace(attempt, observed_peak_bytes=held)
        attempts = attempts.set(attempt.id, grown)
        if over_bytes(grown) > SLACK_BYTES >= over_bytes(attempt):
            message = (
                f"{attempt.label} holds {held:,} bytes of {device.reading.name}, {over_bytes(grown):,} more than the "
                f"{attempt.reservation_bytes:,} that are reserved for it"
            )
            fields = {"boundd.observed_bytes": held, "boundd.reservation_bytes": attempt.reservation_bytes}
            notes.append(replace(_note(Action.RESERVATION_EXCEEDED, message, attempt), level="warning", fields=fields))
    return (state if attempts is state.attempts else replace(state, attempts=attempts)), notes


def _device_notes(before: Device | None, after: Device) -> list[Note]:
    reading = after.reading
    was_lost = before is not None and bool(before.reading.unavailable)
    if reading.unavailable:
        if was_lost:
            return []
        message = f"{reading.name or reading.uuid} can't be used: {reading.unavailable}"
        return [Note(Action.DEVICE_UNAVAILABLE, message, "warning", device=after.uuid)]
    fields = {"boundd.total_bytes": reading.total_bytes, "boundd.free_bytes": reading.free_bytes}
    if before is None:
        remark = f"; {reading.remark}" if reading.remark else ""
        message = f"{reading.name} ({reading.backend}){remark}"
        # That a GPU is not what is measured must not be overlooked.
        level = "warning" if reading.remark and reading.backend == "cpu" else "info"
        return [Note(Action.DEVICE_FOUND, message, level, device=after.uuid, fields=fields)]
    if was_lost:
        return [Note(Action.DEVICE_RECOVERED, f"{reading.name} can be used again", device=after.uuid, fields=fields)]
    return []


def _attempt_started(state: State, event: ev.AttemptStarted, now: Now) -> Step:
    attempt = state.attempts[event.attempt_id]
    running = replace(attempt, state=next_attempt_state(attempt.state, AttemptTrigger.STARTED))
    note = _note(Action.ATTEMPT_STARTED, f"attempt {attempt.number} of {attempt.label} runs", attempt)
    new = replace(state, attempts=state.attempts.set(attempt.id, running))
    # Not worth a commit: that an attempt runs, the next daemon sees for itself.
    return (new, ()) if running == attempt else (new, (note,))


def _attempt_progressed(state: State, event: ev.AttemptProgressed, now: Now) -> Step:
    attempt = replace(state.attempts[event.attempt_id], progress_done=event.done, progress_total=event.total)
    return replace(state, attempts=state.attempts.set(attempt.id, attempt)), ()


def _point_measured(state: State, event: ev.PointMeasured, now: Now) -> Step:
    attempt = state.attempts[event.attempt_id]
    if event.index < attempt.points:
        return state, ()  # the file of an adopted attempt is read from its start
    counted = replace(attempt, points=event.index + 1)
    point = event.point
    fields = {"boundd.speedup": point.speedup, "boundd.score_loss": point.score_loss}
    note = replace(
        _note(Action.POINT_MEASURED, f"{attempt.label}: {point.speedup:.2f}x", attempt), level="debug", fields=fields
    )
    new = replace(state, attempts=state.attempts.set(attempt.id, counted))
    return new, (Commit((SavePoint(attempt.id, event.index, point), SaveAttempt(counted))), note)


def _attempt_ended(state: State, event: ev.AttemptEnded, now: Now) -> Step:
    return end_attempt(state, state.attempts[event.attempt_id], event.verdict, now)


def _attempt_unkillable(state: State, event: ev.AttemptUnkillable, now: Now) -> Step:
    attempt = state.attempts.get(event.attempt_id)
    if attempt is None or attempt.unkillable:
        return state, ()
    stuck = replace(attempt, unkillable=event.why)
    state = replace(state, attempts=state.attempts.set(attempt.id, stuck))
    new, records, notes = cordoned_for(state, stuck)
    told = replace(_note(Action.ATTEMPT_UNKILLABLE, f"{attempt.label}: {event.why}", attempt), level="error")
    return new, (*_commit(records), told, *notes)


def _retry_requested(state: State, event: ev.RetryRequested, now: Now) -> Step:
    cells, records = state.cells, []
    for key in event.keys:
        record = cells[key]
        if record.state not in ENDED_CELL_STATES:
            continue
        again = replace(
            record,
            state=next_cell_state(record.state, Trigger.RETRY),
            charged_failures=0,
            plain_failures=0,
            free_failures=0,
            memory_level=max(record.memory_level, LEVELS + 1 if record.state is CellState.OUT_OF_MEMORY else 0),
            batch_size=event.batch_size if event.batch_size is not None else batch_to_retry(state, record),
            not_before_boot_s=0.0,
            avoid="",
            error=None,
            measurement=None,
        )
        cells = cells.set(key, again)
        records.append(SaveCell(again))
    note = Note(Action.CELLS_RETRIED, f"{len(records)} cell(s) put back", fields={"boundd.cells": len(records)})
    return replace(state, cells=cells), (*_commit(records), note, ResultsChanged())


def _cancel_requested(state: State, event: ev.CancelRequested, now: Now) -> Step:
    effects: list[Effect] = []
    records: list[Record] = []
    cells = state.cells
    ending: list[Attempt] = []
    for key in event.keys:
        record = cells[key]
        attempt = state.attempt_of(key)
        if record.state is CellState.PENDING:
            error = AttemptError(ErrorKind.CANCELLED, "cancelled before it ran", now.unix_s)
            cancelled = replace(record, state=next_cell_state(record.state, Trigger.CANCEL), error=error)
            cells = cells.set(key, cancelled)
            records.append(SaveCell(cancelled))
            effects.append(Note(Action.CELL_CANCELLED, f"{record.cell.label} is cancelled", cell=record.cell.label))
        elif attempt is not None:
            ending.append(attempt)
    state, end_records, end_effects = _ask_to_end(replace(state, cells=cells), ending, EndReason.CANCEL)
    return state, (*_commit([*records, *end_records]), *effects, *end_effects, ResultsChanged())


def _ask_to_end(
    state: State, attempts: list[Attempt], reason: EndReason
) -> tuple[State, list[SaveAttempt], list[Effect]]:
    records: list[SaveAttempt] = []
    effects: list[Effect] = []
    live = state.attempts
    for attempt in attempts:
        ending = replace(attempt, state=next_attempt_state(attempt.state, AttemptTrigger.END_ASKED), end_reason=reason)
        live = live.set(attempt.id, ending)
        records.append(SaveAttempt(ending))
        note = _note(Action.ATTEMPT_ENDING, f"{attempt.label}: TERM, {attempt.grace_s:g} s, KILL ({reason})", attempt)
        effects += [note, EndWorker(attempt.id, reason)]
    return replace(state, attempts=live), records, effects


def _pause_requested(state: State, event: ev.PauseRequested, now: Now) -> Step:
    note = Note(Action.RUN_PAUSED, "no new attempts; what runs goes on")
    return replace(state, paused=True), (Commit((SavePaused(True),)), note)


def _resume_requested(state: State, event: ev.ResumeRequested, now: Now) -> Step:
    return replace(state, paused=False), (Commit((SavePaused(False),)), Note(Action.RUN_RESUMED, "new attempts again"))


def _cordon_requested(state: State, event: ev.CordonRequested, now: Now) -> Step:
    uuids = state.with_instances(event.device)
    devices = state.devices
    for uuid in uuids:
        devices = devices.set(uuid, replace(devices[uuid], cordon_reason=event.reason))
    note = Note(
        Action.DEVICE_CORDONED, f"{devices[event.device].reading.name}: {event.reason}", "info", device=event.device
    )
    new = replace(state, devices=devices, cordons={**state.cordons, **dict.fromkeys(uuids, event.reason)})
    return new, (Commit(tuple(SaveCordon(uuid, event.reason) for uuid in uuids)), note)


def _uncordon_requested(state: State, event: ev.UncordonRequested, now: Now) -> Step:
    uuids = state.with_instances(event.device)
    devices = state.devices
    for uuid in uuids:
        devices = devices.set(uuid, replace(devices[uuid], cordon_reason=None))
    cordons = {uuid: reason for uuid, reason in state.cordons.items() if uuid not in uuids}
    strikes = tuple(strike for strike in state.strikes if strike.device not in uuids)
    new = replace(state, devices=devices, cordons=cordons, strikes=strikes)
    name = devices[event.device].reading.name
    note = Note(Action.DEVICE_UNCORDONED, f"{name} is in service again", device=event.device)
    return new, (Commit(tuple(SaveCordon(uuid, None) for uuid in uuids)), note)


def _import_requested(state: State, event: ev.ImportRequested, now: Now) -> Step:
    cells, records = state.cells, []
    for entry in event.entries:
        record = cells[entry.key]
        if record.state is not CellState.PENDING:
            continue  # what was measured here, or is being measured, counts for more than an old file
        imported = _imported(record, entry, now)
        cells = cells.set(entry.key, imported)
        records.append(SaveCell(imported))
    note = Note(Action.CELLS_IMPORTED, f"{len(records)} cell(s) imported", fields={"boundd.cells": len(records)})
    return replace(state, cells=cells), (*_commit(records), note, ResultsChanged())


def _imported(record: CellRecord, entry: ev.Imported, now: Now) -> CellRecord:
    if entry.measurement is not None:
        state = next_cell_state(record.state, Trigger.IMPORT_SUCCESS)
        return replace(record, state=state, measurement=entry.measurement)
    kind = entry.error_kind or ErrorKind.OTHER
    state = next_cell_state(record.state, IMPORT_ERROR.get(kind, Trigger.IMPORT_FAILED))
    error = AttemptError(kind, entry.message, entry.at_unix_s if entry.at_unix_s is not None else now.unix_s)
    return replace(record, state=state, error=error)


def _shutdown_requested(state: State, event: ev.ShutdownRequested, now: Now) -> Step:
    running = [each for _, each in sorted(state.attempts.items()) if each.state is not AttemptState.ENDING]
    what = "ending" if event.end_workers else "leaving for the next daemon"
    note = Note(
        Action.DAEMON_STOPPING, f"{what} {len(running)} worker(s)", fields={"boundd.live_attempts": len(running)}
    )
    stopping = replace(state, stopping=True)
    if not event.end_workers:
        return stopping, (note,)
    stopping, records, effects = _ask_to_end(stopping, running, EndReason.PUT_BACK)
    return stopping, (*_commit(records), note, *effects)


def _wake(state: State, event: ev.Wake, now: Now) -> Step:
    return wake_with(plan, state, now)


def wake_with(planner: Callable[[State, Now], Plan], state: State, now: Now) -> Step:
    """What a `Wake` does where this planner plans: the core's own, or one that a simulation compares with it."""
    state, cordons, cordon_notes = cordoned(seen_running(state, now.boot_s))
    planned = planner(state, now)
    wake = () if planned.next_wake_boot_s is None else (WakeAt(planned.next_wake_boot_s),)
    records: list[Record] = [*cordons, *(SaveAttempt(attempt) for attempt in (*planned.started, *planned.joined))]
    records += [SaveCell(planned.state.cells[attempt.key]) for attempt in planned.started]
    effects: list[Effect] = [*_commit(records), *cordon_notes]
    for attempt in planned.started:
        message = (
            f"attempt {attempt.number} of {attempt.label}: {attempt.reservation_bytes:,} bytes reserved, "
            f"{planned.reasons.get(attempt.id, '')}"
        )
        fields = {
            "boundd.reservation_bytes": attempt.reservation_bytes,
            "boundd.estimate_bytes": attempt.estimate_bytes,
            "boundd.host_memory_bytes": attempt.host_memory_bytes,
            "boundd.cores": attempt.cores,
            "boundd.batch_size": attempt.batch_size,
        }
        effects.append(replace(_note(Action.ATTEMPT_STARTING, message, attempt), fields=fields))
        effects.append(Spawn(attempt, planned.state.cells[attempt.key].cell))
    return planned.state, (*effects, *wake)


def _commit(records: list[Any]) -> tuple[Commit, ...]:
    return (Commit(tuple(records)),) if records else ()


def _note(action: Action, message: str, attempt: Attempt) -> Note:
    return Note(action, message, cell=attempt.label, attempt=attempt.id, device=attempt.device)


_HANDLERS: dict[type, Callable[[State, Any, Now], Step]] = {
    ev.ConfigLoaded: _config_loaded,
    ev.DevicesRead: _devices_read,
    ev.DevicesUnreadable: _devices_unreadable,
    ev.AttemptStarted: _attempt_started,
    ev.AttemptProgressed: _attempt_progressed,
    ev.PointMeasured: _point_measured,
    ev.AttemptEnded: _attempt_ended,
    ev.AttemptUnkillable: _attempt_unkillable,
    ev.RetryRequested: _retry_requested,
    ev.CancelRequested: _cancel_requested,
    ev.PauseRequested: _pause_requested,
    ev.ResumeRequested: _resume_requested,
    ev.CordonRequested: _cordon_requested,
    ev.UncordonRequested: _uncordon_requested,
    ev.ImportRequested: _import_requested,
    ev.ShutdownRequested: _shutdown_requested,
    ev.Wake: _wake,
}
