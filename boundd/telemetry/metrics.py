"""Prometheus metrics, in a registry of their own.

Rules: what is (cells by state, bytes of devices) is read from the view that `render` is given; what has happened
(attempts ended) is counted from the notes. A size that nobody could read has no sample; it is never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import CellState
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.outcomes import ENVIRONMENT, Outcome
from boundd.text import encodable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS_S = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800)


@dataclass(frozen=True, slots=True)
class DeviceNumbers:
    """A device's sizes in bytes; None where it could not be read. `state` is ready, cordoned or unavailable."""

    uuid: str
    name: str
    state: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    headroom_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StateView:
    """What is, as plain values."""

    cells_by_state: Mapping[CellState, int] = field(default_factory=dict)
    devices: tuple[DeviceNumbers, ...] = ()
    live_attempts: int = 0
    paused: bool = False
    log_lines_dropped: int = 0
    store_problem: bool = False
    problems: Mapping[ErrorKind, int] = field(default_factory=dict)
    """Of the environment, by kind."""
    held_back: int = 0
    """Cells that wait for one of them to pass."""
    disk_free_bytes: int | None = None
    """Where the state folder is; None where it could not be read."""


class Metrics:
    """An Observer that counts, and renders what it counted with the state that it is shown."""

    def __init__(self, version: str) -> None:
        # Of no use beside the counters themselves, and a third of the lines.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        Info("boundd_build", "The running boundd.", registry=registry).info({"version": version})
        self._cells = Gauge("boundd_cells", "Cells of the matrix by state.", ["state"], registry=registry)
        self._live = Gauge("boundd_live_attempts", "Attempts that have not ended.", registry=registry)
        self._paused = Gauge("boundd_paused", "1 while new attempts are held back.", registry=registry)
        self._store_problem = Gauge(
            "boundd_store_problem",
            "1 while nothing can be stored, or the disk has no room for more.",
            registry=registry,
        )
        self._disk_free = Gauge(
            "boundd_disk_free_bytes", "What is free where the state folder is.", ["folder"], registry=registry
        )
        self._problems = Gauge(
            "boundd_environment_problems",
            "What is wrong outside the cells, by kind; docs/faults.md explains each.",
            ["kind"],
            registry=registry,
        )
        self._held_back = Gauge(
            "boundd_cells_held_back", "Pending cells that wait until such a problem has passed.", registry=registry
        )
        self._device_up = Gauge(
            "boundd_device_state",
            "1 for the state that a device is in.",
            ["device", "name", "state"],
            registry=registry,
        )
        self._bytes = {
            kind: Gauge(f"boundd_device_{kind}_bytes", help_text, ["device", "name"], registry=registry)
            for kind, help_text in (
                ("total", "Memory of a device."),
                ("free", "Free memory of a device, as its driver says."),
                ("reserved", "Memory that the ledger holds for attempts on a device."),
                ("headroom", "Memory of a device that can still be placed."),
            )
        }
        self._ended = Counter("boundd_attempts_ended", "Attempts that ended.", ["outcome"], registry=registry)
        self._durations = Histogram(
            "boundd_attempt_duration_seconds",
            "How long attempts took, by outcome.",
            ["outcome"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._points = Counter("boundd_points_measured", "Points that workers reported.", registry=registry)
        self._events = Counter(
            "boundd_events", "Notes by action; docs/logs.md explains each.", ["action"], registry=registry
        )
        self._log_dropped = Counter("boundd_log_lines_dropped", "Log lines that found no reader.", registry=registry)
        self._log_dropped_seen = 0
        # A series that is there from the start lets a rate see the first increase.
        for outcome in Outcome:
            self._ended.labels(outcome.value)
        for action in Action:
            self._events.labels(action.value)

    def note(self, note: Note, now: Now) -> None:  # noqa: ARG002 - the Observer's signature
        """Count it. An `attempt-ended` note has the verdict."""
        self._events.labels(note.action.value).inc()
        if note.action is Action.POINT_MEASURED:
            self._points.inc()
        if note.verdict is None:
            return
        outcome, wall_s = note.verdict.outcome.value, note.verdict.wall_s
        self._ended.labels(outcome).inc()
        if wall_s is not None and wall_s >= 0:
            self._durations.labels(outcome).observe(wall_s)

    def render(self, view: StateView) -> bytes:
        """Everything in Prometheus' text format (`CONTENT_TYPE`)."""
        for state in CellState:
            self._cells.labels(state.value).set(view.cells_by_state.get(state, 0))
        self._live.set(view.live_attempts)
        self._paused.set(view.paused)
        self._store_problem.set(view.store_problem)
        for kind in ENVIRONMENT:
            self._problems.labels(kind.value).set(view.problems.get(kind, 0))
        self._held_back.set(view.held_back)
        self._disk_free.clear()
        if view.disk_free_bytes is not None:
            self._disk_free.labels("state_dir").set(view.disk_free_bytes)
        self._device_up.clear()
        for gauge in self._bytes.values():
            gauge.clear()
        for device in view.devices:
            self._show(device)
        self._log_dropped.inc(max(0, view.log_lines_dropped - self._log_dropped_seen))
        self._log_dropped_seen = max(self._log_dropped_seen, view.log_lines_dropped)
        return generate_latest(self._registry)

    def _show(self, device: DeviceNumbers) -> None:
        uuid, name = encodable(device.uuid), encodable(device.name)
        self._device_up.labels(uuid, name, device.state).set(1)
        sizes = {
            "total": device.total_bytes,
            "free": device.free_bytes,
            "reserved": device.reserved_bytes,
            "headroom": device.headroom_bytes,
        }
        for kind, size in sizes.items():
            if size is not None:
                self._bytes[kind].labels(uuid, name).set(size)
