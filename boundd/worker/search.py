"""The traversal search of one cell: the baseline, then every point of the method's grid, then the bound."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lease import DeviceLease, Lease, NoLease
from boundd.protocol.lines import Point, Progress, Result
from boundd.protocol.strict_json import Json
from boundd.worker.contact_sheet import save_sheet
from boundd.worker.devices import Device, open_device
from boundd.worker.errors import BadDataError, Shortage, shortage_of
from boundd.worker.fingerprint import fingerprint
from boundd.worker.isolation import CpuWitness, GpuWitness, Witness, worst
from boundd.worker.methods import combine
from boundd.worker.methods.base import Parameters
from boundd.worker.pipelines import describe, load_pipeline
from boundd.worker.points import Baseline, Bench, measure_point, run_baseline
from boundd.worker.report import Reporter
from boundd.worker.sampling import Sampler, cut_batches, read_prompts
from boundd.worker.scorers import load_scorer
from boundd.worker.settings import Settings
from boundd.worker.timing import PairTimer


class OutOfMemoryError(Exception):
    """Memory ran out where the search can't go on: loading, the baseline, or every single point."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(shortage.message)
        self.shortage = shortage


class Search:
    """One cell's search. `phase` says how far it is, for whoever reports its failure."""

    def __init__(self, settings: Settings, environment: WorkerEnvironment, reporter: Reporter) -> None:
        self._settings = settings
        self._environment = environment
        self._reporter = reporter
        self._done = 0
        self._total = 2  # loading and the baseline; the points are added once the grid is known
        self._points: list[Point] = []
        self._starved: list[Json] = []
        self._best_images: Any = None
        self._device: Device | None = None
        self.phase = "load"

    def run(self) -> Result:
        """Search, reporting every point, the memory and the result.

        Raises:
            WorkerError: when the cell can't be measured.
            OutOfMemoryError: when memory ran out where the search can't go on.
        """
        started_s = time.monotonic()
        folder = self._environment.lease_folder
        lease: Lease = NoLease() if folder is None else DeviceLease(folder)
        self._progress(lease)
        try:
            bench, identity, grid = self._load(lease)
            self._advance("baseline", lease)
            baseline = run_baseline(bench)
        except Exception as error:
            if shortage := shortage_of(error):
                raise OutOfMemoryError(shortage) from error
            raise
        self._advance("points", lease)
        for parameters in (identity, *grid):
            self._measure(bench, baseline, parameters, parameters is identity)
            self._advance("points", lease)
        result = self._result(bench, baseline, time.monotonic() - started_s)
        if self._settings.output_dir is not None:
            self._save_sheets(self._settings.output_dir, baseline)
        self.report_memory()
        self._reporter.report(result)
        return result

    def report_memory(self) -> None:
        """Report the peak so far, if the device was opened: also of a search that failed, since it says how
        much is not enough.
        """
        if self._device is not None:
            self._reporter.report(self._device.peak_memory())

    def _load(self, lease: Lease) -> tuple[Bench, Parameters, Sequence[Parameters]]:
        settings = self._settings
        batches = cut_batches(read_prompts(settings), settings.num_samples, settings.batch_size, settings.seed)
        method = combine(settings.methods)
        self._device = device = open_device(settings, self._environment.memory_cap_bytes)
        with lease.shared():
            pipe = load_pipeline(settings, device)
            scorer = load_scorer(settings.scorer, device.name)
        context = describe(pipe, settings)
        if reason := method.requires(context):
            raise BadDataError(f"{method.name} can't be measured on {settings.model}: {reason}")
        grid = method.grid(context, settings.grid)
        if not grid:
            raise BadDataError(f"{method.name} has no point to measure at {settings.steps} steps of this model")
        self._total += 1 + len(grid)
        bench = Bench(
            pipe=pipe,
            method=method,
            batches=batches,
            sampler=Sampler(settings, device.name),
            scorer=scorer,
            device=device,
            lease=lease,
            timer=PairTimer(lease, self._witness(device), settings.repeats, settings.budget_s, settings.seed),
            seed=settings.seed,
        )
        return bench, method.identity(context), grid

    def _witness(self, device: Device) -> Witness:
        if not device.is_cuda:
            return CpuWitness(device.threads)
        visible = self._environment.visible_devices or ""
        uuid = visible if visible.startswith(("GPU-", "MIG-")) else None
        return GpuWitness(uuid, self._environment.lease_folder)

    def _measure(self, bench: Bench, baseline: Baseline, parameters: Parameters, is_identity: bool) -> None:
        """Measure one point; one that runs out of memory is noted, and the search goes on."""
        try:
            point, images = measure_point(bench, baseline, parameters, is_identity)
        except Exception as error:
            shortage = shortage_of(error)
            if shortage is None:
                raise
            self._starved.append({"parameters": dict(parameters), "message": shortage.message})
            if len(self._starved) + len(self._points) == self._total - 2 and not self._points:
                raise OutOfMemoryError(shortage) from error
            bench.device.free_unused()
            return
        self._points.append(point)
        self._reporter.report(point)
        if point is self._best():
            self._best_images = images

    def _within(self) -> list[Point]:
        tolerance = self._settings.tolerance
        return [point for point in self._points if point.score_loss is not None and point.score_loss <= tolerance]

    def _best(self) -> Point:
        """The fastest point within the tolerance; where nothing was scored or nothing is within, the
        fastest."""
        return max(self._within() or self._points, key=lambda point: point.speedup)

    def _result(self, bench: Bench, baseline: Baseline, elapsed_s: float) -> Result:
        within = self._within()
        best = self._best()
        fastest = max(self._points, key=lambda point: point.speedup)
        scores = baseline.scores
        return Result(
            max_speedup=fastest.speedup,
            max_speedup_within_tolerance=best.speedup if within else None,
            best={"parameters": best.parameters, "speedup": best.speedup, "score_loss": best.score_loss},
            isolation=worst([fastest.isolation, best.isolation]),
            extra={
                **_describe_run(self._settings, bench),
                **_noise_floor(self._points),
                "best_speedup_low": best.extra["speedup_low"],
                "best_speedup_high": best.extra["speedup_high"],
                "fastest_parameters": fastest.parameters,
                "baseline_score": sum(scores) / len(scores) if scores else None,
                "baseline_s": baseline.call_s,
                "points": len(self._points),
                "points_out_of_memory": self._starved,
                "elapsed_s": elapsed_s,
                "lease_waited_s": bench.lease.waited_s,
                "fingerprint": fingerprint(bench.device, bench.pipe, [bench.method.distribution]),
            },
        )

    def _advance(self, phase: str, lease: Lease) -> None:
        self.phase = phase
        self._done += 1
        self._progress(lease)

    def _progress(self, lease: Lease) -> None:
        extra: dict[str, Json] = {"phase": self.phase, "lease_waited_s": lease.waited_s}
        self._reporter.report(Progress(done=self._done, total=self._total, extra=extra))

    def _save_sheets(self, folder: Path, baseline: Baseline) -> None:
        import torch

        save_sheet(torch.cat(list(baseline.batches)), folder / "baseline.png")
        save_sheet(self._best_images, folder / "best.png")


