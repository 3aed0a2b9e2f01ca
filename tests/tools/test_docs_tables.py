"""The tables of the docs are those of the code."""

from __future__ import annotations

import pytest

from tools.docs_tables import DOCS, TABLES, with_tables


@pytest.mark.parametrize("page", sorted({where for where, _ in TABLES.values()}))
def test_the_tables_are_current(page: str) -> None:
    """Else `make docs` was forgotten."""
    text = (DOCS / page).read_text(encoding="utf-8")
    assert with_tables(page, text) == text


def test_a_page_without_a_place_is_an_error() -> None:
    """A table that nobody sees would pass every test."""
    with pytest.raises(ValueError, match=r"docs/worker.md: no place for the table of options"):
        with_tables("worker.md", "nothing")
