"""The state as the API's answers: plain functions, no I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from boundd import __version__
from boundd.api import answers
from boundd.catalogue.outcomes import ErrorKind
from boundd.core.memory.headroom import headroom_bytes
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt, CellRecord, CellState
from boundd.core.model.devices import Device, DeviceState
from boundd.core.model.events import Now
from boundd.core.model.outcomes import AttemptError, Measurement, PointRecord
from boundd.core.model.problems import Problem
from boundd.core.model.queries import Query
from boundd.core.model.reasons import (
    Deferral,
    HasEnded,
    NoRoom,
    OtherModel,
    PlainWait,
    Runs,
    Standing,
    Unreadable,
    as_data,
)
from boundd.core.model.state import State
from boundd.core.scheduler import environment
from boundd.core.scheduler.footprint_report import known_footprints
from boundd.core.scheduler.placement import Placement
from boundd.core.scheduler.refusals import best_placement, idle_refusal
from boundd.ports import EndedAttempt, Service
from boundd.protocol.lines import name_of


def timestamp(unix_s: float) -> str:
    """UTC as RFC 3339, with milliseconds."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def status(service: Service, query: Query) -> answers.StatusReply:
    """Everything at a glance. The query narrows the cells and what runs; the devices are always all."""
    state, now = service.state, service.clock.now()
    shown = [record for record in state.matrix() if query.matches(record)]
    keys = {record.cell.key for record in shown}
    live = sorted((a for a in state.attempts.values() if a.key in keys), key=lambda a: (a.started_boot_s, a.id))
    return answers.StatusReply(
        daemon=answers.DaemonInfo(
            version=__version__,
            pid=os.getpid(),
            started_at=timestamp(service.started_unix_s),
            paused=state.paused,
            stopping=state.stopping,
            store_problem=service.store_problem,
        ),
        devices=devices(state),
        cells=counts(shown),
        running=[running(attempt, now) for attempt in live],
        problems=problems(state, now),
        eta_s=eta_s(state, shown, live, now),
    )


def problems(state: State, now: Now) -> list[answers.ProblemInfo]:
    """What is wrong outside the cells: one entry for what is one thing, whoever waits for it."""
    found: dict[tuple[ErrorKind, str], list[Problem]] = {}
    for like, problem in sorted(state.problems.items()):
        found.setdefault((like.kind, problem.subject), []).append(problem)
    return [_problem(state, parts, now) for parts in found.values()]


def _problem(state: State, parts: Sequence[Problem], now: Now) -> answers.ProblemInfo:
    latest = max(parts, key=lambda problem: problem.last_boot_s)
    probing = [state.attempts[each.probe].label for each in parts if each.probe in state.attempts]
    next_try_s = min((max(0.0, each.not_before_boot_s - now.boot_s) for each in parts if not each.probe), default=None)
    return answers.ProblemInfo(
        kind=latest.key.kind,
        subject=latest.subject,
        summary=wording.problem(latest.key.kind, environment.subject_of(latest)),
        message=latest.message,
        cure=wording.cure(latest.key.kind),
        since=timestamp(min(each.since_unix_s for each in parts)),
        failures=sum(each.failures for each in parts),
        cells=environment.count_waiting(state, parts),
        scopes=[f"{each.key.scope.kind}: {each.key.scope.name}".removesuffix(": ") for each in parts],
        probing=probing,
        next_try_s=None if next_try_s is None else round(next_try_s, 1),
    )


def counts(records: Iterable[CellRecord]) -> answers.CellCounts:
    """How many cells stand in each state; every state is named."""
    by_state = {str(state): 0 for state in CellState}
    for record in records:
        by_state[record.state] += 1
    return answers.CellCounts(total=sum(by_state.values()), by_state=by_state)


def devices(state: State) -> list[answers.DeviceInfo]:
    """The devices, by index."""
    return [device_info(state, device) for device in state.devices_by_index()]


def device_info(state: State, device: Device) -> answers.DeviceInfo:
    """One device, with what is reserved on it and by whom."""
    attempts, reading = state.attempts_on(device.uuid), device.reading
    readable = reading.total_bytes is not None and reading.free_bytes is not None
    idle = idle_refusal(state, device)
    return answers.DeviceInfo(
        uuid=device.uuid,
        index=reading.index,
        name=reading.name,
        backend=reading.backend,
        total_bytes=reading.total_bytes,
        free_bytes=reading.free_bytes,
        reserved_bytes=sum(attempt.reservation_bytes for attempt in attempts),
        headroom_bytes=max(0, headroom_bytes(device, attempts, state.rules.margin_bytes)) if readable else None,
        state=device.state.value,
        reason=wording.out_of_service(device) or ("" if idle is None else wording.idle(idle)),
        cause=_why_it_takes_nothing(device, idle),
        cells=[attempt.label for attempt in attempts],
    )


