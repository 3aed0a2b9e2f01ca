"""What a worker would have today: the versions of its libraries, and where its models are."""

from __future__ import annotations

import math
import time

from boundd.catalogue.libraries import installed_version
from boundd.config import Settings
from boundd.core.model.cells import Cell
from boundd.results.staleness import SourceOf, VersionOf

VERSIONS_KEPT_S = 10.0


def versions_of(settings: Settings, installed: VersionOf = installed_version) -> VersionOf:
    """Today's versions of a worker's libraries; none are known where workers have an environment of their own.

    `installed` are the versions in the daemon's own environment.
    """
    if settings.worker_python or settings.worker_result == "stdout":
        return lambda _library: None
    return installed


def source_of(settings: Settings) -> SourceOf:
    """Where each cell's model is loaded from today; not known of models that the config has no entry for."""

    def source(cell: Cell) -> str | None:
        own = cell.parameters.get("source")
        if own is not None:
            return str(own)
        entry = settings.models.get(str(cell.parameters.get("model")))
        return None if entry is None else entry.source or None

    return source


class Versions:
    """The versions in this environment, looked up again now and then: each look reads a library's metadata from the
    disk, and an upgrade while the daemon runs is to be seen."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}
        self._until_s = -math.inf

    def __call__(self, library: str) -> str | None:
        """The version of a library; None where it isn't installed."""
        now_s = time.monotonic()
        if now_s >= self._until_s:
            self._known.clear()
            self._until_s = now_s + VERSIONS_KEPT_S
        if library not in self._known:
            self._known[library] = installed_version(library)
        return self._known[library]
