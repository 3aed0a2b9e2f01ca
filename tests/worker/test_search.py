"""The whole search, with real models: what it reports, in which order, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from boundd.catalogue.libraries import installed_version
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.file_digests import content_of
from boundd.protocol.lease import NoLease
from boundd.protocol.lines import Line, Memory, Point, Progress, Result, encode, name_of, parse_line
from boundd.protocol.strict_json import dumps
from boundd.worker import loading
from boundd.worker import points as points_module
from boundd.worker import search as search_module
from boundd.worker.digits import model_folder, scorer_folder
from boundd.worker.errors import BadDataError, ModelUnavailableError, WorkerError
from boundd.worker.methods import load_method
from boundd.worker.methods.base import Call, Method, ModelContext, Parameters
from boundd.worker.sampling import Batch, Sampler
from boundd.worker.search import OutOfMemoryError, Search
from boundd.worker.settings import RunSettings
from tests.worker.conftest import MakeSettings

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
"""A side of a small CLIP model."""


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


def run(settings: RunSettings, **environment: Any) -> tuple[Recorder, Result]:
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


def last_of(points: Sequence[Point]) -> list[Point]:
    """What is known of each point in the end: of several lines about one, the last."""
    return list({name_of(point.parameters): point for point in points}.values())


QUICK: dict[str, Any] = {"repeats": 2, "max_repeats": 2}


def test_an_exhaustive_search_reports_everything(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Progress to the end, the identity first, memory before the result, and numbers that agree with each
    other."""
    settings = make_settings(
        num_samples=3, batch_size=2, repeats=3, max_repeats=3, tolerance=0.99, output_dir=str(tmp_path), exhaustive=True
    )
    recorder, result = run(settings, lease_folder=tmp_path / "lease")
    points = recorder.of(Point)
    assert [point.extra["identity"] for point in points] == [True] + [False] * (len(points) - 1)
    assert len(points) == 4  # the identity, and the coarse intervals below six steps
    identity = points[0]
    assert identity.score_loss == 0
    assert identity.extra["psnr_db"] is None
    assert identity.extra["latent_error"] == 0
    assert all(point.extra["psnr_db"] is not None for point in points[1:])
    for point in points:
        assert point.extra["speedup_low"] <= point.speedup <= point.extra["speedup_high"]
        assert point.extra["pairs"] + point.extra["pairs_dropped"] >= settings.repeats
        assert point.extra["samples"] == 3
        assert point.extra["verdict"] == "passed"
        assert point.extra["speedup_loop"] > 0
        assert point.extra["memory"]["peak_allocated_bytes"] > 0
    assert [type(line) for line in recorder.lines[-2:]] == [Memory, Result]
    progress = recorder.of(Progress)
    assert [line.done for line in progress] == sorted(line.done for line in progress)
    assert progress[-1].done == progress[-1].total == len(points) + 2
    assert {line.extra["phase"] for line in progress} == {"load", "baseline", "points"}
    fastest = max(points, key=lambda point: point.speedup)
    assert result.max_speedup == result.max_speedup_within_tolerance == fastest.speedup
    assert result.best == {
        "parameters": fastest.parameters,
        "speedup": fastest.speedup,
        "score_loss": fastest.score_loss,
    }
    assert result.extra["search"] == "exhaustive"
    assert result.extra["points_out_of_memory"] == result.extra["points_skipped"] == []
    assert result.extra["noise_floor_low"] <= result.extra["noise_floor"] <= result.extra["noise_floor_high"]  # type: ignore[operator]
    fingerprint = result.extra["fingerprint"]
    assert isinstance(fingerprint, dict)
    assert fingerprint["torch"] == torch.__version__
    assert fingerprint["DeepCache"]
    memory = recorder.of(Memory)[0]
    assert memory.extra["measure"] == "peak_rss"
    assert {"load", "baseline", "decode", "score"} <= set(memory.extra["phases"])
    assert (
        max(phase["peak_allocated_bytes"] for phase in memory.extra["phases"].values()) == memory.peak_allocated_bytes
    )
    assert (tmp_path / "baseline.png").stat().st_size > 0
    assert (tmp_path / "best.png").stat().st_size > 0


