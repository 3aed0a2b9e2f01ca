"""Errors of different kinds are told together."""

from __future__ import annotations

from pathlib import Path

import pytest

from boundd.config import load
from boundd.ports import ConfigError


def test_a_bad_duration_hides_no_unknown_scheduler(tmp_path: Path) -> None:
    """A value that doesn't parse, an unknown key, and values that the built-in worker doesn't know: all at once."""
    path = tmp_path / "config.toml"
    path.write_text(
        '[daemon]\nsafety_factor = 0.5\n[matrix.axes]\nmodel = ["SD9"]\nscheduler = ["DDIMM"]\nsteps = [0]\n'
        'method = ["tomee"]\n[worker]\ntimeuot = "1h"\ngrace = "soon"\n'
    )
    with pytest.raises(ConfigError) as raised:
        load(path, {"HOME": str(tmp_path)})
    told = "\n".join(raised.value.errors)
    for part in ("daemon.safety_factor", "worker.timeuot", "worker.grace", "SD9", "DDIMM", "steps", "tomee"):
        assert part in told, told
