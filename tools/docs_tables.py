"""Generates the tables of the docs that come from the code: `python -m tools.docs_tables` updates them in place.

A table is between two comments, `<!-- NAME: made by make docs -->` and `<!-- NAME: end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from boundd.catalogue.models import MODELS
from boundd.catalogue.options import OPTIONS, Option
from boundd.catalogue.schedulers import SCHEDULERS
from boundd.worker.cli import help_of

DOCS = Path(__file__).parents[1] / "docs"


def options_table() -> str:
    """The worker's options."""
    rows = [f"| `--{name}` | {_default(option)} | {help_of(option, quote='`')} |" for name, option in OPTIONS.items()]
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows])


def _default(option: Option) -> str:
    if option.is_needed:
        return "needed"
    return f"`{option.default}`" if isinstance(option.default, str) else option.default_shown


def models_table() -> str:
    """The models known by name."""
    rows = [
        f"| `{model.name}` | `{model.pipeline_class}` | {model.native_side_pixels} | "
        f"{f'`{model.hub_id}`' if model.hub_id else 'ships with boundd'} |"
        for model in MODELS.values()
    ]
    head = "| model | pipeline class | native side, pixels | weights of a run by hand |"
    return "\n".join([head, "| --- | --- | ---: | --- |", *rows])


def schedulers_table() -> str:
    """The schedulers known by name."""
    rows = [f"| `{name}` | `{scheduler}` |" for name, scheduler in SCHEDULERS.items()]
    return "\n".join(["| scheduler | class in diffusers |", "| --- | --- |", *rows])


TABLES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "options": ("worker.md", options_table),
    "models": ("worker.md", models_table),
    "schedulers": ("worker.md", schedulers_table),
}
"""Each table's name to the page it stands on, and what makes it."""


def with_tables(page: str, text: str) -> str:
    """The page with its tables made anew.

    Raises:
        ValueError: the comments around a table are missing.
    """
    for name, (where, make) in TABLES.items():
        if where != page:
            continue
        begin, end = f"<!-- {name}: made by make docs -->", f"<!-- {name}: end -->"
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        found = between.search(text)
        if found is None:
            raise ValueError(f"docs/{page}: no place for the table of {name}: {begin} … {end}")
        table = f"{begin}\n{make()}\n{end}"
        text = text.replace(found[0], table)
    return text


def main() -> None:
    """Write every page."""
    for page in sorted({where for where, _ in TABLES.values()}):
        path = DOCS / page
        path.write_text(with_tables(page, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