def _noise_floor(points: Sequence[Point]) -> dict[str, Json]:
    """How far from 1 the speed-up of nothing at all was measured; null where the identity ran out of
    memory."""
    identity = next((point.extra for point in points if point.extra["identity"]), None)
    return {
        "noise_floor_low": identity and identity["speedup_low"],
        "noise_floor_high": identity and identity["speedup_high"],
    }


def _describe_run(settings: Settings, bench: Bench) -> dict[str, Json]:
    """What was measured, so that a result can be read without its cell."""
    return {
        "label": f"{settings.model}/{settings.scheduler_class}/{settings.steps}/{bench.method.name}",
        "model": settings.model,
        "source": settings.source,
        "scheduler_class": settings.scheduler_class,
        "pipeline_class": type(bench.pipe).__name__,
        "methods": list(settings.methods),
        "steps": settings.steps,
        "num_samples": settings.num_samples,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "guidance_scale": settings.guidance_scale,
        "resolution": settings.resolution,
        "dtype": bench.device.dtype_for(settings),
        "grid": settings.grid,
        "weights": "pretrained",
        "scorer": settings.scorer or None,
        "tolerance": settings.tolerance,
        "timed": "the whole call, from prompts to decoded images",
        "clock": "cuda events" if bench.device.is_cuda else "cpu time" if settings.threads == 1 else "wall",
    }
