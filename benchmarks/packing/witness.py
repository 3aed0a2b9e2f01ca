"""What really happened in a run with real processes, by what the workers and the fake driver wrote down.

boundd's own opinion is not asked for: the store says which attempts there were and how they ended, the workers' record
says when each was alive, what it held, what it was refused and who held what at that instant.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.packing.traces import Trace
from boundd.core.memory.footprint import CONTEXT_BYTES
from boundd.core.model.attempts import CellState
from boundd.core.model.outcomes import Outcome
from boundd.sim import AttemptTrace, MemoryEnd, Outcomes, SimCell
from boundd.sim.recorder import FITS_PERCENT
from boundd.sim.trace import Counts

Told = Mapping[str, Any]
"""A line of the workers' record."""

ATTEMPTS = """
SELECT attempts.*, ends.outcome, ends.ended_unix_s FROM attempts JOIN ends ON ends.attempt_id = attempts.id
ORDER BY ends.ended_unix_s, attempts.id
"""


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A run. `outcomes` is in the trace's seconds, `took_s` in real ones: from the first intent to the last end."""

    outcomes: Outcomes
    took_s: float


def witness(trace: Trace, store: Path, record: Path, second_s: float) -> Witnessed:
    """What happened in a run whose store and record are in these files.

    Raises:
        AssertionError: the store has other cells than the trace, or an attempt of which no worker ever said a word.
    """
    told: dict[str, list[Told]] = defaultdict(list)
    strangers: set[int] = set()
    for line in (json.loads(text) for text in record.read_text().splitlines()):
        if line["what"] in ("foreign", "left"):
            strangers.add(line["pid"])
        else:
            told[line["attempt"]].append(line)
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(ATTEMPTS).fetchall()
        states = {row["key"]: CellState(row["state"]) for row in connection.execute("SELECT key, state FROM cells")}
    cells = {each.cell.key: each for each in trace.world.cells}
    assert states.keys() == cells.keys(), f"the store has {len(states)} cells, the trace {len(cells)}, or other ones"
    begun_boot_s = min(row["started_boot_s"] for row in rows)
    attempts = []
    for row in rows:
        lines = told[row["id"]]
        assert lines, f"attempt {row['id']} of {row['label']} never ran"
        from_s, until_s = ((lines[place]["at_s"] - begun_boot_s) / second_s for place in (0, -1))
        cause = _why_no_memory(trace, row, lines, strangers) if lines[-1]["what"] == "out_of_memory" else None
        attempts.append(_attempt(row, from_s, until_s, lines[-1]["peak_bytes"], cause))
    attempts = _with_cuts(_with_company(attempts), cells, trace)
    took_s = max(row["ended_unix_s"] for row in rows) - min(row["started_unix_s"] for row in rows)
    return Witnessed(Outcomes(tuple(attempts), states, took_s / second_s, _counted(attempts), {}), took_s)


def _attempt(row: sqlite3.Row, from_s: float, until_s: float, peak: int, cause: MemoryEnd | None) -> AttemptTrace:
    return AttemptTrace(
        id=row["id"],
        key=row["key"],
        label=row["label"],
        number=row["number"],
        device=row["device"],
        started_s=from_s,
        ended_s=until_s,
        reservation_bytes=row["reservation_bytes"],
        cap_bytes=row["cap_bytes"],
        batch_size=row["batch_size"],
        exclusive=bool(row["exclusive"]),
        had_company=False,
        peak_bytes=peak,
        outcome=Outcome(row["outcome"]),
        memory=cause,
    )


def _why_no_memory(trace: Trace, row: sqlite3.Row, lines: Sequence[Told], strangers: set[int]) -> MemoryEnd:
    """The cause by the rules of `boundd.sim.machine`, from who held what at the start and when it was refused."""
    begun, refused = lines[0], lines[-1]
    total = next(device.total_bytes for device in trace.world.devices if device.uuid == row["device"])
    wanted, cap = refused["wanted_bytes"], row["cap_bytes"]
    if wanted > total:
        return MemoryEnd.TOO_BIG
    if wanted > row["reservation_bytes"] or (cap is not None and wanted > cap + CONTEXT_BYTES):
        return MemoryEnd.OWN_CAP
    foreign = [sum(size for pid, size in line["holders"] if pid in strangers) for line in (begun, refused)]
    neighbours = [pid for pid, _ in refused["holders"] if pid not in strangers and pid != refused["pid"]]
    more = wanted - refused["held_bytes"]
    if more <= refused["free_bytes"] + max(0, foreign[1] - foreign[0]) or not neighbours:
        return MemoryEnd.FOREIGN
    return MemoryEnd.NEIGHBOUR


def _with_company(attempts: Sequence[AttemptTrace]) -> list[AttemptTrace]:
    """Those whose workers were alive on one device at one instant had each other for company."""
    return [
        replace(
            each,
            had_company=any(
                other.id != each.id
                and other.device == each.device
                and other.started_s < each.ended_s
                and each.started_s < other.ended_s
                for other in attempts
            ),
        )
        for each in attempts
    ]


def _with_cuts(attempts: Sequence[AttemptTrace], cells: Mapping[str, SimCell], trace: Trace) -> list[AttemptTrace]:
    """Marks those whose batch is smaller than the one before although that one fits on the device."""
    total = {device.uuid: device.total_bytes for device in trace.world.devices}
    before = {key: cell.cell.batch_size for key, cell in cells.items()}
    marked = {}
    for each in sorted(attempts, key=lambda attempt: (attempt.key, attempt.number)):
        had, before[each.key] = before[each.key], each.batch_size
        cut = had is not None and each.batch_size is not None and each.batch_size < had
        room = (total[each.device] - trace.rules.margin_bytes) * FITS_PERCENT
        needless = cut and cells[each.key].truth.peak_bytes(had) * 100 <= room
        marked[each.id] = replace(each, needless_cut=needless)
    return [marked[each.id] for each in attempts]


def _counted(attempts: Sequence[AttemptTrace]) -> Counts:
    def ended(memory: MemoryEnd) -> int:
        return sum(each.memory is memory for each in attempts)

    return Counts(
        attempts=len(attempts),
        succeeded=sum(each.outcome is Outcome.SUCCEEDED for each in attempts),
        out_of_memory=sum(each.outcome is Outcome.OUT_OF_MEMORY for each in attempts),
        own_cap=ended(MemoryEnd.OWN_CAP),
        neighbour=ended(MemoryEnd.NEIGHBOUR),
        foreign=ended(MemoryEnd.FOREIGN),
        too_big=ended(MemoryEnd.TOO_BIG),
    )
