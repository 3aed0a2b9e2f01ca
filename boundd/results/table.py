"""The bounds of a run as a table for people.

Rules: a figure is never shown without what it needs to be read honestly: contended timing, models that are toys,
simulated devices, missing scores and imported figures are each said below the table. Text from workers can't move the
cursor. Plain text where no terminal reads it, so that `grep` finds whole rows.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TextIO, TypeGuard

from boundd.catalogue.models import BUILTIN_MODELS
from boundd.catalogue.outcomes import Isolation
from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.outcomes import Measurement
from boundd.results.bounds import IMPORTED, MAX_SPEEDUP, Bound, BoundRules, bound_of

_HEADINGS = ("cell", "max speed-up", "within tolerance", "upper bound", "score loss", "isolation", "state")
_RIGHT = ("max speed-up", "within tolerance", "upper bound", "score loss")
_UNBOUNDED_WIDTH = 2_000
_ROOMY_WIDTH = 80
_MESSAGE_CHARACTERS = 80
_STYLES = {
    CellState.SUCCEEDED: "green",
    CellState.RUNNING: "cyan",
    CellState.PENDING: "dim",
    CellState.CANCELLED: "dim",
}


def print_bounds(
    stream: TextIO,
    records: Iterable[CellRecord],
    rules: BoundRules,
    *,
    simulated: Collection[str] = (),
    stale: Collection[str] = (),
) -> None:
    """Print `bounds_table` as suits the stream: to the width and colours of a terminal, or plain."""
    is_terminal = stream.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    text = bounds_table(records, rules, width=width, color=is_terminal, simulated=simulated, stale=stale)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def bounds_table(
    records: Iterable[CellRecord],
    rules: BoundRules,
    *,
    width: int | None = None,
    color: bool = False,
    simulated: Collection[str] = (),
    stale: Collection[str] = (),
) -> str:
    """The table, a line of totals, and what a reader must know to take the figures for what they are.

    Args:
        records: the cells, in the order of the matrix.
        rules: what makes an upper bound of a speed-up.
        width: columns of the terminal; None for plain text whose rows are never wrapped.
        color: whether to use a terminal's colours.
        simulated: UUIDs of devices that are simulated.
        stale: keys of cells that were measured with other versions, or another model, than today's.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    known = tuple(records)
    plain = width is None
    table = Table(
        box=box.ASCII2 if plain else box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
    )
    widest = _UNBOUNDED_WIDTH if width is None else max(20, width)
    longest = max((len(_printable(record.cell.label)) for record in known), default=0)
    # Where there is room, the other columns give way first: a label or a state in pieces is hard to read.
    whole = ("cell", "state") if widest >= _ROOMY_WIDTH and longest <= widest // 3 else ()
    for heading in _HEADINGS:
        justify: Any = "right" if heading in _RIGHT else "left"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading in whole)
    for record in known:
        style = _STYLES.get(record.state, "red")
        row = _row(record, bound_of(record.measurement, rules), _state(record, record.cell.key in stale, plain))
        table.add_row(*(Text(text) for text in row[:-1]), Text(row[-1], style=style))
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=widest,
        force_terminal=color,
        no_color=not color,
        legacy_windows=False,
    )
    if known:
        console.print(table)
    # A terminal is too narrow for messages within the table; a plain row holds all that `grep` may look for.
    failures = () if plain else _failures(known)
    notes = footnotes(known, rules, simulated=simulated, stale=stale)
    for line in (*failures, _total(known, rules), *notes):
        console.print(Text(line), soft_wrap=plain)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def footnotes(
    records: Sequence[CellRecord],
    rules: BoundRules,
    *,
    simulated: Collection[str] = (),
    stale: Collection[str] = (),
) -> tuple[str, ...]:
    """What must be said of these figures, a sentence each."""
    measured = [(record, record.measurement) for record in records if record.measurement is not None]
    bounds = {record.cell.key: bound_of(measurement, rules) for record, measurement in measured}

    def count(test: Callable[[CellRecord, Measurement], bool]) -> int:
        return sum(test(record, measurement) for record, measurement in measured)

    def of(record: CellRecord) -> str | None:
        return bounds[record.cell.key].upper_bound_of

    contended = count(lambda _, m: m.imported_upper_bound is None and m.isolation is Isolation.CONTENDED)
    unknown = count(lambda _, m: m.imported_upper_bound is None and m.isolation is Isolation.UNKNOWN)
    but = ", and the config accepts that." if rules.accept_unknown else ", so there is no bound."
    notes = [
        (contended, "{} contended: something else used the device while it was timed, so there is no bound."),
        (unknown, f"{{}} of unknown isolation: nobody attests that the device was theirs alone{but}"),
        (
            count(lambda r, _: of(r) == MAX_SPEEDUP),
            "{} not scored: the upper bound is of the fastest point, whatever it does to the images.",
        ),
        (count(lambda r, _: of(r) == IMPORTED), "{} imported from an old file, which says nothing but its bound."),
        (
            count(lambda r, _: r.cell.key in stale),
            "{} stale: of other versions, or another model, than today's.",
        ),
        (
            count(lambda r, _: r.cell.parameters.get("model") in BUILTIN_MODELS),
            "{} measured on the built-in digits models, which are toys: no figure for any real model.",
        ),
        (
            count(lambda _, m: m.details.get("weights") == "random"),
            "{} measured with random weights: true speeds, meaningless images.",
        ),
        (
            count(lambda r, _: r.measured_device in simulated),
            "{} on simulated devices, whose memory is made up.",
        ),
    ]
    return tuple(text.format(_cells(number)) for number, text in notes if number)


