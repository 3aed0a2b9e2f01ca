"""What must be so of a box once its daemon has run to idle, told from evidence that boundd didn't make.

Four witnesses are compared: the store, the journal that the workers kept, the export, and the machine (files, locks,
/proc). `audit` returns every violation; `tests/faults/test_audit.py` plants each of them and sees it found.

| kind | what it is |
| --- | --- |
| lost | an execution ended and its attempt's end says otherwise, or what was acknowledged is gone |
| doubled | an attempt executed twice, two executions of a cell at once, two ends, two live attempts |
| orphan | an execution or a folder that the store knows nothing of; a process, a lock or a lease that is left |
| unended | a cell that came to no end, or to a wrong one; an attempt without an end |
| wrong | a recorded result that is not what that very execution found |
| store | the store contradicts itself |
| export | the export says something else than the store |
| litter | files that a killed daemon left and nobody cleared away |
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import sqlite3
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.daemons import ENDS, Box

KINDS = ("lost", "doubled", "orphan", "unended", "wrong", "store", "export", "litter")
LINGER_S = 20.0
"""What a zygote or a shim may take to end after the daemon: it has nothing left to do but that."""
CLOCK_STEP_S = 0.05
"""UTC may be set back by so much between two records without anybody having jumped."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass(slots=True)
class Execution:
    """What the journal says of one execution. Times are nanoseconds since boot."""

    attempt: str
    nonce: str
    kind: str
    began_ns: int
    alone: bool
    ended_ns: int | None = None
    outcome: str | None = None
    """As the worker saw it: succeeded or failed; None where it was ended before it could say."""
    value: float | None = None
    points: int = 0


@dataclass(slots=True)
class Rows:
    """The store's tables."""

    cells: list[sqlite3.Row] = field(default_factory=list)
    attempts: list[sqlite3.Row] = field(default_factory=list)
    ends: list[sqlite3.Row] = field(default_factory=list)
    points: Mapping[str, int] = field(default_factory=dict)
    """Attempt id to how many points it has."""
    damage: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Asked:
    """What people asked of daemons, by label."""

    cancelled: set[str] = field(default_factory=set)
    """That was acknowledged: but for a success of what was on its way to its end, the cell must be cancelled."""
    unsure: set[str] = field(default_factory=set)
    """The daemon died before it answered: the cell may be cancelled."""
    retried: dict[str, int] = field(default_factory=dict)
    """To the attempts that the cell had before a retry that was acknowledged: there must be one more."""


NOTHING_ASKED = Asked()


def audit(box: Box, asked: Asked = NOTHING_ASKED, *, clocks_jump: bool = False) -> list[Finding]:
    """Everything that is wrong with a box that is idle and whose last daemon has ended.

    Where `clocks_jump`, times tell nothing; that two executions of a cell met is then told by the workers' locks alone.
    """
    rows, executions = read_store(box.store), read_journal(box.journal)
    return [
        *check_store(rows, clocks_jump=clocks_jump),
        *check_ends(rows, asked),
        *check_executions(rows, executions, clocks_jump=clocks_jump),
        *check_export(rows, box.export),
        *check_folders(rows, box.state_dir / "attempts"),
        *check_machine(box),
        *check_litter(box.folder, box.state_dir),
    ]


def count(findings: Collection[Finding]) -> dict[str, int]:
    """Kind to number, every kind named."""
    found = Counter(finding.kind for finding in findings)
    return {kind: found[kind] for kind in KINDS}


