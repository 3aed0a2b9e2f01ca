"""The picture of a cell: what it says, and what is told before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.catalogue.outcomes import Isolation
from boundd.protocol.lines import Point, Result
from boundd.worker.plot import SUFFIXES, PlotError, PlottedPoint, Plotter, check_plot, draw, frontier, plotted_points

MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def point(speedup: float, loss: float | None, psnr_db: float | None = 30.0) -> Point:
    """A measured point with intervals."""
    extra: dict[str, Any] = {"speedup_low": speedup * 0.98, "speedup_high": speedup * 1.02, "psnr_db": psnr_db}
    if loss is not None:
        extra |= {"score_loss_low": loss - 0.01, "score_loss_high": loss + 0.01}
    return Point(
        parameters={"n": speedup}, speedup=speedup, score_loss=loss, isolation=Isolation.EXCLUSIVE, extra=extra
    )


def result(best: Point, **extra: Any) -> Result:
    """A cell's result."""
    described = {
        "model": "SDXL",
        "methods": ["tome"],
        "scheduler_class": "DDIMScheduler",
        "steps": 20,
        "tolerance": 0.02,
    }
    described |= {
        "batch_size": 4,
        "dtype": "float16",
        "fingerprint": {"device": "NVIDIA H100"},
        "weights": "pretrained",
    }
    described |= {"noise_floor_low": 0.99, "noise_floor_high": 1.01}
    bound = None if best.score_loss is None else best.speedup
    chosen = {"parameters": best.parameters, "speedup": best.speedup, "score_loss": best.score_loss}
    return Result(
        max_speedup=9.0,
        max_speedup_within_tolerance=bound,
        best=chosen,
        isolation=Isolation.EXCLUSIVE,
        extra=described | extra,
    )


SCORED = [point(1.0, 0.0, None), point(1.5, 0.01), point(2.5, 0.019), point(3.0, 0.3), point(2.0, None)]
UNSCORED = [point(1.0, None, None), point(1.5, None, 30.0), point(2.5, None, 20.0)]


def texts(path: Path) -> str:
    """All text of an SVG that was drawn with its letters as text."""
    return "\n".join(ElementTree.parse(path).getroot().itertext())


@pytest.fixture(autouse=True)
def _text_in_svg(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_it_is_drawn_in_the_form_of_its_suffix(suffix: str, tmp_path: Path) -> None:
    """As the name says, in any case."""
    path = tmp_path / f"cell{suffix.upper()}"
    draw(SCORED, result(SCORED[2]), path)
    assert path.read_bytes().startswith(MAGIC[suffix])


def test_what_a_scored_picture_says(tmp_path: Path) -> None:
    """The bound, the tolerance, the noise, what was measured, and how many points are not shown."""
    skipped = [{"parameters": {"n": 1.2}, "reason": "n = 1.5 passed"}] * 3
    draw(SCORED, result(SCORED[2], points_skipped=skipped), tmp_path / "a.svg")
    said = texts(tmp_path / "a.svg")
    for text in (
        "SDXL: tome",
        "DDIM  ·  20 steps  ·  batch 4  ·  float16  ·  NVIDIA H100",
        "the bound: 2.50x",
        "tolerance 0.02",
        "noise: the baseline against itself, 0.990 to 1.010",
        "score loss",
        "1 timed and not scored",
        "3 ruled out by others",
        "1 more beyond, up to 30%",
    ):
        assert text in said
    assert "random weights" not in said
    assert "PSNR" not in said


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"weights": "random"}, "random weights"),
        ({"model": "digits-sdxl"}, "a tiny model"),
        ({"attention": "eager"}, "eager attention"),
    ],
)
def test_where_nothing_was_scored_it_says_so(extra: dict[str, Any], text: str, tmp_path: Path) -> None:
    """PSNR is the axis; there is no bound and no tolerance; and what the images are worth is in the title."""
    draw(UNSCORED, result(UNSCORED[2], **extra), tmp_path / "a.svg")
    said = texts(tmp_path / "a.svg")
    assert "nothing was scored" in said
    assert "the fastest: 2.50x" in said
    assert text in said
    for absent in ("the bound", "tolerance"):
        assert absent not in said


def test_nothing_at_all_can_be_drawn(tmp_path: Path) -> None:
    """A result of which not even a noise floor is known."""
    empty = Result(max_speedup=None, max_speedup_within_tolerance=None, best=None, isolation=Isolation.UNKNOWN)
    draw([], empty, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_last_line_about_a_point_counts(tmp_path: Path) -> None:
    """A point may be reported again once more is known of it."""
    plotter = Plotter(tmp_path / "a.svg")
    for line in (point(2.0, None), point(2.0, 0.01), result(point(2.0, 0.01))):
        plotter.report(line)
    said = texts(tmp_path / "a.svg")
    assert "the bound: 2.00x" in said
    assert "not scored" not in said


def test_a_picture_that_fails_does_not_fail_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder went away while it was measured."""
    Plotter(tmp_path / "gone" / "a.png").report(result(SCORED[1]))
    assert "could not be drawn" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cell", "cell.jpg", "none/cell.png"])
def test_what_cannot_be_drawn_is_told_first(name: str, tmp_path: Path) -> None:
    """A form nobody knows, a folder that isn't there."""
    with pytest.raises(PlotError, match="--plot"):
        check_plot(tmp_path / name)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before hours of measuring."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PlotError, match=r"boundd\[report\]"):
        check_plot(tmp_path / "cell.png")


def test_identical_images_have_a_place() -> None:
    """Past the most alike of the others, since their PSNR is infinite."""
    marks, is_scored = plotted_points(UNSCORED, result(UNSCORED[2]))
    assert not is_scored
    assert [mark.cost for mark in marks] == [35.0, 30.0, 20.0]


MARKS = st.builds(
    lambda cost, speedup: PlottedPoint(cost, cost, cost, speedup, speedup, speedup, True, False),
    st.floats(-5, 50),
    st.floats(0.5, 10),
)


@given(st.lists(MARKS, min_size=1), st.booleans())
def test_nothing_beats_the_frontier(marks: list[PlottedPoint], less_is_better: bool) -> None:
    """No mark is at least as good as one of the frontier in both and better in one, and what is left out is beaten."""
    best = frontier(marks, less_is_better=less_is_better)
    sign = 1 if less_is_better else -1

    def beats(first: PlottedPoint, second: PlottedPoint) -> bool:
        no_worse = sign * first.cost <= sign * second.cost and first.speedup >= second.speedup
        return no_worse and (first.cost, first.speedup) != (second.cost, second.speedup)

    assert not any(beats(other, mark) for mark in best for other in marks)
    for mark in marks:
        assert any(kept == mark or beats(kept, mark) for kept in best)
