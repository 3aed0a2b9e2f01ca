"""Whether a result was measured with other versions, or with another model, than today's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell

VersionOf = Callable[[str], str | None]
"""The version that a worker of today would have of a library; None where nobody knows."""
IsChanged = Callable[[str, Mapping[str, str]], bool]
"""Whether the files in a folder have other content than these digests, by their paths in there; False where nobody
knows."""
SourceOf = Callable[[Cell], str | None]
"""Where a worker of today would load a cell's model from; None where nobody knows."""
NO_LIBRARIES = frozenset({"python", "device", "weights_revision", "content"})
"""What else a fingerprint says: of these, today's value is known to a worker alone, or looked up otherwise."""
LOADED = ("model", "scorer")
"""What a worker loads from folders."""


@dataclass(frozen=True)
class Today:
    """What a worker of today would measure with."""

    version_of: VersionOf
    is_changed: IsChanged = lambda _folder, _digests: False
    source_of: SourceOf = lambda _cell: None


def is_stale(record: CellRecord, today: Today) -> bool:
    """True where the result's fingerprint names a library whose version today is another, or the files that it was
    measured with have changed, or the model is loaded from elsewhere.

    A result without a fingerprint (an imported one, one of somebody's own script) can't be told to be stale.
    """
    details = record.measurement.details if record.measurement is not None else {}
    fingerprint = details.get("fingerprint")
    if not isinstance(fingerprint, Mapping):
        return False
    measured = {name: then for name, then in fingerprint.items() if then is not None and name not in NO_LIBRARIES}
    return (
        any(today.version_of(name) not in (None, then) for name, then in measured.items())
        or _is_from_elsewhere(record.cell, details, today.source_of)
        or _has_changed(fingerprint, details, today.is_changed)
    )


def _is_from_elsewhere(cell: Cell, details: Mapping[str, Any], source_of: SourceOf) -> bool:
    """Random weights are made, and come from nowhere."""
    if details.get("weights") != "pretrained":
        return False
    return source_of(cell) not in (None, details.get("source"))


def _has_changed(fingerprint: Mapping[str, Any], details: Mapping[str, Any], is_changed: IsChanged) -> bool:
    folders, content = details.get("folders"), fingerprint.get("content")
    if not isinstance(folders, Mapping) or not isinstance(content, Mapping):
        return False
    loaded = [(folders.get(name), content.get(name)) for name in LOADED]
    return any(
        is_changed(folder, digests)
        for folder, digests in loaded
        if isinstance(folder, str) and isinstance(digests, Mapping)
    )
