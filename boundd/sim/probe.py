"""What the daemon gets to read of the simulated machine, and when a reading would say something new.

The daemon reads once a second. A reading that says what the one before it said changes no plan, so those are left out:
this is what makes hours of virtual time cheap, and what makes a cell that nothing will ever wake stand out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from boundd.core.memory.process_listing import Observed, ProcessListing, apply_process_lists, must_list_processes
from boundd.core.model.devices import DeviceReading
from boundd.core.model.events import DevicesRead, DevicesUnreadable
from boundd.core.model.host import THIS_NODE, HostReading
from boundd.core.model.state import State
from boundd.sim.machine import Machine, pid_of
from boundd.sim.trace import Counts
from boundd.sim.world import World


class Probe:
    """Reads the machine as it was `reading_lag_s` ago, and lists processes when the daemon would."""

    def __init__(self, world: World, machine: Machine, counts: Counts) -> None:
        self._world = world
        self._machine = machine
        self._counts = counts
        self._listed: Mapping[str, ProcessListing] = {}

    def forget(self) -> None:
        """A new daemon has read nothing yet."""
        self._listed = {}

    def next_s(self, now_s: float) -> float:
        """When the next reading is that sees what changes now; always later than now."""
        interval_s = self._world.reading_interval_s
        return (math.floor((now_s + self._world.reading_lag_s) / interval_s) + 1) * interval_s

    def as_of_s(self, now_s: float) -> float:
        """Which instant a reading of now tells of."""
        return now_s - self._world.reading_lag_s

    def read(self, state: State, now_s: float, *, host: bool) -> DevicesRead | DevicesUnreadable:
        """One pass over all devices, and with `host` over the machine itself."""
        self._counts.readings += 1
        if any(now_s in window for window in self._world.faults.probe_failures):
            self._counts.failed_readings += 1
            return DevicesUnreadable("the probe did not answer")
        readings = self._readings(now_s, processes=False)
        live: dict[str, frozenset[str]] = {}
        for attempt_id, attempt in sorted(state.attempts.items()):
            live[attempt.device] = live.get(attempt.device, frozenset()) | {attempt_id}
        if must_list_processes(readings, live, self._listed):
            readings = self._readings(now_s, processes=True)
        to_go_by, held, self._listed = apply_process_lists(readings, live, self._listed, _held)
        foreign = frozenset(each.uuid for each in readings if _has_foreign(each, live.get(each.uuid, frozenset())))
        machine = self._host(state) if host else None
        return DevicesRead(to_go_by, held, {} if machine is None else {THIS_NODE: machine}, foreign)

    def _readings(self, now_s: float, *, processes: bool) -> tuple[DeviceReading, ...]:
        blind = any(now_s in window for window in self._world.faults.blind)
        return tuple(
            self._machine.reading(index, self.as_of_s(now_s), processes=processes, blind=blind)
            for index in range(len(self._world.devices))
        )

    def _host(self, state: State) -> HostReading | None:
        """The machine itself; None where the world has none to speak of."""
        total = self._world.host_bytes
        if not total:
            return None
        alive = [each for each in sorted(state.attempts) if self._machine.is_alive(each)]
        held = {each: self._machine.workers[each].cell.truth.host_bytes for each in alive}
        return HostReading(total, max(0, total - self._machine.host_bytes), self._world.host_cores, held)


def _held(process_bytes: Mapping[int, int | None], attempts: frozenset[str]) -> Observed:
    return {each: process_bytes.get(pid_of(each)) for each in sorted(attempts)}


def _has_foreign(reading: DeviceReading, attempts: frozenset[str]) -> bool:
    """Whether somebody else is in a list in which one of ours is."""
    listed, ours = set(reading.process_bytes or {}), {pid_of(each) for each in attempts}
    return bool(listed & ours) and bool(listed - ours)
