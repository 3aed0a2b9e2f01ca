"""Old attempts' folders go, and only they, whatever somebody does to the clock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from boundd.core.model.events import Now
from boundd.launch.prune import prune
from boundd.launch.shim import boot_id

NOW = Now(boot_s=50_000.0, unix_s=1_000_000.0)
KEEP_S = 500.0


def attempt(folder: Path, name: str, age_s: float, *, boot: str = "another boot", boot_age_s: float = 0.0) -> None:
    """An attempt that ended so long ago by the wall clock, and began so long ago by the boot's."""
    (folder / name).mkdir()
    outcome = folder / name / "outcome.json"
    outcome.write_text("{}")
    os.utime(outcome, (NOW.unix_s - age_s, NOW.unix_s - age_s))
    ticks = int((NOW.boot_s - boot_age_s) * os.sysconf("SC_CLK_TCK"))
    record = {"boot_id": boot, "pid": 2, "start_ticks": ticks, "worker_pid": 3, "worker_start_ticks": ticks}
    (folder / name / "shim.json").write_text(json.dumps({"format": 1, **record}))


def left(folder: Path) -> list[str]:
    """The attempts that are still there."""
    return sorted(each.name for each in folder.iterdir())


def test_only_old_ended_attempts_go(tmp_path: Path) -> None:
    """Old and ended goes; young, live, or without an outcome stays."""
    for name, age_s in {"old": 900, "young": 100, "live": 900}.items():
        attempt(tmp_path, name, age_s)
    (tmp_path / "running").mkdir()
    assert prune(tmp_path, {"live"}, KEEP_S, NOW) == 1
    assert left(tmp_path) == ["live", "running", "young"]
    assert prune(tmp_path / "not-there", set(), KEEP_S, NOW) == 0


def test_a_clock_that_was_set_makes_nothing_of_this_boot_old(tmp_path: Path) -> None:
    """Both clocks must say that it is: forty days by one of them are none."""
    month_s = 40 * 86_400.0
    attempt(tmp_path, "set", month_s, boot=boot_id(), boot_age_s=10)
    attempt(tmp_path, "old", month_s, boot=boot_id(), boot_age_s=KEEP_S + 1)
    attempt(tmp_path, "set-back", -month_s, boot=boot_id(), boot_age_s=KEEP_S + 1)
    assert prune(tmp_path, set(), KEEP_S, NOW) == 1
    assert left(tmp_path) == ["set", "set-back"]


@pytest.mark.parametrize("wall_clock", [True, False])
def test_of_earlier_boots_only_the_wall_clock_tells(wall_clock: bool, tmp_path: Path) -> None:
    """Where it was set meanwhile, nothing of them is let go."""
    attempt(tmp_path, "old", 900)
    attempt(tmp_path, "unreadable", 900)
    (tmp_path / "unreadable/shim.json").write_text("{")
    assert prune(tmp_path, set(), KEEP_S, NOW, wall_clock=wall_clock) == (2 if wall_clock else 0)
