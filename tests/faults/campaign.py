"""What every campaign shares: a short size for `make test`, a long one for `make campaign-faults`, and its figures."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

SHARE_VARIABLE = "BOUNDD_CAMPAIGN_SHARE"
"""A share of the long size, 0.1 say, for a machine that has an hour and not a night."""
RECORD_VARIABLE = "BOUNDD_CAMPAIGN_RECORD"
"""A file that every campaign's figures are appended to, a JSON line each."""

SEED_VARIABLE = "BOUNDD_CAMPAIGN_SEED"
"""The seed of a run before, to draw its points again."""

Report = Callable[..., None]
"""`report("kill -9 of the daemon", points=100, lost=0, ...)`: the denominators first, then what must be 0."""


def sizes(name: str, *, short: int, long: int) -> pytest.MarkDecorator:
    """Parametrizes a test by `name`: once with the short size, once, marked `campaign`, with the long one."""
    share = float(os.environ.get(SHARE_VARIABLE, "1"))
    whole = max(short, round(long * share))
    return pytest.mark.parametrize(
        name,
        [
            pytest.param(short, id="short"),
            pytest.param(whole, id="long", marks=[pytest.mark.campaign, pytest.mark.timeout(0)]),
        ],
    )


def drawn_seed() -> int:
    """The seed of a campaign's points: a new one, or the one that the environment names. Figures tell it."""
    return int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(2**32)))


def line(campaign: str, figures: dict[str, object]) -> str:
    """A campaign's figures for people."""
    return f"{campaign}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())


def record(campaign: str, figures: dict[str, object]) -> None:
    """Append the figures to the file that the environment names, if it does."""
    path = os.environ.get(RECORD_VARIABLE)
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps({"campaign": campaign, **figures}) + "\n")
