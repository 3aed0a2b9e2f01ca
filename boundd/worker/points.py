"""Measures points: generates their images, times them against the baseline, and compares quality.

Images of timed calls are also used as quality samples. An image is dropped once it is scored and compared; only a
thumbnail is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from boundd.protocol.lease import Lease
from boundd.worker.contact_sheet import thumbnails
from boundd.worker.denoising_loop import DenoisingLoopTimer
from boundd.worker.devices import CallTime, TorchDevice
from boundd.worker.errors import BadDataError, WorkerError
from boundd.worker.memory import MemoryLog, Peak
from boundd.worker.methods.base import Call, Method, Parameters
from boundd.worker.quality import Quality, Sample, compare_images, score_all, summarize
from boundd.worker.sampling import Batch, Sampler, to_host
from boundd.worker.scorers import Scorer
from boundd.worker.sequential import SequentialTest
from boundd.worker.statistics import IntervalEstimate
from boundd.worker.timing import PairSeries, PairTimer, TimedCall, Timing, is_steady
from boundd.worker.traversal import PointVerdict, is_slower

if TYPE_CHECKING:
    import torch

MAX_MEAN_DRIFT = 0.02
"""Largest mean difference, over pixels in [0, 1], between baseline images and the same images generated again later.
A GPU's order of summation stays below it. A method that was not undone exceeds it."""
A_A_PAIRS = 5
"""Number of pairs in the A/A run, which only measures the noise."""
MAX_WARM_UP_CALLS = 6
"""Most calls of a warm-up. A device that is not steady by then shows its noise in the A/A run."""


@dataclass(frozen=True)
class Made:
    """Output of one call: images in host memory, (n, 3, height, width) in [0, 1], and the final latents,
    (n, channels, height, width); None if they were not observed."""

    images: torch.Tensor
    latents: torch.Tensor | None


@dataclass
class Bench:
    """What the measurements of all points share. `images_made` counts the images generated so far."""

    pipe: Any
    method: Method
    batches: Sequence[Batch]
    sampler: Sampler
    scorer: Scorer | None
    device: TorchDevice
    lease: Lease
    timer: PairTimer
    loop: DenoisingLoopTimer
    memory: MemoryLog
    seed: int
    is_guided: bool
    images_made: int = field(default=0, init=False)
    remarks: list[str] = field(default_factory=list, init=False)
    """Warnings for the reader of the result, one sentence each."""

    @property
    def samples(self) -> int:
        """Number of images by which the quality of a point is judged."""
        return sum(len(batch.seeds) for batch in self.batches)

    @property
    def full_batches(self) -> list[int]:
        """Indices of the full batches. Only these are timed, because calls of different size can't be compared."""
        size = len(self.batches[0].seeds)
        return [index for index, batch in enumerate(self.batches) if len(batch.seeds) == size]

    def run(self, call: Call, index: int, what: str) -> tuple[Made, CallTime]:
        """Generate a batch's images and return the call's time, without the copy to the host.

        Raises:
            BadDataError: when the images are not finite. The message names `what` made them.
        """
        self.loop.reset()
        images, watch = self.device.time(lambda: self.sampler.generate(call, self.batches[index]))
        self.images_made += len(self.batches[index].seeds)
        latents = self.loop.latents
        made = Made(to_host(images, what), None if latents is None else latents.float().cpu())
        return made, replace(watch, loop_s=self.loop.loop_s())

    def score(self, images: torch.Tensor, index: int) -> list[float]:
        """The scores of a batch's images; empty without a scorer."""
        if self.scorer is None:
            return []
        with self.lease.shared():
            return self.memory.during("score", lambda: score_all(self.scorer, images, self.batches[index].prompts))


