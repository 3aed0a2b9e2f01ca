"""The socket that the API is served on.

Rules: the socket is bound here, because uvicorn would make it writable for everybody and take the signals; it is
never wider than 0660, not even for an instant; one that a live server answers on is left alone, and so is a file that
is no socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Callable, Generator
from pathlib import Path

import anyio
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

SOCKET_MODE = 0o660
FOLDER_MODE = 0o750
PATH_LIMIT_BYTES = 107
"""What `sockaddr_un` holds, its last NUL left out."""
CONNECTIONS = 512
"""Further ones are told 503."""
HEAD_TIMEOUT_S = 10.0
"""A connection that has not sent a whole request's head by then is closed; idle ones would use up the limit."""
KEEP_ALIVE_S = 15
GRACE_S = 2
"""What answers that are under way get at the end; a follower of a log would never end by itself."""
HEAD_LIMIT_BYTES = 64 * 1024
PROBE_S = 1.0


class SocketError(Exception):
    """The operator's: the API can't be served at this path, and why."""


class _Protocol(H11Protocol):
    """HTTP that doesn't wait for ever for a first request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_TIMEOUT_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """A server that leaves the signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(app: ASGIApp, socket_path: Path, *, group: str | None, ready: Callable[[], None]) -> None:
    """Serve until cancelled; `ready` is called once requests are taken.

    Cancelled, it takes no more requests, gives those under way `GRACE_S`, and removes the socket.

    Raises:
        SocketError: it can't be served there.
    """
    listener = bind(socket_path, group)
    try:
        identity = _identity(socket_path)
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            backlog=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            h11_max_incomplete_event_size=HEAD_LIMIT_BYTES,
        )
        try:
            await _run(_Server(config), listener, ready)
        finally:
            _remove(socket_path, identity)
    finally:
        listener.close()


async def _run(server: _Server, listener: socket.socket, ready: Callable[[], None]) -> None:
    ended = anyio.Event()

    async def run() -> None:
        # Cancelling uvicorn would drop the answers under way: it is asked to end instead.
        with anyio.CancelScope(shield=True):
            await server.serve(sockets=[listener])
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            while not server.started and not ended.is_set():  # noqa: ASYNC110 - uvicorn has no event for it
                await anyio.sleep(0.005)
            ready()
            await ended.wait()
        finally:
            server.should_exit = True


def bind(socket_path: Path, group: str | None) -> socket.socket:
    """A listening-to-be socket at the path, 0660, of the group where one is given.

    Raises:
        SocketError: the path is too long, taken, or can't be written to.
    """
    length = len(os.fsencode(socket_path))
    if length > PATH_LIMIT_BYTES:
        raise SocketError(f"{socket_path}: {length} bytes; a socket's path has at most {PATH_LIMIT_BYTES}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_folder(socket_path.parent, group)
        _clear(socket_path)
        os.fchmod(listener.fileno(), SOCKET_MODE)  # Linux makes the file with this mode, less the umask
        listener.bind(str(socket_path))
        socket_path.chmod(SOCKET_MODE)
        if group:
            shutil.chown(socket_path, group=group)
        listener.setblocking(False)
    except LookupError:
        listener.close()
        socket_path.unlink(missing_ok=True)
        raise SocketError(f"{socket_path}: there is no group {group!r}") from None
    except OSError as error:
        listener.close()
        raise SocketError(f"{socket_path}: {error.strerror or error}") from error
    except SocketError:
        listener.close()
        raise
    return listener


def _make_folder(folder: Path, group: str | None) -> None:
    if folder.is_dir():
        return
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)
    if group:
        shutil.chown(folder, group=group)


def _clear(socket_path: Path) -> None:
    """Remove a socket that nobody serves any more."""
    try:
        mode = socket_path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketError(f"{socket_path} is there already and is no socket; it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(socket_path))
        except ConnectionRefusedError:
            socket_path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except TimeoutError:
            pass  # Its queue is full: somebody listens.
    raise SocketError(f"{socket_path}: another server answers there")


def _remove(socket_path: Path, identity: tuple[int, int] | None) -> None:
    """Remove our own socket only: another daemon may have put its own here since."""
    if identity is not None and _identity(socket_path) == identity:
        socket_path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