def _why_it_takes_nothing(device: Device, idle: OtherModel | None) -> dict[str, Any] | None:
    """Why a device takes nothing, as data: a quarantine's cause and since when, among others; None where it may."""
    if device.quarantine is not None:
        since = device.quarantine.since_unix_s
        since_at = {"since": None if since is None else timestamp(since)}
        return as_data(device.quarantine.cause) | since_at
    if device.reading.unavailable:
        return as_data(Unreadable(device.reading.unavailable))
    return None if idle is None else as_data(idle)


def footprints(state: State) -> list[answers.FootprintInfo]:
    """What is expected of the matrix' cells, by what their memory depends on, and what was seen of it."""
    return [
        answers.FootprintInfo(
            subject=known.work.subject,
            device_name=known.device_name,
            batch_size=known.work.batch_size,
            pixels=known.work.pixels,
            estimate_bytes=known.expected.size_bytes,
            source=wording.source(known.expected.source),
            observations=known.observations,
            largest_peak_bytes=known.largest_peak_bytes,
            ran_out=known.ran_out,
            error_percent=[round(error, 1) for error in known.error_percent],
        )
        for known in known_footprints(state)
    ]


def running(attempt: Attempt, now: Now) -> answers.RunningInfo:
    """A live attempt: where it runs, how long already, how far it is."""
    return answers.RunningInfo(
        label=attempt.label,
        attempt=attempt.number,
        attempt_id=attempt.id,
        device=attempt.device,
        state=attempt.state,
        elapsed_s=max(0.0, now.boot_s - attempt.started_boot_s),
        progress=attempt.progress_done / attempt.progress_total if attempt.progress_total else None,
        points=attempt.points,
        batch_size=attempt.batch_size,
    )


def eta_s(state: State, records: Sequence[CellRecord], live: Sequence[Attempt], now: Now) -> float | None:
    """Seconds until the cells are done, if each takes what the mean successful one did; None until one has.

    As many are taken to run at a time as run now, or as there are ready devices where that is more.
    """
    waiting = sum(record.state is CellState.PENDING for record in records)
    if not waiting and not live:
        return 0.0
    # A query for what has not run yet still knows how long the others took.
    mean_s = _mean_duration_s(records) or _mean_duration_s(state.matrix())
    if mean_s is None:
        return None
    left_s = [max(0.0, mean_s - (now.boot_s - attempt.started_boot_s)) for attempt in live]
    ready = sum(device.state is DeviceState.READY for device in state.devices.values())
    lanes = max(1, ready, len(state.attempts))
    return round(max(max(left_s, default=0.0), (waiting * mean_s + sum(left_s)) / lanes), 1)


def _mean_duration_s(records: Iterable[CellRecord]) -> float | None:
    known = [r.duration_s for r in records if r.state is CellState.SUCCEEDED and r.duration_s is not None]
    return sum(known) / len(known) if known else None


def cell(record: CellRecord, is_stale: Callable[[CellRecord], bool]) -> answers.CellInfo:
    """A cell in a list."""
    measured = record.measurement
    return answers.CellInfo(
        id=record.cell.digest,
        key=dict(record.cell.parameters),
        label=record.cell.label,
        state=record.state.value,
        attempts=record.attempts,
        batch_size=record.measured_batch_size or record.wanted_batch_size,
        max_speedup=measured.max_speedup if measured else None,
        max_speedup_within_tolerance=measured.max_speedup_within_tolerance if measured else None,
        isolation=measured.isolation if measured else None,
        stale=is_stale(record),
        device=record.measured_device,
        duration_s=record.duration_s,
        error=error_info(record.error),
    )


def cell_details(
    state: State,
    record: CellRecord,
    history: Sequence[EndedAttempt],
    is_stale: Callable[[CellRecord], bool],
) -> answers.CellDetails:
    """A cell with its attempts, each with its points."""
    policy = record.policy
    return answers.CellDetails(
        **cell(record, is_stale),
        canonical_key=record.cell.key,
        in_matrix=record.cell.key in state.order,
        charged_failures=record.charged_failures,
        free_failures=record.free_failures,
        memory_level=record.memory_level,
        alone=record.alone,
        policy=answers.PolicyInfo(
            exclusive=policy.exclusive,
            lease=policy.lease,
            timeout_s=policy.timeout_s,
            grace_s=policy.grace_s,
            footprint_bytes=policy.footprint_bytes,
        ),
        measurement=measurement_info(record.measurement),
        history=[attempt_info(ended) for ended in history],
    )


