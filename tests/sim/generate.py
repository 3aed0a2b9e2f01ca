"""Worlds out of a seed: small ones, in which much goes wrong and nothing for ever.

Rules: every draw comes from the `random.Random` that is passed in, in a fixed order, so a seed always makes the same
world. Faults end, foreign processes leave and pauses are resumed, so that every cell can come to an end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import ENVIRONMENT
from boundd.core.model.state import Rules
from boundd.sim.world import (
    CellTruth,
    Failure,
    Foreign,
    Hitch,
    Mishap,
    Outage,
    SimCell,
    SimDevice,
    Window,
    World,
)
from tests.sim.trouble import Deed, Trouble, Wish

MIB = 1024**2
GIB = 1024**3
LEAST = 5 * GIB // 4
"""No cell takes less, nor does anybody believe so: the CUDA context alone is half a GiB."""
TROUBLE_S = 300.0
"""Faults begin before this."""
ONCE = tuple(failure for failure in Failure if failure not in (Failure.HANG, Failure.SHIM_LOST))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Cells that take the same memory, as cells of one model and method do."""

    model: str
    method: str
    fixed_bytes: int
    image_bytes: int
    believed: float | None
    """What the config says of it, as a factor on the truth; None where it says nothing."""
    exclusive: bool
    lease: bool
    honours_cap: bool
    reports_memory: bool


def random_world(seed: int) -> tuple[World, Rules]:
    """The world of a seed, and the rules that it is run by."""
    draw = random.Random(seed)
    rules = Rules(
        margin_bytes=draw.choice((0, 256 * MIB, 512 * MIB)),
        mix_models=draw.random() < 0.3,
        batch_ladder=draw.choice(((4, 2, 1), (8, 4), (1,))),
        max_attempts=draw.choice((1, 2, 4)),
        backoff_s=draw.choice((0.0, 10.0, 30.0)),
        max_cells=draw.choice((0, 0, 0, 2)),
    )
    devices = _devices(draw)
    cells = _cells(draw, devices, rules)
    # Drawn from a seed of their own: what a seed has found before stays what it was.
    hitches = _hitches(random.Random(f"{seed}: hitches"), devices, cells)
    faults = replace(_faults(draw, devices, cells), hitches=hitches)
    world = World(
        devices,
        cells,
        faults,
        reading_lag_s=draw.choice((0.0, 0.0, 0.7, 3.0)),
        latency_s=draw.choice((0.0, 0.2, 2.0)),
        contention=draw.choice((0.0, 0.0, 0.5)),
        host_bytes=draw.choice((0, 8, 16)) * GIB,
        host_cores=draw.choice((2, 4)),
    )
    return world, rules


def _devices(draw: random.Random) -> tuple[SimDevice, ...]:
    names = ("A", "A", "A", "B") if draw.random() < 0.3 else ("A",)
    sizes = {"A": draw.choice((8, 16, 24)), "B": draw.choice((12, 40))}
    found = []
    for index in range(draw.choice((1, 2, 2, 3))):
        name = draw.choice(names)
        limit = draw.choices((None, 1, 2), (0.85, 0.08, 0.07))[0]
        found.append(SimDevice(f"GPU-{index}", name, sizes[name] * GIB, limit))
    return tuple(found)


def _cells(draw: random.Random, devices: tuple[SimDevice, ...], rules: Rules) -> tuple[SimCell, ...]:
    smallest = min(device.total_bytes for device in devices)
    kinds = [_kind(draw, f"model-{n}", smallest) for n in range(draw.choice((1, 2, 3)))]
    batch = draw.choice((rules.batch_ladder[0], rules.batch_ladder[0], None))
    cells = []
    for number in range(draw.choices((2, 3, 4, 5, 6, 10), (4, 4, 4, 4, 4, 1))[0]):
        kind = draw.choice(kinds)
        parameters = {"model": kind.model, "method": kind.method, "steps": number + 1}
        if batch is not None:
            parameters["batch_size"] = batch
        truth = _truth(draw, kind)
        believed = None if kind.believed is None else max(LEAST, int(truth.peak_bytes(batch) * kind.believed))
        policy = CellPolicy(
            exclusive=kind.exclusive,
            timeout_s=draw.choice((truth.duration_s * 4, truth.duration_s * 12)),
            grace_s=draw.choice((0.0, 5.0)),
            footprint_bytes=believed,
            lease=kind.lease,
            host_memory_bytes=truth.host_bytes or None,
            cores=truth.cores,
        )
        cells.append(SimCell(Cell.of(parameters, ["model", "method", "steps"]), policy, truth))
    return tuple(cells)