def _row(record: CellRecord, bound: Bound, state: str) -> tuple[str, ...]:
    measurement = record.measurement
    label = _printable(record.cell.label)
    if measurement is None:
        return (label, "", "", "", "", "", state)
    loss = (measurement.best or {}).get("score_loss")
    isolation = IMPORTED if measurement.imported_upper_bound is not None else measurement.isolation.value
    return (
        label,
        _ratio(measurement.max_speedup),
        _within(measurement),
        _ratio(bound.upper_bound) + (" (unknown)" if bound.of_unknown_isolation else ""),
        f"{100 * loss:.2f}%" if _is_number(loss) else "",
        isolation,
        state,
    )


def _within(measurement: Measurement) -> str:
    """The speed-up within the tolerance, and the interval that it lies in where the worker told."""
    value = measurement.max_speedup_within_tolerance
    low, high = (measurement.details.get(f"best_speedup_{end}") for end in ("low", "high"))
    if value is None or not (_is_number(low) and _is_number(high)):
        return _ratio(value)
    return f"{_ratio(value)} ({low:.2f}-{high:.2f})"


def _state(record: CellRecord, is_stale: bool, with_message: bool) -> str:
    parts = [record.state.value]
    if record.measured_batch_size is not None and record.measured_batch_size != record.cell.batch_size:
        parts.append(f"(batch {record.measured_batch_size})")
    if is_stale:
        parts.append("(stale)")
    message = _message(record) if with_message else ""
    return " ".join(parts) + (f": {message}" if message else "")


def _message(record: CellRecord) -> str:
    """The first line of what went wrong; empty where nothing did, or it no longer matters."""
    if record.error is None or record.state in (CellState.SUCCEEDED, CellState.RUNNING):
        return ""
    message = _printable(next(iter(record.error.message.strip().splitlines()), ""))
    return message if len(message) <= _MESSAGE_CHARACTERS else message[: _MESSAGE_CHARACTERS - 3] + "..."


def _failures(records: Sequence[CellRecord]) -> tuple[str, ...]:
    messages = ((record, _message(record)) for record in records)
    return tuple(
        f"{_printable(record.cell.label)}: {record.state.value}: {message}" for record, message in messages if message
    )


def _total(records: Sequence[CellRecord], rules: BoundRules) -> str:
    by_state = Counter(record.state for record in records)
    states = ", ".join(f"{by_state[state]} {state.value}" for state in CellState if by_state[state])
    bounded = sum(bound_of(record.measurement, rules).upper_bound is not None for record in records)
    factor = f"safety factor {rules.safety_factor:g}"
    return f"{_cells(len(records))}: {states or 'none'}; {bounded} with an upper bound ({factor})"


def _cells(number: int) -> str:
    return f"{number} cell" if number == 1 else f"{number} cells"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
