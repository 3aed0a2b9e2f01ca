"""Who hears of what happens: the observers of the whole run, and subscribers who come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from boundd.core.model.effects import Note
from boundd.core.model.events import Now
from boundd.ports import Clock, Observer

SUBSCRIBER_BUFFER = 1000
"""Notes that are held for a subscriber who is slow to read them."""


class Listeners:
    """Tells every note to everybody who listens."""

    def __init__(self, observers: tuple[Observer, ...], clock: Clock) -> None:
        self._observers = observers
        self._clock = clock
        self._subscribers: set[MemoryObjectSendStream[tuple[Note, Now]]] = set()

    @contextmanager
    def subscribe(self) -> Iterator[MemoryObjectReceiveStream[tuple[Note, Now]]]:
        """The notes from now on; a subscriber that doesn't read misses notes and holds nobody up."""
        send, receive = anyio.create_memory_object_stream[tuple[Note, Now]](SUBSCRIBER_BUFFER)
        self._subscribers.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._subscribers.discard(send)
            send.close()

    def tell(self, note: Note) -> None:
        """Tell everybody who listens."""
        now = self._clock.now()
        for observer in self._observers:
            observer.note(note, now)
        for subscriber in tuple(self._subscribers):
            try:
                subscriber.send_nowait((note, now))
            except (anyio.WouldBlock, anyio.BrokenResourceError):
                continue
