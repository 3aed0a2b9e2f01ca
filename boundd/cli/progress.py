"""Live progress of `boundd run --until-idle`: a line for every cell that ends, and on a terminal a bar below them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from boundd.cli.text import safe
from boundd.core.model.attempts import CellState
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.state import State
from boundd.telemetry.sink import Sink

_TOLD = (Action.CELL_SUCCEEDED, Action.CELL_GAVE_UP, Action.CELL_RETRYING, Action.CELL_CANCELLED)
_MARKS = {
    Action.CELL_SUCCEEDED: "done",
    Action.CELL_GAVE_UP: "gave up",
    Action.CELL_RETRYING: "again",
    Action.CELL_CANCELLED: "cancelled",
}
CLOSE_S = 2.0
"""What lines that nobody has read yet are given at the end."""


class Progress:
    """An Observer for people. A stream that nobody reads any more ends the output, not the run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._state: Callable[[], State] = State
        self._bar: Any = None
        self._task: Any = None
        self._sink: Sink[str] | None = None
        self._broken = False
        self._started_s = time.monotonic()
        self._done_before: int | None = None

    def watch(self, state: Callable[[], State]) -> None:
        """Where the state comes from. Called once the daemon is there."""
        self._state = state
        self._done_before = self._ended()
        if self._stream.isatty():
            self._open_bar()
            return
        with contextlib.suppress(OSError):  # a stream that is no file, as in tests
            descriptor = self._stream.fileno()
            # A pipe that nobody reads must not hold up the run: its lines wait in a queue.
            self._sink = Sink(descriptor, _line, lambda count: _line(f"({count} lines left out: nobody read them)"))

    def note(self, note: Note, now: Now) -> None:  # noqa: ARG002 - the Observer's signature
        """Tell what a person would want to see."""
        if self._broken or self._done_before is None:
            return
        try:
            if note.action in _TOLD:
                self._tell(note)
            if self._bar is not None:
                self._move_bar()
        except OSError:
            self._broken = True

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._sink is not None:
            self._sink.finish()
            self._sink.join(CLOSE_S)
            self._sink = None

    def _tell(self, note: Note) -> None:
        state = self._state()
        total = str(len(state.order))
        line = f"[{self._ended():>{len(total)}}/{total}] {_MARKS[note.action]:<9} {note.message}"
        wall_s = note.fields.get("boundd.duration_s")
        if wall_s is not None:
            line += f" ({wall_s:.0f} s{self._left()})"
        line = safe(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        elif self._sink is not None:
            self._sink.put(line)
        else:
            print(line, file=self._stream, flush=True)

    def _left(self) -> str:
        ended = self._ended() - (self._done_before or 0)
        left = len(self._state().order) - self._ended()
        if ended <= 0 or left <= 0:
            return ""
        return f"; about {(time.monotonic() - self._started_s) / ended * left / 60:.0f} min left"

    def _ended(self) -> int:
        counts = self._state().count_by_state()
        return sum(count for state, count in counts.items() if state not in (CellState.PENDING, CellState.RUNNING))

    def _open_bar(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=len(self._state().order))
        self._bar.start()

    def _move_bar(self) -> None:
        state = self._state()
        running = [
            f"{safe(attempt.label)} {attempt.progress_done}/{attempt.progress_total or '?'}"
            for attempt in state.attempts.values()
        ]
        self._bar.update(self._task, completed=self._ended(), description=", ".join(running) or "waiting")


def _line(text: str) -> bytes:
    return text.encode(errors="replace") + b"\n"
