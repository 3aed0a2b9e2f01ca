"""The real clocks."""

from __future__ import annotations

import time

from boundd.core.model.events import Now


class SystemClock:
    """Boot time for durations (it goes on while the machine sleeps, and nobody can set it), UTC for records."""

    def now(self) -> Now:
        """This instant."""
        return Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