def read_store(path: Path) -> Rows:
    """All that matters of a store, read-only."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        points = connection.execute("SELECT attempt_id, count(*) AS n FROM points GROUP BY attempt_id").fetchall()
        damage = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        damage += [f"dangling reference in {row[0]}" for row in connection.execute("PRAGMA foreign_key_check")]
        return Rows(
            connection.execute("SELECT * FROM cells").fetchall(),
            connection.execute("SELECT * FROM attempts ORDER BY key, number").fetchall(),
            connection.execute("SELECT * FROM ends").fetchall(),
            {row["attempt_id"]: row["n"] for row in points},
            damage,
        )


def read_journal(path: Path) -> list[Execution]:
    """The executions, in the order in which they began."""
    by_nonce: dict[str, Execution] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        if line["at"] == "start":
            by_nonce[line["nonce"]] = Execution(
                line["attempt"], line["nonce"], line["kind"], line["boot_ns"], line["alone"]
            )
        else:
            execution = by_nonce[line["nonce"]]
            execution.ended_ns, execution.outcome = line["boot_ns"], line["outcome"]
            execution.value, execution.points = line.get("value"), line.get("points", 0)
    return list(by_nonce.values())


def value_of(attempt_id: str) -> float:
    """What an execution of this attempt finds (see `daemons.WORKER`)."""
    return 1 + zlib.crc32(attempt_id.encode()) % 9000 / 1000


def check_store(rows: Rows, *, clocks_jump: bool = False) -> Iterator[Finding]:
    """The store by itself: whole, numbers without gaps, one end an attempt, one live attempt of a cell at a time."""
    for damage in rows.damage:
        yield Finding("store", damage)
    ended: dict[str, list[sqlite3.Row]] = defaultdict(list)
    for end in rows.ends:
        ended[end["attempt_id"]].append(end)
    known = {attempt["id"] for attempt in rows.attempts}
    for attempt_id, ends in ended.items():
        if len(ends) > 1:
            yield Finding("doubled", f"{attempt_id} has {len(ends)} ends")
        if attempt_id not in known:
            yield Finding("store", f"{attempt_id} has an end and is no attempt")
    by_key: dict[str, list[sqlite3.Row]] = defaultdict(list)
    for attempt in rows.attempts:
        by_key[attempt["key"]].append(attempt)
    for cell in rows.cells:
        attempts = by_key.pop(cell["key"], [])
        numbers = [attempt["number"] for attempt in attempts]
        if numbers != list(range(1, cell["attempts"] + 1)):
            yield Finding("store", f"{cell['label']} says {cell['attempts']} attempts, and has the numbers {numbers}")
        for before, after in itertools.pairwise(attempts):
            ends = ended.get(before["id"], [])
            if not ends:
                yield Finding("doubled", f"{after['id']} was begun while {before['id']} lived")
            elif not clocks_jump and ends[0]["ended_unix_s"] > after["started_unix_s"] + CLOCK_STEP_S:
                yield Finding("doubled", f"{after['id']} was begun before {before['id']} had ended")
    for key in by_key:
        yield Finding("store", f"attempts of a cell that is not there: {key}")


def check_ends(rows: Rows, asked: Asked) -> Iterator[Finding]:
    """Every cell and every attempt came to an end, the right one, and what was acknowledged is so."""
    ended = {end["attempt_id"]: end for end in rows.ends}
    last = {attempt["key"]: attempt for attempt in rows.attempts}
    for attempt in rows.attempts:
        if attempt["id"] not in ended:
            yield Finding("unended", f"attempt {attempt['id']} ({attempt['label']}) has no end")
    for cell in rows.cells:
        label, state = cell["label"], cell["state"]
        wanted = ENDS[label.partition("/")[0]]
        end = ended.get(last[cell["key"]]["id"]) if cell["key"] in last else None
        if label in asked.cancelled:
            wanted = frozenset({"cancelled", "succeeded"})
        elif label in asked.unsure:
            wanted |= {"cancelled"}
        if state not in wanted:
            yield Finding("unended", f"{label} is {state}, not {' or '.join(sorted(wanted))}")
        had = asked.retried.get(label, -1)
        if cell["attempts"] <= had:
            yield Finding("lost", f"{label}: a retry was acknowledged after attempt {had}, and there is no later one")
        if state == "succeeded" and (end is None or end["measurement"] != cell["measurement"]):
            yield Finding("store", f"{label} has another result than its last attempt")


def check_executions(rows: Rows, executions: list[Execution], *, clocks_jump: bool = False) -> Iterator[Finding]:
    """What the workers say that they did, beside what the store says of it."""
    ends = {end["attempt_id"]: end for end in rows.ends}
    attempts = {attempt["id"]: attempt for attempt in rows.attempts}
    for attempt_id, times in Counter(execution.attempt for execution in executions).items():
        if times > 1:
            yield Finding("doubled", f"{attempt_id} was executed {times} times")
    yield from _overlaps(executions, clocks_jump=clocks_jump)
    for execution in executions:
        if execution.attempt not in attempts:
            yield Finding("orphan", f"{execution.attempt} was executed, and the store knows no such attempt")
            continue
        end = ends.get(execution.attempt)
        if end is not None:
            yield from _end_of(execution, attempts[execution.attempt], end, rows.points.get(execution.attempt, 0))
    executed = {execution.attempt: execution for execution in executions}
    for end in rows.ends:
        if end["outcome"] == "succeeded":
            yield from _result_of(end, executed.get(end["attempt_id"]))


def _end_of(execution: Execution, attempt: sqlite3.Row, end: sqlite3.Row, points: int) -> Iterator[Finding]:
    asked = attempt["end_reason"] is not None
    if execution.outcome is not None and end["outcome"] != execution.outcome and not asked:
        yield Finding("lost", f"{execution.attempt} {execution.outcome}, and its end says {end['outcome']}")
    if end["outcome"] == "lost":
        yield Finding("lost", f"{execution.attempt} was executed, and counts as lost")
    if execution.outcome == "succeeded" and points != execution.points:
        yield Finding("lost", f"{execution.attempt} measured {execution.points} points, and {points} are kept")


def _result_of(end: sqlite3.Row, execution: Execution | None) -> Iterator[Finding]:
    attempt_id, measured = end["attempt_id"], json.loads(end["measurement"] or "{}")
    if execution is None or execution.outcome != "succeeded":
        yield Finding("wrong", f"{attempt_id} has a result, and no execution of it found one")
        return
    value, nonce = measured.get("max_speedup"), (measured.get("details") or {}).get("nonce")
    if value != execution.value or value != value_of(attempt_id):
        yield Finding("wrong", f"{attempt_id} found {execution.value}, and {value} is recorded")
    if nonce != execution.nonce:
        yield Finding("wrong", f"{attempt_id} has the result of another execution ({nonce}, not {execution.nonce})")


def _overlaps(executions: list[Execution], *, clocks_jump: bool) -> Iterator[Finding]:
    by_cell: dict[str, list[Execution]] = defaultdict(list)
    for execution in executions:
        by_cell[execution.attempt.rpartition(".")[0]].append(execution)
        if not execution.alone:
            yield Finding("doubled", f"{execution.attempt} began while another execution of its cell lived")
    for of_cell in by_cell.values() if not clocks_jump else ():
        of_cell.sort(key=lambda execution: execution.began_ns)
        for before, after in itertools.pairwise(of_cell):
            if before.ended_ns is not None and before.ended_ns > after.began_ns:
                yield Finding("doubled", f"{before.attempt} and {after.attempt} ran at the same time")


def check_export(rows: Rows, path: Path) -> Iterator[Finding]:
    """The export says what the store says, of every cell."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        yield Finding("export", f"it can't be read: {error}")
        return
    said = {cell["label"]: cell for cell in document["cells"]}
    for cell in rows.cells:
        told = said.pop(cell["label"], None)
        measured = json.loads(cell["measurement"]) if cell["measurement"] else {}
        wanted = (cell["state"], cell["attempts"], measured.get("max_speedup"))
        if told is None or (told["state"], told["attempts"], told["max_speedup"]) != wanted:
            yield Finding("export", f"{cell['label']} is {wanted} in the store, and here {told}")
    for label in said:
        yield Finding("export", f"{label} is not in the store")


