"""What can come of a request besides its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ClientError(Exception):
    """Any of these."""


class NoDaemonError(ClientError):
    """No daemon answers; the message names every path that was tried, and what came of it."""

    def __init__(self, tried: Sequence[tuple[str, str]]) -> None:
        paths = "; ".join(f"{path}: {why}" for path, why in tried)
        super().__init__(f"no daemon answers ({paths or 'no path to try'})")
        self.tried = tuple(tried)


class LostAnswerError(NoDaemonError):
    """The connection broke before the answer: what was asked may have been done, or not."""


class DamagedAnswerError(ClientError):
    """What came is not what was sent: its digest is another."""


class RefusedError(ClientError):
    """The daemon said no.

    Attributes:
        message: why, for people.
        status: the HTTP status.
        details: all that the daemon said of the error, such as its `type` (`answers.ErrorBody`).
    """

    def __init__(self, message: str, status: int, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.details = dict(details or {})


class NotFoundError(RefusedError):
    """There is no such cell, device, attempt or path."""
