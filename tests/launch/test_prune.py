"""Old attempts' folders go, and only they."""

from __future__ import annotations

import os
from pathlib import Path

from boundd.launch.prune import prune


def test_only_old_ended_attempts_go(tmp_path: Path) -> None:
    """Old and ended goes; young, live, or without an outcome stays."""
    for name, at_unix_s in {"old": 100, "young": 1000, "live": 100}.items():
        outcome = tmp_path / name / "outcome.json"
        outcome.parent.mkdir()
        outcome.write_text("{}")
        os.utime(outcome, (at_unix_s, at_unix_s))
    (tmp_path / "running").mkdir()
    assert prune(tmp_path, {"live"}, 500) == 1
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["live", "running", "young"]
    assert prune(tmp_path / "not-there", set(), 500) == 0
