"""The search of one cell: the baseline, the points of the method's grid, the bound."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from boundd import __version__
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lease import DeviceLease, Lease, NoLease
from boundd.protocol.lines import Progress, Result
from boundd.protocol.strict_json import Json, dumps
from boundd.worker.contact_sheet import save_sheet, thumbnails
from boundd.worker.denoising_loop import DenoisingLoopTimer
from boundd.worker.devices import TorchDevice, open_device
from boundd.worker.earlier_results import read_earlier
from boundd.worker.errors import BadDataError, Shortage, WorkerError, shortage_of
from boundd.worker.explore import Explorer, Instrument
from boundd.worker.fetch import DEFAULT_TIMEOUT_S, Fetcher
from boundd.worker.fingerprint import fingerprint
from boundd.worker.image_checks import check_dependence, check_images, check_losses, check_prompts, check_scores
from boundd.worker.isolation import CpuIsolationMonitor, GpuIsolationMonitor, IsolationMonitor, worst
from boundd.worker.loading import Loaded, load
from boundd.worker.memory import MemoryLog, meter_for
from boundd.worker.methods import combine, distributions
from boundd.worker.methods.base import ModelContext
from boundd.worker.methods.combination import Combination
from boundd.worker.methods.ordering import orders_of
from boundd.worker.pipelines import describe, fetch_missing
from boundd.worker.points import Baseline, Bench
from boundd.worker.report import Reporter
from boundd.worker.sampling import Sampler, cut_batches, read_prompts
from boundd.worker.schedulers import describe_timesteps, dry_run
from boundd.worker.scorers import ClipScorer
from boundd.worker.settings import RunSettings
from boundd.worker.timing import PairTimer, StopRule
from boundd.worker.traversal import Traversal

BASE_STEPS = 2
"""Progress steps beside the points: loading and the baseline."""


class OutOfMemoryError(Exception):
    """Memory ran out while loading, in the baseline or at every point, so the search can't go on."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(shortage.message)
        self.shortage = shortage


