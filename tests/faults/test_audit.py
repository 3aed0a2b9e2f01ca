"""The audit finds each kind of violation: every one is planted in a copy of a box that is in order.

A check that is taken out of `audit.py` fails the plants of its kind here.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from boundd.store import seals
from tests.faults import audit
from tests.faults.daemons import Box

KINDS = ("quick", "points", "fails", "slow")
Plant = Callable[[Box], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box whose daemon ran to idle."""
    box = Box(tmp_path_factory.mktemp("whole"), numbers=1, kinds=KINDS)
    assert box.run_until_idle() == 3, box.told()
    return box


@pytest.fixture
def box(whole: Box, tmp_path: Path) -> Box:
    """A copy of it, to be harmed."""
    shutil.copytree(whole.folder, tmp_path / "box", ignore=shutil.ignore_patterns("s"))
    return Box(tmp_path / "box", numbers=1, kinds=KINDS)


def sql(*statements: str) -> Plant:
    """Do this to the store, with none of its rules in force: what each statement changes has `{quick}` and the like."""

    def plant(box: Box) -> None:
        with closing(sqlite3.connect(box.store, isolation_level=None)) as connection:
            seals.register(connection)
            ids = dict(connection.execute("SELECT replace(label, '/0', ''), id FROM attempts WHERE number = 1"))
            for statement in statements:
                connection.execute(statement.format(**ids))

    return plant


def without_keys(table: str) -> tuple[str, ...]:
    """Statements that make a table anew without its constraints."""
    return (
        f"CREATE TABLE copy AS SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE copy RENAME TO {table}",
    )


def journal(change: Callable[[list[dict[str, object]]], None]) -> Plant:
    """Do this to the journal's lines."""

    def plant(box: Box) -> None:
        lines = [json.loads(line) for line in box.journal.read_text().splitlines()]
        change(lines)
        box.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return plant


def again(lines: list[dict[str, object]]) -> None:
    """The first attempt that succeeded was executed a second time, later."""
    end = next(line for line in lines if line.get("outcome") == "succeeded")
    start = next(line for line in lines if line["nonce"] == end["nonce"])
    late = max(int(str(line["boot_ns"])) for line in lines)
    lines += [{**line, "nonce": "other", "boot_ns": late + step} for step, line in enumerate((start, end), 1)]


def not_alone(lines: list[dict[str, object]]) -> None:
    """A worker found its cell's lock taken."""
    lines[0]["alone"] = False


def overlapping(lines: list[dict[str, object]]) -> None:
    """The second attempt of the cell that fails began before the first had ended."""
    starts = [line for line in lines if line["at"] == "start" and line["kind"] == "fails"]
    starts[1]["boot_ns"] = int(str(starts[0]["boot_ns"])) + 1


def unheard(lines: list[dict[str, object]]) -> None:
    """An execution that no store knows of."""
    lines.append({**lines[0], "attempt": "0123456789ab.1", "nonce": "other"})


def never_ended(lines: list[dict[str, object]]) -> None:
    """What is recorded as a success never said its end."""
    lines.remove(next(line for line in lines if line.get("outcome") == "succeeded"))


def other_nonce(lines: list[dict[str, object]]) -> None:
    """The result that is recorded is of another execution."""
    nonce = next(line["nonce"] for line in lines if line.get("outcome") == "succeeded")
    for line in lines:
        line["nonce"] = "other" if line["nonce"] == nonce else line["nonce"]


def export(change: Callable[[list[dict[str, object]]], None]) -> Plant:
    """Do this to the export's cells."""

    def plant(box: Box) -> None:
        document = json.loads(box.export.read_text())
        change(document["cells"])
        box.export.write_text(json.dumps(document))

    return plant


def strange_folder(box: Box) -> None:
    """An attempt's folder that nobody meant."""
    (box.state_dir / "attempts/0123456789ab.1").mkdir()


def drafts(box: Box) -> None:
    """An export that was begun."""
    (box.folder / ".speedup_bounds.json.1.tmp").touch()


