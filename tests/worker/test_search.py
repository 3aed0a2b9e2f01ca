"""The whole search, with real models: what it reports, in which order, and how it fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lines import Line, Memory, Point, Progress, Result, encode, parse_line
from boundd.worker import points as points_module
from boundd.worker import search as search_module
from boundd.worker.errors import BadDataError, WorkerError
from boundd.worker.methods import load_method
from boundd.worker.methods.base import Call, Method, ModelContext, Parameters
from boundd.worker.search import OutOfMemoryError, Search
from boundd.worker.settings import Settings
from tests.worker.conftest import MakeSettings


class Recorder:
    """Keeps every line, after a trip through the protocol."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def report(self, line: Line) -> None:
        """Keep it."""
        self.lines.append(parse_line(encode(line)))

    def of(self, kind: type) -> list[Any]:
        """The lines of a type."""
        return [line for line in self.lines if isinstance(line, kind)]


def run(settings: Settings, **environment: Any) -> tuple[Recorder, Result]:
    """Search, and give what was reported."""
    recorder = Recorder()
    result = Search(settings, WorkerEnvironment(**environment), recorder).run()
    return recorder, result


class Broken(Method):
    """ToMe with a fault of its own at some points."""

    name = "broken"
    distribution = ""
    parameter_names = ("ratio", "max_downsample")
    composes_with = frozenset()

    def __init__(self, fault: Any, from_ratio: float = 0.5) -> None:
        self.tome = load_method("tome")
        self.fault = fault
        self.from_ratio = from_ratio

    def requires(self, context: ModelContext) -> str | None:
        """Whatever ToMe does."""
        return self.tome.requires(context)

    def grid(self, context: ModelContext, size: Any) -> Sequence[Parameters]:
        """ToMe's."""
        return self.tome.grid(context, size)

    def identity(self, context: ModelContext) -> Parameters:
        """ToMe's."""
        return self.tome.identity(context)

    @contextmanager
    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> Iterator[Call]:
        """ToMe, or the fault."""
        with self.tome.applied(pipe, parameters, call) as inner:
            yield self.fault(pipe, inner) if parameters["ratio"] >= self.from_ratio else inner


def starving(pipe: Any, call: Call) -> Call:
    """A call that asks for more memory than there is."""
    return lambda *_, **__: torch.empty(1 << 60, dtype=torch.uint8)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the search use a method with a fault."""

    def use(fault: Any, from_ratio: float = 0.5) -> None:
        monkeypatch.setattr(search_module, "combine", lambda _: Broken(fault, from_ratio))

    return use


def test_a_search_reports_everything(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Progress to the end, the identity first, memory before the result, and numbers that agree with each
    other."""
    settings = make_settings(num_samples=3, batch_size=2, repeats=3, tolerance=1.0, output_dir=str(tmp_path))
    recorder, result = run(settings, lease_folder=tmp_path / "lease")
    points = recorder.of(Point)
    assert [point.extra["identity"] for point in points] == [True] + [False] * (len(points) - 1)
    assert len(points) == 4  # the identity, and the coarse intervals below six steps
    identity = points[0]
    assert identity.score_loss == 0
    assert identity.extra["psnr_db"] is None
    assert all(point.extra["psnr_db"] is not None for point in points[1:])
    for point in points:
        assert point.extra["speedup_low"] <= point.speedup <= point.extra["speedup_high"]
        assert point.extra["pairs"] == settings.repeats
    assert [type(line) for line in recorder.lines[-2:]] == [Memory, Result]
    progress = recorder.of(Progress)
    assert [line.done for line in progress] == list(range(len(points) + 3))
    assert progress[-1].done == progress[-1].total
    assert {line.extra["phase"] for line in progress} == {"load", "baseline", "points"}
    fastest = max(points, key=lambda point: point.speedup)
    assert result.max_speedup == result.max_speedup_within_tolerance == fastest.speedup
    assert result.best == {
        "parameters": fastest.parameters,
        "speedup": fastest.speedup,
        "score_loss": fastest.score_loss,
    }
    assert result.extra["points_out_of_memory"] == []
    fingerprint = result.extra["fingerprint"]
    assert isinstance(fingerprint, dict)
    assert fingerprint["torch"] == torch.__version__
    assert fingerprint["DeepCache"]
    assert recorder.of(Memory)[0].extra == {"measure": "peak_rss"}
    assert (tmp_path / "baseline.png").stat().st_size > 0
    assert (tmp_path / "best.png").stat().st_size > 0


def test_a_combination_is_searched(make_settings: MakeSettings) -> None:
    """All three methods at once, on the architecture with the most traps."""
    settings = make_settings(pipe="digits-sdxl", search_targets="tome+tgate+deepcache", scorer="", repeats=2)
    recorder, result = run(settings)
    assert result.extra["methods"] == ["deepcache", "tgate", "tome"]
    assert set(recorder.of(Point)[0].parameters) >= {"cache_interval", "gate_step", "ratio"}
    assert result.max_speedup is not None


