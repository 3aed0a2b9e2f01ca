"""docs/lifecycle.md: the lifecycle as a drawing, made from its table. `python -m tools.lifecycle_drawing` prints it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from boundd.core.model.attempts import AttemptState, CellState
from boundd.core.model.transitions import (
    ATTEMPT_TRANSITIONS,
    CELL_TRANSITIONS,
    ENDED_CELL_STATES,
    MEANINGS,
    AttemptTrigger,
    Trigger,
)

Table = Mapping[Any, StrEnum]
"""A state and a trigger, as a pair, to the next state. A mapping's keys are invariant, so that no type fits both."""

_HEAD = """\
# The lifecycle

<!-- Made by `make docs` from boundd/core/model/transitions.py; a test compares them. Don't edit. -->

Where a cell and an attempt stand is changed by one table each and by nothing else (`boundd/core/model/transitions.py`).
A step that is not in its table is a mistake of boundd's: it raises, nothing is committed, and nothing has changed.
"""


def page() -> str:
    """The whole of docs/lifecycle.md."""
    parts = [
        _HEAD,
        "## A cell\n\nOf the states in the box, each is an end until a person says `retry`.\n",
        drawing(CELL_TRANSITIONS, CellState.PENDING, together=("ended", ENDED_CELL_STATES)),
        steps(CELL_TRANSITIONS, Trigger),
        "## An attempt\n\nOnce it has ended it is a row of the store and no longer a part of the state.\n",
        drawing(ATTEMPT_TRANSITIONS, AttemptState.STARTING, last=AttemptState.ENDED),
        steps(ATTEMPT_TRANSITIONS, AttemptTrigger),
    ]
    return "\n".join(parts)


def drawing(
    table: Table, first: StrEnum, *, last: StrEnum | None = None, together: tuple[str, tuple[StrEnum, ...]] = ("", ())
) -> str:
    """A table as a Mermaid drawing, which GitHub shows.

    Args:
        table: state and trigger to the next state.
        first: where everything begins.
        last: where everything ends, if there is one such state.
        together: the name of a box, and the states in it; a step that all of them have is drawn once, from the box.
    """
    name, inside = together
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    if inside:
        lines += [f"    state {name} {{", *(f"        {state}" for state in inside), "    }"]
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, trigger), after in table.items():
        alike = state in inside and all(table.get((other, trigger)) is after for other in inside)
        labels = arrows.setdefault((name if alike else state, after), [])
        if trigger not in labels:
            labels.append(trigger)
    lines += [f"    {before} --> {after} : {', '.join(labels)}" for (before, after), labels in arrows.items()]
    lines += [f"    {last} --> [*]"] if last is not None else []
    return "\n".join([*lines, "```\n"])


def steps(table: Table, triggers: type[Trigger | AttemptTrigger]) -> str:
    """A table as one of Markdown: each trigger, when it happens, and what it makes of which state."""
    lines = ["| what happens | when | from | to |", "| --- | --- | --- | --- |"]
    for trigger in triggers:
        for after, before in _by_target(table, trigger):
            lines.append(f"| {trigger} | {MEANINGS[trigger]} | {', '.join(before)} | {after} |")
    return "\n".join([*lines, ""])


def _by_target(table: Table, trigger: StrEnum) -> Iterator[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for (state, moved_by), after in table.items():
        if moved_by is trigger:
            found.setdefault(after, []).append(state)
    yield from found.items()


if __name__ == "__main__":
    print(page(), end="")
