"""Plots one cell: speed-up against score loss, with the tolerance, the Pareto frontier and the bound.

Only result lines are needed, so a kept results file can be plotted too.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boundd.catalogue.models import BUILTIN_MODELS
from boundd.catalogue.outcomes import Isolation
from boundd.protocol.lines import Line, Point, Result, name_of
from boundd.protocol.strict_json import Json

SUFFIXES = (".png", ".svg", ".pdf")
_BEYOND_DB = 5.0
"""Identical images have an infinite PSNR; they are drawn this far beyond the largest finite one."""

# Told apart in grey and by people who see no red or green (Okabe & Ito, 2008); shapes differ too.
_POINT, _OUTSIDE, _BEST, _FRONTIER, _NOISE = "#0072B2", "#999999", "#D55E00", "#009E73", "#DDDDDD"


class PlotError(ValueError):
    """The plot can't be drawn; the message says what to do."""


def check_plot(path: Path) -> None:
    """Check, before anything is measured, that a plot can be written to `path`.

    Raises:
        PlotError: for an unknown suffix, a missing folder, or without matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise PlotError(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}, which sets the format")
    if not path.absolute().parent.is_dir():
        raise PlotError(f"--plot {path}: there is no folder {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError(f"--plot {path}: needs matplotlib: pip install 'boundd[report]'")


class Plotter:
    """A reporter that collects the points and draws the plot at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._points: dict[str, Point] = {}

    def report(self, line: Line) -> None:
        """Keep the last line of each point; draw when the result line arrives."""
        if isinstance(line, Point):
            self._points[name_of(line.parameters)] = line
        elif isinstance(line, Result):
            try:
                draw(list(self._points.values()), line, self._path)
            except Exception as error:  # a full disk must not fail a finished measurement
                print(f"boundd.worker: {self._path} could not be drawn: {error}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class PlottedPoint:
    """A point as it is drawn. `cost` is a score loss in per cent, or a PSNR in decibels; each with its interval."""

    cost: float
    cost_low: float
    cost_high: float
    speedup: float
    speedup_low: float
    speedup_high: float
    is_within: bool
    is_best: bool


def plotted_points(points: Sequence[Point], result: Result) -> tuple[list[PlottedPoint], bool]:
    """The points to draw, and whether the horizontal axis is their score loss.

    If no point was scored the axis is PSNR. If some were, points without a score are left out.
    """
    scored = [point for point in points if point.score_loss is not None]
    chosen = scored or [point for point in points if "psnr_db" in point.extra]
    best = (result.best or {}).get("parameters")
    tolerance = _number(result.extra.get("tolerance"))
    finite = [value for point in chosen if (value := _number(point.extra.get("psnr_db"))) is not None]
    identical_db = max(finite, default=0.0) + _BEYOND_DB
    plotted = []
    for point in chosen:
        cost, low, high = _loss(point) if scored else _psnr(point, identical_db)
        within = not scored or tolerance is None or cost <= 100 * tolerance
        speedups = [_number(point.extra.get(name)) for name in ("speedup_low", "speedup_high")]
        slow, fast = (point.speedup if value is None else value for value in speedups)
        plotted.append(PlottedPoint(cost, low, high, point.speedup, slow, fast, within, point.parameters == best))
    return plotted, bool(scored)


def frontier(plotted: Sequence[PlottedPoint], *, less_is_better: bool) -> list[PlottedPoint]:
    """The Pareto-optimal points: no other point is better in both speed-up and cost. Slowest first."""
    by_cost = sorted(plotted, key=lambda each: (each.cost if less_is_better else -each.cost, -each.speedup))
    best: list[PlottedPoint] = []
    for each in by_cost:
        if not best or each.speedup > best[-1].speedup:
            best.append(each)
    return best


def draw(points: Sequence[Point], result: Result, path: Path) -> None:
    """Draw the cell's points into `path`, in the format of its suffix.

    Raises:
        PlotError: see `check_plot`.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plotted, is_scored = plotted_points(points, result)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_floor(axes, result)
    _draw_points(axes, plotted, is_scored)
    _draw_frontier(axes, plotted, is_scored)
    if is_scored:
        _draw_tolerance(axes, result, plotted)
        axes.set_xlabel("score loss against the unaccelerated images, per cent")
    else:
        axes.invert_xaxis()
        axes.set_xlabel("PSNR against the unaccelerated images, dB (nothing was scored); less like them to the right")
    axes.set_ylabel("speed-up")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    title, subtitle = titles(result)
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    _draw_footnote(figure, points, plotted, result)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=8)
    figure.savefig(path, dpi=150)


def titles(result: Result) -> tuple[str, str]:
    """Title and subtitle: what was measured, and on which device. Toy models and random weights are named as such."""
    extra = result.extra
    methods = extra.get("methods")
    method = " + ".join(map(str, methods)) if isinstance(methods, list) else "?"
    title = f"{extra.get('model', '?')}: {method}"
    if extra.get("weights") == "random":
        title += " (random weights: true speeds, meaningless images)"
    elif extra.get("model") in BUILTIN_MODELS:
        title += " (a tiny model, not what it is named after)"
    fingerprint = extra.get("fingerprint")
    device = fingerprint.get("device") if isinstance(fingerprint, dict) else None
    parts = [
        str(extra.get("scheduler_class", "")).removesuffix("Scheduler"),
        f"{extra.get('steps')} steps",
        f"batch {extra.get('batch_size')}",
        str(extra.get("dtype") or ""),
        str(device or ""),
    ]
    attention = extra.get("attention")
    if attention not in (None, "sdpa"):
        parts.append(f"{attention} attention")
    if result.isolation is not Isolation.EXCLUSIVE:
        parts.append(f"isolation: {result.isolation}")
    return title, "  ·  ".join(filter(None, parts))


def _draw_points(axes: Any, plotted: Sequence[PlottedPoint], is_scored: bool) -> None:
    groups = (
        (
            "within the tolerance" if is_scored else "measured",
            _POINT,
            "o",
            [m for m in plotted if m.is_within and not m.is_best],
        ),
        ("beyond it", _OUTSIDE, "X", [m for m in plotted if not m.is_within and not m.is_best]),
        ("the bound", _BEST, "*", [m for m in plotted if m.is_best]),
    )
    for label, colour, shape, group in groups:
        if not group:
            continue
        costs, speedups = [m.cost for m in group], [m.speedup for m in group]
        name = label
        if label == "the bound":
            is_bound = is_scored and group[0].is_within
            name = f"{label if is_bound else 'the fastest'}: {speedups[0]:.2f}x"
        axes.errorbar(
            costs,
            speedups,
            xerr=[_arms(costs, [m.cost_low for m in group]), _arms([m.cost_high for m in group], costs)],
            yerr=[_arms(speedups, [m.speedup_low for m in group]), _arms([m.speedup_high for m in group], speedups)],
            fmt=shape,
            color=colour,
            ecolor=colour,
            elinewidth=0.7,
            alpha=0.9,
            markersize=15 if shape == "*" else 6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=4 if shape == "*" else 3,
            label=name,
        )


def _arms(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """Lengths of error bars, at least 0: by rounding, the interval of a median may not quite include its value."""
    return [max(0.0, high - low) for high, low in zip(upper, lower, strict=True)]


def _draw_frontier(axes: Any, plotted: Sequence[PlottedPoint], is_scored: bool) -> None:
    best = frontier(plotted, less_is_better=is_scored)
    if len(best) > 1:
        axes.step(
            [each.cost for each in best],
            [each.speedup for each in best],
            where="post",
            color=_FRONTIER,
            linewidth=1.4,
            zorder=2,
            label="frontier: nothing is faster at less cost",
        )


def _draw_tolerance(axes: Any, result: Result, plotted: Sequence[PlottedPoint]) -> None:
    tolerance = _number(result.extra.get("tolerance"))
    if tolerance is None:
        return
    axes.axvline(100 * tolerance, color=_BEST, linestyle="--", linewidth=1, zorder=1, label=f"tolerance {tolerance:g}")
    # One outlier far to the right would squeeze all other points into a corner.
    costs = sorted(each.cost for each in plotted)
    limit = max(8 * 100 * tolerance, costs[int(0.75 * (len(costs) - 1))] * 1.2, 1.0)
    if costs[-1] > limit:
        left = axes.get_xlim()[0]
        axes.set_xlim(max(left, -limit), limit)
        beyond = sum(cost > limit for cost in costs)
        axes.annotate(
            f"{beyond} more beyond, up to {costs[-1]:.0f}%",
            xy=(1, 0.01),
            xycoords="axes fraction",
            ha="right",
            fontsize=8,
            color="#777777",
        )


def _draw_floor(axes: Any, result: Result) -> None:
    low, high = (_number(result.extra.get(f"noise_floor_{end}")) for end in ("low", "high"))
    if low is not None and high is not None:
        axes.axhspan(
            low, high, color=_NOISE, zorder=0, label=f"noise: the baseline against itself, {low:.3f} to {high:.3f}"
        )


def _draw_footnote(figure: Any, points: Sequence[Point], plotted: Sequence[PlottedPoint], result: Result) -> None:
    notes = ["bars: 95% intervals"]
    if unplaced := len(points) - len(plotted):
        notes.append(f"{unplaced} timed and not scored")
    for key, text in (
        ("points_skipped", "ruled out by others and not measured"),
        ("points_out_of_memory", "out of memory"),
    ):
        listed = result.extra.get(key)
        if isinstance(listed, list) and listed:
            notes.append(f"{len(listed)} {text}")
    figure.supxlabel("; ".join(notes), x=0.99, ha="right", fontsize=8, color="#777777")


def _loss(point: Point) -> tuple[float, float, float]:
    assert point.score_loss is not None, "only scored points are asked"
    low, high = (_number(point.extra.get(f"score_loss_{end}")) for end in ("low", "high"))
    values = (point.score_loss, point.score_loss if low is None else low, point.score_loss if high is None else high)
    return 100 * values[0], 100 * values[1], 100 * values[2]


def _psnr(point: Point, identical_db: float) -> tuple[float, float, float]:
    value = _number(point.extra.get("psnr_db"))
    decibels = identical_db if value is None else value
    return decibels, decibels, decibels


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