def test_a_lazy_search_makes_fewer_images_and_says_what_it_left_out(make_settings: MakeSettings) -> None:
    """With everything allowed the fastest point settles all the others; each has its reason."""
    settings = make_settings(num_samples=8, batch_size=4, steps=4, tolerance=0.99, grid="standard", **QUICK)
    recorder, result = run(settings)
    points = last_of(recorder.of(Point))
    skipped = result.extra["points_skipped"]
    assert isinstance(skipped, list)
    assert len(points) == 1
    assert len(points) + len(skipped) == 2 * 4 + 1
    assert points[0].parameters == {"cache_interval": 3, "cache_branch_id": 0}
    assert points[0].extra["refined"]
    assert all("which passed" in skip["reason"] for skip in skipped)
    assert recorder.of(Progress)[-1].done == recorder.of(Progress)[-1].total
    exhaustive = run(make_settings(**vars_of(settings), exhaustive=True, **QUICK))[1]
    assert 3 * int(str(result.extra["images_generated"])) < int(str(exhaustive.extra["images_generated"]))
    assert exhaustive.extra["points"] == 9


def vars_of(settings: RunSettings) -> dict[str, Any]:
    """The options of the search above, once more."""
    names = ("num_samples", "batch_size", "steps", "tolerance", "grid")
    return {name: getattr(settings, name) for name in names}


