"""The sizes of a campaign, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults import campaign


def test_short_and_long() -> None:
    """Two sizes, of which only the long one is a campaign."""
    short, long = campaign.sizes("points", short=100, long=10_000).args[1]
    assert (short.values, long.values) == ((100,), (10_000,))
    assert [mark.name for mark in short.marks] == []
    assert "campaign" in [mark.name for mark in long.marks]


def test_a_share_is_never_less_than_the_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share shortens the long one alone."""
    monkeypatch.setenv(campaign.SHARE_VARIABLE, "0.1")
    assert campaign.sizes("points", short=100, long=10_000).args[1][1].values == (1000,)
    monkeypatch.setenv(campaign.SHARE_VARIABLE, "0.0001")
    assert campaign.sizes("points", short=100, long=10_000).args[1][1].values == (100,)


def test_figures_are_told_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For people in a line, for programs in a file."""
    monkeypatch.setenv(campaign.RECORD_VARIABLE, str(tmp_path / "figures"))
    campaign.record("a campaign", {"points": 3, "wrong_kills": 0})
    assert json.loads((tmp_path / "figures").read_text()) == {"campaign": "a campaign", "points": 3, "wrong_kills": 0}
    assert campaign.line("a campaign", {"points": 3, "wrong_kills": 0}) == "a campaign: points 3, wrong kills 0"
