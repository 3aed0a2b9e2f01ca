"""docs/worker.md says what there is."""

import dataclasses
from pathlib import Path

import pytest

from boundd.catalogue.outcomes import WORKER_ERROR_KINDS
from boundd.protocol import environment
from boundd.protocol.lines import Error, Memory, Point, Progress, Result
from boundd.worker.cli import main
from boundd.worker.errors import EXIT_CODES
from boundd.worker.methods import load_method

TEXT = (Path(__file__).parents[2] / "docs" / "worker.md").read_text(encoding="utf-8")


def test_every_option_is_documented() -> None:
    """By its old name."""
    for parameter in main.params:
        assert f"`{parameter.opts[0]}`" in TEXT, f"{parameter.opts[0]} is not in docs/worker.md"


def test_every_variable_is_documented() -> None:
    """Each by its name."""
    for name in environment.VARIABLES:
        assert f"`{name}`" in TEXT


@pytest.mark.parametrize("line", [Progress, Point, Memory, Result, Error])
def test_every_field_is_documented(line: type) -> None:
    """Each field of each line."""
    for field in dataclasses.fields(line):
        assert field.name == "extra" or f"`{field.name}`" in TEXT


def test_every_failure_is_documented() -> None:
    """Each kind of error and each exit code."""
    for kind in WORKER_ERROR_KINDS:
        assert f"`{kind}`" in TEXT
    for code in (0, 2, *EXIT_CODES.values()):
        assert f"| {code} |" in TEXT


@pytest.mark.parametrize("name", ["deepcache", "tgate", "tome"])
def test_every_parameter_is_documented(name: str) -> None:
    """Each parameter of each method."""
    for parameter in load_method(name).parameter_names:
        assert f"`{parameter}`" in TEXT