PLANTS: dict[str, tuple[str, Plant]] = {
    "a second end": (
        "doubled",
        sql(*without_keys("ends"), "INSERT INTO ends SELECT * FROM ends WHERE attempt_id = '{quick}'"),
    ),
    "a later attempt beside a live one": ("doubled", sql("DELETE FROM ends WHERE attempt_id = '{fails}'")),
    "a later attempt before the end": (
        "doubled",
        sql("UPDATE ends SET ended_unix_s = ended_unix_s + 60 WHERE attempt_id = '{fails}'"),
    ),
    "executed twice": ("doubled", journal(again)),
    "not alone": ("doubled", journal(not_alone)),
    "two executions at once": ("doubled", journal(overlapping)),
    "an attempt without an end": ("unended", sql("DELETE FROM ends WHERE attempt_id = '{slow}'")),
    "a cell that waits": ("unended", sql("UPDATE cells SET state = 'pending' WHERE label = 'slow/0'")),
    "a cell that came to a wrong end": ("unended", sql("UPDATE cells SET state = 'lost' WHERE label = 'fails/0'")),
    "a gap in the numbers": ("store", sql("UPDATE attempts SET number = 3 WHERE label = 'fails/0' AND number = 2")),
    "a miscounted cell": ("store", sql("UPDATE cells SET attempts = 2 WHERE label = 'quick/0'")),
    "an end of nobody": (
        "store",
        sql(*without_keys("ends"), "UPDATE ends SET attempt_id = 'x' WHERE attempt_id = '{quick}'"),
    ),
    "an attempt of nobody": ("store", sql("DELETE FROM cells WHERE label = 'quick/0'")),
    "a cell with another result than its attempt": (
        "store",
        sql("UPDATE cells SET measurement = '{{\"max_speedup\": 9}}' WHERE label = 'quick/0'"),
    ),
    "a success that counts as lost": (
        "lost",
        sql("UPDATE ends SET outcome = 'lost', measurement = NULL WHERE attempt_id = '{quick}'"),
    ),
    "a success that counts as failed": ("lost", sql("UPDATE ends SET outcome = 'failed' WHERE attempt_id = '{quick}'")),
    "a failure that counts as lost": ("lost", sql("UPDATE ends SET outcome = 'lost' WHERE attempt_id = '{fails}'")),
    "a point that is gone": ("lost", sql("DELETE FROM points WHERE idx = 2")),
    "another value": (
        "wrong",
        sql("UPDATE ends SET measurement = json_set(measurement, '$.max_speedup', 99.0) WHERE attempt_id = '{quick}'"),
    ),
    "another execution's result": ("wrong", journal(other_nonce)),
    "a result of no execution": ("wrong", journal(never_ended)),
    "an execution without an intent": ("orphan", journal(unheard)),
    "a folder without an intent": ("orphan", strange_folder),
    "an export of another state": ("export", export(lambda cells: cells[0].update(state="pending"))),
    "an export of another value": ("export", export(lambda cells: cells[0].update(max_speedup=99.0))),
    "an export that lacks a cell": ("export", export(lambda cells: cells.remove(cells[0]))),
    "an export of a cell too many": ("export", export(lambda cells: cells.append({**cells[0], "label": "x/1"}))),
    "an export that is cut": ("export", lambda box: os.truncate(box.export, 100)),
    "drafts": ("litter", drafts),
}


def test_a_box_in_order(box: Box) -> None:
    """Nothing is found, and the journal is no empty one."""
    assert audit.audit(box) == []
    assert len(audit.read_journal(box.journal)) == len(KINDS) + 1


@pytest.mark.parametrize("name", PLANTS)
def test_each_violation_is_found(name: str, box: Box) -> None:
    """And is told as what it is."""
    kind, plant = PLANTS[name]
    plant(box)
    assert audit.count(audit.audit(box))[kind] > 0


def test_every_kind_is_planted() -> None:
    """No kind that nothing here would find."""
    assert {kind for kind, _ in PLANTS.values()} == set(audit.KINDS)


def test_a_process_that_is_left(box: Box) -> None:
    """Whatever works in the box, by its folder or by its arguments."""
    with subprocess.Popen(["sleep", "600"], cwd=box.folder) as left:
        try:
            found = list(audit.check_machine(box, linger_s=0.0))
        finally:
            left.kill()
    assert [finding.kind for finding in found] == ["orphan"], found
    assert str(left.pid) in found[0].what


@pytest.mark.parametrize("name", ["daemon.lock", "attempts/*/lock", "leases/SIM-0/work"])
def test_a_lock_that_is_held(name: str, box: Box) -> None:
    """The daemon's, an attempt's, a device's lease; held by another process, as record locks have to be."""
    if "*" in name:
        path = next(box.state_dir.glob(name))
    else:
        path = box.state_dir / name
        path.touch()
    lock = "lockf" if "leases" in name else "flock"
    code = (
        f"import fcntl, sys; f = open({str(path)!r}, 'r+'); fcntl.{lock}(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        # The holder's own arguments name the box: what is asked here is whether its lock is seen.
        found = [finding.what for finding in audit.check_machine(box, linger_s=0.0) if "process" not in finding.what]
        holder.communicate(b"\n")
    assert len(found) == 1, found
    assert str(path) in found[0]


def test_what_was_acknowledged(box: Box) -> None:
    """A retry without a further attempt and a cancellation that didn't hold are losses; one unsure of may be so."""
    assert audit.count(audit.audit(box, audit.Asked(retried={"quick/0": 1})))["lost"] == 1
    assert audit.audit(box, audit.Asked(retried={"fails/0": 1})) == []
    sql("UPDATE cells SET state = 'timed_out' WHERE label = 'slow/0'")(box)
    export(lambda cells: [cell.update(state="timed_out") for cell in cells if cell["label"] == "slow/0"])(box)
    assert audit.count(audit.audit(box, audit.Asked(cancelled={"slow/0"})))["unended"] == 1
    sql("UPDATE cells SET state = 'cancelled' WHERE label = 'slow/0'")(box)
    export(lambda cells: [cell.update(state="cancelled") for cell in cells if cell["label"] == "slow/0"])(box)
    assert audit.audit(box, audit.Asked(unsure={"slow/0"})) == []
    assert audit.audit(box, audit.Asked(cancelled={"slow/0"})) == []
    # What ended by itself was not cancelled, and the answer must not say so.
    assert audit.count(audit.audit(box, audit.Asked(cancelled={"fails/0", "slow/0"})))["unended"] == 1
