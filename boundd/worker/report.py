"""Output of the worker: result lines for the daemon, speed-ups for scripts, a progress bar and a table for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from boundd.protocol.lines import Error, Line, Memory, Point, Progress, Result, ResultsWriter, encode, name_of


class Reporter(Protocol):
    """Receives every result line."""

    def report(self, line: Line) -> None:
        """Take a line."""


class ResultsReporter:
    """Appends every line to the results file."""

    def __init__(self, writer: ResultsWriter) -> None:
        self._writer = writer

    def report(self, line: Line) -> None:
        """Append it."""
        self._writer.write(line)


class SpeedupPrinter:
    """Prints `speedup: 2.31` for each point at the end, when it is known most exactly, for scripts that parse the
    output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._points: dict[str, Point] = {}

    def report(self, line: Line) -> None:
        """Keep a point; print all of them after the last line."""
        if isinstance(line, Point):
            self._points[name_of(line.parameters)] = line
        elif isinstance(line, Result | Error):
            for point in self._points.values():
                print(f"speedup: {point.speedup:.2f}", file=self._stream, flush=True)


class JsonCollector:
    """Keeps what was measured and prints it at the end as one JSON document."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._points: dict[str, Any] = {}
        self._document: dict[str, Any] = {}

    def report(self, line: Line) -> None:
        """Keep the line; print the document after the last one."""
        value = json.loads(encode(line))
        kind = value.pop("type")
        if isinstance(line, Point):
            self._points[name_of(line.parameters)] = value
        elif isinstance(line, Memory | Result | Error):
            self._document[kind] = value
        if isinstance(line, Result | Error):
            print(
                json.dumps({"points": list(self._points.values()), **self._document}, indent=2),
                file=self._stream,
                flush=True,
            )


class TerminalReporter:
    """A progress bar on stderr while the search runs, and a table of the points at the end. For terminals only."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._points: dict[str, Point] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, line: Line) -> None:
        """Move the bar, or show the table."""
        if isinstance(line, Progress):
            description = str(line.extra.get("phase", ""))
            self._bar.update(self._task, completed=line.done, total=line.total, description=description)
        elif isinstance(line, Point):
            self._points[name_of(line.parameters)] = line
        elif isinstance(line, Result):
            self._bar.stop()
            self._console.print(_table(list(self._points.values()), line))


def _table(points: Sequence[Point], result: Result) -> Any:
    from rich.table import Table

    best = result.best or {}
    table = Table(title=f"speed-up of {result.extra.get('label', '')}", caption=_caption(result), title_justify="left")
    for heading in ("parameters", "speed-up", "95% interval", "score loss", "PSNR", "SSIM", "verdict", "device"):
        is_text = heading in ("parameters", "verdict", "device")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=is_text)
    for point in points:
        extra: Any = point.extra
        is_best = point.parameters == best.get("parameters")
        table.add_row(
            "\n".join(f"{name}={value}" for name, value in point.parameters.items()),
            f"{point.speedup:.2f}x",
            f"{extra['speedup_low']:.2f} to {extra['speedup_high']:.2f}",
            "" if point.score_loss is None else f"{100 * point.score_loss:.2f}%",
            "same" if extra["psnr_db"] is None else f"{extra['psnr_db']:.1f} dB",
            f"{extra['ssim']:.3f}",
            extra["verdict"] or "slower",
            point.isolation,
            style="bold green" if is_best else "dim" if extra["identity"] else None,
        )
    return table


def _caption(result: Result) -> str:
    tolerance = result.extra.get("tolerance")
    if result.max_speedup_within_tolerance is None:
        bound = "no score was computed, so no point can be said to be within the tolerance"
    else:
        bound = f"{result.max_speedup_within_tolerance:.2f}x within a score loss of {tolerance}"
    fastest = "" if result.max_speedup is None else f"; {result.max_speedup:.2f}x at any loss"
    skipped: Any = result.extra.get("points_skipped", [])
    settled = f"\n{len(skipped)} points were ruled out by others and not measured" if skipped else ""
    return bound + fastest + settled