class Search:
    """One cell's search. `phase` is the current phase, for error reports."""

    def __init__(self, settings: RunSettings, environment: WorkerEnvironment, reporter: Reporter) -> None:
        self._settings = settings
        self._environment = environment
        self._reporter = reporter
        self._done = 0
        self._total = BASE_STEPS  # the points are added once the grid is known
        self._memory: MemoryLog | None = None
        self._dependence: float | None = None
        self._loaded: Loaded | None = None
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
        self._progress(lease, 0)
        try:
            bench, context = self._load(lease)
            traversal = self._traversal(bench, context)
            self._phase("baseline", lease, 1)
            baseline = run_baseline(bench, self._environment.memory_cap_bytes, self._settings)
            self._check(bench, context, baseline, traversal)
        except Exception as error:
            if shortage := shortage_of(error):
                raise OutOfMemoryError(shortage) from error
            raise
        self._phase("points", lease, BASE_STEPS)
        explorer = self._explorer(bench, baseline, traversal, context)
        if self._settings.is_exhaustive:
            explorer.explore_everything()
        else:
            explorer.explore_lazily()
        if not explorer.lines:
            raise OutOfMemoryError(explorer.out_of_memory[-1].shortage)
        check_losses(point.score_loss for point in explorer.lines)
        best = _best(traversal, explorer)
        extra = self._extra(bench, baseline, traversal, explorer, best)
        self._progress(lease, self._total)
        self._save_sheets(baseline, bench, explorer, best)
        self.report_memory()
        extra |= {"elapsed_s": time.monotonic() - started_s, "lease_waited_s": lease.waited_s}
        result = self._result(traversal, explorer, best, extra)
        self._reporter.report(result)
        return result

    def report_memory(self) -> None:
        """Report the peak memory so far, if the device was opened; for a failed search it is a lower bound."""
        if self._memory is not None:
            self._reporter.report(self._memory.line())

    def _load(self, lease: Lease) -> tuple[Bench, ModelContext]:
        settings = self._settings
        batches = cut_batches(read_prompts(settings), settings.num_samples, settings.batch_size, settings.seed)
        method = combine(settings.methods)
        self._fetch(lease)
        device = open_device(settings, self._environment.memory_cap_bytes, self._environment.visible_devices)
        self._memory = MemoryLog(meter_for(device, device.uuid(self._environment.visible_devices)))
        self._memory.enter("load")
        with lease.shared():
            self._loaded = load(settings, device)
            pipe, scorer = self._loaded.pipe, self._loaded.scorer
            context = describe(pipe, settings)
        remarks = check_prompts(pipe, scorer, batches) + dry_run(pipe.scheduler, settings.steps).remarks()
        if settings.guidance_scale > 1 and not context.is_guided:
            remarks.append("the U-Net is distilled: it takes the guidance scale as an input, and is never guided")
        if reason := method.requires(context):
            raise BadDataError(f"{method.name} can't be measured on {settings.model}: {reason}")
        rule = StopRule(settings.repeats, settings.max_repeats, settings.precision, settings.budget_s)
        bench = Bench(
            pipe=pipe,
            method=method,
            batches=batches,
            sampler=Sampler(settings, device.name),
            scorer=scorer,
            device=device,
            lease=lease,
            timer=PairTimer(lease, self._isolation_monitor(device), rule, settings.seed),
            loop=DenoisingLoopTimer(pipe, device),
            memory=self._memory,
            seed=settings.seed,
            is_guided=context.is_guided,
        )
        bench.remarks += remarks
        return bench, context

    def _check(self, bench: Bench, context: ModelContext, baseline: Baseline, traversal: Traversal) -> None:
        """Check the baseline's timesteps, and that images do not depend on their batch."""
        if baseline.timesteps != context.timesteps:
            raise WorkerError(
                f"the U-Net was called at {describe_timesteps(baseline.timesteps)}, and the scheduler had announced"
                f" {describe_timesteps(context.timesteps)}"
            )
        self._dependence, remarks = check_dependence(bench, baseline, traversal.points[-1])
        bench.remarks += remarks

    def _fingerprint(self, bench: Bench) -> dict[str, Json]:
        assert self._loaded is not None, "a bench is made of what was loaded"
        return fingerprint(bench.device, self._loaded, distributions(bench.method))

    def _fetch(self, lease: Lease) -> None:
        """Fetch missing files before the device is opened, so that no other cell waits for the download."""
        timeout_s = self._environment.fetch_timeout_s
        fetcher = Fetcher(
            DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
            self._environment.fetching,
            lambda told: self._progress(lease, 0, told),
        )
        self.phase = "fetch"
        remarks = fetch_missing(self._settings, fetcher)
        self.phase = "load"
        for remark in remarks:
            print(f"boundd.worker: {remark}", file=sys.stderr, flush=True)

    def _traversal(self, bench: Bench, context: ModelContext) -> Traversal:
        settings = self._settings
        grid = bench.method.grid(context, settings.grid)
        if not grid:
            raise BadDataError(f"{bench.method.name} has no point to measure at {settings.steps} steps of this model")
        points = [bench.method.identity(context), *grid]
        self._total += len(points)
        return Traversal(points, orders_of(bench.method, context))

    def _explorer(self, bench: Bench, baseline: Baseline, traversal: Traversal, context: ModelContext) -> Explorer:
        digest = self._instrument_digest(bench, baseline)
        return Explorer(
            bench,
            baseline,
            traversal,
            self._settings.tolerance,
            Instrument(digest, bench.method.identity(context)),
            self._reporter.report,
            lambda settled: self._progress(bench.lease, BASE_STEPS + settled),
            {} if self._settings.is_fresh else read_earlier(self._environment.earlier_results, digest),
        )

    def _instrument_digest(self, bench: Bench, baseline: Baseline) -> str:
        """A digest of everything that a point's figures depend on."""
        subject = {
            **_describe_run(self._settings, bench, baseline),
            "boundd": __version__,
            "precision": self._settings.precision,
            "repeats": self._settings.repeats,
            "prompts": [list(batch.prompts) for batch in bench.batches],
            "fingerprint": self._fingerprint(bench),
        }
        return hashlib.sha256(dumps(subject).encode()).hexdigest()[:16]

    def _isolation_monitor(self, device: TorchDevice) -> IsolationMonitor:
        if not device.is_cuda:
            return CpuIsolationMonitor(device.threads)
        return GpuIsolationMonitor(device.uuid(self._environment.visible_devices), self._environment.lease_folder)

    def _result(self, traversal: Traversal, explorer: Explorer, best: int, extra: dict[str, Json]) -> Result:
        chosen = explorer.line(best)
        fastest = max(explorer.lines, key=lambda point: point.speedup)
        is_within = traversal.best is not None and chosen.score_loss is not None
        return Result(
            max_speedup=fastest.speedup,
            max_speedup_within_tolerance=chosen.speedup if is_within else None,
            best={"parameters": chosen.parameters, "speedup": chosen.speedup, "score_loss": chosen.score_loss},
            isolation=worst([fastest.isolation, chosen.isolation]),
            extra=extra,
        )

    def _extra(
        self, bench: Bench, baseline: Baseline, traversal: Traversal, explorer: Explorer, best: int
    ) -> dict[str, Json]:
        chosen = explorer.line(best)
        fastest = max(explorer.lines, key=lambda point: point.speedup)
        scores = baseline.all_scores
        skipped: list[Json] = [
            {"parameters": dict(skip.parameters), "reason": skip.reason} for skip in traversal.skipped()
        ]
        contributions = self._contributions(bench, traversal, explorer, best)
        return {
            **_describe_run(self._settings, bench, baseline),
            "batch_dependence": self._dependence,
            "warnings": list(bench.remarks),
            **_noise(baseline),
            "search": "exhaustive" if self._settings.is_exhaustive else "lazy",
            "best_speedup_low": chosen.extra["speedup_low"],
            "best_speedup_high": chosen.extra["speedup_high"],
            "best_speedup_loop": chosen.extra["speedup_loop"],
            "fastest_parameters": fastest.parameters,
            "baseline_score": sum(scores) / len(scores) if scores else None,
            "baseline_s": sorted(baseline.warm_up_s)[len(baseline.warm_up_s) // 2],
            "points": len(explorer.lines),
            "points_read_back": explorer.read_back,
            "points_skipped": skipped,
            "points_out_of_memory": [point.as_json() for point in explorer.out_of_memory],
            "images_generated": bench.images_made,
            "fingerprint": self._fingerprint(bench),
            "folders": {} if self._loaded is None else self._loaded.folders(),
            **({} if contributions is None else {"contributions": contributions}),
        }

    def _contributions(
        self, bench: Bench, traversal: Traversal, explorer: Explorer, best: int
    ) -> dict[str, Json] | None:
        """For a combination: what each method reaches alone, and the gain of the best point over the best of these.
        The search continues, lazily, for the points of each single method."""
        if not isinstance(bench.method, Combination):
            return None
        alone: dict[str, Json] = {}
        speeds: dict[str, float] = {}
        for part in bench.method.parts:
            own = set(part.parameter_names)
            traversal.focus(index for index, point in enumerate(traversal.points) if set(point) == own)
            if not self._settings.is_exhaustive:
                explorer.explore_lazily()
            if (single := traversal.best) is None:
                alone[part.name] = None
                continue
            line = explorer.line(single)
            speeds[part.name] = line.speedup
            alone[part.name] = {
                "parameters": line.parameters,
                "speedup": line.speedup,
                "score_loss": line.score_loss,
            }
        traversal.focus(range(len(traversal.points)))
        first = max(speeds, key=speeds.__getitem__, default=None)
        return {
            "alone": alone,
            "best_single": first,
            "gain_over_best_single": None if first is None else explorer.line(best).speedup / speeds[first],
        }

    def _phase(self, phase: str, lease: Lease, done: int) -> None:
        self.phase = phase
        self._progress(lease, done)
        if self._memory is not None:
            self._memory.enter(phase)

    def _progress(self, lease: Lease, done: int, more: Mapping[str, Json] | None = None) -> None:
        self._done = max(self._done, done)  # progress never goes back, although a settled point may become open again
        extra: dict[str, Json] = {"phase": self.phase, "lease_waited_s": lease.waited_s, **(more or {})}
        self._reporter.report(Progress(done=self._done, total=self._total, extra=extra))

    def _save_sheets(self, baseline: Baseline, bench: Bench, explorer: Explorer, best: int) -> None:
        folder = self._settings.output_dir or _beside(self._environment.results)
        if folder is None:
            return
        import torch

        batches = range(len(bench.batches))
        save_sheet(torch.cat([thumbnails(baseline.made(index).images) for index in batches]), folder / "baseline.png")
        run = explorer.run_of(best)
        if not run.thumbnails:
            run.warm_up()  # the point came from an earlier attempt: generate one batch for the contact sheet
        save_sheet(torch.cat([run.thumbnails[index] for index in sorted(run.thumbnails)]), folder / "best.png")


def run_baseline(bench: Bench, memory_cap_bytes: int | None, settings: RunSettings) -> Baseline:
    """Warm up, make every sample without acceleration, time the baseline against itself, and score.

    The scorer is placed on the device only now, when the pipeline's peak is known, and only if both fit.

    Raises:
        BadDataError: when images or scores are not finite, or the images show or score nothing.
    """
    baseline = Baseline(bench)
    baseline.warm_up()
    baseline.time_against_itself()
    baseline.complete()
    bench.remarks += check_images(settings, bench, baseline)
    if isinstance(bench.scorer, ClipScorer):
        bench.scorer.place(bench.device.name, bench.device.free_bytes(memory_cap_bytes))
    baseline.score()
    check_scores(bench, baseline)
    return baseline


def _best(traversal: Traversal, explorer: Explorer) -> int:
    """The fastest point that passed; where none did, the fastest of all."""
    if traversal.best is not None:
        return traversal.best
    timed = [index for index in range(len(traversal.points)) if traversal.estimate(index) is not None]
    return max(timed, key=lambda index: explorer.line(index).speedup)


def _beside(results: Path | None) -> Path | None:
    """The default folder of contact sheets: beside the results file."""
    return None if results is None else results.parent / "sheets"


def _noise(baseline: Baseline) -> dict[str, Json]:
    """The result of the A/A run: the measured speed-up of the baseline over itself."""
    timing = baseline.a_a
    assert timing is not None, "the baseline was timed against itself"
    return {
        "noise_floor": timing.speedup.value,
        "noise_floor_low": timing.speedup.low,
        "noise_floor_high": timing.speedup.high,
        "noise_floor_pairs": timing.speedup.pairs,
        "noise_floor_isolation": timing.isolation,
        "warm_up_calls": len(baseline.warm_up_s),
    }


def _describe_run(settings: RunSettings, bench: Bench, baseline: Baseline) -> dict[str, Json]:
    """The settings of the run, so that a result can be read without its cell: those used, not those asked for."""
    height_px, width_px = baseline.made(0).images.shape[-2:]
    return {
        "label": f"{settings.model}/{settings.scheduler_class}/{settings.steps}/{bench.method.name}",
        "model": settings.model,
        "source": settings.source,
        "scheduler_class": settings.scheduler_class,
        "pipeline_class": type(bench.pipe).__name__,
        "methods": list(settings.methods),
        "steps": settings.steps,
        "num_samples": settings.num_samples,
        "batch_size": len(bench.batches[0].seeds),
        "seed": settings.seed,
        "guidance_scale": settings.guidance_scale,
        "guidance": "on" if bench.is_guided else "off",
        "timesteps": [int(timestep) if timestep.is_integer() else timestep for timestep in baseline.timesteps],
        "resolution": height_px if height_px == width_px else [height_px, width_px],
        "dtype": bench.device.dtype_for(settings),
        "grid": settings.grid,
        "weights": settings.weights,
        "attention": settings.attention,
        "scorer": settings.scorer or None,
        "tolerance": settings.tolerance,
        "timed": "the whole call, from prompts to decoded images; speedup_loop: the denoising loop alone",
        "clock": bench.device.clock_name,
    }
