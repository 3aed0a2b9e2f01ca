"""What a shim left in its attempt's folder, read with suspicion: a power cut or another release may have written it.

Each format that is known has a reader of its own; what has another one is never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL
from typing import TypeVar

from boundd.launch import shim
from boundd.ports import ProcessEnd
from boundd.protocol.regular_file import NotAFileError, open_regular
from boundd.protocol.strict_json import Json, StrictJsonError, loads

_MAX_BYTES = 65536
_QUOTED_CHARACTERS = 200
_NAMES_WITHOUT_CHECK = frozenset(
    {
        *("format", "boot_id", "pid", "start_ticks", "worker_pid", "worker_start_ticks", "cgroup"),
        *("exit_status", "signal", "timed_out", "ended_on_request", "start_error", "wall_s", "lease_waited_s"),
        *("host_peak_bytes", "oom_killed", "over_memory_max", "machine_oom_kills"),
    }
)
"""All that shims of the releases before `check` wrote."""


class RecordError(Exception):
    """The environment's: a file is there and can't be understood; the message quotes it."""


class UnknownFormatError(RecordError):
    """A file of a format that this release doesn't know, most likely a later release's."""


@dataclass(frozen=True, slots=True)
class ShimRecord:
    """Who the shim and its worker are, or were: boot id, pid and start time name one process for good."""

    boot_id: str
    pid: int
    start_ticks: int
    worker_pid: int
    worker_start_ticks: int
    cgroup: str = ""
    """The attempt's cgroup, an absolute path; empty where it has none."""

    def of_this_boot(self) -> bool:
        """Whether the pids can mean anything now."""
        return self.boot_id == shim.boot_id()


def read_shim(folder: Path) -> ShimRecord | None:
    """The shim's own record; None where it has not written one.

    Raises:
        RecordError: it is there and can't be understood.
        OSError: it can't be read.
    """
    found = _read(folder / shim.SHIM)
    if found is None:
        return None
    text, value = found
    return _reader(_SHIM_READERS, shim.SHIM, text, value)(text, _checked(folder / shim.SHIM, text, value))


def read_outcome(folder: Path) -> ProcessEnd | None:
    """The outcome; None where there is none.

    Raises:
        RecordError: it is there and can't be understood.
        OSError: it can't be read.
    """
    found = _read(folder / shim.OUTCOME)
    if found is None:
        return None
    text, value = found
    return _reader(_OUTCOME_READERS, shim.OUTCOME, text, value)(text, _checked(folder / shim.OUTCOME, text, value))


def _read_shim_format_1(text: str, value: Mapping[str, Json]) -> ShimRecord:
    boot_id = value.get("boot_id")
    numbers = [value.get(name) for name in ("pid", "start_ticks", "worker_pid", "worker_start_ticks")]
    whole = [number for number in numbers if isinstance(number, int) and number > 0 and not isinstance(number, bool)]
    if not isinstance(boot_id, str) or len(whole) != len(numbers):
        raise RecordError(f"{shim.SHIM} lacks a field or has a wrong one: {_quoted(text)}")
    cgroup = value.get("cgroup", "")
    if not isinstance(cgroup, str) or (cgroup and not cgroup.startswith("/")):
        raise RecordError(f"{shim.SHIM} has a wrong cgroup: {_quoted(text)}")
    pid, start_ticks, worker_pid, worker_start_ticks = whole
    return ShimRecord(boot_id, pid, start_ticks, worker_pid, worker_start_ticks, cgroup)