def test_the_tolerance_bites(make_settings: MakeSettings) -> None:
    """With none allowed, the bound is the best of the points that lose nothing; the fastest is told beside
    it."""
    recorder, result = run(make_settings(tolerance=0.0, repeats=2, steps=8))
    lossless = [point for point in recorder.of(Point) if point.score_loss <= 0]
    assert result.max_speedup_within_tolerance == max(point.speedup for point in lossless)
    assert result.max_speedup == max(point.speedup for point in recorder.of(Point))


def test_without_a_scorer_nothing_is_within_the_tolerance(make_settings: MakeSettings) -> None:
    """No score, no bound within a tolerance, and best is the fastest; PSNR and SSIM are there all the
    same."""
    recorder, result = run(make_settings(scorer="", repeats=2))
    assert all(point.score_loss is None for point in recorder.of(Point))
    assert result.max_speedup_within_tolerance is None
    assert result.best is not None
    assert result.best["speedup"] == result.max_speedup
    assert result.extra["baseline_score"] is None
    assert all(point.extra["ssim"] > 0 for point in recorder.of(Point))


def test_a_point_that_starves_is_noted_and_the_search_goes_on(make_settings: MakeSettings, broken: Any) -> None:
    """A real allocation failure at some points: they are listed, the others measured, the pipeline is
    whole."""
    broken(starving)
    recorder, result = run(make_settings(search_targets="tome", repeats=2))
    starved = result.extra["points_out_of_memory"]
    assert isinstance(starved, list)
    assert [point["parameters"]["ratio"] for point in starved] == [0.5, 0.7, 0.5]
    assert [point.parameters["ratio"] for point in recorder.of(Point)] == [0.0, 0.3]
    assert recorder.of(Progress)[-1].done == recorder.of(Progress)[-1].total


def test_when_every_point_starves_the_cell_does(make_settings: MakeSettings, broken: Any) -> None:
    """With nothing measured there is no result to give."""
    broken(starving, from_ratio=0.0)
    with pytest.raises(OutOfMemoryError) as caught:
        run(make_settings(search_targets="tome"))
    assert caught.value.shortage.requested_bytes == 1 << 60


def test_a_starving_baseline_ends_it(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase says where memory ran out."""
    monkeypatch.setattr(search_module, "run_baseline", lambda _: torch.empty(1 << 60, dtype=torch.uint8))
    search = Search(make_settings(), WorkerEnvironment(), Recorder())
    with pytest.raises(OutOfMemoryError):
        search.run()
    assert search.phase == "baseline"


def test_a_method_that_stays_is_caught(make_settings: MakeSettings, broken: Any) -> None:
    """A method which leaves something behind spoils the baseline, and that is an error, never a speed-up."""

    def leave_noise(pipe: Any, call: Call) -> Call:
        pipe.vae.decoder.conv_out.bias.data += 1.0
        return call

    broken(leave_noise)
    settings = make_settings(search_targets="tome", repeats=2)
    with pytest.raises(WorkerError, match="was not undone"):
        run(settings)


def test_a_baseline_that_shows_nothing_ends_it(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images which score 0 have nothing to lose, and that is said before any point is measured."""
    monkeypatch.setattr(points_module, "score_all", lambda *_: [0.0, 0.0])
    search = Search(make_settings(), WorkerEnvironment(), Recorder())
    with pytest.raises(BadDataError, match="score 0"):
        search.run()
    assert search.phase == "baseline"


def test_images_that_are_no_numbers_end_it(make_settings: MakeSettings, broken: Any) -> None:
    """NaN pixels are bad data, whichever point they come from."""

    def poison(pipe: Any, call: Call) -> Call:
        def poisoned(*arguments: Any, **options: Any) -> Any:
            output = call(*arguments, **options)
            output.images[0] = float("nan")
            return output

        return poisoned

    broken(poison)
    with pytest.raises(BadDataError, match="not finite"):
        run(make_settings(search_targets="tome", repeats=2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"search_targets": "tgate", "guidance_scale": 1.0}, "T-GATE gates guidance"),
        ({"sched": "Heun"}, "2 times"),
        ({"steps": 1}, "no point to measure"),
    ],
)
def test_a_misfit_is_bad_data(options: dict[str, Any], reason: str, make_settings: MakeSettings) -> None:
    """What can't be measured on this model is said before anything is generated."""
    with pytest.raises(BadDataError, match=reason):
        run(make_settings(**options))


def test_what_is_printed_is_read_back(make_settings: MakeSettings) -> None:
    """The result's isolation is the worst of the points that make the bound, and one of the protocol's."""
    recorder, result = run(make_settings(repeats=2))
    makers = [point.isolation for point in recorder.of(Point) if point.speedup == result.max_speedup]
    assert result.isolation in ("exclusive", "contended", "unknown")
    assert not (result.isolation == "exclusive" and "contended" in makers)
    assert re.fullmatch(r"digits-sd15/DDIMScheduler/6/deepcache", str(result.extra["label"]))
    assert os.environ.get("BOUNDD_RESULTS") is None