def attempt_info(ended: EndedAttempt) -> answers.AttemptInfo:
    """An attempt and how it ended; the outcome is null while it is live."""
    attempt, verdict = ended.attempt, ended.verdict
    return answers.AttemptInfo(
        id=attempt.id,
        number=attempt.number,
        state=attempt.state,
        device=attempt.device,
        reservation_bytes=attempt.reservation_bytes,
        cap_bytes=attempt.cap_bytes,
        batch_size=attempt.batch_size,
        exclusive=attempt.exclusive,
        started_at=timestamp(attempt.started_unix_s),
        ended_at=None if ended.ended_unix_s is None else timestamp(ended.ended_unix_s),
        outcome=verdict.outcome if verdict else None,
        exit_status=verdict.exit_status if verdict else None,
        signal=verdict.signal if verdict else None,
        wall_s=verdict.wall_s if verdict else None,
        peak_allocated_bytes=verdict.peak_allocated_bytes if verdict else None,
        peak_reserved_bytes=verdict.peak_reserved_bytes if verdict else None,
        error=error_info(verdict.error) if verdict else None,
        measurement=measurement_info(verdict.measurement) if verdict else None,
        points=[point_info(point) for point in latest(ended.points)],
    )


def latest(points: Sequence[PointRecord]) -> list[PointRecord]:
    """The last record of each point: a worker reports a point again when it knows it better."""
    return list({name_of(point.parameters): point for point in points}.values())


def point_info(point: PointRecord) -> answers.PointInfo:
    """A measured point."""
    return answers.PointInfo(
        parameters=dict(point.parameters),
        speedup=point.speedup,
        score_loss=point.score_loss,
        isolation=point.isolation,
        details=dict(point.details),
    )


def measurement_info(measured: Measurement | None) -> answers.MeasurementInfo | None:
    """What was measured."""
    if measured is None:
        return None
    return answers.MeasurementInfo(
        max_speedup=measured.max_speedup,
        max_speedup_within_tolerance=measured.max_speedup_within_tolerance,
        best=dict(measured.best) if measured.best is not None else None,
        isolation=measured.isolation,
        imported_upper_bound=measured.imported_upper_bound,
        details=dict(measured.details),
    )


def error_info(error: AttemptError | None) -> answers.ErrorInfo | None:
    """Why an attempt did not succeed."""
    if error is None:
        return None
    return answers.ErrorInfo(
        type=error.kind,
        message=error.message,
        at=timestamp(error.at_unix_s),
        phase=error.phase,
        requested_bytes=error.requested_bytes,
        free_bytes=error.free_bytes,
        cause=error.cause.value if error.cause is not None else None,
        why=wording.evidence(error.evidence),
        evidence=None if error.evidence is None else as_data(error.evidence),
    )


def explain(state: State, record: CellRecord, now: Now) -> answers.ExplainReply:
    """Why a cell is where it is; for a pending one, what each device says to it."""
    standing = _standing(state, record, now) or _why_pending(state, record, now)
    found, devices = (standing.wait, standing.devices) if isinstance(standing, Deferral) else (standing, ())
    # The latest attempt's, which explains a large reservation or a device to itself too.
    memory = "" if isinstance(found, Runs) else wording.out_of_memory(record.error)
    return answers.ExplainReply(
        label=record.cell.label,
        state=record.state.value,
        reason="; ".join(filter(None, [_words(state, found), memory])),
        cause=as_data(found),
        devices=[no_room_info(state, no) for no in devices],
    )


def _words(state: State, found: Standing) -> str:
    if isinstance(found, Runs):
        return wording.runs(found, state.devices.get(found.device))
    return wording.has_ended(found) if isinstance(found, HasEnded) else wording.wait(found)


def _standing(state: State, record: CellRecord, now: Now) -> Runs | HasEnded | None:
    """Where a cell stands that doesn't wait; None where it does."""
    attempt = state.attempt_of(record.cell.key)
    if attempt is not None:
        elapsed_s = max(0.0, now.boot_s - attempt.started_boot_s)
        held = attempt.reservation_bytes
        return Runs(attempt.number, attempt.state, attempt.device, elapsed_s, held, attempt.unkillable)
    if record.state is CellState.PENDING:
        return None
    error = record.error
    kind, message = (None, "") if error is None else (error.kind, error.message)
    return HasEnded(record.state, record.attempts, kind, message)


def _why_pending(state: State, record: CellRecord, now: Now) -> Deferral:
    planned = state.deferrals.get(record.cell.key)
    if planned is not None:
        return planned
    answer = best_placement(state, record, {}, now.boot_s)
    return Deferral(PlainWait.NOT_PLANNED, () if isinstance(answer, Placement) else answer)


def no_room_info(state: State, no: NoRoom) -> answers.NoRoomInfo:
    """Why a device doesn't take a cell."""
    device = state.devices.get(no.device)
    return answers.NoRoomInfo(
        device=no.device,
        name=device.reading.name if device is not None else "",
        index=device.reading.index if device is not None else None,
        reason=wording.no_room(no),
        cause=as_data(no.refusal),
        needed_bytes=no.needed_bytes,
        headroom_bytes=no.headroom_bytes,
        foreign_bytes=no.foreign_bytes,
        held_by=list(no.held_by),
    )