def _kind(draw: random.Random, model: str, smallest: int) -> _Kind:
    share = draw.choice((0.1, 0.2, 0.35, 0.5, 0.8, 1.3))
    peak = max(LEAST, int(smallest * share * draw.uniform(0.8, 1.2)))
    fixed = int(peak * draw.uniform(0.2, 0.7))
    return _Kind(
        model,
        draw.choice(("tome", "tgate")),
        fixed,
        (peak - fixed) // 4,
        draw.choice((None, 1.05, 1.3, 0.9, 0.6, 0.3)),
        exclusive=draw.random() < 0.15,
        lease=draw.random() > 0.1,
        honours_cap=draw.random() > 0.12,
        reports_memory=draw.random() > 0.2,
    )


def _truth(draw: random.Random, kind: _Kind) -> CellTruth:
    mishaps = tuple(
        Mishap(draw.choice((*ONCE, Failure.HANG, Failure.SHIM_LOST, Failure.SHIM_LOST)), draw.uniform(0.05, 0.95))
        for _ in range(draw.choice((0, 0, 0, 0, 1, 1, 2)))
    )
    chronic = draw.choice((Failure.BUG, Failure.SIGNAL, Failure.HANG, Failure.NO_RESULT, Failure.SHIM_LOST))
    start = draw.choice((0.0, 0.3, 0.6))
    return CellTruth(
        duration_s=draw.uniform(5.0, 60.0),
        fixed_bytes=kind.fixed_bytes,
        image_bytes=kind.image_bytes,
        ramp=((start * 0.1, 0.1), (start + 0.05, 0.5), (start + 0.2, 1.0)),
        honours_cap=kind.honours_cap,
        reports_memory=kind.reports_memory,
        mishaps=mishaps,
        always=Mishap(chronic, 0.5) if draw.random() < 0.08 else None,
        points=draw.choice((0, 0, 1, 2)),
        host_bytes=draw.choice((0, 2, 6)) * GIB,
        cores=draw.choice((0, 0, 1, 3)),
    )


def _faults(draw: random.Random, devices: tuple[SimDevice, ...], cells: tuple[SimCell, ...]) -> Trouble:
    def some(likely: float, most: int, make: Callable[[], T]) -> tuple[T, ...]:
        return tuple(make() for _ in range(draw.randint(1, most))) if draw.random() < likely else ()

    def window(longest_s: float) -> Window:
        begin_s = draw.uniform(0.0, TROUBLE_S)
        return Window(begin_s, begin_s + draw.uniform(0.5, longest_s))

    def foreign() -> Foreign:
        when, device = window(120.0), draw.choice(devices)
        begin_s = 0.0 if draw.random() < 0.3 else when.from_s
        return Foreign(device.uuid, begin_s, when.until_s, int(device.total_bytes * draw.uniform(0.05, 0.9)))

    def outage() -> Outage:
        when = window(60.0)
        return Outage(draw.choice(devices).uuid, when.from_s, when.until_s, kills=draw.random() < 0.5)

    def sick() -> Outage:
        return Outage(draw.choice(devices).uuid, draw.uniform(0.0, 10.0), draw.uniform(60.0, TROUBLE_S))

    deeds = _deeds(draw, devices, cells) if draw.random() < 0.35 else ()
    return Trouble(
        foreign=some(0.4, 2, foreign),
        outages=some(0.25, 2, outage),
        sick=some(0.12, 1, sick),
        probe_failures=some(0.3, 2, lambda: window(60.0)),
        blind=some(0.2, 1, lambda: window(120.0)),
        store_busy=(*some(0.2, 2, lambda: window(15.0)), *_busy_at_reloads(draw, deeds)),
        store_tight=some(0.2, 2, lambda: window(15.0)),
        crash_points=frozenset(some(0.5, 4, lambda: draw.randint(0, 80))),
        down_s=draw.choice((1.0, 5.0, 40.0)),
        deeds=deeds,
        late_cells=_late_cells(draw, deeds, cells),
    )


