"""Measures points until the bound is known: with the lazy search, or every point (`--exhaustive`).

The lazy search times points roughly and judges them from the fastest down. A point is rejected as soon as the
sequential test allows it, and accepted only on all samples. Points that passed and may be the fastest are then timed
precisely.
Points that `traversal` rules out are not measured; the result lists them with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from boundd.protocol.lines import Point, name_of
from boundd.protocol.strict_json import Json
from boundd.worker.errors import Shortage, shortage_of
from boundd.worker.methods.base import Parameters
from boundd.worker.points import Baseline, Bench, PointRun
from boundd.worker.quality import Quality
from boundd.worker.sequential import SequentialTest
from boundd.worker.statistics import IntervalEstimate
from boundd.worker.timing import Timing, noise_of
from boundd.worker.traversal import PointVerdict, Traversal, is_slower


@dataclass(frozen=True)
class OutOfMemoryPoint:
    """A point at which memory ran out."""

    parameters: Parameters
    shortage: Shortage

    def as_json(self) -> dict[str, Json]:
        """For the result line."""
        return {
            "parameters": dict(self.parameters),
            "message": self.shortage.message,
            "requested_bytes": self.shortage.requested_bytes,
            "free_bytes": self.shortage.free_bytes,
        }


@dataclass(frozen=True)
class Instrument:
    """What the line of every point states about how it was measured.

    Attributes:
        digest: stands for all that a measurement depends on. Points of different digests are not comparable.
        identity: the point that changes nothing.
    """

    digest: str
    identity: Parameters


class Explorer:
    """Measures the points of one grid.

    Args:
        report: called with a point's line whenever more is known of it; the last line counts.
        advance: called with the number of settled points.
        earlier: points that an earlier attempt measured with the same instrument, by `name_of` their parameters.
    """

    def __init__(
        self,
        bench: Bench,
        baseline: Baseline,
        traversal: Traversal,
        tolerance: float,
        instrument: Instrument,
        report: Callable[[Point], None],
        advance: Callable[[int], None],
        earlier: Mapping[str, Point],
    ) -> None:
        self._bench = bench
        self._baseline = baseline
        self._traversal = traversal
        self._instrument = instrument
        self._report = report
        self._advance = advance
        assert baseline.a_a is not None, "the A/A run comes first"
        self._noise = noise_of(baseline.a_a.pairs)
        self._test = SequentialTest.of(tolerance, len(traversal.points), bench.samples, len(bench.batches[0].seeds))
        self._runs: dict[int, PointRun] = {}
        self._lines: dict[int, Point] = {}
        self._refined: set[int] = set()
        self.out_of_memory: list[OutOfMemoryPoint] = []
        self.read_back = 0
        for index, parameters in enumerate(traversal.points):
            if (point := earlier.get(name_of(parameters))) is not None:
                self._restore(index, point)

    @property
    def lines(self) -> list[Point]:
        """The lines of all measured points, in the order of the grid."""
        return [self._lines[index] for index in sorted(self._lines)]

    def line(self, index: int) -> Point:
        """The line of a measured point."""
        return self._lines[index]

    def run_of(self, index: int) -> PointRun:
        """The measurement of a point."""
        if index not in self._runs:
            parameters = self._traversal.points[index]
            self._runs[index] = PointRun(self._bench, self._baseline, parameters, self._noise)
        return self._runs[index]

    def explore_lazily(self) -> None:
        """Measure as few points as needed to know the fastest one that passes."""
        traversal = self._traversal
        while True:
            if waiting := traversal.to_time():
                self._time_roughly(waiting)
            elif (candidate := traversal.candidate()) is not None:
                self._judge(candidate)
            elif unsure := [index for index in traversal.contenders() if index not in self._refined]:
                for index in unsure:
                    self._refine(index)
            else:
                return
            self._advance(len(traversal.points) - len(traversal.open()))

    def explore_everything(self) -> None:
        """Time every point precisely, and judge it on all samples."""
        for index in range(len(self._traversal.points)):
            if index not in self._refined:
                self._guarded(index, lambda: self._measure_whole(index))  # noqa: B023 - called at once
            self._advance(index + 1)

    def _measure_whole(self, index: int) -> None:
        run = self.run_of(index)
        run.warm_up()
        self._bench.timer.measure(run.series, run.next_pair)
        run.complete()
        self._refined.add(index)
        self._traversal.timed(index, run.series.estimate())
        self._traversal.judged(index, run.verdict(self._test if self._is_scored else None))
        self._note(index)

    @property
    def _is_scored(self) -> bool:
        return self._bench.scorer is not None

    def _time_roughly(self, indices: Sequence[int]) -> None:
        """Time one call of each point, after a warm-up. Points that run out of memory are noted."""
        warm = [index for index in indices if self._guarded(index, self.run_of(index).warm_up)]
        try:
            self._add_rough_pairs(warm)
        except Exception as error:
            if shortage_of(error) is None:
                raise
            # Which point ran out of memory is not known, so each is tried alone.
            warm = [index for index in warm if self._guarded(index, lambda: self._add_rough_pairs([index]))]  # noqa: B023
        for index in warm:
            self._traversal.timed(index, self.run_of(index).series.estimate())
            self._note(index)

    def _add_rough_pairs(self, indices: Sequence[int]) -> None:
        runs = [self.run_of(index) for index in indices]
        self._bench.timer.add_rough_pairs(self._baseline.time_any, [(run.series, run.next_timed()) for run in runs])

    def _judge(self, index: int) -> None:
        if self.run_of(index).series.tries == 0:
            # It was not timed yet, and its speed alone may rule it out.
            self._time_roughly([index])
        else:
            self._guarded(index, lambda: self._judge_by_samples(index))

    def _judge_by_samples(self, index: int) -> None:
        run = self.run_of(index)
        verdict: PointVerdict | None = PointVerdict.PASSED
        if self._is_scored:
            run.warm_up()
            best = self._traversal.best
            fastest = None if best is None else self._traversal.estimate(best)
            verdict = run.judge(self._test, fastest)
        self._traversal.timed(index, run.series.estimate())
        if verdict is not None:
            self._traversal.judged(index, verdict)
        self._note(index)

    def _refine(self, index: int) -> None:
        """Time a contender precisely, or until it is clearly not the fastest."""
        self._refined.add(index)
        self._guarded(index, lambda: self._time_properly(index))

    def _time_properly(self, index: int) -> None:
        run, best = self.run_of(index), self._traversal.best
        fastest = None if best is None or best == index else self._traversal.estimate(best)
        run.warm_up()
        self._bench.timer.measure(
            run.series, run.next_pair, lambda own: fastest is not None and is_slower(own, fastest)
        )
        run.complete()
        self._traversal.timed(index, run.series.estimate())
        self._note(index)

    def _guarded(self, index: int, work: Callable[[], None]) -> bool:
        """Do `work` for a point. False if memory ran out: that ends this point, not the search."""
        try:
            work()
        except Exception as error:
            shortage = shortage_of(error)
            if shortage is None:
                raise
            self.out_of_memory.append(OutOfMemoryPoint(self._traversal.points[index], shortage))
            self._traversal.judged(index, PointVerdict.OUT_OF_MEMORY)
            self._bench.device.free_unused()
            return False
        return True

    def _note(self, index: int) -> None:
        """Report a point's line."""
        run = self.run_of(index)
        timing = run.series.timing()
        quality = run.quality()
        verdict = self._traversal.verdict(index)
        line = Point(
            parameters=dict(run.parameters),
            speedup=timing.speedup.value,
            score_loss=None if quality.score_loss is None else quality.score_loss.value,
            isolation=timing.isolation,
            extra={
                "identity": run.parameters == self._instrument.identity,
                "verdict": None if verdict is None else str(verdict),
                "refined": index in self._refined,
                **_timing_extra(timing),
                **_quality_extra(quality),
                "memory": run.peak.as_json() if run.peak else None,
                "instrument": self._instrument.digest,
            },
        )
        self._lines[index] = line
        self._report(line)

    def _restore(self, index: int, point: Point) -> None:
        """Take over a point that an earlier attempt measured."""
        extra = point.extra
        low, high, pairs, verdict = (extra.get(name) for name in ("speedup_low", "speedup_high", "pairs", "verdict"))
        if not isinstance(low, int | float) or not isinstance(high, int | float) or not isinstance(pairs, int):
            return
        if verdict is not None and verdict not in list(PointVerdict):
            return
        self._traversal.timed(index, IntervalEstimate(point.speedup, low, high, pairs))
        if verdict is not None:
            self._traversal.judged(index, PointVerdict(str(verdict)))
        if extra.get("refined") is True:
            self._refined.add(index)
        self._lines[index] = point
        self.read_back += 1
        self._report(point)


def _timing_extra(timing: Timing) -> Mapping[str, Json]:
    return {
        "speedup_low": timing.speedup.low,
        "speedup_high": timing.speedup.high,
        "speedup_wall": timing.median_of(lambda pair: pair.baseline.wall_s / pair.variant.wall_s),
        "speedup_loop": timing.median_loop_ratio(),
        "pairs": timing.speedup.pairs,
        "baseline_s": timing.median_of(lambda pair: pair.baseline.elapsed_s),
        "accelerated_s": timing.median_of(lambda pair: pair.variant.elapsed_s),
        "pairs_dropped": timing.dropped,
        "attest": timing.attest.as_json(),
    }


def _quality_extra(quality: Quality) -> Mapping[str, Json]:
    loss = quality.score_loss
    return {
        "samples": quality.samples,
        "score_loss_low": None if loss is None else loss.low,
        "score_loss_high": None if loss is None else loss.high,
        "score": quality.mean_score,
        "psnr_db": quality.psnr_db,
        "ssim": quality.ssim,
        "latent_error": quality.latent_error,
    }
