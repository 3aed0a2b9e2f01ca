"""The virtual clock and what is to happen on it: a queue in the order of time, and of asking where times are equal."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable


class Agenda:
    """Calls to make, each at its instant of the virtual clock (seconds). What is to happen never, never does."""

    def __init__(self, start_s: float = 0.0) -> None:
        self.now_s = start_s
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        """Make the call then, or at once where that is over."""
        if math.isinf(when_s):
            return
        self._asked += 1
        heapq.heappush(self._queue, (max(when_s, self.now_s), self._asked, call))

    def advance(self) -> bool:
        """Go to the next call and make it; False where nothing is left to do."""
        if not self._queue:
            return False
        self.now_s, _, call = heapq.heappop(self._queue)
        call()
        return True
