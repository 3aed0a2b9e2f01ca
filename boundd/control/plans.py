"""The plan ahead: what would run where, when, and when all would be done, and what that takes for granted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from boundd.api import answers
from boundd.config.units import parse_size
from boundd.control.errors import bad_value
from boundd.control.views import timestamp
from boundd.core.memory.footprint import estimate
from boundd.core.model import wording
from boundd.core.model.devices import DeviceState
from boundd.core.model.events import Now
from boundd.core.model.state import State
from boundd.core.scheduler.durations import expectations
from boundd.core.scheduler.ledger import matrix_device_model
from boundd.sim.forecast import Expected, forecast
from boundd.sim.world import SimDevice

MOST_DEVICES = 1024
MOST_CELLS = 20_000
"""A longer matrix is planned in minutes of a processor, which the daemon has better uses for."""
SOMEWHERE = "a device"
"""The name of a device that nobody has told us anything of."""
_DEVICES = re.compile(r"(?:(\d{1,4})\s*[xX]\s*)?(\S.*)")


def devices_of(texts: Sequence[str], state: State) -> tuple[SimDevice, ...] | None:
    """The devices of a box one doesn't have, from `4x24GiB`, `24GiB` or several of these; None where none is named.

    They go by the name of those that there are, so that what was learned there is used.

    Raises:
        ApiError: it is no such text.
    """
    sizes: list[int] = []
    for text in (part.strip() for each in texts for part in each.split(",")):
        match = _DEVICES.fullmatch(text)
        try:
            if match is None:
                raise ValueError("it is empty")
            size_bytes, count = parse_size(match[2]), int(match[1] or 1)
        except ValueError as error:
            raise bad_value(f"devices: {text!r} is not like 4x24GiB: {error}") from None
        if not count or not size_bytes:
            raise bad_value(f"devices: {text!r} is no device at all")
        sizes += [size_bytes] * count
        if len(sizes) > MOST_DEVICES:
            raise bad_value(f"devices: {MOST_DEVICES} at most")
    name = matrix_device_model(state) or next((d.reading.name for d in state.devices_by_index()), SOMEWHERE)
    return tuple(SimDevice(f"device-{n}", name, size) for n, size in enumerate(sizes)) or None


def plan_reply(state: State, now: Now, devices: tuple[SimDevice, ...] | None) -> answers.PlanReply:
    """The whole run from now on. Takes long for a large matrix: not for the daemon's loop.

    Raises:
        ApiError: the matrix is too large for it.
    """
    if len(state.order) > MOST_CELLS:
        raise bad_value(f"plan: the matrix has {len(state.order):,} cells, and {MOST_CELLS:,} are planned at most")
    expected = forecast(state, now, devices)
    box = _box(state, devices)
    names = {device["uuid"]: device["name"] for device in box}
    rows = [_attempt(state, now, each, names.get(each.device, "")) for each in expected.attempts]
    guessed = sum(row["duration_is_prior"] for row in rows)
    return answers.PlanReply(
        at=timestamp(now.unix_s),
        devices=box,
        attempts=rows,
        done_s=expected.done_s,
        done_at=timestamp(now.unix_s + expected.done_s),
        priors=guessed,
        never=[answers.PlanNever(label=label, reason=reason) for label, reason in sorted(expected.never.items())],
        assumes=_assumptions(state, devices, guessed, len(rows)),
    )


def _box(state: State, devices: tuple[SimDevice, ...] | None) -> list[answers.PlanDevice]:
    if devices is not None:
        return [answers.PlanDevice(uuid=d.uuid, name=d.name, total_bytes=d.total_bytes) for d in devices]
    return [
        answers.PlanDevice(uuid=device.uuid, name=device.reading.name, total_bytes=device.reading.total_bytes)
        for device in state.devices_by_index()
    ]


def _attempt(state: State, now: Now, each: Expected, device_name: str) -> answers.PlanAttempt:
    record = state.cells[each.key]
    lasts = expectations(state, device_name).of(state.memo.workload_of(record))
    takes = estimate(record, device_name, state.observations, state.rules.torch)
    return answers.PlanAttempt(
        digest=record.cell.digest,
        label=each.label,
        device=each.device,
        running=each.running,
        from_s=each.from_s,
        until_s=each.until_s,
        starts_at=timestamp(now.unix_s + each.from_s),
        ends_at=timestamp(now.unix_s + each.until_s),
        duration_source=wording.source(lasts.source),
        duration_is_prior=lasts.source.is_duration_prior,
        reservation_bytes=each.reservation_bytes,
        reservation_source=wording.source(takes.source),
    )


def _assumptions(state: State, devices: tuple[SimDevice, ...] | None, guessed: int, count: int) -> list[str]:
    said = ["every attempt succeeds, takes as long as expected, and no more memory than is reserved for it"]
    if guessed:
        said.append(
            f"{guessed} of {count} durations are priors, because nothing like these cells has run here yet: the order "
            "is worth more than the hours"
        )
    if devices is None:
        said.append("what other processes hold of the devices now, they keep; a device that can't be used stays so")
        out = [d for d in state.devices_by_index() if d.state is not DeviceState.READY]
        said += [f"{wording.device(device.reading)} takes nothing: {wording.out_of_service(device)}" for device in out]
    else:
        said.append(
            f"these devices are empty, as fast as {devices[0].name}, and cells need as much memory there as here; what "
            "runs now begins anew"
        )
    if state.paused:
        said.append("the pause is over now")
    return said
