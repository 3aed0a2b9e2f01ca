"""The log: one JSON object a line, in the fields of ECS, on stderr and, if wanted, in a file.

Rules: `note` costs the caller an append to a queue and nothing more; rendering and writing are the sinks' threads'. A
line is ASCII, holds no line break but its last byte, and is under 16 KiB, whatever a worker wrote. docs/logs.md lists
the fields.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from structlog.dev import ConsoleRenderer
from structlog.processors import JSONRenderer

from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.telemetry.journal import datagram, reconnect
from boundd.telemetry.sink import QUEUE_LINES, Renew, Sink
from boundd.text import encodable, legible, printable, shortened, timestamp

ECS_VERSION = "8.11.0"
LINE_LIMIT_BYTES = 16 * 1024
LogFormat = Literal["json", "console"]

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
"""The levels by name, least urgent first."""

_STDERR = 2
JOURNAL_PATIENCE_S = 5.0
"""How long a line waits for a journal whose socket is being made anew."""
_TEXT_LIMITS = (8_000, 2_000, 500, 100)
"""Characters of each text in a line; the first that makes the line short enough is used."""
_MAX_DEPTH = 4
_MAX_ITEMS = 100

_Item = tuple[Note, Now]
_Render = Callable[[Note, Now], bytes]

_json = JSONRenderer(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def json_line(note: Note, now: Now) -> bytes:
    """A note as one line of the log."""
    for characters in _TEXT_LIMITS:
        line = _render_json(_document(note, now, characters))
        if len(line) < LINE_LIMIT_BYTES:
            return line
    # So many fields that even short they are too long: what happened, to whom, is what must not be lost.
    bare = Note(note.action, note.message, note.level, note.cell, note.attempt, note.device)
    document = _document(bare, now, _TEXT_LIMITS[-1])
    return _render_json(document | {"boundd.fields_left_out": len(note.fields)})


class JsonLog:
    """An Observer that writes every note to stderr and, where a file is given, there too, always as JSON.

    Args:
        format: how stderr gets it.
        level: notes that are less urgent are not written.
        file: opened for appending, made if it isn't there, and again where it was renamed or removed.
        stream: the descriptor in stderr's place.
        journal: a descriptor of systemd's journal, written to in stderr's place (`boundd.telemetry.journal`).
        capacity: lines that may wait for a slow reader; more are dropped and counted.
        wall_clock: UTC seconds, for the lines about dropped lines, which nobody's note brings along.

    Raises:
        ValueError: there is no such level.
        OSError: the file can't be opened.
    """

    def __init__(
        self,
        *,
        format: LogFormat = "json",  # noqa: A002 - the option's name
        level: str = "info",
        file: Path | None = None,
        stream: int | None = None,
        only_file: bool = False,
        journal: int | None = None,
        capacity: int = QUEUE_LINES,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.set_level(level)
        self._wall_clock = wall_clock
        descriptor = _STDERR if stream is None else stream
        render = json_line if format == "json" else _console_renderer(colors=os.isatty(descriptor))
        if journal is not None:
            descriptor, render = journal, _journal_entry if format == "json" else _journal_entry_for_people
        # Opened first: a file that can't be must not leave a thread behind.
        opened = None if file is None else _open_for_appending(file)
        self._sinks: list[Sink[_Item]] = []
        if journal is not None:
            self._sinks.append(self._sink(descriptor, render, capacity, renew=reconnect, patience_s=JOURNAL_PATIENCE_S))
        elif not only_file:
            self._sinks.append(self._sink(descriptor, render, capacity))
        if opened is not None and file is not None:
            renew = partial(_reopened, file.absolute())
            self._sinks.append(self._sink(opened, json_line, capacity, owned=True, renew=renew))

    @property
    def dropped_lines(self) -> int:
        """How many lines found no place, over all sinks."""
        return sum(sink.dropped for sink in self._sinks)

    def look(self) -> None:
        """See before the next line whether the file is still there, as who rotates logs asks for with SIGHUP."""
        for sink in self._sinks:
            sink.look()

    def set_level(self, level: str) -> None:
        """Write only what is at least this urgent from now on.

        Raises:
            ValueError: there is no such level.
        """
        if level not in LEVELS:
            raise ValueError(f"unknown log level {level!r}; known: {', '.join(LEVELS)}")
        self._threshold = LEVELS[level]

    def note(self, note: Note, now: Now) -> None:
        """Queue a line. Never blocks and never raises."""
        if LEVELS.get(note.level, LEVELS["info"]) >= self._threshold:
            for sink in self._sinks:
                sink.put((note, now))

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what is queued, for at most `timeout_s` in all; True where all of it was written."""
        deadline_s = time.monotonic() + timeout_s
        for sink in self._sinks:
            sink.finish()  # all of them first: one that is stuck must not use up the others' time
        written = [sink.join(max(0.0, deadline_s - time.monotonic())) for sink in self._sinks]
        return all(written)

    def _sink(
        self,
        descriptor: int,
        render: _Render,
        capacity: int,
        *,
        owned: bool = False,
        renew: Renew | None = None,
        patience_s: float = 0.0,
    ) -> Sink[_Item]:
        def dropped(count: int) -> bytes:
            message = f"{count} log line{'s were' if count > 1 else ' was'} dropped: the reader was too slow or gone"
            note = Note(Action.LOGS_DROPPED, message, "warning", fields={"dropped_lines": count})
            return render(note, Now(0.0, self._wall_clock()))

        return Sink(
            descriptor,
            lambda item: render(*item),
            dropped,
            capacity=capacity,
            owned=owned,
            renew=renew,
            patience_s=patience_s,
        )


