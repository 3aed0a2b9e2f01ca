"""The client: a method for each operation of the API."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from boundd.api.constants import (
    COMMITS_HEADER,
    CORDON_REASON,
    EXPORT_FORMATS,
    SHA256_HEADER,
    ExportFormat,
)
from boundd.client.errors import DamagedAnswerError
from boundd.client.sockets import find_socket
from boundd.client.transport import ANSWER_S, Transport

if TYPE_CHECKING:
    from boundd.api import answers, requests

PLAN_S = 600.0
"""A large matrix is planned in minutes."""
WAIT_ROUND_S = 60.0
"""How long one request of a wait takes at most; the daemon answers it even where nothing has changed."""


def cell_path(cell: str, suffix: str = "") -> str:
    """The path of a cell: `quote` because a label or a key holds slashes, spaces and quotes."""
    return f"/v1/cells/{quote(cell, safe='')}{suffix}"


class Client(Transport):
    """A daemon at its socket. Nothing is kept open between calls, so that threads may share a client.

    A `cell` is a label, the first characters of an id, or a canonical key. A query is terms that a cell must match, all
    of them: `"state=failed"`, `"model=SDXL"`, a glob over labels; none is every cell.

    Every method raises:
        NoDaemonError: nobody answers at the socket.
        RefusedError: the daemon says no, and why; `NotFoundError` where there is no such thing.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        """A client of the daemon at a socket; where none is given, of the one that `boundctl` would find.

        Raises:
            NoDaemonError: none was given, and no daemon answers at any of the usual places.
        """
        super().__init__(find_socket(None, os.environ, Path.cwd()) if socket is None else socket)

    # What there is

    def status(self, *query: str) -> answers.StatusReply:
        """The daemon, its devices, the cells by state, what runs, and an estimate of the end."""
        return self._get("/v1/status", {"q": query})

    def cells(self, *query: str, offset: int | None = None, limit: int | None = None) -> list[answers.CellInfo]:
        """The cells of a query, in the matrix' order; `limit` of them at most, after the first `offset`."""
        return self._get("/v1/cells", {"q": query, "offset": offset, "limit": limit})

    def show(self, cell: str, *, limit: int | None = None, before: int | None = None) -> answers.CellDetails:
        """A cell with its latest attempts: `limit` of them at most, of those with a number below `before`."""
        return self._get(cell_path(cell), {"limit": limit, "before": before})

    def explain(self, cell: str) -> answers.ExplainReply:
        """Why a cell is where it is, with numbers for each device."""
        return self._get(cell_path(cell, "/explain"))

    def logs(
        self,
        cell: str,
        *,
        attempt: int | None = None,
        offset: int | None = None,
        limit: int | None = None,
        follow: bool = False,
    ) -> Iterator[bytes]:
        """What an attempt's worker printed, as it comes; the latest attempt's, where no number is given.

        Args:
            cell: the cell.
            attempt: the attempt's number.
            offset: the first byte; a negative one counts from the end.
            limit: so many bytes at most.
            follow: go on as the log grows, until the attempt has ended.
        """
        parameters = {"attempt": attempt, "offset": offset, "limit": limit, "follow": "true" if follow else None}
        return self.stream(cell_path(cell, "/logs"), parameters)

    def devices(self) -> list[answers.DeviceInfo]:
        """The devices, by index."""
        return self._get("/v1/devices")

    def footprints(self) -> list[answers.FootprintInfo]:
        """The memory that cells are expected to take, by what it depends on."""
        return self._get("/v1/footprints")

    def plan(self, *devices: str) -> answers.PlanReply:
        """What would run where and when; `devices` such as `"4x24GiB"` plan for a box that isn't there."""
        return self._get("/v1/plan", {"devices": devices}, PLAN_S)

    def export(self, format: ExportFormat = EXPORT_FORMATS[0]) -> answers.ExportEnvelope:  # noqa: A002 - the API's name
        """The results in a format, with what it can't represent."""
        return self._get("/v1/export", {"format": format, "envelope": "true"})

    def backup(self, write: Callable[[bytes], object]) -> answers.BackupInfo:
        """A copy of the store, handed to `write` as it comes: a whole SQLite database once this returns.

        Raises:
            DamagedAnswerError: what came is not what was sent.
        """
        import hashlib  # not at the top: every `boundctl` would load OpenSSL for it

        digest = hashlib.sha256()

        def take(data: bytes) -> None:
            digest.update(data)
            write(data)

        headers = self.download("/v1/backup", take)
        if headers.get(SHA256_HEADER.lower()) != digest.hexdigest():
            raise DamagedAnswerError("what came is not what was sent: its SHA-256 is another")
        return {
            "bytes": int(headers["content-length"]),
            "sha256": digest.hexdigest(),
            "commits": int(headers[COMMITS_HEADER.lower()]),
        }

    def events(self) -> Iterator[answers.EventInfo]:
        """What happens from now on, as it happens, until the daemon ends.

        The iterator is connected when it is first asked for an event.
        """
        from boundd.client.server_sent import events_of

        yield from events_of(self.stream("/v1/events"))

    def wait(self, *query: str, timeout_s: float | None = None) -> answers.WaitReply:
        """Wait until no cell of the query is pending or running, or so many seconds; `done` says which.

        Raises:
            NotFoundError: no cell matches.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = WAIT_ROUND_S if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            round_s = min(WAIT_ROUND_S, left_s)
            reply: answers.WaitReply = self._get("/v1/wait", {"q": query, "timeout": round_s}, round_s + ANSWER_S)
            if reply["done"] or (deadline_s is not None and time.monotonic() >= deadline_s):
                return reply

    # What can be done

    def retry(
        self,
        *query: str,
        selector: requests.Selector | None = None,
        batch_size: int | None = None,
        dry_run: bool = False,
    ) -> answers.RetryReply:
        """Run cells again that have ended; those that succeeded only with the selector "stale" or `state=succeeded`.

        Args:
            query: the cells.
            selector: of these, the ones that ended so.
            batch_size: to be used from now on.
            dry_run: say what would happen, and change nothing.
        """
        from boundd.api.requests import RetryRequest

        return self._post("/v1/retry", RetryRequest(list(query), selector, batch_size, dry_run))

    def cancel(self, *query: str, dry_run: bool = False) -> answers.AffectedReply:
        """Cancel the pending and running cells of a query; `"*"` is every cell, and none is refused."""
        from boundd.api.requests import CancelRequest

        return self._post("/v1/cancel", CancelRequest(list(query), dry_run))

    def pause(self) -> answers.PausedReply:
        """Start nothing new; what runs goes on."""
        return self._post("/v1/pause")

    def resume(self) -> answers.PausedReply:
        """Start new attempts again."""
        return self._post("/v1/resume")

    def cordon(self, device: str, *, reason: str = CORDON_REASON) -> answers.AffectedReply:
        """Take a device out of service: a UUID, the start of one, an index or a name. What runs there goes on."""
        from boundd.api.requests import CordonRequest

        return self._post("/v1/cordon", CordonRequest(device, reason))

    def uncordon(self, device: str) -> answers.AffectedReply:
        """Put a device back into service."""
        from boundd.api.requests import UncordonRequest

        return self._post("/v1/uncordon", UncordonRequest(device))

    def import_(self, text: str, *, model: str | None = None) -> answers.ImportReply:
        """Take over the text of an old speedup_bounds.json; `model` says of which, where its keys don't tell.

        Raises:
            RefusedError: with status 409 and `details["models"]`, where the model must be said.
        """
        from boundd.api.requests import ImportRequest

        return self._post("/v1/import", ImportRequest(text, model))

    def reload(self) -> answers.ReloadReply:
        """Read the config anew, all or nothing.

        Raises:
            RefusedError: it has errors, which `details["errors"]` lists.
        """
        return self._post("/v1/reload")

    def shutdown(self, *, end_workers: bool = False) -> answers.ShutdownReply:
        """End the daemon. Its workers go on, and the next one adopts them, unless `end_workers`."""
        from boundd.api.requests import ShutdownRequest

        return self._post("/v1/shutdown", ShutdownRequest(end_workers))

    def _get(self, path: str, parameters: Any = None, timeout_s: float = ANSWER_S) -> Any:
        return self.get(path, parameters, timeout_s=timeout_s)

    def _post(self, path: str, body: requests.Request | None = None) -> Any:
        return self.post(path, None if body is None else dict(vars(body)))
