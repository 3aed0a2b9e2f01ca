"""The lines of a results file: what a worker says, one JSON object a line.

A worker appends; the daemon reads. A line that is not exactly what is written here is malformed, and a
malformed line is a failure of the attempt which quotes it: a result that was half understood is worse than
none. Keys which this version does not know are kept in `extra`, so that a newer worker may say more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from boundd.catalogue.outcomes import WORKER_ERROR_KINDS, ErrorKind, Isolation
from boundd.protocol.strict_json import Json, StrictJsonError, dumps, loads

MAX_LINE_BYTES = 1 << 20
_QUOTED_CHARACTERS = 200
_Word = TypeVar("_Word", bound=StrEnum)


class MalformedLineError(ValueError):
    """A line that is not of the protocol. The message says what is wrong and quotes the line, escaped and cut
    short."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the worker is: `done` of `total` steps of its own choosing; `total` may grow."""

    done: int
    total: int
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured point: its parameters, its speed-up over the baseline, and what it cost in score.

    `score_loss` is (baseline − accelerated) / baseline of the mean scores, negative where the accelerated
    images scored better, None where nothing was scored.
    """

    parameters: Mapping[str, Json]
    speedup: float
    score_loss: float | None
    isolation: Isolation
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The worker's own peak of device memory (on the CPU device: of resident memory), in bytes."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The last line of a worker that succeeded. `best` holds `parameters`, `speedup` and `score_loss`."""

    max_speedup: float | None
    max_speedup_within_tolerance: float | None
    best: Mapping[str, Json] | None
    isolation: Isolation
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Error:
    """The last line of a worker that fails on purpose; sizes are known only where memory ran out."""

    error: ErrorKind
    message: str
    phase: str | None = None
    requested_bytes: int | None = None
    free_bytes: int | None = None
    extra: Mapping[str, Json] = field(default_factory=dict)


def name_of(parameters: Mapping[str, Json]) -> str:
    """A point's parameters as text that equal points share: of several lines about one point the last one counts."""
    return dumps(dict(sorted(parameters.items())))


Line: TypeAlias = Progress | Point | Memory | Result | Error


def parse_line(text: str | bytes) -> Line:
    """The line that `text` holds, with or without its newline.

    Raises:
        MalformedLineError: for anything else.
    """
    try:
        return _parse(text)
    except (StrictJsonError, _InvalidFieldError) as error:
        raise MalformedLineError(f"{error}: {quote(text)}") from None


def quote(text: str | bytes) -> str:
    """`text` in quotes, escaped to printable ASCII and cut to a length that fits a log line."""
    head = text[: _QUOTED_CHARACTERS + 1]
    shown = head.decode("utf-8", "backslashreplace") if isinstance(head, bytes) else head
    escaped = ascii(shown.rstrip("\r\n"))
    if len(text) <= _QUOTED_CHARACTERS and len(escaped) <= 2 * _QUOTED_CHARACTERS:
        return escaped
    return f"{escaped[: 2 * _QUOTED_CHARACTERS]}… ({len(text)} long)"


def encode(line: Line) -> str:
    """The line as one line of JSON, without its newline.

    Raises:
        MalformedLineError: when `parse_line` would refuse it, so that nothing malformed leaves a worker that
            uses this.
    """
    name = _NAMES[type(line)]
    known = {key: value for key, value in vars(line).items() if key != "extra"}
    if clash := {"type", *known} & set(line.extra):
        raise MalformedLineError(f"extra may not hold {', '.join(sorted(clash))}: those are fields of {name!r}")
    try:
        text = dumps({"type": name, **known, **line.extra})
    except StrictJsonError as error:
        raise MalformedLineError(f"{error}: {ascii(line)[:_QUOTED_CHARACTERS]}") from None
    parse_line(text)
    return text


class LineSplitter:
    """Cuts a growing file into complete lines, whatever the chunks it is read in.

    Blank lines are left out. A line past the cap comes out once, cut just past it, so that `parse_line`
    refuses it and memory stays bounded.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._rest = b""

    @property
    def rest(self) -> bytes:
        """The tail that no newline has ended yet (a worker that was killed may leave one)."""
        return self._rest

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines which `chunk` completes, in order, without their newlines."""
        *ended, tail = chunk.split(b"\n")
        lines = []
        for piece in ended:
            lines.append((self._rest + piece)[: self._max_line_bytes + 1])
            self._rest = b""
        # Kept one byte past the cap: enough to be refused, and no more however long the line gets.
        self._rest = (self._rest + tail)[: self._max_line_bytes + 1]
        return [line for line in lines if line.strip()]


