"""`step(state, event, now) -> (state, effects)`: everything that boundd decides, decided here.

Effects are in order: what is committed first, then what is done because of it. Where a commit fails, the shell keeps
the old state, and the event has not happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from immutables import Map

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.lifecycle.ending import end_attempt
from boundd.core.lifecycle.retry import batch_to_retry
from boundd.core.memory.diagnosis import SLACK_BYTES, over_bytes
from boundd.core.memory.raising import LEVELS
from boundd.core.model import events as ev
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, EndReason
from boundd.core.model.devices import Device
from boundd.core.model.effects import Action, Commit, Effect, EndWorker, Note, ResultsChanged, Spawn, WakeAt
from boundd.core.model.events import Event, Now
from boundd.core.model.outcomes import AttemptError
from boundd.core.model.queues import Cells
from boundd.core.model.records import Record, SaveAttempt, SaveCell, SavePaused, SavePoint
from boundd.core.model.state import State
from boundd.core.model.transitions import (
    ENDED_CELL_STATES,
    IMPORT_ERROR,
    AttemptTrigger,
    Trigger,
    next_attempt_state,
    next_cell_state,
)
from boundd.core.scheduler import environment
from boundd.core.scheduler.planner import Plan, plan
from boundd.core.scheduler.quarantine import (
    impose_as_on_parent,
    impose_by_operator,
    impose_for_deaths,
    impose_for_fault,
    impose_for_unkillable,
    lift_by_operator,
)
from boundd.core.scheduler.quick_deaths import mark_survivors
from boundd.text import count, size

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
    cells = Cells.of(known.records.update(changed), order, known.memo)
    # A config that is read again and again must not make anybody wait from the beginning.
    refused_since = Map({needs: since for needs, since in state.refused_since.items() if needs in cells.queues})
    new = replace(
        state, rules=event.rules, settings=event.settings, cells=cells, order=order, refused_since=refused_since
    )
    # A config that names another interpreter or another source may have cured what is held back.
    new = environment.probe_all_again(new)
    counts = {f"boundd.cells_{name}": count for name, count in sorted(new.count_by_state().items())}
    note = Note(Action.MATRIX_LOADED, f"the matrix has {len(new.order)} cells", fields=counts)
    return new, (*_commit(records), note, ResultsChanged())


def _devices_read(state: State, event: ev.DevicesRead, now: Now) -> Step:
    devices, notes = state.devices, []
    records: list[Record] = []
    seen = {reading.uuid for reading in event.readings}
    for reading in event.readings:
        before = devices.get(reading.uuid)
        observed = event.observed_bytes.get(reading.uuid, {})
        device = Device(reading, state.quarantine_of(reading.uuid), observed)
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
    hosts = {**state.hosts, **event.hosts}
    disk_free_bytes = event.disk_free_bytes if event.disk_free_bytes is not None else state.disk_free_bytes
    read, outgrown = _record_peaks(replace(state, devices=devices, hosts=hosts, disk_free_bytes=disk_free_bytes))
    for reading in event.readings:
        last = state.devices.get(reading.uuid)
        if last is None and reading.parent in state.devices:
            read, saved, _ = impose_as_on_parent(read, reading, now)
            records += saved
        if reading.driver_fault:
            read, saved, told = impose_for_fault(read, None if last is None else last.reading, reading, now)
            records += saved
            notes += told
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
    short = after.disk_shortage
    if (before.disk_shortage is None) == (short is None):
        return []
    fields = {"boundd.disk_free_bytes": after.disk_free_bytes}
    if short is not None:
        return [Note(Action.DISK_PROBLEM, wording.disk_short(short), "warning", fields=fields)]
    return [Note(Action.DISK_RECOVERED, "the disk has room again: attempts are started", fields=fields)]


def _record_peaks(state: State) -> tuple[State, list[Note]]:
    """The attempts with the most that they were seen to hold, and a word about each that has outgrown its reservation.

    On the CPU device an attempt has the whole host, and a resident set counts pages that are shared.
    """
    attempts, notes = state.attempts, []
    for _, attempt in sorted(state.attempts.items()):
        device = state.devices.get(attempt.device)
        held = device.observed_bytes.get(attempt.id) if device is not None else None
        if device is None or held is None or held <= attempt.observed_peak_bytes or device.reading.kind.is_host:
            continue
        grown = replace(attempt, observed_peak_bytes=held)
        attempts = attempts.set(attempt.id, grown)
        if over_bytes(grown) > SLACK_BYTES >= over_bytes(attempt):
            message = (
                f"{attempt.label} holds {size(held)} of {wording.device(device.reading)}, {size(over_bytes(grown))} "
                f"more than the {size(attempt.reservation_bytes)} that are reserved for it"
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
        message = f"{wording.device(reading)} can't be used: {reading.unavailable}"
        return [Note(Action.DEVICE_UNAVAILABLE, message, "warning", device=after.uuid)]
    fields = {"boundd.total_bytes": reading.total_bytes, "boundd.free_bytes": reading.free_bytes}
    if before is None:
        remark = f"; {reading.remark}" if reading.remark else ""
        message = f"{wording.device(reading)}, backend {reading.backend}{remark}"
        # That a GPU is not what is measured must not be overlooked.
        level = "warning" if reading.remark and reading.backend == "cpu" else "info"
        return [Note(Action.DEVICE_FOUND, message, level, device=after.uuid, fields=fields)]
    if was_lost:
        return [
            Note(
                Action.DEVICE_RECOVERED,
                f"{wording.device(reading)} can be used again",
                device=after.uuid,
                fields=fields,
            )
        ]
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
    new = replace(state, attempts=state.attempts.set(attempt.id, attempt))
    return _close_probed(new, attempt, now) if event.done > 0 else (new, ())


def _close_probed(state: State, attempt: Attempt, now: Now) -> Step:
    """The state once an attempt has said that it works; what waited for that is planned at once."""
    new, notes = environment.close_probed_by(state, attempt)
    return new, (*notes, WakeAt(now.boot_s)) if notes else ()


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
    new, further = _close_probed(new, counted, now)
    return new, (Commit((SavePoint(attempt.id, event.index, point), SaveAttempt(counted))), note, *further)


def _attempt_ended(state: State, event: ev.AttemptEnded, now: Now) -> Step:
    return end_attempt(state, state.attempts[event.attempt_id], event.verdict, now)


def _attempt_unkillable(state: State, event: ev.AttemptUnkillable, now: Now) -> Step:
    attempt = state.attempts.get(event.attempt_id)
    if attempt is None or attempt.unkillable:
        return state, ()
    stuck = replace(attempt, unkillable=event.processes)
    state = replace(state, attempts=state.attempts.set(attempt.id, stuck))
    new, records, notes = impose_for_unkillable(state, stuck, now)
    message = f"{attempt.label}: {wording.stuck_processes(event.processes)}"
    told = replace(_note(Action.ATTEMPT_UNKILLABLE, message, attempt), level="error")
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
    note = Note(Action.CELLS_RETRIED, f"{count(len(records), 'cell')} put back", fields={"boundd.cells": len(records)})
    new = environment.probe_all_again(replace(state, cells=cells))
    return new, (*_commit(records), note, ResultsChanged())


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
    new, records, notes = impose_by_operator(state, event.device, event.reason, now)
    return new, (*_commit(records), *notes)


def _uncordon_requested(state: State, event: ev.UncordonRequested, now: Now) -> Step:
    new, records, notes = lift_by_operator(state, event.device)
    return new, (*_commit(records), *notes)


def _import_requested(state: State, event: ev.ImportRequested, now: Now) -> Step:
    cells, records = state.cells, []
    for entry in event.entries:
        record = cells[entry.key]
        if record.state is not CellState.PENDING:
            continue  # what was measured here, or is being measured, counts for more than an old file
        imported = _imported(record, entry, now)
        cells = cells.set(entry.key, imported)
        records.append(SaveCell(imported))
    note = Note(Action.CELLS_IMPORTED, f"{count(len(records), 'cell')} imported", fields={"boundd.cells": len(records)})
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
        Action.DAEMON_STOPPING, f"{what} {count(len(running), 'worker')}", fields={"boundd.live_attempts": len(running)}
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
    state, imposed, imposed_notes = impose_for_deaths(mark_survivors(state, now.boot_s), now)
    state, passed_notes = environment.close_outlived(state, now.boot_s)
    planned = planner(state, now)
    wake = () if planned.next_wake_boot_s is None else (WakeAt(planned.next_wake_boot_s),)
    records: list[Record] = [*imposed, *(SaveAttempt(attempt) for attempt in (*planned.started, *planned.joined))]
    records += [SaveCell(planned.state.cells[attempt.key]) for attempt in planned.started]
    effects: list[Effect] = [*_commit(records), *imposed_notes, *passed_notes]
    for attempt in planned.started:
        message = (
            f"attempt {attempt.number} of {attempt.label}: {size(attempt.reservation_bytes)} reserved"
            f"{_why_there(planned, attempt)}"
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


def _why_there(planned: Plan, attempt: Attempt) -> str:
    """Where it was placed and why, after a comma; empty where another planner than the core's doesn't say."""
    chosen, found = planned.choices.get(attempt.id), planned.state.devices.get(attempt.device)
    if chosen is None or found is None:
        return ""
    return f", {wording.device_name(found.reading)}: {wording.placement_reason(chosen)}"


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
