"""`make bench-recovery`, small."""

from __future__ import annotations

from pathlib import Path

import anyio

from benchmarks import recovery


def test_a_small_store_is_made_and_recovered(tmp_path: Path) -> None:
    """The store has what was asked for, the daemon takes it up and answers, and both are timed."""
    (tmp_path / "config.toml").write_text(recovery.config(32))
    cells, attempts = anyio.run(recovery.fill, tmp_path / "boundd.db", 32, 96, 2)
    assert (cells, attempts) == (32, 96)
    (found,) = recovery.measure(tmp_path, 1)
    assert min(found.ready_s, found.ready_processor_s, found.bare_s, found.bare_processor_s) > 0
    assert "32 cells, 96 attempts" in recovery.report([found], cells, attempts, 192, 4096)
