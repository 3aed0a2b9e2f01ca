"""What follows when an attempt has ended: one result recorded, and the cell done, put back or given up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from immutables import Map

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.lifecycle.patience import give_up_waiting_cells, retry_uncharged
from boundd.core.lifecycle.retry import decide, lower_batch_of_siblings
from boundd.core.memory.diagnosis import diagnose
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, EndReason
from boundd.core.model.devices import Device
from boundd.core.model.effects import Action, Commit, Effect, Note, ResultsChanged
from boundd.core.model.events import Now
from boundd.core.model.history import Observation
from boundd.core.model.outcomes import MemoryCause, Outcome, Verdict
from boundd.core.model.records import Record, SaveCell, SaveDuration, SaveEnd, SaveObservation
from boundd.core.model.state import State
from boundd.core.model.transitions import GIVE_UP, AttemptTrigger, Trigger, next_attempt_state, next_cell_state
from boundd.core.model.workload import subject_on
from boundd.core.scheduler import environment
from boundd.core.scheduler.durations import duration_of
from boundd.core.scheduler.quarantine import impose_for_deaths, lift_after
from boundd.core.scheduler.quick_deaths import is_quick_failure, record_end


def end_attempt(state: State, attempt: Attempt, verdict: Verdict, now: Now) -> tuple[State, tuple[Effect, ...]]:
    """Record the end of a live attempt and decide what becomes of its cell."""
    ended = replace(attempt, state=next_attempt_state(attempt.state, AttemptTrigger.ENDED))
    assert ended.state is AttemptState.ENDED
    verdict, memory_notes = _diagnosed(state, attempt, verdict)
    state, environment_notes = environment.after_end(state, attempt, verdict, now)
    record, notes = _cell_after(state, attempt, verdict, now)
    records: list[Record] = [SaveEnd(ended, verdict, now.unix_s), SaveCell(record)]
    new = replace(
        state,
        devices=_with_bytes_freed(state, attempt),
        attempts=state.attempts.delete(attempt.id),
        cells=state.cells.set(attempt.key, record),
        completions=state.completions + 1,
    )
    new, lessons = _learned(new, attempt, verdict)
    new, ended_with, ended_notes = give_up_waiting_cells(new, attempt, verdict)
    lessons += ended_with
    if verdict.error is not None and verdict.error.cause is MemoryCause.TOO_BIG:
        new, cut = lower_batch_of_siblings(new, attempt)
        lessons = [*lessons, *cut]
        memory_notes += [_batch_lowered_note(saved.record, attempt) for saved in cut]
    new = record_end(new, attempt, verdict, now.boot_s)
    new, lifted, lift_notes = lift_after(new, attempt, now)
    new, imposed, imposed_notes = impose_for_deaths(new, now)
    told = (_end_note(attempt, verdict), *memory_notes, *notes, *environment_notes, *ended_notes)
    told += (*lift_notes, *imposed_notes)
    return new, (Commit((*records, *lessons, *lifted, *imposed)), *told, ResultsChanged())


def _with_bytes_freed(state: State, attempt: Attempt) -> Map[str, Device]:
    """The devices with the attempt's bytes free in the latest reading, by what that reading saw it hold.

    Nothing of it is alive, so they are free or about to be. The next reading says so too, but until then whatever takes
    its place would wait. On the CPU device a resident set counts pages that are shared, and says nothing of this kind.
    """
    device = state.devices.get(attempt.device)
    held = device.observed_bytes.get(attempt.id) if device is not None else None
    if device is None or not held or device.reading.free_bytes is None or device.reading.kind.is_host:
        return state.devices
    total = device.reading.total_bytes or 0
    reading = replace(device.reading, free_bytes=min(total, device.reading.free_bytes + held))
    others = {each: size for each, size in device.observed_bytes.items() if each != attempt.id}
    return state.devices.set(device.uuid, replace(device, reading=reading, observed_bytes=others))


def _diagnosed(state: State, attempt: Attempt, verdict: Verdict) -> tuple[Verdict, list[Note]]:
    """The verdict with the cause, where memory ran out, and who is to be named for it."""
    if verdict.outcome is not Outcome.OUT_OF_MEMORY or verdict.error is None:
        return verdict, []
    found = diagnose(state, attempt, verdict)
    fields = {
        "boundd.cause": found.cause,
        "boundd.reservation_bytes": attempt.reservation_bytes,
        "boundd.cap_bytes": attempt.cap_bytes,
        "boundd.requested_bytes": verdict.error.requested_bytes,
        "boundd.free_bytes": verdict.error.free_bytes,
        "boundd.phase": verdict.error.phase,
        "boundd.neighbours": [other.label for other in found.outgrown] or None,
    }
    words = f"{wording.memory_cause(found.cause)}: {wording.evidence(found.evidence)}"
    note = _note(Action.OUT_OF_MEMORY, f"{attempt.label}: {words}", attempt, "warning")
    note = replace(note, fields={name: value for name, value in fields.items() if value is not None})
    return replace(verdict, error=replace(verdict.error, cause=found.cause, evidence=found.evidence)), [note]


def _batch_lowered_note(record: CellRecord, attempt: Attempt) -> Note:
    """Told of every cell whose batch another one's failure has lowered: a smaller batch is another measurement."""
    message = (
        f"{record.cell.label}: batch {record.batch_size} instead of {attempt.batch_size} before it is tried: "
        f"{attempt.label} takes the same memory and ran out of it alone on the largest device"
    )
    fields = {"boundd.batch_size": record.batch_size}
    return Note(Action.BATCH_LOWERED, message, "warning", cell=record.cell.label, fields=fields)


