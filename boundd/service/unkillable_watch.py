"""Looking out for attempts that can't be killed."""

from __future__ import annotations

from collections.abc import Iterable

from boundd.core.model.events import AttemptUnkillable, Now
from boundd.core.model.quarantines import StuckProcess
from boundd.ports import Launcher, UnkillableProcess

LOOK_S = 5.0
PATIENCE_S = 15.0
"""A process that has many gigabytes to give back takes seconds to die; one that takes longer is said to be stuck."""


class UnkillableWatch:
    """Remembers since when each process has been seen to live in spite of a KILL. It only looks: others kill."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._since: dict[tuple[str, UnkillableProcess], Now] = {}

    def look(self, attempt_ids: Iterable[str], now: Now) -> list[AttemptUnkillable]:
        """Look at these attempts; those with a process that has been stuck for longer than the patience.

        Raises:
            OSError: the system refuses to tell.
        """
        seen = {(each, process): process for each in attempt_ids for process in self._launcher.unkillable(each)}
        self._since = {key: self._since.get(key, now) for key in seen}
        found: dict[str, list[StuckProcess]] = {}
        for (attempt_id, _), process in sorted(seen.items(), key=lambda item: (item[0][0], item[1].pid)):
            since = self._since[attempt_id, process]
            if now.boot_s - since.boot_s >= PATIENCE_S:
                found.setdefault(attempt_id, []).append(_stuck(process, since))
        return [AttemptUnkillable(attempt_id, tuple(stuck)) for attempt_id, stuck in found.items()]


def _stuck(process: UnkillableProcess, since: Now) -> StuckProcess:
    return StuckProcess(process.pid, process.name, process.state, process.waits_in, since.unix_s)
