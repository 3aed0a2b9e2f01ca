"""Five traces: a box, cells with what is true of them, and what else happens. Each is drawn from a seed.

Nothing here is tuned to a policy: peaks and durations are drawn around published sizes of the models, and what is
believed of a cell is the core's own prior, or a config's footprint that is off by a drawn factor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.state import Rules
from boundd.sim import CellTruth, Failure, Faults, Foreign, Mishap, SimCell, SimDevice, World

MIB = 1024**2
GIB = 1024**3
SAMPLES = 32
BATCH = 4
AXES = ("model", "scheduler", "steps", "method")
SCHEDULERS = ("DDIM", "DPM-Solver++", "UniPC")
STEPS = (20, 25, 50)
METHODS = ("deepcache", "tgate", "tome")


@dataclass(frozen=True, slots=True)
class Kind:
    """A model as it really is: bytes held whatever the batch, bytes an image, seconds a step and sample."""

    fixed_bytes: int
    image_bytes: int
    step_s: float
    exclusive: bool = False
    footprint_bytes: int | None = None
    """What the config says; None where the core's prior is all that there is."""


# Weights and context, and the VAE's decode at the native size, which sets the peak (published: SD1.5 about 3.9 GiB at a
# batch of four, SDXL about 20). Seconds: the DeepCache paper's A5000, twenty points a cell.
KNOWN: Mapping[str, Kind] = {
    "SD1.5": Kind(int(2.5 * GIB), 400 * MIB, 1.1),
    "SD2.1": Kind(int(2.9 * GIB), 880 * MIB, 1.9),
    "SDXL": Kind(int(7.0 * GIB), 3050 * MIB, 5.2, exclusive=True),
}


@dataclass(frozen=True, slots=True)
class Trace:
    """A named world and the rules that it is run by."""

    name: str
    world: World
    rules: Rules


def matrix81(seed: int) -> Trace:
    """The 81 cells of the shipped config on two devices of 24 GiB."""
    draw = random.Random(f"matrix81 {seed}")
    cells = [_cell(draw, KNOWN[model], model, *rest) for model, *rest in product(KNOWN, SCHEDULERS, STEPS, METHODS)]
    return Trace("81 cells on 2 x 24 GiB", World(_devices(2, 24), tuple(cells)), Rules())


def small200(seed: int) -> Trace:
    """200 cells of four small models on four devices of 80 GiB."""
    draw = random.Random(f"small200 {seed}")
    kinds = {
        f"small-{n}": Kind(draw.randrange(2, 9) * GIB, draw.randrange(200, 1800) * MIB, draw.uniform(0.3, 1.5))
        for n in range(4)
    }
    kinds = {name: _believed(kind, 1.2) for name, kind in kinds.items()}
    cells = []
    for number in range(200):
        model = draw.choice(sorted(kinds))
        cells.append(_cell(draw, kinds[model], model, f"s{number}", draw.choice(STEPS), draw.choice(METHODS)))
    return Trace("200 small cells on 4 x 80 GiB", World(_devices(4, 80), tuple(cells)), Rules())


def mixed(seed: int) -> Trace:
    """Known and unknown models, small and large, some that must be alone, on three devices of 48 GiB."""
    draw = random.Random(f"mixed {seed}")
    return Trace("mixed, 3 x 48 GiB", World(_devices(3, 48), _mixed_cells(draw, 90)), Rules())


def foreign(seed: int) -> Trace:
    """The same kind of cells, and a process of somebody else's that takes most of a device, goes, and comes again."""
    draw = random.Random(f"foreign {seed}")
    visits = []
    at_s = draw.uniform(600.0, 1800.0)
    for _ in range(4):
        stays_s = draw.uniform(1200.0, 4000.0)
        visits.append(Foreign("GPU-0", at_s, at_s + stays_s, int(draw.uniform(0.5, 0.95) * 48 * GIB)))
        at_s += stays_s + draw.uniform(600.0, 2400.0)
    world = World(_devices(3, 48), _mixed_cells(draw, 90), Faults(foreign=tuple(visits)))
    return Trace("foreign process on one of 3 x 48 GiB", world, Rules())