def _learned(state: State, attempt: Attempt, verdict: Verdict) -> tuple[State, list[Record]]:
    """What the attempt teaches of memory and of time."""
    records: list[Record] = []
    observation = observed(state, attempt, verdict)
    if observation is not None:
        state = replace(state, observations=state.observations.add(observation))
        records.append(SaveObservation(observation))
    device = state.devices.get(attempt.device)
    if device is not None and verdict.outcome is Outcome.SUCCEEDED and verdict.wall_s is not None:
        work = state.memo.workload_of(state.cells[attempt.key], attempt.batch_size)
        duration = duration_of(work, device.reading.name, verdict.wall_s)
        state = replace(state, durations=state.durations.add(duration))
        records.append(SaveDuration(duration))
    return state, records


def observed(state: State, attempt: Attempt, verdict: Verdict) -> Observation | None:
    """What the attempt teaches about footprints; None where it reported no peak.

    Out of memory at its cap, its peak was at least what was reserved. Where others took its memory, it says nothing.
    """
    device = state.devices.get(attempt.device)
    cause = verdict.error.cause if verdict.error is not None else None
    censored = cause in (MemoryCause.ESTIMATE_TOO_LOW, MemoryCause.TOO_BIG) and attempt.cap_bytes is not None
    peak = verdict.peak_reserved_bytes or verdict.peak_allocated_bytes
    if device is None or not (censored or (peak and verdict.outcome is Outcome.SUCCEEDED)):
        return None
    # torch's counters do not see the CUDA context; the CPU's peak is of the whole process.
    context = device.reading.kind.context_bytes
    work = state.memo.workload_of(state.cells[attempt.key], attempt.batch_size)
    return Observation(
        subject_on(work, device.reading.name),
        work.batch_size,
        attempt.reservation_bytes if censored else (peak or 0) + context,
        censored,
        work.pixels,
        _torch_of(verdict) or state.rules.torch,
        verdict.host_peak_bytes,
        attempt.estimate_bytes,
    )


def _torch_of(verdict: Verdict) -> str:
    """The version that the worker said it ran with; empty where it didn't."""
    details = verdict.measurement.details if verdict.measurement is not None else {}
    fingerprint = details.get("fingerprint")
    found = fingerprint.get("torch") if isinstance(fingerprint, Mapping) else None
    return found if isinstance(found, str) else ""