class ResultsWriter:
    """Appends lines to a results file, each in one write, so that a reader never sees two lines interleaved.

    Points, results and errors are forced to the disk: they cost GPU hours and must outlive a power cut.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, line: Line) -> None:
        """Append `line`.

        Raises:
            MalformedLineError: when the line is not of the protocol; nothing is written.
            OSError: when the file can't take it (a full disk).
        """
        remaining = memoryview(encode(line).encode() + b"\n")
        while remaining:
            # A regular file takes the whole line at once, except where the disk is full: then the rest
            # raises.
            remaining = remaining[os.write(self._descriptor, remaining) :]
        if isinstance(line, Point | Result | Error):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _InvalidFieldError(ValueError):
    """What is wrong with one field; `parse_line` adds the line."""


def _parse(text: str | bytes) -> Line:
    if len(text) > MAX_LINE_BYTES:
        raise _InvalidFieldError(f"a line of more than {MAX_LINE_BYTES} bytes")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise _InvalidFieldError(f"not UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise _InvalidFieldError("an empty line")
    value = loads(text)
    if not isinstance(value, Mapping):
        raise _InvalidFieldError("not a JSON object")
    fields = _Fields(dict(value))
    name = fields.take("type")
    reader = _READERS.get(name) if isinstance(name, str) else None
    if reader is None:
        raise _InvalidFieldError(f"'type' must be one of {', '.join(_READERS)}, not {name!a}")
    return reader(fields)


class _Fields:
    """The keys of one line, taken out one by one; what is left over at the end is `extra`."""

    def __init__(self, values: dict[str, Json]) -> None:
        self._values = values

    def take(self, name: str) -> Json:
        if name not in self._values:
            raise _InvalidFieldError(f"{name!r} is missing")
        return self._values.pop(name)

    def optional(self, name: str) -> Json:
        return self._values.pop(name, None)

    def rest(self) -> Mapping[str, Json]:
        return self._values


def _count(name: str, value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _InvalidFieldError(f"{name!r} must be an integer of at least 0, not {_shown(value)}")
    return value


def _number(name: str, value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _InvalidFieldError(f"{name!r} must be a number, not {_shown(value)}")
    return float(value)


def _speedup(name: str, value: Json) -> float:
    if (number := _number(name, value)) <= 0:
        raise _InvalidFieldError(f"{name!r} must be above 0, not {number}")
    return number


def _text(name: str, value: Json) -> str:
    if not isinstance(value, str):
        raise _InvalidFieldError(f"{name!r} must be text, not {_shown(value)}")
    return value


def _object(name: str, value: Json) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise _InvalidFieldError(f"{name!r} must be an object, not {_shown(value)}")
    return value


def _one_of(name: str, value: Json, allowed: Iterable[_Word]) -> _Word:
    by_text = {word.value: word for word in allowed}
    word = by_text.get(value) if isinstance(value, str) else None
    if word is None:
        raise _InvalidFieldError(f"{name!r} must be one of {', '.join(by_text)}, not {_shown(value)}")
    return word


def _shown(value: Json) -> str:
    return ascii(value)[:60]


def _progress(fields: _Fields) -> Progress:
    done, total = (_count(name, fields.take(name)) for name in ("done", "total"))
    return Progress(done=done, total=total, extra=fields.rest())


def _isolation(fields: _Fields) -> Isolation:
    # A worker that says nothing about it did not attest it.
    return _one_of("isolation", fields.optional("isolation") or Isolation.UNKNOWN, Isolation)


def _point(fields: _Fields) -> Point:
    loss = fields.optional("score_loss")
    return Point(
        parameters=_object("parameters", fields.take("parameters")),
        speedup=_speedup("speedup", fields.take("speedup")),
        score_loss=None if loss is None else _number("score_loss", loss),
        isolation=_isolation(fields),
        extra=fields.rest(),
    )


def _memory(fields: _Fields) -> Memory:
    allocated, reserved = (_count(name, fields.take(name)) for name in ("peak_allocated_bytes", "peak_reserved_bytes"))
    return Memory(peak_allocated_bytes=allocated, peak_reserved_bytes=reserved, extra=fields.rest())


def _result(fields: _Fields) -> Result:
    fastest = fields.take("max_speedup")
    within = fields.optional("max_speedup_within_tolerance")
    best = fields.optional("best")
    return Result(
        max_speedup=None if fastest is None else _speedup("max_speedup", fastest),
        max_speedup_within_tolerance=None if within is None else _speedup("max_speedup_within_tolerance", within),
        best=None if best is None else _best(best),
        isolation=_isolation(fields),
        extra=fields.rest(),
    )


def _best(value: Json) -> Mapping[str, Json]:
    best = _object("best", value)
    if "parameters" not in best or "speedup" not in best:
        raise _InvalidFieldError("'best' must hold 'parameters' and 'speedup'")
    _object("best.parameters", best["parameters"])
    _speedup("best.speedup", best["speedup"])
    if best.get("score_loss") is not None:
        _number("best.score_loss", best["score_loss"])
    return best


def _error(fields: _Fields) -> Error:
    phase, requested, free = (fields.optional(name) for name in ("phase", "requested_bytes", "free_bytes"))
    return Error(
        error=_one_of("error", fields.take("error"), WORKER_ERROR_KINDS),
        message=_text("message", fields.take("message")),
        phase=None if phase is None else _text("phase", phase),
        requested_bytes=None if requested is None else _count("requested_bytes", requested),
        free_bytes=None if free is None else _count("free_bytes", free),
        extra=fields.rest(),
    )


_READERS: Mapping[str, Callable[[_Fields], Line]] = {
    "progress": _progress,
    "point": _point,
    "memory": _memory,
    "result": _result,
    "error": _error,
}
_NAMES: Mapping[type, str] = {
    Progress: "progress",
    Point: "point",
    Memory: "memory",
    Result: "result",
    Error: "error",
}
