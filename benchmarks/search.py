"""Compares the lazy and the exhaustive search, cell by cell: whether the bounds agree, and how many images each needs.

    python -m benchmarks.search [--steps 8] [--num-samples 32] [--jobs 2] [--method deepcache ...] [-o FILE]

Both run in one process on the built-in digits models, one after the other, with the same settings. Every image that
the pipeline makes is counted: warm-up, A/A run, baseline and timing included. `agrees` is `same` where both found the
same parameters, `overlap` where the intervals of their speed-ups overlap, and `NO` where they don't.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import command_line, describe
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lines import Line, Result
from boundd.worker.cli import silence_libraries

MODELS = ("digits-sd15", "digits-sd21", "digits-sdxl")
SCHEDULERS = ("DDIM", "DPM-Solver++", "UniPC")
METHODS = ("deepcache", "tgate", "tome")
LARGER_GRIDS = ("deepcache", "tgate")
TARGET = 5.0
"""How many times fewer images the lazy search is to make on the larger grids."""


@dataclass(frozen=True)
class Found:
    """What one search found, and what it took."""

    parameters: dict[str, Any]
    speedup: float
    low: float
    high: float
    points: int
    images: int
    seconds: float
    isolation: str


@dataclass(frozen=True)
class Cell:
    """One cell, searched both ways."""

    label: str
    method: str
    lazy: Found
    exhaustive: Found

    @property
    def ratio(self) -> float:
        """How many times fewer images the lazy search made."""
        return self.exhaustive.images / self.lazy.images

    @property
    def agrees(self) -> str:
        """Whether both name the same bound."""
        if self.lazy.parameters == self.exhaustive.parameters:
            return "same"
        overlap = self.lazy.high >= self.exhaustive.low and self.exhaustive.high >= self.lazy.low
        return "overlap" if overlap else "NO"


class _Silent:
    def report(self, line: Line) -> None:
        """The result is all that is wanted."""


def run_cell(options: dict[str, Any]) -> Cell:
    """Search one cell both ways, in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    silence_libraries()
    found = {name: _search(options | {"exhaustive": name == "exhaustive"}) for name in ("lazy", "exhaustive")}
    label = "/".join(str(options[name]) for name in ("pipe", "sched", "search_targets", "steps"))
    return Cell(label, options["search_targets"], found["lazy"], found["exhaustive"])


def _search(options: dict[str, Any]) -> Found:
    from boundd.worker.search import Search
    from boundd.worker.settings import resolve

    started_s = time.monotonic()
    result: Result = Search(resolve(options, WorkerEnvironment()), WorkerEnvironment(), _Silent()).run()
    extra: Any = result.extra
    best: Any = result.best
    return Found(
        parameters=dict(best["parameters"]),
        speedup=best["speedup"],
        low=extra["best_speedup_low"],
        high=extra["best_speedup_high"],
        points=extra["points"],
        images=extra["images_generated"],
        seconds=time.monotonic() - started_s,
        isolation=result.isolation,
    )


def rows(cells: Iterable[Cell]) -> Iterable[str]:
    """A line a cell, as it comes."""
    heads = ("cell", "images lazy", "exhaustive", "fewer", "s lazy", "exhaustive", "bound lazy", "exhaustive", "agrees")
    yield "{:<36} {:>11} {:>10} {:>6} {:>7} {:>10} {:>19} {:>19}  {}".format(*heads)
    for cell in cells:
        lazy, whole = cell.lazy, cell.exhaustive
        yield (
            f"{cell.label:<36} {lazy.images:>11} {whole.images:>10} {cell.ratio:>5.1f}x {lazy.seconds:>7.0f}"
            f" {whole.seconds:>10.0f} {_bound(lazy):>19} {_bound(whole):>19}  {cell.agrees}"
            + ("" if cell.agrees == "same" else f"  {_point(lazy)} against {_point(whole)}")
            + ("" if {lazy.isolation, whole.isolation} == {"exclusive"} else f"  ({lazy.isolation}, {whole.isolation})")
        )


def _bound(found: Found) -> str:
    return f"{found.speedup:.2f}x ({found.low:.2f}-{found.high:.2f})"


def _point(found: Found) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in found.parameters.items())


def ratio_of(cells: Sequence[Cell]) -> float:
    """How many times fewer images the lazy search made over several cells."""
    return sum(cell.exhaustive.images for cell in cells) / sum(cell.lazy.images for cell in cells)


def summary(cells: Sequence[Cell]) -> Iterable[str]:
    """What it comes to, by method and in all."""
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == method]
        images = [sum(cell.lazy.images for cell in own), sum(cell.exhaustive.images for cell in own)]
        target = f"; the target is {TARGET:g}x" if method in LARGER_GRIDS else ""
        span = f"{min(cell.ratio for cell in own):.1f}x to {max(cell.ratio for cell in own):.1f}x a cell"
        yield f"{method}: {images[0]} images instead of {images[1]}: {ratio_of(own):.1f}x fewer ({span}){target}"
    counts = {kind: sum(cell.agrees == kind for cell in cells) for kind in ("same", "overlap", "NO")}
    yield (
        f"{len(cells)} cells: the same point in {counts['same']}, overlapping intervals in {counts['overlap']},"
        f" disagreement in {counts['NO']}"
    )


@click.command()
@click.option("--steps", default=8, show_default=True, help="Denoising steps.")
@click.option("--num-samples", default=32, show_default=True)
@click.option("--batch-size", default=4, show_default=True)
@click.option("--tolerance", default=0.02, show_default=True)
@click.option("--repeats", default=8, show_default=True, help="The fewest pairs a point is timed properly by.")
@click.option("--max-repeats", default=40, show_default=True, help="The most; both are the worker's own.")
@click.option("--grid", default="standard", show_default=True)
@click.option("--model", multiple=True, default=MODELS, show_default=True)
@click.option("--scheduler", multiple=True, default=SCHEDULERS, show_default=True)
@click.option("--method", multiple=True, default=METHODS, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Cells at a time: one a core, and nothing else beside.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write what is printed to this file too.")
def main(
    model: Sequence[str],
    scheduler: Sequence[str],
    method: Sequence[str],
    jobs: int,
    output: Path | None,
    **settings: Any,
) -> None:
    """Run both searches over the digits matrix. Exit 1 where they disagree, or where the target is missed."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("", encoding="utf-8")

    def tell(text: str) -> None:
        print(text, flush=True)
        if output is not None:
            with output.open("a", encoding="utf-8") as file:
                print(text, file=file)

    tell(command_line())
    tell(describe())
    tell("the built-in digits models on a CPU: toys, whose speed-ups say nothing of real models")
    matrix = [
        settings | {"pipe": name, "sched": sampler, "search_targets": target, "device": "cpu"}
        for target, name, sampler in itertools.product(method, model, scheduler)
    ]
    cells: list[Cell] = []

    def kept(finished: Iterable[Cell]) -> Iterable[Cell]:
        for cell in finished:
            cells.append(cell)
            yield cell

    with ProcessPoolExecutor(jobs) as pool:
        for text in rows(kept(pool.map(run_cell, matrix))):
            tell(text)
    for text in summary(cells):
        tell(text)
    larger = [[cell for cell in cells if cell.method == name] for name in LARGER_GRIDS]
    missed = any(own and ratio_of(own) < TARGET for own in larger)
    sys.exit(1 if missed or any(cell.agrees == "NO" for cell in cells) else 0)


if __name__ == "__main__":
    main()
