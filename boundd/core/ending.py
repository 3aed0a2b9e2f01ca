"""What follows when an attempt has ended: one result recorded, and the cell done, put back or given up."""

from __future__ import annotations

from dataclasses import replace

from boundd.core.attempts import Attempt, AttemptState, CellRecord, EndReason
from boundd.core.effects import Action, Commit, Effect, Note, ResultsChanged
from boundd.core.events import Now
from boundd.core.footprint import CONTEXT_BYTES, Observation, subject
from boundd.core.lifecycle import GIVE_UP, AttemptTrigger, Trigger, next_attempt_state, next_cell_state
from boundd.core.outcomes import Outcome, Verdict
from boundd.core.records import Record, SaveCell, SaveEnd, SaveObservation
from boundd.core.retry import decide
from boundd.core.state import State


def end_attempt(state: State, attempt: Attempt, verdict: Verdict, now: Now) -> tuple[State, tuple[Effect, ...]]:
    """Record the end of a live attempt and decide what becomes of its cell."""
    ended = replace(attempt, state=next_attempt_state(attempt.state, AttemptTrigger.ENDED))
    assert ended.state is AttemptState.ENDED
    record, notes = _cell_after(state, attempt, verdict, now)
    observation = observed(state, attempt, verdict)
    records: list[Record] = [SaveEnd(ended, verdict, now.unix_s), SaveCell(record)]
    if observation is not None:
        records.append(SaveObservation(observation))
    new = replace(
        state,
        attempts=state.attempts.delete(attempt.id),
        cells=state.cells.set(attempt.key, record),
        observations=state.observations if observation is None else (*state.observations, observation),
    )
    return new, (Commit(tuple(records)), _end_note(attempt, verdict), *notes, ResultsChanged())


def observed(state: State, attempt: Attempt, verdict: Verdict) -> Observation | None:
    """What the attempt teaches about footprints; None where it reported no peak."""
    device = state.devices.get(attempt.device)
    peak = verdict.peak_reserved_bytes or verdict.peak_allocated_bytes
    censored = verdict.outcome is Outcome.OUT_OF_MEMORY and attempt.cap_bytes is not None
    if censored:
        peak = attempt.cap_bytes
    if device is None or not peak or not (censored or verdict.outcome is Outcome.SUCCEEDED):
        return None
    # torch's counters do not see the CUDA context; the CPU's peak is of the whole process.
    context = 0 if censored or device.reading.backend == "cpu" else CONTEXT_BYTES
    about = subject(state.cells[attempt.key].cell.parameters, device.reading.name)
    return Observation(about, attempt.batch_size or 1, peak + context, censored)


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
    decision = decide(record, attempt, verdict, state.rules)
    if decision.again:
        again = replace(
            decision.record,
            state=next_cell_state(record.state, Trigger.TRY_AGAIN),
            not_before_boot_s=now.boot_s + decision.delay_s if decision.delay_s else 0.0,
        )
        return again, [_note(Action.CELL_RETRYING, f"{attempt.label}: {decision.why}", attempt, "warning")]
    given_up = replace(decision.record, state=next_cell_state(record.state, GIVE_UP[verdict.outcome]))
    return given_up, [_note(Action.CELL_GAVE_UP, f"{attempt.label}: {decision.why}", attempt, "error")]


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
    return replace(note, fields={name: value for name, value in fields.items() if value is not None})


def _note(action: Action, message: str, attempt: Attempt, level: str = "info") -> Note:
    return Note(action, message, level, cell=attempt.label, attempt=attempt.id, device=attempt.device)
