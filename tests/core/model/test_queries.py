"""Which cells a person means."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.queries import QueryError, find_cell, names_of, parse_query


def record(state: CellState = CellState.PENDING, **parameters: Any) -> CellRecord:
    """A cell of SD1.5, DDIM and deepcache at 20 steps, but for what is said otherwise."""
    known = {"model": "SD1.5", "scheduler": "DDIM", "steps": 20, "method": "deepcache"} | parameters
    cell = Cell.of({**known, "tolerance": 0.02}, ["model", "scheduler", "steps", "method"])
    return CellRecord(cell, CellPolicy(), state)


RECORDS = (
    record(),
    record(CellState.OUT_OF_MEMORY, model="SDXL"),
    record(CellState.OUT_OF_MEMORY, steps=50),
    record(CellState.SUCCEEDED, model="SDXL", method="deepcache+tome"),
)
NAMES = names_of(RECORDS)


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ([], [0, 1, 2, 3]),
        (["state=out_of_memory"], [1, 2]),
        (["state=out_of_memory", "model=SDXL"], [1]),
        (["steps=20"], [0, 1, 3]),
        (["tolerance=0.02", "steps=50"], [2]),
        (["SDXL/*"], [1, 3]),
        (["sdxl/*"], []),
        (["*/tome"], []),
        (["*tome"], [3]),
        (["SD1.5/DDIM/20/deepcache"], [0]),
        (["SD?.5/*", "state=pending"], [0]),
        (["method=deepcache+tome"], [3]),
        (["state=pending", "state=succeeded"], []),
    ],
)
def test_queries(terms: list[str], found: list[int]) -> None:
    """Terms are joined by 'and'; values are compared as text; globs are case-sensitive and cross slashes."""
    query = parse_query(terms, NAMES)
    assert [index for index, candidate in enumerate(RECORDS) if query.matches(candidate)] == found
    assert query.is_empty is (not terms)


@pytest.mark.parametrize(
    ("term", "hints"),
    [
        ("state=out_of_memoy", ["did you mean 'out_of_memory'", "timed_out"]),
        ("state=Succeeded", ["did you mean 'succeeded'"]),
        ("modle=SDXL", ["did you mean 'model'", "scheduler", "state"]),
        ("", ["empty"]),
        ("=x", ["known"]),
    ],
)
def test_bad_queries_say_what_is_known(term: str, hints: list[str]) -> None:
    """A term that can't match anything is an error that names the nearest and all the known."""
    with pytest.raises(QueryError) as caught:
        parse_query([term], NAMES)
    for hint in hints:
        assert hint in str(caught.value)


def test_without_names_any_name_goes_but_none_is_an_error() -> None:
    """Where the names are not known, a strange one matches nothing; an empty one is still wrong."""
    assert not parse_query(["modle=SDXL"]).matches(RECORDS[1])
    with pytest.raises(QueryError):
        parse_query(["=x"])


def test_a_label_with_glob_characters_matches_itself() -> None:
    """A value such as [a] is no trap: the label as it is always matches."""
    odd = record(model="m[a]*")
    assert parse_query([odd.cell.label]).matches(odd)


@given(st.text(min_size=1, max_size=30))
def test_any_text_is_a_query_or_an_error(text: str) -> None:
    """No term makes anything but a query or a QueryError, and a query can be asked."""
    try:
        query = parse_query([text], NAMES)
    except QueryError:
        return
    assert query.matches(RECORDS[0]) in (True, False)


def test_find_cell_by_key_label_and_digest() -> None:
    """A cell is found by its key, its label, and its digest's first four characters in any case."""
    wanted = RECORDS[1]
    for text in (wanted.cell.key, wanted.cell.label, wanted.cell.digest, wanted.cell.digest[:6].upper()):
        assert find_cell(RECORDS, text) == (wanted,)
    assert find_cell(RECORDS, wanted.cell.digest[:3]) == ()
    assert find_cell(RECORDS, "nothing") == ()
    assert find_cell(RECORDS, "") == ()


def test_find_cell_says_when_it_is_ambiguous() -> None:
    """Several cells with one label, or one beginning of a digest, are all returned."""
    first, second = RECORDS[:2]
    same_label = replace(second, cell=replace(second.cell, label=first.cell.label))
    assert find_cell((first, same_label), first.cell.label) == (first, same_label)
    near = replace(second, cell=replace(second.cell, digest=first.cell.digest[:5] + "0000000"))
    assert find_cell((first, near), first.cell.digest[:4]) == (first, near)