def wrong(seed: int) -> Trace:
    """Footprints that are off by a factor of 0.4 to 2, cells that fit on no device with their batch, and plain bugs."""
    draw = random.Random(f"wrong {seed}")
    kinds = {}
    for number in range(8):
        peak = draw.uniform(3.0, 14.0) * GIB
        kind = _of_peak(peak, draw.uniform(0.3, 1.4))
        kinds[f"model-{number}"] = _believed(kind, draw.uniform(0.4, 2.0))
    for number in range(2):
        # Too large with a batch of 4, and fits with 2 or 1.
        fixed = int(draw.uniform(4.0, 7.0) * GIB)
        kind = Kind(fixed, int((draw.uniform(26.0, 40.0) * GIB - fixed) / BATCH), draw.uniform(0.6, 1.4))
        kinds[f"huge-{number}"] = _believed(kind, draw.uniform(0.3, 1.0))
    cells = []
    for number in range(100):
        model = sorted(kinds)[number % len(kinds)]
        cell = _cell(draw, kinds[model], model, f"s{number}", draw.choice(STEPS), METHODS[0])
        if draw.random() < 0.06:
            bug = Mishap(Failure.BUG, draw.uniform(0.01, 0.5))
            cell = replace(cell, truth=replace(cell.truth, always=bug))
        cells.append(cell)
    return Trace("wrong estimates and cells too large, 2 x 24 GiB", World(_devices(2, 24), tuple(cells)), Rules())


def thinned(trace: Trace, every: int) -> Trace:
    """The first of its cells, and every so manieth after it."""
    return replace(trace, world=replace(trace.world, cells=trace.world.cells[::every]))


TRACES: Mapping[str, Callable[[int], Trace]] = {
    "matrix81": matrix81,
    "small200": small200,
    "mixed": mixed,
    "foreign": foreign,
    "wrong": wrong,
}


def _mixed_cells(draw: random.Random, count: int) -> tuple[SimCell, ...]:
    kinds = dict(KNOWN)
    for number in range(5):
        kind = _of_peak(draw.uniform(2.0, 30.0) * GIB, draw.uniform(0.4, 2.5))
        kinds[f"model-{number}"] = _believed(replace(kind, exclusive=draw.random() < 0.2), draw.uniform(1.0, 1.6))
    cells = []
    for number in range(count):
        model = draw.choice(sorted(kinds))
        cells.append(_cell(draw, kinds[model], model, f"s{number}", draw.choice(STEPS), draw.choice(METHODS)))
    return tuple(cells)


def _of_peak(peak_bytes: float, step_s: float) -> Kind:
    fixed = int(0.5 * peak_bytes)
    return Kind(fixed, int((peak_bytes - fixed) / BATCH), step_s)


def _believed(kind: Kind, factor: float) -> Kind:
    return replace(kind, footprint_bytes=int((kind.fixed_bytes + BATCH * kind.image_bytes) * factor))


def _cell(draw: random.Random, kind: Kind, model: str, scheduler: str, steps: int, method: str) -> SimCell:
    parameters = {
        "model": model, "scheduler": scheduler, "steps": steps, "method": method,
        "batch_size": BATCH, "num_samples": SAMPLES,
    }  # fmt: skip
    seconds = kind.step_s * steps * SAMPLES * draw.lognormvariate(0.0, 0.15)
    # A method's own caches, the same for all cells of a model and method; what varies from run to run is small.
    caches = {"deepcache": 1.03, "tgate": 1.02}.get(method, 1.0)
    images = int(kind.image_bytes * caches * draw.uniform(0.99, 1.01))
    policy = CellPolicy(exclusive=kind.exclusive, timeout_s=48 * 3600.0, footprint_bytes=kind.footprint_bytes)
    return SimCell(Cell.of(parameters, AXES), policy, CellTruth(60.0 + seconds, kind.fixed_bytes, images))


def _devices(count: int, gib: int) -> tuple[SimDevice, ...]:
    return tuple(SimDevice(f"GPU-{n}", f"Fake {gib} GiB", gib * GIB) for n in range(count))
