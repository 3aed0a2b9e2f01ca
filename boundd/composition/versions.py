"""Which versions of its libraries a worker would have today."""

from __future__ import annotations

import math
import time

from boundd.catalogue.libraries import installed_version
from boundd.config import Settings
from boundd.results.staleness import VersionOf

VERSIONS_KEPT_S = 10.0


def versions_of(settings: Settings, installed: VersionOf = installed_version) -> VersionOf:
    """Today's versions of a worker's libraries; none are known where workers have an environment of their own.

    `installed` are the versions in the daemon's own environment.
    """
    if settings.worker_python or settings.worker_result == "stdout":
        return lambda _library: None
    return installed


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