def _busy_at_reloads(draw: random.Random, deeds: tuple[Deed, ...]) -> tuple[Window, ...]:
    """Now and then the store takes nothing just when a person asks for a reload."""
    asked_s = [deed.at_s for deed in deeds if deed.wish is Wish.RELOAD]
    return tuple(Window(at_s, at_s + draw.uniform(0.5, 15.0)) for at_s in asked_s if draw.random() < 0.5)


def _late_cells(draw: random.Random, deeds: tuple[Deed, ...], cells: tuple[SimCell, ...]) -> int:
    """How many of the last cells a reload brings: none without one, nor any that somebody asks for by name."""
    if not any(deed.wish is Wish.RELOAD for deed in deeds):
        return 0
    named = [number for number, each in enumerate(cells) if any(deed.subject == each.cell.key for deed in deeds)]
    return draw.randint(0, len(cells) - 1 - max(named, default=0))


def _hitches(draw: random.Random, devices: tuple[SimDevice, ...], cells: tuple[SimCell, ...]) -> tuple[Hitch, ...]:
    """Something outside the cells that is away for a while, in a quarter of the worlds."""
    found = []
    for _ in range(draw.choices((0, 1, 2), (0.75, 0.2, 0.05))[0]):
        kind = draw.choice(sorted(ENVIRONMENT))
        from_s = draw.choice((0.0, draw.uniform(0.0, TROUBLE_S / 2)))
        name = ""
        if kind is ErrorKind.HUB_UNAVAILABLE:
            name = str(draw.choice(cells).cell.parameters["model"])
        elif kind is ErrorKind.DEVICE_FAILED:
            name = draw.choice(devices).uuid
        takes_s = draw.choice((0.5, 2.0, 20.0))
        # Of the machine's memory, as of all that a cell may have used up itself, only so many failures are free.
        lasts_s = 30.0 if kind is ErrorKind.HOST_MEMORY else draw.choice((15.0, 120.0, 2000.0))
        found.append(Hitch(kind, from_s, from_s + lasts_s, name, takes_s))
    return tuple(found)


def _deeds(draw: random.Random, devices: tuple[SimDevice, ...], cells: tuple[SimCell, ...]) -> tuple[Deed, ...]:
    deeds: list[Deed] = []
    for _ in range(draw.randint(1, 4)):
        at_s = draw.uniform(0.0, TROUBLE_S / 2)
        later_s = at_s + draw.uniform(1.0, 60.0)
        key, device = draw.choice(cells).cell.key, draw.choice(devices).uuid
        deeds += draw.choice(
            (
                (Deed(at_s, Wish.CANCEL, key),),
                (Deed(at_s, Wish.CANCEL, key), Deed(later_s, Wish.RETRY, key)),
                (Deed(at_s, Wish.RETRY, key),),
                (Deed(at_s, Wish.PAUSE), Deed(later_s, Wish.RESUME)),
                (Deed(at_s, Wish.CORDON, device), Deed(later_s, Wish.UNCORDON, device)),
                (Deed(at_s, Wish.RELOAD),),
                (Deed(at_s, Wish.STOP),),
                (Deed(at_s, Wish.STOP_ALL),),
            )
        )
    return tuple(sorted(deeds, key=lambda deed: deed.at_s))
