"""The comparison of the two searches: a small cell for real, and what it says of disagreement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.search import Cell, Found, main, rows, summary

FOUND = Found({"cache_interval": 3}, 2.0, 1.9, 2.1, 4, 100, 10.0, "exclusive")


@pytest.mark.parametrize(
    ("lazy", "verdict"),
    [
        (FOUND, "same"),
        (replace(FOUND, parameters={"cache_interval": 5}, speedup=2.15, low=2.05, high=2.2), "overlap"),
        (replace(FOUND, parameters={"cache_interval": 2}, speedup=1.5, low=1.4, high=1.6), "NO"),
    ],
)
def test_disagreement_is_printed(lazy: Found, verdict: str) -> None:
    """With both points and both intervals, and counted at the end."""
    cell = Cell("digits-sd15/DDIM/deepcache/8", "deepcache", lazy, replace(FOUND, images=600))
    _, row = rows([cell])
    assert verdict in row
    assert "6.0x" in row
    assert ("cache_interval=3" in row) == (verdict != "same")
    *_, totals = summary([cell])
    assert ("disagreement in 1" in totals) == (verdict == "NO")


@pytest.mark.slow
def test_a_small_cell_is_searched_both_ways(tmp_path: Path) -> None:
    """From the command line to the file: both searches run, and the lazy one makes fewer images."""
    output = tmp_path / "search.txt"
    options = {"--steps": "4", "--num-samples": "4", "--batch-size": "2", "--repeats": "2", "--max-repeats": "2"}
    options |= {"--tolerance": "0.99", "--model": "digits-sd15", "--scheduler": "DDIM", "--method": "deepcache"}
    done = CliRunner().invoke(main, [*(text for pair in options.items() for text in pair), "-o", str(output)])
    assert done.exit_code in (0, 1), done.output
    text = output.read_text()
    assert "digits-sd15/DDIM/deepcache/4" in text
    assert "1 cells: the same point in" in text
    assert "toys" in text