class Baseline:
    """The unaccelerated images, their scores, and the A/A run (the baseline timed against itself)."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._made: dict[int, Made] = {}
        self._turn = 0
        self.scores: dict[int, list[float]] = {}
        self.warm_up_s: list[float] = []
        self.a_a: Timing | None = None
        self.timesteps: tuple[float, ...] = ()
        """The timesteps at which the UNet was called for a batch, in order."""

    @property
    def all_scores(self) -> list[float]:
        """The score of every sample, in order; empty without a scorer."""
        return [score for index in sorted(self.scores) for score in self.scores[index]]

    def made(self, index: int) -> Made:
        """A batch's unaccelerated images."""
        return self._made[index]

    def warm_up(self) -> None:
        """Run calls until their times agree (`is_steady`): kernels are loaded, the allocator's cache is filled, and
        the clocks have settled."""
        bench = self._bench
        bench.loop.on_decode = lambda: bench.memory.enter("decode")
        while len(self.warm_up_s) < MAX_WARM_UP_CALLS and not is_steady(self.warm_up_s):
            with bench.lease.shared():
                self.warm_up_s.append(self.time(self._next()).elapsed_s)
            if bench.loop.on_decode is not None:
                bench.loop.on_decode = None
                bench.memory.enter("baseline")

    def time_against_itself(self) -> None:
        """The A/A run: time pairs of two baseline calls, whose ratio would be 1 without noise."""
        timer = self._bench.timer
        pairs = min(A_A_PAIRS, timer.rule.fewest)
        series = PairSeries(pairs, None, self._bench.seed)

        def next_pair() -> tuple[TimedCall, TimedCall]:
            first, second = self._next(), self._next()
            return lambda: self.time(first), lambda: self.time(second)

        rule = replace(timer.rule, min_pairs=pairs, max_pairs=pairs, precision=0.0)
        replace(timer, rule=rule).measure(series, next_pair)
        self.a_a = series.timing()

    def complete(self) -> None:
        """Generate the missing baseline images."""
        for index in range(len(self._bench.batches)):
            if index not in self._made:
                with self._bench.lease.shared():
                    self.time(index)

    def score(self) -> None:
        """Score all baseline images.

        Raises:
            BadDataError: when the mean score is 0, or scores are not finite.
        """
        for index, made in sorted(self._made.items()):
            self.scores[index] = self._bench.score(made.images, index)
        if self.all_scores and sum(self.all_scores) <= 0:
            raise BadDataError(
                "the unaccelerated images score 0 on average, so there is no score to lose a share of: are scorer,"
                " prompts and model made for each other, and are there steps enough?"
            )

    def time(self, index: int) -> CallTime:
        """One unaccelerated call. Its images are kept, or compared with the images kept earlier.

        Raises:
            WorkerError: when the pipeline no longer gives the same images.
        """
        bench = self._bench
        made, watch = bench.run(bench.pipe, index, "the baseline")
        self.timesteps = self.timesteps or bench.loop.timesteps()
        drift = float((made.images - self._made.setdefault(index, made).images).abs().mean())
        if drift > MAX_MEAN_DRIFT:
            raise WorkerError(
                f"{bench.method.name} was not undone: the unaccelerated images moved by {drift:.3f} on average, which"
                f" is over {MAX_MEAN_DRIFT}; its speed-ups can't be trusted"
            )
        return watch

    def time_any(self) -> CallTime:
        """One unaccelerated call of the next full batch."""
        return self.time(self._next())

    def _next(self) -> int:
        """The next full batch, in turn."""
        full = self._bench.full_batches
        self._turn += 1
        return full[(self._turn - 1) % len(full)]


