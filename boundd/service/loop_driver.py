"""Drives the core's loop with a real store: commits what it asks for, and hands on the rest, one event at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import anyio

from boundd.core.lifecycle.loop import STORE_RETRY_S, Keep, Loop, NotStored, keep_nothing
from boundd.core.model.effects import Commit, Effect
from boundd.core.model.events import Event
from boundd.core.model.state import State
from boundd.ports import Clock, Store, StoreBusyError

WRITABLE = "writable"
"""The fact that is written to see whether the store takes records again: when that was, UTC seconds."""
ALIVE = "alive"
"""The fact that is asked for to see whether the store answers; there is none of that name."""


class LoopDriver:
    """Submits events to a loop. `perform` does an effect, at once; `turned` is told that an event was handled."""

    def __init__(
        self, loop: Loop, store: Store, clock: Clock, perform: Callable[[Effect], None], turned: Callable[[], None]
    ) -> None:
        self.loop = loop
        self._store = store
        self._clock = clock
        self._perform = perform
        self._turned = turned
        self._lock = anyio.Lock()
        self._refused = anyio.Event()

    @property
    def state(self) -> State:
        """The committed state, as of now."""
        return self.loop.state

    async def submit(self, event: Event, keep: Keep = keep_nothing) -> None:
        """Apply an event and plan, and keep what `keep` says with it; a cancelled caller doesn't split it.

        Raises:
            StoreBusyError: it could not be stored, so it did not happen.
        """
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._handle(event, keep)

    async def submit_until_stored(self, event: Event) -> None:
        """Apply an event that has happened whether the store likes it or not: try until it is stored."""
        while True:
            try:
                await self.submit(event)
            except StoreBusyError:
                await anyio.sleep(STORE_RETRY_S)
            else:
                return

    async def _handle(self, event: Event, keep: Keep) -> None:
        turn = self.loop.handle(event, self._clock.now(), keep)
        answer: NotStored | None = None
        refusal: StoreBusyError | None = None
        while True:
            try:
                effect = turn.send(answer)
            except StopIteration as over:
                happened = bool(over.value)
                break
            answer = None
            if isinstance(effect, Commit):
                try:
                    await self._store.commit(effect.records)
                except StoreBusyError as error:
                    answer, refusal = NotStored(str(error)), error
                    self._refused.set()
            else:
                self._perform(effect)
        self._turned()
        if not happened:
            raise refusal or StoreBusyError("nothing was stored")

    async def prove_alive(self) -> None:
        """Return once an event could be applied and the store's thread has answered a query.

        Raises:
            StoreBusyError: it answers that it can't.
            StoreError: so it does, for good.
        """
        async with self._lock:
            await self._store.recall(ALIVE)

    async def retry_store(self) -> None:
        """While nothing could be stored, see whether it can be again: there may be nothing that wants to be."""
        while True:
            await self._refused.wait()
            self._refused = anyio.Event()
            while self.loop.store_failure:
                await anyio.sleep(STORE_RETRY_S)
                async with self._lock:
                    with suppress(StoreBusyError):
                        if self.loop.store_failure:
                            await self._store.remember(WRITABLE, str(self._clock.now().unix_s))
                            for effect in self.loop.store_works():
                                self._perform(effect)
