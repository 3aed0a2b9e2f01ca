"""The measures of the code's shape count what they say they count."""

from __future__ import annotations

from pathlib import Path

from tools.code_measures import CHANGES, measure, subject_of

RECORDS = """\
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel


@dataclass(frozen=True)
class A:
    x: int


class B(NamedTuple):
    x: int


class C(BaseModel):
    x: int


class D(C):
    y: int


class NoRecord:
    def method(self) -> None:
        pass
"""
MIXED = "from boundd.core.scheduler.order import x\nfrom boundd.core.memory.footprint import y\nNAMES = ['tome']\n"


def test_measures_of_a_small_checkout(tmp_path: Path) -> None:
    """Records in all their forms, a module of two subjects, a fact in two places."""
    package = tmp_path / "boundd"
    (package / "store").mkdir(parents=True)
    (package / "core" / "scheduler").mkdir(parents=True)
    (package / "store" / "records.py").write_text(RECORDS)
    (package / "store" / "mixed.py").write_text(MIXED)
    (package / "core" / "scheduler" / "own.py").write_text(MIXED)
    (tmp_path / "pyproject.toml").write_text('tome = "x"\n')
    found = measure(tmp_path)
    assert (found.files, found.record_types, found.longest_function) == (3, 4, 2)
    assert found.mixed_modules == ("store.mixed",)
    assert found.changes["a built-in method"] == 3
    assert set(found.changes) == set(CHANGES)


def test_the_flat_core_had_subjects_too() -> None:
    """So that a commit from before the rooms is measured by the same rule."""
    assert subject_of("core.placement") == subject_of("core.scheduler.placement") == "scheduler"
    assert subject_of("control.api") == "control"