def _cell_after(state: State, attempt: Attempt, verdict: Verdict, now: Now) -> tuple[CellRecord, list[Note]]:
    record = state.cells[attempt.key]
    if verdict.outcome is Outcome.SUCCEEDED:
        return _succeeded(record, attempt, verdict)
    if attempt.end_reason is EndReason.PUT_BACK:
        put_back = replace(record, state=next_cell_state(record.state, Trigger.TRY_AGAIN))
        return put_back, [_note(Action.CELL_RETRYING, f"{attempt.label} is put back", attempt)]
    if attempt.end_reason is EndReason.CANCEL or verdict.outcome is Outcome.CANCELLED:
        cancelled = replace(record, state=next_cell_state(record.state, Trigger.CANCEL), error=verdict.error)
        return cancelled, [_note(Action.CELL_CANCELLED, f"{attempt.label} is cancelled", attempt)]
    if environment.is_environment(verdict.error):
        decision = retry_uncharged(state, record, attempt, verdict)
    else:
        decision = decide(record, attempt, verdict, state.rules)
    message = f"{attempt.label}: {wording.retry(decision.reason)}"
    if decision.again:
        again = replace(
            decision.record,
            state=next_cell_state(record.state, Trigger.TRY_AGAIN),
            not_before_boot_s=now.boot_s + decision.delay_s if decision.delay_s else 0.0,
            avoid=attempt.device if _speaks_against_device(state, attempt, verdict) else "",
        )
        return again, [_note(Action.CELL_RETRYING, message, attempt, "warning")]
    given_up = replace(decision.record, state=next_cell_state(record.state, GIVE_UP[verdict.outcome]))
    return given_up, [_note(Action.CELL_GAVE_UP, message, attempt, "error")]


def _speaks_against_device(state: State, attempt: Attempt, verdict: Verdict) -> bool:
    """Whether the cell is better tried on another device next."""
    failed = verdict.error is not None and verdict.error.kind is ErrorKind.DEVICE_FAILED
    return failed or is_quick_failure(attempt, verdict, state.rules.quick_s)


def _succeeded(record: CellRecord, attempt: Attempt, verdict: Verdict) -> tuple[CellRecord, list[Note]]:
    measured = verdict.measurement
    assert measured is not None
    done = replace(
        record,
        state=next_cell_state(record.state, Trigger.SUCCEED),
        error=None,
        measurement=measured,
        measured_device=attempt.device,
        measured_batch_size=attempt.batch_size,
        duration_s=verdict.wall_s,
    )
    fields = {
        "boundd.max_speedup": measured.max_speedup,
        "boundd.max_speedup_within_tolerance": measured.max_speedup_within_tolerance,
        "boundd.isolation": measured.isolation,
        "boundd.duration_s": verdict.wall_s,
    }
    within = measured.max_speedup_within_tolerance
    figure = f"{within:.2f}x within tolerance" if within is not None else f"{measured.max_speedup or 0:.2f}x"
    note = replace(_note(Action.CELL_SUCCEEDED, f"{attempt.label}: {figure}", attempt), fields=fields)
    return done, [note]


def _end_note(attempt: Attempt, verdict: Verdict) -> Note:
    error = verdict.error
    fields = {
        "boundd.outcome": verdict.outcome,
        "boundd.exit_status": verdict.exit_status,
        "boundd.signal": verdict.signal,
        "boundd.wall_s": verdict.wall_s,
        "boundd.error_kind": error.kind if error else None,
        "boundd.error_message": error.message if error else None,
    }
    level = "info" if error is None else "warning"
    note = _note(
        Action.ATTEMPT_ENDED, f"attempt {attempt.number} of {attempt.label}: {verdict.outcome}", attempt, level
    )
    return replace(note, fields={name: value for name, value in fields.items() if value is not None}, verdict=verdict)


def _note(action: Action, message: str, attempt: Attempt, level: str = "info") -> Note:
    return Note(action, message, level, cell=attempt.label, attempt=attempt.id, device=attempt.device)