def test_images_are_counted_as_they_are_made(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number in the result is what the pipeline was really asked for."""
    made = 0
    generate = Sampler.generate

    def counted(self: Sampler, call: Call, batch: Batch) -> torch.Tensor:
        nonlocal made
        made += len(batch.seeds)
        return generate(self, call, batch)

    monkeypatch.setattr(Sampler, "generate", counted)
    _, result = run(make_settings(num_samples=5, batch_size=2, **QUICK))
    assert result.extra["images_generated"] == made


def test_an_earlier_attempt_is_read_back(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Points that a worker measured before it was killed are not measured again, and --fresh refuses them."""
    settings = make_settings(num_samples=4, batch_size=2, exhaustive=True, **QUICK)
    first, _ = run(settings)
    results = tmp_path / "results.jsonl"
    kept = first.of(Point)[:2]
    results.write_text("".join(encode(point) + "\n" for point in kept))
    again, result = run(settings, earlier_results=(results,))
    assert result.extra["points_read_back"] == 2
    # Timed again, none would come out the same to the last digit. Images can't be counted against the first run's: on
    # a busy machine contended pairs are made again, in either.
    assert [point.speedup for point in again.of(Point)[:2]] == [point.speedup for point in kept]
    assert len(last_of(again.of(Point))) == len(first.of(Point))
    fresh = make_settings(num_samples=4, batch_size=2, exhaustive=True, fresh=True, **QUICK)
    assert run(fresh, earlier_results=(results,))[1].extra["points_read_back"] == 0
    other = make_settings(num_samples=4, batch_size=2, exhaustive=True, seed=43, **QUICK)
    assert run(other, earlier_results=(results,))[1].extra["points_read_back"] == 0


def test_another_model_in_the_folder_is_another_instrument(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Points of the model before must not be read back: seen to be, and one that lost 0.062 made the bound.

    The same for the scorer's weights, and for the scheduler's configuration.
    """
    model, scorer = tmp_path / "mine", tmp_path / "clip"
    shutil.copytree(model_folder("digits-sd15"), model)
    clip = CLIPConfig(
        text_config={**TINY, "vocab_size": 768, "max_position_embeddings": 16, "eos_token_id": 767},
        vision_config={**TINY, "image_size": 32, "patch_size": 8},
    )
    CLIPModel(clip).save_pretrained(scorer)
    shutil.copytree(model / "tokenizer", scorer, dirs_exist_ok=True)
    settings = make_settings(pipe="mine", source=str(model), scorer=str(scorer), **QUICK)

    def instrument() -> str:
        search = Search(settings, WorkerEnvironment(), Recorder())
        bench, _ = search._load(NoLease())
        return dumps(search._fingerprint(bench))

    def retrained(weights: Path) -> None:
        tensors = load_file(weights)
        name = max(tensors)
        tensors[name] = tensors[name] * 1.001
        save_file(tensors, weights, metadata={"format": "pt"})

    def rescheduled() -> None:
        config = model / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.013}))

    seen = [instrument(), instrument()]
    assert seen[0] == seen[1]
    for change in (
        lambda: retrained(model / "unet" / "diffusion_pytorch_model.safetensors"),
        lambda: retrained(model / "vae" / "diffusion_pytorch_model.safetensors"),
        lambda: retrained(model / "text_encoder" / "model.safetensors"),
        lambda: retrained(scorer / "model.safetensors"),
        rescheduled,
    ):
        change()
        seen.append(instrument())
    assert len(set(seen)) == len(seen) - 1


def test_a_model_that_changes_while_it_is_loaded(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy or a download that is still going on: nobody knows what was loaded."""
    model = tmp_path / "mine"
    shutil.copytree(model_folder("digits-sd15"), model)
    load = loading.load_pipeline

    def load_slowly(*arguments: Any) -> Any:
        pipe = load(*arguments)
        (model / "vae" / "config.json").write_text("{}")
        return pipe

    monkeypatch.setattr(loading, "load_pipeline", load_slowly)
    with pytest.raises(ModelUnavailableError, match=r"vae/config.json changed while it was loaded"):
        run(make_settings(pipe="mine", source=str(model), scorer="", **QUICK))


def test_the_result_says_what_was_loaded(make_settings: MakeSettings) -> None:
    """Every file of model and scorer, the scheduler's configuration, boundd's version, and where they lay."""
    _, result = run(make_settings(num_samples=2, batch_size=1, **QUICK))
    fingerprint, folders = result.extra["fingerprint"], result.extra["folders"]
    assert isinstance(fingerprint, dict)
    assert isinstance(folders, dict)
    assert fingerprint["boundd"] == installed_version("boundd")
    for name, folder in (("model", model_folder("digits-sd15")), ("scorer", scorer_folder())):
        digests = fingerprint["content"][name]
        assert digests == content_of(folder, [path for path in folder.rglob("*") if path.is_file()])
        assert folders[name] == str(folder)
    assert len(fingerprint["content"]["scheduler"]) == 16


def test_a_lazy_search_goes_on_from_rough_timings(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Killed when points were timed and none was judged: they are read back, and judged now."""
    settings = make_settings(search_targets="tome", num_samples=4, batch_size=2, tolerance=0.99, **QUICK)
    first, _ = run(settings)
    rough = [point for point in first.of(Point) if point.extra["verdict"] is None]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(encode(point) + "\n" for point in rough))
    again, result = run(settings, earlier_results=(results,))
    assert result.extra["points_read_back"] == len(last_of(rough)) == 5
    assert any(point.extra["verdict"] == "passed" for point in again.of(Point))
    assert result.max_speedup_within_tolerance is not None


def test_memory_that_runs_out_while_timing_is_one_points_own(make_settings: MakeSettings, broken: Any) -> None:
    """A warm-up may fit where a later call doesn't: of points timed together, only the one that starved is out."""
    calls = 0

    def starving_later(pipe: Any, call: Call) -> Call:
        nonlocal calls
        calls += 1
        return call if calls <= 3 else starving(pipe, call)

    broken(starving_later)
    recorder, result = run(make_settings(search_targets="tome", **QUICK))
    starved = result.extra["points_out_of_memory"]
    assert isinstance(starved, list)
    assert [point["parameters"]["ratio"] for point in starved] == [0.5, 0.7, 0.5]
    assert {point.parameters["ratio"] for point in recorder.of(Point)} == {0.0, 0.3}


def test_a_combination_is_searched(make_settings: MakeSettings) -> None:
    """All three methods at once, on the architecture with the most traps; each alone is part of the space, and what
    the combination adds to the best of them is told."""
    settings = make_settings(pipe="digits-sdxl", search_targets="tome+tgate+deepcache", scorer="", **QUICK)
    _, result = run(settings)
    assert result.extra["methods"] == ["deepcache", "tgate", "tome"]
    contributions = result.extra["contributions"]
    assert isinstance(contributions, dict)
    alone = contributions["alone"]
    assert set(alone) == {"deepcache", "tgate", "tome"}
    assert set(alone["tome"]["parameters"]) == {"ratio", "max_downsample"}
    best_single = max(alone, key=lambda name: alone[name]["speedup"])
    assert contributions["best_single"] == best_single
    assert result.best is not None
    gain = result.best["speedup"] / alone[best_single]["speedup"]  # type: ignore[operator]
    assert contributions["gain_over_best_single"] == pytest.approx(gain)


def test_the_tolerance_bites(make_settings: MakeSettings) -> None:
    """With none allowed, the bound is the best of the points that lose nothing; the fastest is told beside
    it."""
    recorder, result = run(make_settings(tolerance=0.0, steps=8, exhaustive=True, **QUICK))
    lossless = [point for point in recorder.of(Point) if point.score_loss <= 0]
    assert result.max_speedup_within_tolerance == max(point.speedup for point in lossless)
    assert result.max_speedup == max(point.speedup for point in recorder.of(Point))
    assert {point.extra["verdict"] for point in recorder.of(Point)} == {"passed", "failed"}


def test_without_a_scorer_nothing_is_within_the_tolerance(make_settings: MakeSettings) -> None:
    """No score, no bound within a tolerance, and best is the fastest; PSNR and SSIM are there all the
    same."""
    recorder, result = run(make_settings(scorer="", **QUICK))
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
    recorder, result = run(make_settings(search_targets="tome", **QUICK))
    starved = result.extra["points_out_of_memory"]
    assert isinstance(starved, list)
    assert [point["parameters"]["ratio"] for point in starved] == [0.5, 0.7, 0.5]
    assert all(point["requested_bytes"] == 1 << 60 for point in starved)
    assert [point.parameters["ratio"] for point in last_of(recorder.of(Point))] == [0.0, 0.3]
    assert recorder.of(Progress)[-1].done == recorder.of(Progress)[-1].total


def test_when_every_point_starves_the_cell_does(make_settings: MakeSettings, broken: Any) -> None:
    """With nothing measured there is no result to give."""
    broken(starving, from_ratio=0.0)
    with pytest.raises(OutOfMemoryError) as caught:
        run(make_settings(search_targets="tome"))
    assert caught.value.shortage.requested_bytes == 1 << 60


def test_a_starving_baseline_ends_it(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase says where memory ran out."""
    monkeypatch.setattr(search_module, "run_baseline", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
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
    settings = make_settings(search_targets="tome", **QUICK)
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
        run(make_settings(search_targets="tome", **QUICK))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"search_targets": "tgate", "guidance_scale": 1.0}, "T-GATE gates guidance"),
        ({"sched": "Heun"}, "2 times"),
        ({"steps": 1, "sched": "DPM-Solver++"}, "no point to measure"),
    ],
)
def test_a_misfit_is_bad_data(options: dict[str, Any], reason: str, make_settings: MakeSettings) -> None:
    """What can't be measured on this model is said before anything is generated."""
    with pytest.raises(BadDataError, match=reason):
        run(make_settings(**options))


def test_what_is_printed_is_read_back(make_settings: MakeSettings) -> None:
    """The result's isolation is the worst of the points that make the bound, and one of the protocol's."""
    recorder, result = run(make_settings(**QUICK))
    makers = [point.isolation for point in recorder.of(Point) if point.speedup == result.max_speedup]
    assert result.isolation in ("exclusive", "contended", "unknown")
    assert not (result.isolation == "exclusive" and "contended" in makers)
    assert re.fullmatch(r"digits-sd15/DDIMScheduler/6/deepcache", str(result.extra["label"]))
    assert os.environ.get("BOUNDD_RESULTS") is None