def _journal_entry(note: Note, now: Now) -> bytes:
    return datagram(_document(note, now, _TEXT_LIMITS[1]), json_line(note, now))


def _journal_entry_for_people(note: Note, now: Now) -> bytes:
    return datagram(_document(note, now, _TEXT_LIMITS[1]), printable(note.message).encode(errors="replace"))


def _open_for_appending(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _reopened(file: Path, descriptor: int, error: OSError | None) -> int | None:  # noqa: ARG001 - a Sink's Renew
    """The file of this name, where `descriptor` is of another one by now: it was rotated, or removed."""
    try:
        ours = os.fstat(descriptor)
        with contextlib.suppress(FileNotFoundError):
            named = file.stat()
            if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
                return None
        return _open_for_appending(file)
    except OSError:
        return None  # Its folder may be back the next time; until then the one that is open takes the lines.


def _document(note: Note, now: Now, characters: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "@timestamp": timestamp(now.unix_s),
        "log.level": note.level if note.level in LEVELS else "info",
        "message": _text(note.message, characters),
        "ecs.version": ECS_VERSION,
        "event.action": note.action.value,
    }
    for name, value in (("cell", note.cell), ("attempt", note.attempt), ("device", note.device)):
        if value is not None:
            document[f"boundd.{name}"] = _text(value, characters)
    for name, value in note.fields.items():
        # A note may name its fields with the prefix or without.
        field = f"boundd.{_text(name, _TEXT_LIMITS[-1]).removeprefix('boundd.')}"
        document.setdefault(field, _plain(value, characters, _MAX_DEPTH))
    return document


def _plain(value: Any, characters: int, depth: int) -> Any:
    """A value as JSON can hold it; what it can't hold becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, characters)
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else None
    if isinstance(value, float):
        # As text it would change the field's type, which stores of logs refuse.
        return value if math.isfinite(value) else None
    if depth and isinstance(value, Mapping):
        items = list(value.items())[:_MAX_ITEMS]
        return {_text(name, 100): _plain(item, characters, depth - 1) for name, item in items}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, characters, depth - 1) for item in list(value)[:_MAX_ITEMS]]
    return _text(value, characters)


def _text(value: object, characters: int) -> str:
    return encodable(legible(shortened(str(value), characters)))


def _render_json(document: dict[str, Any]) -> bytes:
    rendered = _json(None, "", document)
    return (rendered if isinstance(rendered, bytes) else rendered.encode("ascii")) + b"\n"


def _console_renderer(*, colors: bool) -> _Render:
    """Lines for a person: the same facts, shorter, with nothing in them that a terminal would act upon."""
    console = ConsoleRenderer(colors=colors, pad_event_to=0, sort_keys=False)

    def render(note: Note, now: Now) -> bytes:
        document = _document(note, now, 1_000)
        about = {
            printable(name.removeprefix("boundd.")): printable(value) if isinstance(value, str) else value
            for name, value in document.items()
            if name.startswith("boundd.")
        }
        line = console(
            None,
            "",
            {
                "timestamp": document["@timestamp"],
                "level": document["log.level"],
                "event": printable(document["message"]),
                **about,
            },
        )
        return line.encode("ascii", "backslashreplace")[: LINE_LIMIT_BYTES - 2] + b"\n"

    return render
