"""What libraries log, as lines of our log.

Without it, the standard library writes their warnings to stderr itself: text among the JSON, with whatever a client
sent in it, by a write that waits for the reader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.ports import Observer

TRACEBACK_CHARACTERS = 4_000
"""The end of one: the innermost calls are what tells."""


class LibraryLog(logging.Handler):
    """A handler for the root logger: warnings become `library-message`, errors `internal-error`."""

    def __init__(self, observer: Observer, now: Callable[[], Now]) -> None:
        super().__init__(logging.WARNING)
        self._observer = observer
        self._now = now
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the observer. Never raises."""
        try:
            fields = {"boundd.logger": record.name}
            if record.exc_info and record.exc_info[1] is not None:
                fields["boundd.traceback"] = self._formatter.formatException(record.exc_info)[-TRACEBACK_CHARACTERS:]
            serious = record.levelno >= logging.ERROR
            action, level = (Action.INTERNAL_ERROR, "error") if serious else (Action.LIBRARY_MESSAGE, "warning")
            self._observer.note(Note(action, record.getMessage().strip(), level, fields=fields), self._now())
        except Exception:  # a library's bad message must not become our failure
            return


def listen(observer: Observer, now: Callable[[], Now]) -> Callable[[], None]:
    """Send what libraries log to the observer from now on, and nowhere else; returns what ends that."""
    handler, root = LibraryLog(observer, now), logging.getLogger()
    root.addHandler(handler)
    return lambda: root.removeHandler(handler)
