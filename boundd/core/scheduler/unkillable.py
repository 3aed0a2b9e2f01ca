"""Attempts that can't be killed.

Rules: an attempt is live, and its reservation held, until nothing of it lives, however often it was killed. What KILL
doesn't end waits in the kernel, most likely in the device's driver, so nothing new is placed on that device: it is
cordoned, with a reason that names the attempt. The cordon is lifted when the attempt has ended at last, and only if it
is still this one: one that a person or a failing device set stays, and so does a person's `uncordon`.
"""

from __future__ import annotations

from dataclasses import replace

from boundd.core.model.attempts import Attempt
from boundd.core.model.effects import Action, Note
from boundd.core.model.records import Record, SaveCordon
from boundd.core.model.state import State


def cordoned_for(state: State, attempt: Attempt) -> tuple[State, list[Record], list[Note]]:
    """The state with the device of an unkillable attempt out of service, what is to be kept of that, and told."""
    device = state.devices.get(attempt.device)
    if attempt.device in state.cordons:
        return state, [], []
    reason = f"{_beginning(attempt)} {attempt.unkillable}; in service again when it has ended"
    cordons = {**state.cordons, attempt.device: reason}
    new = replace(state, cordons=cordons)
    name = attempt.device
    if device is not None:
        name = device.reading.name
        new = replace(new, devices=state.devices.set(attempt.device, replace(device, cordon_reason=reason)))
    note = Note(Action.DEVICE_CORDONED, f"{name}: {reason}", "error", device=attempt.device)
    return new, [SaveCordon(attempt.device, reason)], [note]


def lifted_after(state: State, ended: Attempt) -> tuple[State, list[Record], list[Note]]:
    """The state after an attempt has ended that its device may have been cordoned for.

    Told by the reason alone, which is all that a restart keeps. Another attempt there that can't be killed either keeps
    the device out of service, with its own reason.
    """
    reason = state.cordons.get(ended.device, "")
    if not reason.startswith(_beginning(ended)):
        return state, [], []
    cordons = {uuid: why for uuid, why in state.cordons.items() if uuid != ended.device}
    new = replace(state, cordons=cordons)
    device = state.devices.get(ended.device)
    if device is not None:
        new = replace(new, devices=state.devices.set(ended.device, replace(device, cordon_reason=None)))
    others = [other for other in new.attempts_on(ended.device) if other.unkillable]
    if others:
        return cordoned_for(new, others[0])
    name = device.reading.name if device is not None else ended.device
    note = Note(Action.DEVICE_UNCORDONED, f"{name}: {ended.label} has ended at last", device=ended.device)
    return new, [SaveCordon(ended.device, None)], [note]


def _beginning(attempt: Attempt) -> str:
    return f"attempt {attempt.id} ({attempt.label}) can't be killed:"
