"""What libraries log becomes lines of our log. Without `root.addHandler` in `listen`, nothing is heard here."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.telemetry.library_log import TRACEBACK_CHARACTERS, LibraryLog, listen


class Heard:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note, now: Now) -> None:  # noqa: ARG002 - the Observer's signature
        """One thing that happened."""
        self.notes.append(note)


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What is heard during a test."""
    heard = Heard()
    stop = listen(heard, lambda: Now(0.0, 0.0))
    yield heard
    stop()


def test_warnings_and_errors_are_told_apart(heard: Heard) -> None:
    """With the logger's name, and the end of the traceback."""
    logging.getLogger("a.library").warning("%s of %d", "one", 2)
    try:
        raise ValueError("x" * 2 * TRACEBACK_CHARACTERS)
    except ValueError:
        logging.getLogger("asyncio").exception("it failed")
    logging.getLogger("a.library").info("not worth a line")
    warning, error = heard.notes
    assert (warning.action, warning.level, warning.message) == (Action.LIBRARY_MESSAGE, "warning", "one of 2")
    assert warning.fields["boundd.logger"] == "a.library"
    assert (error.action, error.level) == (Action.INTERNAL_ERROR, "error")
    assert len(error.fields["boundd.traceback"]) == TRACEBACK_CHARACTERS


def test_a_message_that_can_not_be_made_is_left_out(heard: Heard) -> None:
    """It is the library's mistake, and raises nothing here."""
    record = logging.LogRecord("a.library", logging.WARNING, "", 1, "%d", ("no number",), None)
    LibraryLog(heard, lambda: Now(0.0, 0.0)).emit(record)
    assert heard.notes == []


def test_it_ends(heard: Heard) -> None:
    """Who stops listening hears no more."""
    other = Heard()
    listen(other, lambda: Now(0.0, 0.0))()
    logging.getLogger("a.library").warning("late")
    assert (len(heard.notes), other.notes) == (1, [])
