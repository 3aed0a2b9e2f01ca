"""A bounded queue and a thread that empties it into a file descriptor.

Rules: `put` never waits for the reader, however long that sleeps. What finds no place is counted, and the count is
written once the reader takes lines again. A line is written whole or not at all, as far as the reader can tell: after
one that broke off, the next starts on a line of its own. The thread is a daemon thread, so a reader that is stuck
for ever can't keep the process from ending.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

QUEUE_LINES = 10_000
_POLL_MS = 200
_LOOK_S = 1.0

Renew: TypeAlias = Callable[[int, OSError | None], int | None]
"""A descriptor to write to in the place of the one given, which may have failed; None to keep that one."""

Item = TypeVar("Item")


class Sink(Generic[Item]):
    """Writes items, in order, to a descriptor, in a thread of its own.

    Args:
        descriptor: where to; it is not closed here, unless `owned`.
        render: an item as bytes with its line's end; runs in the thread.
        render_dropped: the line that says how many were dropped.
        capacity: how many items may wait.
        renew: another descriptor in the place of this one, or None: asked before a line, at most once a second or when
            `look` was called, and with the error when a line could not be written, for `patience_s`.
        patience_s: how long a line that could not be written waits for another descriptor.
    """

    def __init__(
        self,
        descriptor: int,
        render: Callable[[Item], bytes],
        render_dropped: Callable[[int], bytes],
        *,
        capacity: int = QUEUE_LINES,
        owned: bool = False,
        renew: Renew | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self._descriptor = descriptor
        self._renew = renew
        self._patience_s = patience_s
        self._look_at_s = 0.0
        self._render = render
        self._render_dropped = render_dropped
        self._capacity = capacity
        self._owned = owned
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._giving_up = False
        self._unreported = 0
        self._dropped = 0
        self._torn = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=f"log-{descriptor}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many items have been dropped so far."""
        return self._dropped

    def put(self, item: Item) -> None:
        """Queue an item, or count it as dropped. Never waits for the reader."""
        with self._changed:
            if self._closing or len(self._items) >= self._capacity:
                self._drop()
            else:
                self._items.append(item)
                self._changed.notify()

    def look(self) -> None:
        """Have `renew` asked before the next line."""
        self._look_at_s = 0.0

    def finish(self) -> None:
        """Take no more items; the thread ends once it has written what is queued."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """After `finish`: wait for at most `timeout_s`; True where everything was written or said to be missing."""
        self._thread.join(timeout_s)
        self._giving_up = True
        return not self._thread.is_alive() and not self._unreported

    def _drop(self) -> None:
        self._dropped += 1
        self._unreported += 1

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closing)
                if not self._items:
                    break
                item = self._items.popleft()
            if not self._write_item(item):
                with self._changed:
                    self._drop()
            self._report_dropped()
        self._report_dropped()
        if self._owned:
            os.close(self._descriptor)

    def _write_item(self, item: Item) -> bool:
        try:
            self._look()
            return self._write_with_retry(self._render(item))
        except Exception:  # an item that can't be rendered is one line less, not the end of the log
            return False

    def _look(self) -> None:
        """See now and then whether the descriptor is still the right one."""
        now_s = time.monotonic()
        if self._renew is not None and now_s >= self._look_at_s:
            self._look_at_s = now_s + _LOOK_S
            self._take(self._renew(self._descriptor, None))

    def _take(self, descriptor: int | None) -> bool:
        """Write to another descriptor from now on; False where there is none."""
        if descriptor is None:
            return False
        if self._owned:
            os.close(self._descriptor)
        self._descriptor, self._owned, self._torn = descriptor, True, False
        return True

    def _write_with_retry(self, line: bytes) -> bool:
        """Write all of `line`, to another descriptor where there is one; False where nothing takes it."""
        if self._write(line):
            return True
        until_s = time.monotonic() + self._patience_s
        while self._renew is not None and self._error is not None and not self._giving_up:
            if self._take(self._renew(self._descriptor, self._error)) and self._write(line):
                return True
            if time.monotonic() >= until_s:
                break
            time.sleep(_POLL_MS / 1000)
        return False

    def _report_dropped(self) -> None:
        """Say how many were dropped, if any were; what can't be said now is said with the next line."""
        with self._changed:
            count, self._unreported = self._unreported, 0
        if count and not self._write(self._render_dropped(count)):
            with self._changed:
                self._unreported += count

    def _write(self, line: bytes) -> bool:
        """Write all of `line`; False where the descriptor doesn't take it (reader gone, disk full)."""
        remaining = memoryview(b"\n" + line if self._torn else line)
        started = False
        while remaining:
            try:
                written = os.write(self._descriptor, remaining)
            except BlockingIOError:
                # stderr may be shared with a program that made it non-blocking.
                if self._giving_up:
                    return False
                poller = select.poll()
                poller.register(self._descriptor, select.POLLOUT)
                poller.poll(_POLL_MS)
                continue
            except OSError as error:
                self._error = error
                self._torn = self._torn or started
                return False
            started = True
            remaining = remaining[written:]
        self._torn = False
        return True
