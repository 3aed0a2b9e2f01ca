"""Answers as people read them: aligned plain tables, sizes, durations.

Rules: what a worker, a config or a driver wrote never reaches the terminal raw: controls and line breaks are spelt
out. One line a thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boundd.api import answers

GIB = 1024**3
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
NOTHING = "-"


def safe(value: object) -> str:
    """A value as one line of text that no terminal acts upon."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def safe_log(text: str) -> str:
    """A log's text for a terminal: its line breaks and tabs stay, every other control is spelt out."""
    # A progress bar's carriage returns are line breaks to a reader.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char if char in "\n\t" else safe(char) for char in text)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> str:
    """Columns two spaces apart, headed; the columns named in `right` are flush right. The last one isn't padded."""
    cells = [[safe(value) for value in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(headings)]

    def line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if head in right else value.ljust(width)
            for value, width, head in zip(values, widths, headings, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in [list(headings), *cells])


def pairs(items: Iterable[tuple[str, object]]) -> str:
    """A line for each name and its value, aligned; what has no value is left out."""
    known = [(name, safe(value)) for name, value in items if value not in (None, "")]
    width = max((len(name) for name, _ in known), default=0) + 1
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in known)


def size(size_bytes: int | None) -> str:
    """Bytes in GiB, as GPUs are sold."""
    return NOTHING if size_bytes is None else f"{size_bytes / GIB:.1f} GiB"