class PointRun:
    """The calls, pairs and quality samples of one point."""

    def __init__(self, bench: Bench, baseline: Baseline, parameters: Parameters, noise: float) -> None:
        self._bench = bench
        self._baseline = baseline
        self._turn = 0
        self._samples: dict[int, list[Sample]] = {}
        # Generated under the exclusive lease; scored after it is released.
        self._waiting: dict[int, Made] = {}
        self.parameters = parameters
        self.series = PairSeries(bench.timer.rule.fewest, noise, bench.seed)
        self.thumbnails: dict[int, torch.Tensor] = {}
        self.peak: Peak | None = None
        """Peak memory of the variant's warm-up call."""

    def warm_up(self) -> None:
        """The variant's first call. It is not timed, because it compiles kernels and allocates memory."""
        if self.peak is not None:
            return
        index = self._next()
        phase = "point " + ", ".join(f"{name}={value:g}" for name, value in self.parameters.items())
        with self._bench.lease.shared():
            self._bench.memory.during(phase, lambda: self._call(index))
        self.peak = self._bench.memory.peak(phase)
        self._score_waiting()

    def next_timed(self) -> TimedCall:
        """A call to time, on the next batch that has no images yet."""
        index = self._next()
        return lambda: self._call(index)

    def next_pair(self) -> tuple[TimedCall, TimedCall]:
        """A baseline call and a variant call on the same batch, to be timed as a pair."""
        index = self._next()
        return lambda: self._baseline.time(index), lambda: self._call(index)

    def judge(self, test: SequentialTest | None, fastest: IntervalEstimate | None) -> PointVerdict | None:
        """Generate and score samples until the test rejects the point or no sample is missing.

        Some samples are generated as timed pairs with the baseline. For a point that seems slower than the fastest so
        far, all are, because its speed may rule it out. For other points only the last ones are, so that a point that
        passes has been timed too. For a point that seems to fail, none are.

        Returns:
            The verdict; None if the point is clearly slower than the fastest.
        """
        while True:
            self._score_waiting()
            excess = [] if test is None else self._excess(test)
            if test is not None and test.rejects(excess, self._bench.samples):
                return PointVerdict.REJECTED
            missing = self._missing()
            if not missing:
                return self.verdict(test)
            own = self.series.estimate()
            if fastest is not None and is_slower(own, fastest):
                return None
            if missing[0] in self._bench.full_batches and self._wants_pair(own, fastest, excess, len(missing)):
                self._bench.timer.add_pair(self.series, self.next_pair)
            else:
                self._make(missing[0])

    def _wants_pair(
        self, own: IntervalEstimate, fastest: IntervalEstimate | None, excess: Sequence[float], missing_batches: int
    ) -> bool:
        """Whether to generate the next sample as a timed pair, which costs one more batch of baseline images."""
        if fastest is not None and own.high < fastest.low:
            return True  # one more pair settles it
        if sum(excess) > 0:
            return False
        if fastest is not None and own.value < fastest.value:
            return True
        timer = self._bench.timer
        return missing_batches <= timer.rule.fewest - self.series.pairs and not timer.is_spent(self.series)

    def complete(self) -> None:
        """Generate and score the missing samples."""
        for index in self._missing():
            self._make(index)
        self._score_waiting()

    def quality(self) -> Quality:
        """The quality over the samples so far."""
        self._score_waiting()
        baseline = [score for index in sorted(self._samples) for score in self._baseline.scores.get(index, ())]
        return summarize(self._all_samples(), baseline, self._bench.seed)

    def _make(self, index: int) -> None:
        with self._bench.lease.shared():
            self._call(index)

    def _missing(self) -> list[int]:
        """The batches without images."""
        every = range(len(self._bench.batches))
        return [index for index in every if index not in self._samples and index not in self._waiting]

    def _call(self, index: int) -> CallTime:
        bench = self._bench
        what = f"{bench.method.name} at {dict(self.parameters)}"
        with bench.method.applied(bench.pipe, self.parameters, bench.pipe) as call:
            made, watch = bench.run(call, index, what)
        if index not in self._samples:
            self._waiting.setdefault(index, made)
        return watch

    def _score_waiting(self) -> None:
        """Score and compare the images that wait for it, then drop them."""
        for index in sorted(self._waiting):
            made, before = self._waiting.pop(index), self._baseline.made(index)
            scores = self._bench.score(made.images, index)
            self._samples[index] = compare_images(before.images, made.images, scores, (before.latents, made.latents))
            self.thumbnails[index] = thumbnails(made.images)

    def _excess(self, test: SequentialTest) -> list[float]:
        return [
            test.excess(before, sample.score)
            for index in sorted(self._samples)
            for before, sample in zip(self._baseline.scores.get(index, ()), self._samples[index], strict=False)
            if sample.score is not None
        ]

    def verdict(self, test: SequentialTest | None) -> PointVerdict:
        """The verdict, once every sample is there."""
        loss = self.quality().score_loss
        if test is None or loss is None:
            return PointVerdict.PASSED
        return PointVerdict.PASSED if loss.value <= test.tolerance else PointVerdict.FAILED

    def _all_samples(self) -> list[Sample]:
        return [sample for index in sorted(self._samples) for sample in self._samples[index]]

    def _next(self) -> int:
        """The next full batch without images; if there is none, the full batches in turn."""
        full = self._bench.full_batches
        if missing := [index for index in self._missing() if index in full]:
            return missing[0]
        self._turn += 1
        return full[(self._turn - 1) % len(full)]