def _read_outcome_format_1(text: str, value: Mapping[str, Json]) -> ProcessEnd:
    exit_status, signal, wall_s = value.get("exit_status"), value.get("signal"), value.get("wall_s")
    timed_out, on_request = value.get("timed_out"), value.get("ended_on_request")
    start_error = value.get("start_error")
    if (
        not (exit_status is None or isinstance(exit_status, int))
        or not (signal is None or isinstance(signal, int))
        or not (wall_s is None or isinstance(wall_s, int | float))
        or not isinstance(timed_out, bool)
        or not isinstance(on_request, bool)
        or not isinstance(start_error, str)
        or (exit_status is None and signal is None and not start_error)
    ):
        raise RecordError(f"{shim.OUTCOME} lacks a field or has a wrong one: {_quoted(text)}")
    end = ProcessEnd(exit_status, signal, timed_out, on_request, start_error, wall_s=wall_s)
    number, about, subject = (value.get(f"start_{name}") for name in ("errno", "about", "subject"))
    fetched_s = value.get("fetched_s")
    peak, waited_s = value.get("host_peak_bytes"), value.get("lease_waited_s")
    return replace(
        end,
        # What a release before these wrote has words alone: it is taken for what can't be executed anywhere.
        start_errno=_count(number),
        start_about=about if isinstance(about, str) else "",
        start_subject=subject if isinstance(subject, str) else "",
        host_memory_own=value.get("over_memory_max") is True,
        host_peak_bytes=peak if isinstance(peak, int) and peak >= 0 else None,
        results_bytes=_count(value.get("results_bytes")),
        lease_waited_s=waited_s if isinstance(waited_s, int | float) else None,
        fetched_s=fetched_s if isinstance(fetched_s, int | float) else None,
        output_lost=value.get("output_lost") is True,
        host_memory=host_memory_text(
            end,
            killed=_count(value.get("oom_killed")),
            over_its_limit=value.get("over_memory_max") is True,
            machine_kills=_count(value.get("machine_oom_kills")) or 0,
        ),
    )


def host_memory_text(end: ProcessEnd, *, killed: int | None, over_its_limit: bool, machine_kills: int) -> str:
    """Whether the kernel ended processes of the attempt for want of host memory, in words; empty where it didn't.

    Args:
        killed: how many of its processes, as its cgroup counted; None where nobody counted.
        over_its_limit: whether it was its own `memory_max` that was used up.
        machine_kills: how many on the whole machine while it ran.
    """
    if killed and over_its_limit:
        return f"it went over its memory_max of host memory, and the kernel ended {killed} of its processes"
    if killed:
        return f"the host ran out of memory, not the device, and the kernel ended {killed} of its processes"
    # Nobody counted its own: a KILL while the kernel was at it is as much as can be told.
    was_killed = end.signal == SIGKILL or end.exit_status == 128 + SIGKILL
    by_us = end.timed_out or end.ended_on_request
    if killed is None and machine_kills and was_killed and not by_us:
        return "the host ran out of memory, not the device, and the kernel ended processes: most likely this one"
    return ""


def _count(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _read(path: Path) -> tuple[str, Mapping[str, Json]] | None:
    try:
        file = open_regular(path)
    except NotAFileError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            return None
        raise RecordError(str(error)) from None
    if file is None:
        return None
    with file:
        content = file.read(_MAX_BYTES)
    text = content.decode(errors="replace")
    # Every release writes ASCII. Noise in a string could otherwise swallow the check, and pass for a release without.
    if not content.isascii():
        raise RecordError(f"{path.name} is damaged (it holds bytes that no shim writes): {_quoted(text)}")
    try:
        value = loads(text)
    except StrictJsonError as error:
        raise RecordError(f"{path.name} is damaged ({error}): {_quoted(text)}") from None
    if not isinstance(value, Mapping):
        raise RecordError(f"{path.name} is not an object: {_quoted(text)}")
    return text, value


_Reader = TypeVar("_Reader")


def _reader(readers: Mapping[int, _Reader], name: str, text: str, value: Mapping[str, Json]) -> _Reader:
    """The reader of the file's format.

    Raises:
        UnknownFormatError: there is none.
    """
    number = value.get("format")
    # True is 1 to Python, and 1.0 is too.
    found = readers.get(number) if type(number) is int else None
    if found is None:
        known = ", ".join(map(str, readers))
        raise UnknownFormatError(f"{name} has format {number!r}, known is {known}: {_quoted(text)}")
    return found


def _checked(path: Path, text: str, value: Mapping[str, Json]) -> Mapping[str, Json]:
    """A document of a known format, as it was written.

    Raises:
        RecordError: it isn't.
    """
    # A shim of an earlier release wrote no check. A damaged name would look like one: every other name is known.
    if "check" in value:
        if value["check"] != shim.check_of(str(path), dict(value)):
            raise RecordError(f"{path.name} is not what was written, its check doesn't fit: {_quoted(text)}")
    elif set(value) - _NAMES_WITHOUT_CHECK:
        raise RecordError(f"{path.name} has an unknown name and no check: {_quoted(text)}")
    return value


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "…")


_SHIM_READERS: Mapping[int, Callable[[str, Mapping[str, Json]], ShimRecord]] = {1: _read_shim_format_1}
_OUTCOME_READERS: Mapping[int, Callable[[str, Mapping[str, Json]], ProcessEnd]] = {1: _read_outcome_format_1}
"""The formats that are known. One is dropped a release after the last that wrote it, not before."""
