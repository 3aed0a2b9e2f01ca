"""Imposing and lifting the quarantine of devices, for every cause.

A quarantined device takes no new cells; running attempts continue. The first cause stays, but an operator's replaces
any other. A process that survives SIGKILL waits in the kernel, most likely in the device's driver, so its device is
quarantined until the attempt has ended, and is then released unless there is another cause. Until then the attempt
counts as live and keeps its reservation.
"""

from __future__ import annotations

from dataclasses import replace

from boundd.core.model import wording
from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.quarantines import (
    ByOperator,
    DriverFault,
    Quarantine,
    QuarantineCause,
    UnkillableAttempt,
    device_subject,
)
from boundd.core.model.records import LiftQuarantine, Record, SaveQuarantine
from boundd.core.model.state import State
from boundd.core.scheduler.quick_deaths import devices_to_quarantine

Change = tuple[State, list[Record], list[Note]]
"""The new state, the records to store, and the notes to log."""


def impose(state: State, uuid: str, cause: QuarantineCause, now: Now) -> Change:
    """Quarantine a device."""
    quarantine = Quarantine(device_subject(uuid), cause, now.unix_s)
    new = _with(state, uuid, quarantine)
    level = "info" if isinstance(cause, ByOperator) else "error"
    message = f"{_name(state, uuid)}: {wording.quarantine(cause)}"
    fields = {"boundd.quarantine_cause": cause.kind}
    return new, [SaveQuarantine(quarantine)], [Note(Action.DEVICE_CORDONED, message, level, device=uuid, fields=fields)]


def lift(state: State, uuid: str, why: str) -> Change:
    """Lift a device's quarantine; `why` completes the sentence "DEVICE ..." in the log."""
    new = _with(state, uuid, None)
    note = Note(Action.DEVICE_UNCORDONED, f"{_name(state, uuid)} {why}", device=uuid)
    return new, [LiftQuarantine(device_subject(uuid))], [note]


def impose_by_operator(state: State, uuid: str, reason: str, now: Now) -> Change:
    """Quarantine a device and its MIG instances at an operator's request."""
    records: list[Record] = []
    notes: list[Note] = []
    for each in state.with_instances(uuid):
        state, saved, told = impose(state, each, ByOperator(reason), now)
        records += saved
        notes += told if each == uuid else []
    return state, records, notes


def lift_by_operator(state: State, uuid: str) -> Change:
    """Lift the quarantine of a device and its MIG instances at an operator's request, and forget their quick deaths."""
    uuids = state.with_instances(uuid)
    state = replace(state, quick_deaths=tuple(death for death in state.quick_deaths if death.device not in uuids))
    records: list[Record] = []
    notes: list[Note] = []
    for each in uuids:
        state, saved, told = lift(state, each, "is in service again")
        records += saved
        notes += told if each == uuid else []
    return state, records, notes


def impose_as_on_parent(state: State, instance: DeviceReading, now: Now) -> Change:
    """Quarantine a new MIG instance if its parent device is quarantined."""
    whole = state.quarantine_of(instance.parent)
    return (state, [], []) if whole is None else impose(state, instance.uuid, whole.cause, now)


def impose_for_deaths(state: State, now: Now) -> Change:
    """Quarantine the devices on which too many cells died quickly."""
    records: list[Record] = []
    notes: list[Note] = []
    for uuid, cause in devices_to_quarantine(state).items():
        state, saved, told = impose(state, uuid, cause, now)
        state = replace(state, quick_deaths=tuple(death for death in state.quick_deaths if death.device != uuid))
        records += saved
        notes += told
    return state, records, notes


def impose_for_fault(state: State, before: DeviceReading | None, reading: DeviceReading, now: Now) -> Change:
    """Quarantine a device if its driver reports a new fault.

    If an operator has uncordoned the device, the same fault doesn't quarantine it again; only a changed one does.
    `before` is the earlier reading, None for a new device.
    """
    is_new = bool(reading.driver_fault) and (before is None or before.driver_fault != reading.driver_fault)
    if not is_new or state.quarantine_of(reading.uuid) is not None:
        return state, [], []
    return impose(state, reading.uuid, DriverFault(reading.driver_fault), now)


def impose_for_unkillable(state: State, attempt: Attempt, now: Now) -> Change:
    """Quarantine the device of an attempt that survived SIGKILL."""
    if state.quarantine_of(attempt.device) is not None:
        return state, [], []
    return impose(state, attempt.device, UnkillableAttempt(attempt.id, attempt.label, attempt.unkillable), now)


def lift_after(state: State, ended: Attempt, now: Now) -> Change:
    """Lift the quarantine that an unkillable attempt caused, after it has ended.

    If another attempt on the device is unkillable, it becomes the new cause.
    """
    found = state.quarantine_of(ended.device)
    if found is None or not isinstance(found.cause, UnkillableAttempt) or found.cause.attempt_id != ended.id:
        return state, [], []
    new, records, notes = lift(state, ended.device, f"is in service again: {ended.label} has ended")
    others = [other for other in new.attempts_on(ended.device) if other.unkillable]
    return impose_for_unkillable(new, others[0], now) if others else (new, records, notes)


def _with(state: State, uuid: str, quarantine: Quarantine | None) -> State:
    subject = device_subject(uuid)
    quarantines = {each: known for each, known in state.quarantines.items() if each != subject}
    if quarantine is not None:
        quarantines[subject] = quarantine
    device = state.devices.get(uuid)
    devices = state.devices if device is None else state.devices.set(uuid, replace(device, quarantine=quarantine))
    return replace(state, quarantines=quarantines, devices=devices)


def _name(state: State, uuid: str) -> str:
    device = state.devices.get(uuid)
    return uuid if device is None else wording.device(device.reading)
