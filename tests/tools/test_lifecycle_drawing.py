"""The drawing in docs/lifecycle.md is the table in boundd/core/model/transitions.py."""

from __future__ import annotations

from pathlib import Path

from boundd.core.model.transitions import ATTEMPT_TRANSITIONS, CELL_TRANSITIONS, ENDED_CELL_STATES
from tools.lifecycle_drawing import drawing, page

DOCS = Path(__file__).parents[2] / "docs/lifecycle.md"


def test_the_docs_are_made_from_the_table() -> None:
    """A changed table, or a page changed by hand, fails here: `make docs`."""
    assert DOCS.read_text() == page()


def test_every_step_is_drawn() -> None:
    """With its states and its trigger; what all ends share, from their box."""
    text = page()
    for table in (CELL_TRANSITIONS, ATTEMPT_TRANSITIONS):
        for (before, trigger), after in table.items():
            ends = (before, "ended") if before in ENDED_CELL_STATES else (before,)
            arrows = [line for line in text.splitlines() if any(f" {end} --> {after} : " in f" {line}" for end in ends)]
            assert any(trigger in arrow for arrow in arrows), (before, trigger, after)


def test_a_step_that_only_some_ends_have_is_drawn_from_them() -> None:
    """The box stands for all that is in it, or for nothing."""
    first, second, *_ = ENDED_CELL_STATES
    (_, retry), pending = next((key, after) for key, after in CELL_TRANSITIONS.items() if key[0] is first)
    both = ("ended", (first, second))
    assert f"ended --> {pending}" in drawing({(first, retry): pending, (second, retry): pending}, first, together=both)
    lone = drawing({(first, retry): pending}, first, together=both)
    assert f"{first} --> {pending}" in lone
    assert "ended -->" not in lone
