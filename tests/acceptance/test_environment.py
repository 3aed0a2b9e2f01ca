"""What is no cell's fault, by the real daemon and real workers: one problem, its cure, nobody pays, and it passes.

Seen to fail: without `holds_back` in the planner each cell is started and fails; with NOT_STARTED for every failed
start the cells end after an attempt each.
"""

from __future__ import annotations

import json
import signal
import stat
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Box

METHODS = 'method = ["tome", "tgate", "deepcache", "tome+tgate", "deepcache+tome"]'
GOOD = "print('speedup: 1.50')"
AWAY = (
    "raise SystemExit('requests.exceptions.HTTPError: 503 Server Error: R for url: https://hub.example/api/models/x')"
)
"""As such an exception ends a script, and what it prints last."""


def problems(box: Box) -> list[dict[str, Any]]:
    """What `status --json` says is wrong; nothing while no daemon answers."""
    answer = box.ctl("status", "--json")
    found: list[dict[str, Any]] = json.loads(answer.stdout)["problems"] if answer.returncode == 0 else []
    return found


def said(box: Box, action: str) -> list[dict[str, Any]]:
    """The log's lines of an action."""
    lines = map(json.loads, (box.folder / "daemon.log").read_text().splitlines())
    return [line for line in lines if line.get("event.action") == action]


def missing_program(box: Box) -> Path:
    """A config whose interpreter isn't there; where it is looked for."""
    box.write(GOOD, axes=METHODS)
    program = box.folder / "environment" / "python"
    text = box.config.read_text().replace('grace = "1s"', f'grace = "1s"\npython = "{program}"')
    box.config.write_text(text)
    return program


def test_a_missing_interpreter(box: Box) -> None:
    """It is put there after a while, and all cells run, at the price of none; before, people are told what to do."""
    program = missing_program(box)
    daemon = box.start()
    box.wait_for(lambda: bool(problems(box)))
    (problem,) = problems(box)
    assert (problem["kind"], problem["subject"], problem["cells"]) == ("interpreter", str(program), 5)
    assert "worker.python" in problem["cure"]
    text = box.ctl("status").stdout
    assert f"the worker's program can't be executed ({program})" in text
    assert "5 cells wait" in text
    waits = box.ctl("explain", "SD1.5/DDIM/20/tgate").stdout
    assert "held back" in waits
    assert str(program) in waits
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    box.wait_for(lambda: '"run-idle"' in (box.folder / "daemon.log").read_text(), timeout_s=60)
    assert problems(box) == []
    daemon.send_signal(signal.SIGINT)
    daemon.wait(30)
    assert {cell["state"] for cell in box.export().values()} == {"succeeded"}
    assert len(said(box, "environment-problem")) == 1
    assert len(said(box, "environment-recovered")) == 1
    assert said(box, "cell-gave-up") == []
    failed = [line for line in said(box, "attempt-ended") if line["boundd.outcome"] != "succeeded"]
    assert {line["boundd.error_kind"] for line in failed} == {"interpreter"}


def test_a_hub_that_is_away(box: Box) -> None:
    """A script prints what its library raised: its like waits, and one at a time tries."""
    box.write(f"if os.path.exists('down'): {AWAY}\n{GOOD}", axes=METHODS, extra="max_attempts = 1")
    (box.folder / "down").touch()
    daemon = box.start()
    box.wait_for(lambda: any(each["failures"] >= 3 for each in problems(box)))
    (problem,) = problems(box)
    assert (problem["kind"], problem["subject"], problem["scopes"]) == (
        "hub_unavailable",
        "hub.example",
        ["model: SD1.5"],
    )
    (box.folder / "down").unlink()
    box.wait_for(lambda: '"run-idle"' in (box.folder / "daemon.log").read_text(), timeout_s=60)
    daemon.send_signal(signal.SIGINT)
    daemon.wait(30)
    assert {cell["state"] for cell in box.export().values()} == {"succeeded"}
    assert len(said(box, "environment-problem")) == 1


def test_the_patience_is_the_configs(box: Box) -> None:
    """What never comes ends the run: exit 3, each cell given up, with the reason and how to go on."""
    missing_program(box)
    box.config.write_text(box.config.read_text().replace("[retry]", '[retry]\npatience = "2s"'))
    status, _ = box.run()
    assert status == 3
    assert {cell["state"] for cell in box.export().values()} == {"failed"}
    gave_up = said(box, "cell-gave-up")
    assert len(gave_up) == 5
    assert all("patience of 2 s (retry.patience)" in line["message"] for line in gave_up)
    attempts = sum(cell["attempts"] for cell in box.export().values())
    assert attempts < 8, "nobody was tried in vain: one at a time"


def test_a_missing_package(box: Box) -> None:
    """Told by what Python prints."""
    box.write("import boundd_no_such_package\n", extra='patience = "1s"')
    status, _ = box.run()
    assert status == 3
    (cell,) = box.export().values()
    assert cell["error"]["type"] == "package"
