"""Measuring one point: its images, its speed-up over the baseline, and what it cost in quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boundd.protocol.lease import Lease
from boundd.protocol.lines import Point
from boundd.protocol.strict_json import Json
from boundd.worker.devices import Device, Stopwatch
from boundd.worker.errors import BadDataError, WorkerError
from boundd.worker.methods.base import Method, Parameters
from boundd.worker.quality import Quality, compare, score_all
from boundd.worker.sampling import Batch, Sampler, to_host
from boundd.worker.scorers import Scorer
from boundd.worker.timing import PairTimer, Timing

if TYPE_CHECKING:
    import torch

MAX_MEAN_DRIFT = 0.02
"""How far, on average over pixels in [0, 1], the baseline's images may move between its first run and a later
one: room for a GPU's sums in another order, and far below what a method left in place would do."""


@dataclass(frozen=True)
class Baseline:
    """The unaccelerated images and their scores.

    Attributes:
        batches: the images of each batch, (n, 3, height, width) in [0, 1], float32, in host memory.
        scores: one an image; empty without a scorer.
        call_s: seconds of a call of a whole batch, when the images were made.
    """

    batches: Sequence[torch.Tensor]
    scores: Sequence[float]
    call_s: float


@dataclass(frozen=True)
class Bench:
    """Everything that measuring a point needs, the same for all points."""

    pipe: Any
    method: Method
    batches: Sequence[Batch]
    sampler: Sampler
    scorer: Scorer | None
    device: Device
    lease: Lease
    timer: PairTimer
    seed: int

    @property
    def prompts(self) -> list[str]:
        """The prompts of all samples, in order."""
        return [prompt for batch in self.batches for prompt in batch.prompts]

    def score(self, images: torch.Tensor) -> list[float]:
        """The score of every sample, with the device shared."""
        with self.lease.shared():
            return score_all(self.scorer, images, self.prompts, len(self.batches[0].seeds))


def run_baseline(bench: Bench) -> Baseline:
    """Warm the pipeline up, generate every sample without acceleration, and score them.

    Raises:
        BadDataError: when images or scores are not finite, or the images score nothing.
    """
    import torch

    _warm_up(bench)
    images, watches = [], []
    for batch in bench.batches:
        with bench.lease.shared():
            made, watch = bench.device.time(lambda: bench.sampler.generate(bench.pipe, batch))  # noqa: B023
        images.append(to_host(made, "the baseline"))
        watches.append(watch.elapsed_s)
    scores = bench.score(torch.cat(images))
    if scores and sum(scores) <= 0:
        raise BadDataError(
            "the unaccelerated images score 0 on average, so there is no score to lose a share of: are scorer, prompts"
            " and model made for each other, and are there steps enough?"
        )
    return Baseline(images, scores, watches[0])


def _warm_up(bench: Bench) -> None:
    """One call which nobody looks at: it loads kernels and fills the allocator's cache."""
    with bench.lease.shared():
        bench.sampler.generate(bench.pipe, bench.batches[0])


def measure_point(bench: Bench, baseline: Baseline, parameters: Parameters, is_identity: bool) -> tuple[Point, Any]:
    """Measure one point.

    The images of its timed calls are its samples; only batches that were not timed are generated besides.

    Returns:
        The point's line, and its images (samples, 3, height, width).

    Raises:
        BadDataError: when its images or scores are not finite.
        WorkerError: when the unaccelerated pipeline no longer gives the baseline's images.
    """
    import torch

    run = _PointRun(bench, baseline, parameters)
    run.generate(0)  # the variant's own warm-up, and its first samples
    timing = bench.timer.measure(run.time_baseline, run.time_variant)
    for index in range(len(bench.batches)):
        run.generate(index)
    images = torch.cat([run.images[index] for index in range(len(bench.batches))])
    quality = compare(torch.cat(list(baseline.batches)), images, baseline.scores, bench.score(images), bench.seed)
    line = Point(
        parameters=dict(parameters),
        speedup=timing.speedup.value,
        score_loss=None if quality.score_loss is None else quality.score_loss.value,
        isolation=timing.isolation,
        extra={"identity": is_identity, **_timing_extra(timing), **_quality_extra(quality)},
    )
    return line, images


class _PointRun:
    """One point's calls: keeps the images of each batch the first time they are made."""

    def __init__(self, bench: Bench, baseline: Baseline, parameters: Parameters) -> None:
        self._bench = bench
        self._baseline = baseline
        self._parameters = parameters
        self.images: dict[int, torch.Tensor] = {}

    def generate(self, index: int) -> None:
        """Make the images of a batch, untimed, unless they are there."""
        if index in self.images:
            return
        with self._bench.lease.shared():
            self._run_variant(index)

    def time_variant(self, pair: int) -> Stopwatch:
        """Time the pair's accelerated call; method and baseline alternate, so it is applied and undone each
        time."""
        return self._run_variant(self._batch_of(pair))

    def time_baseline(self, pair: int) -> Stopwatch:
        """Time the pair's unaccelerated call, and see that it still gives the baseline's images."""
        bench, index = self._bench, self._batch_of(pair)
        images, watch = self._timed(bench.pipe, index)
        drift = float((to_host(images, "the baseline") - self._baseline.batches[index]).abs().mean())
        if drift > MAX_MEAN_DRIFT:
            raise WorkerError(
                f"{bench.method.name} was not undone: the unaccelerated images moved by {drift:.3f} on average, which"
                f" is over {MAX_MEAN_DRIFT}; its speed-ups can't be trusted"
            )
        return watch

    def _run_variant(self, index: int) -> Stopwatch:
        bench = self._bench
        with bench.method.applied(bench.pipe, self._parameters, bench.pipe) as call:
            images, watch = self._timed(call, index)
        if index not in self.images:
            self.images[index] = to_host(images, f"{bench.method.name} at {dict(self._parameters)}")
        return watch

    def _timed(self, call: Callable[..., Any], index: int) -> tuple[torch.Tensor, Stopwatch]:
        bench = self._bench
        images, watch = bench.device.time(lambda: bench.sampler.generate(call, bench.batches[index]))
        return images, watch

    def _batch_of(self, pair: int) -> int:
        """Pairs go round the full batches, from the second on: the warm-up has made the first one's
        images."""
        size = len(self._bench.batches[0].seeds)
        full = [index for index, batch in enumerate(self._bench.batches) if len(batch.seeds) == size]
        return full[(pair + 1) % len(full)]


def _timing_extra(timing: Timing) -> Mapping[str, Json]:
    return {
        "speedup_low": timing.speedup.low,
        "speedup_high": timing.speedup.high,
        "speedup_wall": timing.median_of(lambda pair: pair.baseline.wall_s / pair.variant.wall_s),
        "pairs": timing.speedup.pairs,
        "baseline_s": timing.median_of(lambda pair: pair.baseline.elapsed_s),
        "accelerated_s": timing.median_of(lambda pair: pair.variant.elapsed_s),
        "retimings": timing.retimings,
    }


def _quality_extra(quality: Quality) -> Mapping[str, Json]:
    loss = quality.score_loss
    return {
        "score_loss_low": None if loss is None else loss.low,
        "score_loss_high": None if loss is None else loss.high,
        "score": quality.mean_score,
        "psnr_db": quality.psnr_db,
        "ssim": quality.ssim,
    }
