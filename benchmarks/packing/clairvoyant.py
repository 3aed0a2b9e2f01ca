"""A packer that knows every true peak and duration, and when foreign processes come and go.

It is a list scheduler: cells are tried in one order, and whatever fits at an instant is started, so nothing waits for a
cell before it. It packs to the last byte, cuts a batch before it fails, and places nothing that a foreign process would
collide with. Of several orders, with none to all of the devices given over to cells that must be alone first, the best
is taken: it is no optimum, which nobody can compute, but better than any packer that doesn't know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.packing.starting import Policy, Starting
from boundd.core.memory.footprint import CONTEXT_BYTES
from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import Device
from boundd.core.model.events import Now
from boundd.core.model.state import State
from boundd.core.scheduler.placement import cap_of
from boundd.core.scheduler.planner import Plan
from boundd.sim import SimCell, World

Rank = Callable[["Known"], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Known:
    """What is true of a cell on this box: the largest batch that fits somewhere, its peak, how long it takes."""

    cell: SimCell
    batch_size: int | None
    peak_bytes: int
    alone: bool

    @property
    def duration_s(self) -> float:
        """Seconds that an attempt takes that nothing befalls."""
        return self.cell.truth.duration_s


@dataclass(frozen=True, slots=True)
class Pace:
    """How the policy's clock goes: by default the simulation's, which is the trace's own.

    `second_s` is what a second of the trace takes, `begun_s` what the clock showed when the trace began (None: when the
    policy is first asked), and `slack_s` how long, in the trace's seconds, it keeps away from a foreign process.
    """

    second_s: float = 1.0
    begun_s: float | None = 0.0
    slack_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Room:
    """What the cells on a device leave of it."""

    left_bytes: int
    empty: bool
    closed: bool
    """Whether one of them must be alone."""


ORDERS: dict[str, Rank] = {
    "longest first": lambda known: (-known.duration_s,),
    "largest area first": lambda known: (-known.duration_s * known.peak_bytes,),
    "largest first": lambda known: (-known.peak_bytes, -known.duration_s),
    "longest first, in classes": lambda known: (-(known.duration_s // 600), -known.peak_bytes),
}


def candidates(world: World, ladder: tuple[int, ...], pace: Pace = Pace()) -> Iterator[Policy]:
    """Every order, with every number of devices given over to cells that must be alone first."""
    cells = {each.cell.key: _known(each, world, ladder) for each in world.cells}
    most = len(world.devices) if any(known.alone for known in cells.values()) else 0
    for rank in ORDERS.values():
        for given_over in range(most + 1):
            yield Clairvoyant(world, cells, rank, given_over, pace)


def _known(cell: SimCell, world: World, ladder: tuple[int, ...]) -> Known:
    largest = max(device.total_bytes for device in world.devices)
    asked = cell.cell.batch_size
    batches = [asked, *(batch for batch in ladder if asked is not None and batch < asked)]
    batch = next((each for each in batches if cell.truth.peak_bytes(each) <= largest), batches[-1])
    return Known(cell, batch, cell.truth.peak_bytes(batch), cell.policy.must_be_alone)


class Clairvoyant:
    """The policy, for one order."""

    def __init__(
        self, world: World, cells: Mapping[str, Known], rank: Rank, given_over: int, pace: Pace = Pace()
    ) -> None:
        self._world = world
        self._cells = cells
        self._rank = rank
        self._given_over = frozenset(device.uuid for device in world.devices[:given_over])
        self._pace = pace
        self._begun_s = pace.begun_s

    def __call__(self, state: State, now: Now) -> Plan:
        """Start all that fits."""
        if self._begun_s is None:
            self._begun_s = now.boot_s
        at_s = (now.boot_s - self._begun_s) / self._pace.second_s
        starting = Starting(state, now)
        waiting = sorted(
            starting.waiting(), key=lambda record: (self._rank(self._cells[record.cell.key]), record.cell.key)
        )
        loners = any(self._cells[record.cell.key].alone for record in waiting)
        rooms = {device.uuid: self._room(device, starting.on(device)) for device in starting.ready()}
        for record in waiting:
            known = self._cells[record.cell.key]
            device = self._best(starting, rooms, known, at_s, loners=loners)
            if device is not None:
                starting.start(
                    record,
                    device,
                    known.peak_bytes,
                    cap_bytes=cap_of(known.peak_bytes, CONTEXT_BYTES),
                    exclusive=known.alone,
                    batch_size=known.batch_size,
                )
                rooms[device.uuid] = self._room(device, starting.on(device))
        # Where readings are as old as the slack, nobody else would wake it once that is over.
        slack_s = 0.0 if self._pace.second_s == 1.0 else self._pace.slack_s
        visits = self._world.faults.foreign
        changes = [t for each in visits for t in (each.from_s, each.until_s, each.until_s + slack_s) if t > at_s]
        return starting.plan(self._begun_s + min(changes) * self._pace.second_s if changes else None)

    def _best(
        self, starting: Starting, rooms: Mapping[str, Room], known: Known, at_s: float, *, loners: bool
    ) -> Device | None:
        fits = []
        for uuid, room in rooms.items():
            if room.left_bytes < known.peak_bytes or room.closed or (known.alone and not room.empty):
                continue
            if loners and not known.alone and uuid in self._given_over:
                continue
            left = room.left_bytes - known.peak_bytes - self._visits(uuid, at_s, known.duration_s)
            if left >= 0:
                device = starting.state.devices[uuid]
                fits.append((left, device.reading.index, device))
        return min(fits, key=lambda fit: fit[:2])[2] if fits else None

    def _room(self, device: Device, attempts: tuple[Attempt, ...]) -> Room:
        held = sum(self._cells[attempt.key].peak_bytes for attempt in attempts)
        closed = any(attempt.exclusive for attempt in attempts)
        return Room((device.reading.total_bytes or 0) - held, empty=not attempts, closed=closed)

    def _visits(self, uuid: str, now_s: float, takes_s: float) -> int:
        """The most that a foreign process holds of the device while a cell of that length would run."""
        until_s = now_s + takes_s * 1.02 + self._pace.slack_s
        visits = [
            each.size_bytes
            for each in self._world.faults.foreign
            if each.device == uuid and each.from_s < until_s and each.until_s > now_s - self._pace.slack_s
        ]
        return max(visits, default=0)


def lower_bound_s(world: World, ladder: tuple[int, ...]) -> float:
    """Seconds that no packer can beat: the longest cell, or the area of all cells over all the memory.

    A cell that must be alone has the area of a whole device; what foreign processes take is left out of the count, so
    the bound is a little too low where there are any.
    """
    cells = [_known(each, world, ladder) for each in world.cells if each.truth.always is None]
    smallest = min(device.total_bytes for device in world.devices)
    area = sum(known.duration_s * (smallest if known.alone else known.peak_bytes) for known in cells)
    longest = max(known.duration_s for known in cells)
    return max(longest, area / sum(device.total_bytes for device in world.devices))
