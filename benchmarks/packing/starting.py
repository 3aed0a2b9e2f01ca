"""Building a plan cell by cell, for policies that decide less than the core's planner does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boundd.core.model.attempts import Attempt, CellRecord, CellState, attempt_id
from boundd.core.model.devices import Device, DeviceState
from boundd.core.model.events import Now
from boundd.core.model.state import State
from boundd.core.model.transitions import Trigger, next_cell_state
from boundd.core.scheduler.planner import Plan

Policy = Callable[[State, Now], Plan]


class Starting:
    """What is started in one step, so far."""

    def __init__(self, state: State, now: Now) -> None:
        self.state = state
        self.now = now
        self._started: list[str] = []
        self._joined: dict[str, Attempt] = {}

    def ready(self) -> list[Device]:
        """The devices that can be used."""
        return [device for device in self.state.devices_by_index() if device.state is DeviceState.READY]

    def waiting(self) -> list[CellRecord]:
        """The cells that may be started now, in the matrix' order."""
        if self.state.stopping or self.state.paused:
            return []
        return [record for record in self.state.pending() if record.not_before_boot_s <= self.now.boot_s]

    def on(self, device: Device) -> tuple[Attempt, ...]:
        """The attempts on a device, those of this step among them."""
        return self.state.attempts_on(device.uuid)

    def start(
        self,
        record: CellRecord,
        device: Device,
        reservation_bytes: int,
        *,
        cap_bytes: int | None = None,
        exclusive: bool = False,
        whole_device: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """Start a cell on a device."""
        number = record.attempts + 1
        company = self.on(device)
        attempt = Attempt(
            id=attempt_id(record.cell, number),
            key=record.cell.key,
            label=record.cell.label,
            number=number,
            device=device.uuid,
            reservation_bytes=reservation_bytes,
            cap_bytes=cap_bytes,
            batch_size=batch_size if batch_size is not None else record.wanted_batch_size,
            exclusive=exclusive,
            timeout_s=record.policy.timeout_s,
            grace_s=record.policy.grace_s,
            started_unix_s=self.now.unix_s,
            started_boot_s=self.now.boot_s,
            whole_device=whole_device,
            had_company=bool(company),
        )
        attempts = self.state.attempts.set(attempt.id, attempt)
        for other in company:
            if not other.had_company:
                joined = replace(other, had_company=True)
                attempts = attempts.set(other.id, joined)
                if other.id not in self._started:
                    self._joined[other.id] = joined
        running = replace(record, state=next_cell_state(record.state, Trigger.PLACE), attempts=number)
        self.state = replace(self.state, cells=self.state.cells.set(record.cell.key, running), attempts=attempts)
        self._started.append(attempt.id)

    def plan(self, wake_boot_s: float | None = None) -> Plan:
        """What came of it; `wake_boot_s` is when the policy wants to look again, whatever happens before."""
        waits = [
            record.not_before_boot_s
            for record in self.state.pending()
            if record.state is CellState.PENDING and record.not_before_boot_s > self.now.boot_s
        ]
        wakes = [*waits, *([] if wake_boot_s is None else [wake_boot_s])]
        started = tuple(self.state.attempts[attempt] for attempt in self._started)
        return Plan(self.state, started, tuple(self._joined.values()), min(wakes, default=None))