def duration(seconds: float | None) -> str:
    """The two largest units of a duration."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S} s"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def ratio(value: float | None) -> str:
    """A speed-up."""
    return NOTHING if value is None else f"{value:.2f}x"


def shortened(text: str, least: int = 40) -> str:
    """A message cut to what a line of this terminal may hold of it."""
    import shutil  # not at the top: it brings three compression libraries along

    room = max(least, shutil.get_terminal_size((120, 24)).columns // 2)
    line = safe(text.strip().splitlines()[-1] if text.strip() else "")
    return line if len(line) <= room else line[: room - 3] + "..."


def status_text(status: answers.StatusReply) -> str:
    """What `boundctl status` prints."""
    daemon, cells = status["daemon"], status["cells"]
    flags = [name for name in ("paused", "stopping") if daemon.get(name)]
    head = f"boundd {daemon['version']}, pid {daemon['pid']}, since {daemon['started_at']}"
    lines = [safe(head + "".join(f", {flag}" for flag in flags))]
    if daemon.get("store_problem"):
        lines.append(f"nothing new is started: {safe(daemon['store_problem'])}")
    lines += [problem_text(problem) for problem in status["problems"]]
    counts = ", ".join(f"{count} {state}" for state, count in cells["by_state"].items() if count)
    eta = f"; about {duration(status['eta_s'])} left" if status["eta_s"] else ""
    lines += ["", safe(f"{cells['total']} cells: {counts or 'none'}{eta}"), "", devices_text(status["devices"])]
    if status["running"]:
        rows = [
            (run["label"], run["attempt"], run["device"], duration(run["elapsed_s"]), percent(run["progress"]))
            for run in status["running"]
        ]
        headings = ("RUNNING", "ATTEMPT", "DEVICE", "SINCE", "PROGRESS")
        lines += ["", table(headings, rows, right=("ATTEMPT", "SINCE", "PROGRESS"))]
    return "\n".join(lines)


def problem_text(problem: answers.ProblemInfo) -> str:
    """A problem of the environment in one line: what it is, who waits, when it is tried again, and the cure."""
    cells = problem["cells"]
    waits = f"{cells} cell waits" if cells == 1 else f"{cells} cells wait"
    when = f"tried by {', '.join(problem['probing'])}"
    if problem["next_try_s"] is not None:
        when = f"tried again in {duration(problem['next_try_s'])}"
    summary = f"{problem['summary']} since {problem['since']}: {shortened(problem['message'], 100)}"
    return safe(f"{summary}; {waits}, {when}. {problem['cure']}")


def percent(fraction: float | None) -> str:
    """A fraction in per cent."""
    return NOTHING if fraction is None else f"{100 * fraction:.0f}%"


def devices_text(devices: Sequence[answers.DeviceInfo]) -> str:
    """What `boundctl devices` prints: a line each."""
    rows = [
        (
            device["index"],
            device["name"],
            device["state"] + (f" ({device['reason']})" if device["reason"] else ""),
            size(device["free_bytes"]),
            size(device["total_bytes"]),
            size(device["reserved_bytes"]),
            size(device["headroom_bytes"]),
            len(device["cells"]),
            device["uuid"],
        )
        for device in devices
    ]
    headings = ("GPU", "NAME", "STATE", "FREE", "OF", "RESERVED", "HEADROOM", "CELLS", "UUID")
    return table(headings, rows, right=("FREE", "OF", "RESERVED", "HEADROOM", "CELLS"))


def footprints_text(footprints: Sequence[answers.FootprintInfo]) -> str:
    """What `boundctl devices --footprints` prints: a line for each kind of work."""
    rows = [
        (
            known["subject"],
            known["batch_size"],
            f"{known['pixels'] / 1e6:.2f}",
            known["device_name"],
            size(known["estimate_bytes"]),
            size(known["largest_peak_bytes"]),
            known["observations"],
            known["ran_out"] or NOTHING,
            f"{known['error_percent'][-1]:+.0f}%" if known["error_percent"] else NOTHING,
            known["source"],
        )
        for known in footprints
    ]
    headings = ("WORK", "BATCH", "MPX", "ON", "EXPECTED", "SEEN", "TIMES", "RAN OUT", "ERROR", "FROM")
    return table(headings, rows, right=("BATCH", "MPX", "EXPECTED", "SEEN", "TIMES", "RAN OUT", "ERROR"))


def plan_text(plan: answers.PlanReply, rows: int | None) -> str:
    """What `boundctl plan` prints: the first `rows` attempts (None: all), the end, and what it takes for granted."""
    names = {device["uuid"]: index for index, device in enumerate(plan["devices"])}
    shown = [
        (
            "runs" if each["running"] else f"in {duration(each['from_s'])}",
            f"in {duration(max(0.0, each['until_s']))}" + (" ?" if each["duration_is_prior"] else ""),
            names.get(each["device"], NOTHING),
            size(each["reservation_bytes"]),
            each["label"],
        )
        for each in plan["attempts"][:rows]
    ]
    lines = [table(("STARTS", "ENDS", "GPU", "MEMORY", "CELL"), shown, right=("MEMORY",))] if shown else []
    more = len(plan["attempts"]) - len(shown)
    if more > 0:
        lines.append(f"… and {more} more: --all shows them")
    boxes = ", ".join(
        f"{index}: {safe(d['name'])}, {size(d['total_bytes'])}" for index, d in enumerate(plan["devices"])
    )
    last = plan["attempts"] and f"all done in {duration(plan['done_s'])}, at {plan['done_at']}"
    lines += ["", safe(last or "nothing is left to do"), f"devices: {boxes or 'none'}"]
    if plan["priors"]:
        lines.append("?: from a prior; nothing like it has run yet")
    lines += [f"never: {safe(never['label'])}: {safe(never['reason'])}" for never in plan["never"]]
    return "\n".join([*lines, *(f"assumes: {safe(said)}" for said in plan["assumes"])])


def cells_text(cells: Sequence[answers.CellInfo]) -> str:
    """What `boundctl cells` prints: a line each."""
    rows = [
        (
            cell["label"],
            cell["state"] + (" (stale)" if cell["stale"] else ""),
            cell["attempts"],
            ratio(cell["max_speedup"]),
            ratio(cell["max_speedup_within_tolerance"]),
            cell["id"],
            shortened(cell["error"]["message"]) if cell["error"] else "",
        )
        for cell in cells
    ]
    headings = ("CELL", "STATE", "ATTEMPTS", "MAX", "WITHIN", "ID", "ERROR")
    return table(headings, rows, right=("ATTEMPTS", "MAX", "WITHIN"))


def cell_text(cell: answers.CellDetails) -> str:
    """What `boundctl show` prints."""
    measured: Any = cell["measurement"] or {}
    error = cell["error"]
    best = measured.get("best") or {}
    lines = [
        pairs(
            [
                ("cell", cell["label"]),
                ("id", cell["id"]),
                ("key", cell["canonical_key"]),
                ("state", cell["state"] + (" (stale)" if cell["stale"] else "")),
                ("batch size", cell["batch_size"]),
                ("max speed-up", ratio(measured.get("max_speedup")) if measured else None),
                ("within tolerance", ratio(measured.get("max_speedup_within_tolerance")) if measured else None),
                ("imported bound", measured.get("imported_upper_bound")),
                ("isolation", measured.get("isolation")),
                ("read from", _read_from(measured.get("details") or {})),
                ("best", ", ".join(f"{name}={value}" for name, value in (best.get("parameters") or {}).items())),
                ("error", f"{error['type']}: {error['message']}" if error else None),
                ("in the matrix", None if cell["in_matrix"] else "no; it is of a config before this one"),
            ]
        )
    ]
    rows = [
        (
            attempt["number"],
            attempt["outcome"] or attempt["state"],
            attempt["device"],
            attempt["batch_size"] if attempt["batch_size"] is not None else NOTHING,
            size(attempt["reservation_bytes"]),
            duration(attempt["wall_s"]),
            len(attempt["points"]),
            attempt["started_at"],
            shortened(attempt["error"]["message"]) if attempt["error"] else "",
        )
        for attempt in cell["history"]
    ]
    if rows:
        headings = ("ATTEMPT", "OUTCOME", "DEVICE", "BATCH", "RESERVED", "TOOK", "POINTS", "STARTED", "ERROR")
        lines += ["", table(headings, rows, right=("ATTEMPT", "BATCH", "RESERVED", "TOOK", "POINTS"))]
        first = cell["history"][0]["number"]
        if first > 1:
            lines.append(f"{first - 1} earlier: --before {first}")
    return "\n".join(lines)


def _read_from(details: dict[str, Any]) -> str | None:
    """The line of an attempt's log that a result was read from, and how many others have one."""
    if "line_text" not in details:
        return None
    others = details["other_lines"]
    beside = "no other line has one" if not others else f"{others} other line{'s have' if others > 1 else ' has'} one"
    return f"line {details['line']} of its log ({beside}): {details['line_text']}"


def explain_text(answer: answers.ExplainReply) -> str:
    """What `boundctl explain` prints: the reason, then a line for each device that doesn't take the cell."""
    lines = [safe(f"{answer['label']} is {answer['state']}: {answer['reason']}")]
    for device in answer["devices"]:
        held = f"; held by {', '.join(device['held_by'])}" if device["held_by"] else ""
        index = NOTHING if device["index"] is None else device["index"]
        lines.append(safe(f"  GPU {index} ({device['name']}): {device['reason']}{held}"))
    return "\n".join(lines)
