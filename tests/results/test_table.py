"""The table of bounds: its figures, its honesty, and the terminals that it meets."""

import io
import subprocess
import sys
from typing import Any

import pytest

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import AttemptError, Measurement
from boundd.results.bounds import BoundRules
from boundd.results.table import bounds_table, print_bounds


def record(
    measurement: Measurement | None = None, state: CellState = CellState.SUCCEEDED, message: str = "", **parts: Any
) -> CellRecord:
    """A cell with this measurement or this error."""
    known = {"model": "SD1.5", "method": "deepcache", "batch_size": 4} | parts
    error = AttemptError(ErrorKind.OTHER, message, 0.0) if message else None
    return CellRecord(
        Cell.of(known, ["model", "method"]), CellPolicy(), state, error=error, measurement=measurement,
        measured_device="GPU-1" if measurement else "", measured_batch_size=2 if measurement else None,
    )  # fmt: skip


def measured(isolation: Isolation = Isolation.EXCLUSIVE, within: float | None = 2.0, **details: Any) -> Measurement:
    """A measurement of 3x at any loss."""
    best = {"parameters": {}, "speedup": within or 3.0, "score_loss": 0.0123 if within else None}
    return Measurement(3.0, within, best, isolation, details=details)


def test_a_row_shows_the_figures() -> None:
    """Speed-ups, the interval, the bound, the loss, the isolation, the state, and a batch that was lowered."""
    table = bounds_table([record(measured(best_speedup_low=1.9, best_speedup_high=2.1))], BoundRules(1.1))
    row = next(line for line in table.splitlines() if line.lstrip("| ").startswith("SD1.5/deepcache"))
    for text in ("3.00x", "2.00x (1.90-2.10)", "2.20x", "1.23%", "exclusive", "succeeded (batch 2)"):
        assert text in row
    assert "1 cell: 1 succeeded; 1 with an upper bound (safety factor 1.1)" in table


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (record(measured(Isolation.CONTENDED)), "1 cell contended"),
        (record(measured(Isolation.UNKNOWN)), "1 cell of unknown isolation"),
        (record(measured(within=None)), "1 cell not scored"),
        (record(measured(), model="digits-sdxl"), "measured on the built-in digits models"),
        (record(measured(weights="random")), "random weights"),
        (record(Measurement(None, None, None, Isolation.UNKNOWN, imported_upper_bound=2.5)), "1 cell imported"),
    ],
)
def test_what_must_be_known_is_said(found: CellRecord, note: str) -> None:
    """Every figure that is not what it seems has its sentence below the table."""
    assert note in bounds_table([found], BoundRules(1.1))
    assert note not in bounds_table([record(measured())], BoundRules(1.1))


def test_simulated_and_stale_are_said() -> None:
    """A simulated device and a stale result are named."""
    found = record(measured())
    table = bounds_table([found], BoundRules(1.1), simulated=["GPU-1"], stale=[found.cell.key])
    assert "1 cell on simulated devices" in table
    assert "succeeded (batch 2) (stale)" in table
    assert "1 cell stale" in table


def test_contended_has_no_bound() -> None:
    """A contended measurement shows its figures and no upper bound."""
    table = bounds_table([record(measured(Isolation.CONTENDED))], BoundRules(1.1))
    assert "2.20x" not in table
    assert "0 with an upper bound" in table


def test_hostile_text_is_spelt_out() -> None:
    """Terminal codes, markup and line breaks of a worker or a config are shown, not obeyed."""
    found = record(None, CellState.FAILED, "\x1b[2J[red]boom[/red]\x00 " + "y" * 500 + "\nmore", model="a\x1b[31m\n")
    for options in ({}, {"width": 60, "color": True}):
        table = bounds_table([found], BoundRules(1.1), **options)
        table.encode()
        assert "\x1b[2J" not in table
        assert "\x1b[31m\n" not in table
    assert r"failed: \x1b[2J[red]boom[/red]\x00" in bounds_table([found], BoundRules(1.1))
    assert "more" not in bounds_table([found], BoundRules(1.1))


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """On a terminal of any width (20 columns or more) nothing runs over its edge."""
    table = bounds_table([record(measured()), record(None, CellState.FAILED, "z" * 300)], BoundRules(1.1), width=width)
    assert max(len(line) for line in table.splitlines()) <= max(20, width)


def test_a_terminal_keeps_labels_and_states_whole() -> None:
    """At 90 columns a label and a state are in one piece, and what went wrong is said below the table."""
    failed = record(None, CellState.OUT_OF_MEMORY, "CUDA out of memory", model="digits-sd21")
    table = bounds_table([record(measured(), model="digits-sd15"), failed], BoundRules(1.1), width=90)
    for text in ("digits-sd15/deepcache ", "succeeded (batch 2)", " out_of_memory"):
        assert text in table
    assert "\ndigits-sd21/deepcache: out_of_memory: CUDA out of memory\n" in table


def test_plain_where_no_terminal_reads() -> None:
    """A pipe gets ASCII without codes, a cell a row, however long."""
    long = record(measured(), model="m" * 200)
    stream = io.StringIO()
    print_bounds(stream, [long, record(measured())], BoundRules(1.1))
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()
    assert sum("m" * 200 in line for line in stream.getvalue().splitlines()) == 1


def test_a_stream_of_a_narrow_encoding() -> None:
    """A terminal that can't show a character gets another in its place, and no error."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_bounds(stream, [record(measured(), model="模型")], BoundRules(1.1))
    assert b"??/deepcache" in raw.getvalue()


def test_no_cells() -> None:
    """Nothing to show is said in one line."""
    assert bounds_table([], BoundRules(1.1)) == "0 cells: none; 0 with an upper bound (safety factor 1.1)\n"


def test_rich_is_imported_late() -> None:
    """Importing the module costs no rich: `boundctl` starts fast."""
    code = "import sys, boundd.results.table; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_accepted_bound_of_unknown_isolation_says_so() -> None:
    """Beside the figure, and in a sentence below."""
    found = record(measured(Isolation.UNKNOWN))
    table = bounds_table([found], BoundRules(1.1, accept_unknown=True))
    assert "2.20x (unknown)" in table
    assert "nobody attests that the device was theirs alone, and the config accepts that." in table
    assert "(unknown)" not in bounds_table([found], BoundRules(1.1))
    assert "(unknown)" not in bounds_table([record(measured())], BoundRules(1.1, accept_unknown=True))