def check_folders(rows: Rows, attempts_folder: Path) -> Iterator[Finding]:
    """No folder without an intent: whoever has one was begun."""
    known = {attempt["id"] for attempt in rows.attempts}
    for folder in attempts_folder.iterdir() if attempts_folder.is_dir() else ():
        if folder.name not in known:
            yield Finding("orphan", f"the folder {folder.name} is of no attempt")


def check_machine(box: Box, linger_s: float = LINGER_S) -> Iterator[Finding]:
    """Nothing is alive, nothing is locked, nothing is leased."""
    until_s = time.monotonic() + linger_s
    while (left := box.processes()) and time.monotonic() < until_s:
        time.sleep(0.02)
    for process in left:
        yield Finding("orphan", f"process {process.pid} is left")
    for path in (box.state_dir / "daemon.lock", *box.state_dir.glob("attempts/*/lock")):
        if path.exists() and _is_locked(path, fcntl.flock):
            yield Finding("orphan", f"{path} is locked")
    for path in box.state_dir.glob("leases/*/*"):
        if _is_locked(path, fcntl.lockf):
            yield Finding("orphan", f"the lease {path} is held")


def _is_locked(path: Path, lock: Any) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(descriptor)
    return False


def check_litter(*folders: Path) -> Iterator[Finding]:
    """Drafts that a killed daemon left are cleared away by the next one."""
    for folder in folders:
        found = [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".new", ".draft"))]
        if found:
            yield Finding("litter", f"{folder}: {', '.join(sorted(found))}")
