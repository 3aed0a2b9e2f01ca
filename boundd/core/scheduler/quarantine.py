"""Putting devices into quarantine, and letting them out: every cause goes through here.

Rules: a device in quarantine gets nothing new, and what runs there goes on. Its first cause stays, but a person's
replaces any. What KILL doesn't end waits in the kernel, most likely in the device's driver: its device is held back
until the attempt has ended at last, and only then let out by itself, if that is still the cause. An attempt that can't
be killed is live, and its reservation held, until nothing of it lives.
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
"""The state after it, what is to be kept of it, and what is told."""


def impose(state: State, uuid: str, cause: QuarantineCause, now: Now) -> Change:
    """Put a device into quarantine."""
    quarantine = Quarantine(device_subject(uuid), cause, now.unix_s)
    new = _with(state, uuid, quarantine)
    level = "info" if isinstance(cause, ByOperator) else "error"
    message = f"{_name(state, uuid)}: {wording.quarantine(cause)}"
    fields = {"boundd.quarantine_cause": cause.kind}
    return new, [SaveQuarantine(quarantine)], [Note(Action.DEVICE_CORDONED, message, level, device=uuid, fields=fields)]


def lift(state: State, uuid: str, why: str) -> Change:
    """Let a device out; `why` is told of it."""
    new = _with(state, uuid, None)
    note = Note(Action.DEVICE_UNCORDONED, f"{_name(state, uuid)} {why}", device=uuid)
    return new, [LiftQuarantine(device_subject(uuid))], [note]


def impose_by_operator(state: State, uuid: str, reason: str, now: Now) -> Change:
    """Put a device into quarantine because a person says so, with its instances."""
    records: list[Record] = []
    notes: list[Note] = []
    for each in state.with_instances(uuid):
        state, saved, told = impose(state, each, ByOperator(reason), now)
        records += saved
        notes += told if each == uuid else []
    return state, records, notes


def lift_by_operator(state: State, uuid: str) -> Change:
    """Let a device out because a person says so, with its instances: what was held against them is forgotten."""
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
    """The state with a new instance in quarantine whose whole was put there before it was divided like this."""
    whole = state.quarantine_of(instance.parent)
    return (state, [], []) if whole is None else impose(state, instance.uuid, whole.cause, now)


def impose_for_deaths(state: State, now: Now) -> Change:
    """The state with the devices in quarantine that have killed too many cells."""
    records: list[Record] = []
    notes: list[Note] = []
    for uuid, cause in devices_to_quarantine(state).items():
        state, saved, told = impose(state, uuid, cause, now)
        state = replace(state, quick_deaths=tuple(death for death in state.quick_deaths if death.device != uuid))
        records += saved
        notes += told
    return state, records, notes


def impose_for_fault(state: State, before: DeviceReading | None, reading: DeviceReading, now: Now) -> Change:
    """The state with a device in quarantine whose driver has begun to hold something against it.

    What a person has put back into service stays there, until there is more than there was at the reading before (None:
    it was not seen before).
    """
    is_new = bool(reading.driver_fault) and (before is None or before.driver_fault != reading.driver_fault)
    if not is_new or state.quarantine_of(reading.uuid) is not None:
        return state, [], []
    return impose(state, reading.uuid, DriverFault(reading.driver_fault), now)


def impose_for_unkillable(state: State, attempt: Attempt, now: Now) -> Change:
    """The state with the device of an unkillable attempt in quarantine."""
    if state.quarantine_of(attempt.device) is not None:
        return state, [], []
    return impose(state, attempt.device, UnkillableAttempt(attempt.id, attempt.label, attempt.unkillable), now)


def lift_after(state: State, ended: Attempt, now: Now) -> Change:
    """The state after an attempt has ended that its device may have been held back for.

    Another attempt there that can't be killed either keeps the device in quarantine, as its own cause.
    """
    found = state.quarantine_of(ended.device)
    if found is None or not isinstance(found.cause, UnkillableAttempt) or found.cause.attempt_id != ended.id:
        return state, [], []
    new, records, notes = lift(state, ended.device, f"is in service again: {ended.label} has ended at last")
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
