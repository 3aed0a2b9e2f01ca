"""Queries: which cells a user means.

A query is a list of terms, and a cell must match all of them; the empty query matches every cell. A term is
`state=STATE`, `NAME=VALUE` for an axis or a constant (values are compared as text), or a glob over labels
(case-sensitive; `*` also matches slashes). A name or state that doesn't exist is an error and not an empty answer,
so that a misspelt `cancel` doesn't look like one that found nothing to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.cells import canonical_json

STATE = "state"
MIN_DIGEST_CHARACTERS = 4
"""Shorter prefixes of a digest match too many cells."""

_NAME_AND_VALUE = re.compile(r"([^=/*?\[{]*)=(.*)", re.DOTALL)


class QueryError(ValueError):
    """A user error: the query can't match anything. The message says what would."""


@dataclass(frozen=True, slots=True)
class Query:
    """Conditions; a cell must meet all of them."""

    states: tuple[CellState, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    """Names of axes or constants, each with the text of the value that it must have."""
    globs: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True where every cell matches."""
        return not (self.states or self.values or self.globs)

    def matches(self, record: CellRecord) -> bool:
        """Whether the cell meets every condition."""
        cell = record.cell
        return (
            all(record.state is state for state in self.states)
            and all(name in cell.parameters and _text(cell.parameters[name]) == text for name, text in self.values)
            # A label may hold the characters of a glob: as itself, it always matches.
            and all(glob == cell.label or fnmatchcase(cell.label, glob) for glob in self.globs)
        )


def names_of(records: Iterable[CellRecord]) -> frozenset[str]:
    """The names that a query over these cells may use, besides `state`."""
    return frozenset(name for record in records for name in record.cell.parameters)


def parse_query(terms: Sequence[str], names: Collection[str] | None = None) -> Query:
    """Parse the terms of a query.

    Args:
        terms: as typed, one term each.
        names: the names of all axes and constants (`names_of`); None to accept any name.

    Raises:
        QueryError: a term is empty, or names a state, axis or constant that doesn't exist.
    """
    states: list[CellState] = []
    values: list[tuple[str, str]] = []
    globs: list[str] = []
    for term in terms:
        if not term:
            raise QueryError("an empty term: say NAME=VALUE or a glob over labels, or leave it out for all cells")
        pair = _NAME_AND_VALUE.fullmatch(term)
        if pair is None:
            globs.append(term)
            continue
        name, text = pair.groups()
        if name == STATE:
            states.append(_state(text))
        elif names is not None and name not in names:
            raise QueryError(f"unknown name {name!r} in {term!r}: {_hint(name, [STATE, *sorted(names)])}")
        elif not name:
            raise QueryError(f"{term!r} has no name before its '=': say NAME=VALUE")
        else:
            values.append((name, text))
    return Query(tuple(states), tuple(values), tuple(globs))


def find_cell(records: Iterable[CellRecord], text: str) -> tuple[CellRecord, ...]:
    """Find the cells that `text` names: by exact key, else by exact label, else by a digest's first characters (at
    least 4).

    Returns several cells if the text is ambiguous.
    """
    known = tuple(records)
    by_key = tuple(record for record in known if record.cell.key == text)
    if by_key:
        return by_key
    by_label = tuple(record for record in known if record.cell.label == text)
    if by_label or len(text) < MIN_DIGEST_CHARACTERS:
        return by_label
    return tuple(record for record in known if record.cell.digest.startswith(text.lower()))


def _state(text: str) -> CellState:
    try:
        return CellState(text)
    except ValueError:
        raise QueryError(f"unknown state {text!r}: {_hint(text, [state.value for state in CellState])}") from None


def _hint(text: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(text.casefold().replace("-", "_"), known, n=1, cutoff=0.5)
    did_you_mean = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{did_you_mean}known: {', '.join(dict.fromkeys(known))}"


def _text(value: Any) -> str:
    """A value as users type it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else canonical_json(value)
