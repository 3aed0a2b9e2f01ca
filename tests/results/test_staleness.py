"""Whether a result is of today's versions, and of today's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from boundd.catalogue.outcomes import Isolation
from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import Measurement
from boundd.results.staleness import Today, is_stale

CELL = Cell.of({"model": "SD1.5", "method": "tome"}, ["model", "method"])


def measured(details: Mapping[str, Any]) -> CellRecord:
    """A cell with a result."""
    return CellRecord(
        CELL, CellPolicy(), measurement=Measurement(2.0, None, None, Isolation.EXCLUSIVE, details=dict(details))
    )


def test_another_version_makes_it_stale() -> None:
    """A library of the fingerprint that is another version today; nothing else does."""
    record = measured({"fingerprint": {"torch": "2.13.0", "tgate": None, "python": "3.11.7", "boundd": "0.1.0"}})
    assert is_stale(record, Today({"torch": "2.14.1"}.get))
    assert is_stale(record, Today({"boundd": "0.2.0"}.get))
    assert not is_stale(record, Today({"torch": "2.13.0", "tgate": "1.0.0", "diffusers": "0.42.1"}.get))
    assert not is_stale(measured({}), Today({"torch": "2.14.1"}.get))
    assert not is_stale(CellRecord(CELL, CellPolicy()), Today({"torch": "2.14.1"}.get))


@pytest.mark.parametrize("changed", ["/models/sd15", "/models/clip", None])
def test_changed_files_make_it_stale(changed: str | None) -> None:
    """The model's or the scorer's, as the folders of the result and the digests of its fingerprint say."""
    record = measured(
        {
            "fingerprint": {"content": {"model": {"a": "1"}, "scorer": {"b": "2"}, "scheduler": "3"}},
            "folders": {"model": "/models/sd15", "scorer": "/models/clip"},
        }
    )
    asked: dict[str, Mapping[str, str]] = {}

    def is_changed(folder: str, digests: Mapping[str, str]) -> bool:
        asked[folder] = digests
        return folder == changed

    assert is_stale(record, Today(lambda _name: None, is_changed)) == (changed is not None)
    assert asked["/models/sd15"] == {"a": "1"}


def test_a_fingerprint_of_random_weights_or_an_older_release_has_no_files() -> None:
    """Nothing is asked of them."""
    for details in (
        {"fingerprint": {"content": {"model": None, "scorer": None, "scheduler": "3"}}, "folders": {"model": None}},
        {"fingerprint": {"torch": "2.13.0"}},
        {"fingerprint": {"content": "?"}, "folders": ["?"]},
    ):
        assert not is_stale(measured(details), Today(lambda _name: None, lambda _folder, _digests: True))


def test_another_source_makes_it_stale() -> None:
    """A model that the config has from elsewhere today; random weights come from nowhere."""
    elsewhere = Today(lambda _name: None, source_of=lambda _cell: "/models/other")
    assert is_stale(measured({"fingerprint": {}, "source": "/models/sd15", "weights": "pretrained"}), elsewhere)
    assert not is_stale(measured({"fingerprint": {}, "source": "/models/other", "weights": "pretrained"}), elsewhere)
    assert not is_stale(measured({"fingerprint": {}, "source": "SD1.5", "weights": "random"}), elsewhere)
