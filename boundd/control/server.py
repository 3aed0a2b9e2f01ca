"""The socket that the API is served on.

Rules: the socket is bound here, because uvicorn would make it writable for everybody and take the signals; it is
never wider than the config lets it be (0660, or 0666 where others may read), not even for an instant; one that a live
server answers on is left alone, and so is a file that is no socket. Connections are accepted here too: who comes is
known before anything is read, and running out of descriptors costs those who come, not the daemon. A socket that
somebody removes (who tidies up /tmp or /run/user) is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import stat
from collections.abc import Callable, Generator
from pathlib import Path

import anyio
import uvicorn
from starlette.types import ASGIApp

from boundd.control.connection import Connection, TurnedAway, close_quietly
from boundd.control.connection_limits import CONNECTIONS, Crowd
from boundd.control.peers import Access, AccessRules, Peer, SocketError, peer_of

__all__ = ["SocketError", "SocketPlace", "bind", "serve"]

SOCKET_MODE = 0o660
OPEN_SOCKET_MODE = 0o666
"""Where others may read."""
FOLDER_MODE = 0o750
OPEN_FOLDER_MODE = 0o755
PATH_LIMIT_BYTES = 107
"""What `sockaddr_un` holds, its last NUL left out."""
BACKLOG = 4096
"""Connections that wait to be accepted, if net.core.somaxconn is as large; a further connect() fails at once."""
DESCRIPTORS_SHARE = 2
"""Connections have at most one descriptor in so many; the store, attempts and logs need some too."""
GRACE_S = 2
"""What answers that are under way get at the end; a follower of a log would never end by itself."""
HEAD_LIMIT_BYTES = 64 * 1024
PROBE_S = 1.0
LOOK_S = 5.0
"""How often is looked whether the socket is still there."""
ACCEPT_REST_S = 0.1
"""Before the next try, where no connection could be accepted."""
COMPLAIN_S = 60.0
"""No more than one line of the log in so long about that."""
TURNED_AWAY = 64
"""So many are told at a time that there is no room; further ones are closed unheard."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """A server that leaves the signals to the daemon, and accepting to `_Acceptor`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        await self.lifespan.startup()
        self.servers = []
        self.started = True


class SocketPlace:
    """The socket in the file system, for as long as it is served."""

    def __init__(self, path: Path, rules: AccessRules | None = None) -> None:
        self.path = path
        self.rules = rules or AccessRules.of()
        self._identity: tuple[int, int] | None = None
        self._asked = anyio.Event()
        self._complaint = ""

    def bind(self) -> socket.socket:
        """A listening-to-be socket there.

        Raises:
            SocketError: the path is too long, taken, or can't be written to.
        """
        listener = bind(self.path, self.rules)
        self._identity = _identity(self.path)
        return listener

    def look(self) -> None:
        """See at once, and not only every `LOOK_S`, whether it is still there."""
        self._asked.set()

    async def bound_anew(self) -> socket.socket:
        """Wait until the socket is gone and could be made anew; what is in the way is told once, and tried again."""
        while True:
            with anyio.move_on_after(LOOK_S):
                await self._asked.wait()
            self._asked = anyio.Event()
            if self._identity is not None and _identity(self.path) == self._identity:
                continue
            try:
                listener = self.bind()
            except SocketError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    _log.error("the socket was removed and can't be made anew, which is tried again: %s", error)
                continue
            self._complaint = ""
            _log.warning("the socket %s was removed by somebody, and has been made anew", self.path)
            return listener

    def remove(self) -> None:
        """Remove our own socket only: another daemon may have put its own here since."""
        if self._identity is not None and _identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)


async def serve(app: ASGIApp, place: SocketPlace, *, ready: Callable[[], None]) -> None:
    """Serve until cancelled; `ready` is called once requests are taken.

    Cancelled, it takes no more requests, gives those under way `GRACE_S`, and removes the socket.

    Raises:
        SocketError: it can't be served there.
    """
    listener = place.bind()
    try:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
            h11_max_incomplete_event_size=HEAD_LIMIT_BYTES,
        )
        logging.getLogger("uvicorn.error").addFilter(_worth_telling)
        try:
            await _run(_Server(config), listener, place, ready)
        finally:
            place.remove()
    finally:
        listener.close()


def _worth_telling(record: logging.LogRecord) -> bool:
    """Of what uvicorn logs, only what it could not have expected: bad requests and the end of followers are not it."""
    error = record.exc_info[1] if record.exc_info else None
    return error is not None and not isinstance(error, asyncio.CancelledError)


async def _run(server: _Server, listener: socket.socket, place: SocketPlace, ready: Callable[[], None]) -> None:
    ended = anyio.Event()

    async def run() -> None:
        # Cancelling uvicorn would drop the answers under way: it is asked to end instead.
        with anyio.CancelScope(shield=True):
            await server.serve()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            while not server.started and not ended.is_set():  # noqa: ASYNC110 - uvicorn has no event for it
                await anyio.sleep(0.005)
            listener.listen(BACKLOG)
            ready()
            await _accept(server, listener, place)
        finally:
            server.should_exit = True


async def _accept(server: _Server, listener: socket.socket, place: SocketPlace) -> None:
    """Accept until cancelled, on another listener whenever the socket had to be made anew."""
    crowd = Crowd(place.rules, connections_here())
    while True:
        acceptor = _Acceptor(server, listener, crowd)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(acceptor.run)
                renewed = await place.bound_anew()
                renewed.listen(BACKLOG)
                tasks.cancel_scope.cancel()
        finally:
            acceptor.close()
            listener.close()
        listener = renewed


def connections_here() -> int:
    """How many connections there may be in this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft // DESCRIPTORS_SHARE))


class _Acceptor:
    """Takes connections, for as long as it isn't cancelled."""

    def __init__(self, server: _Server, listener: socket.socket, crowd: Crowd) -> None:
        self._server = server
        self._listener = listener
        self._crowd = crowd
        self._spare: int | None = _spare_descriptor()
        self._turned_away: set[asyncio.BaseTransport] = set()
        self._quiet_until_s = 0.0

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    self._without_descriptors(error)
                await asyncio.sleep(ACCEPT_REST_S)
                continue
            if self._spare is None:
                self._spare = _spare_descriptor()
            await self._welcome(connection)

    def close(self) -> None:
        """Give the spare descriptor back."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    async def _welcome(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setblocking(False)
            peer = peer_of(connection)
            why = self._crowd.refusal(peer)
            if why:
                await self._turn_away(connection, f"there is no room for this connection: {why}")
            else:
                await loop.connect_accepted_socket(lambda: self._connection(peer), connection)
        except OSError:
            close_quietly(connection)

    def _connection(self, peer: Peer) -> Connection:
        config, state = self._server.config, self._server.server_state
        return Connection(config, state, self._server.lifespan.state, peer, self._crowd)

    async def _turn_away(self, connection: socket.socket, why: str) -> None:
        self._turned_away = {transport for transport in self._turned_away if not transport.is_closing()}
        if len(self._turned_away) >= TURNED_AWAY:
            close_quietly(connection)
            return
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: TurnedAway(503, "too_many", why), connection)
        self._turned_away.add(transport)

    def _without_descriptors(self, error: OSError) -> None:
        """Take one connection with the descriptor kept for it, and close it: its client learns at once."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + COMPLAIN_S
            _log.warning("no connection can be taken: %s; raise LimitNOFILE", error.strerror or error)
        self.close()
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.close()
        self._spare = _spare_descriptor()


def _spare_descriptor() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def bind(socket_path: Path, rules: AccessRules) -> socket.socket:
    """A listening-to-be socket at the path, 0660, or 0666 where others may read, of the group where one is given.

    Raises:
        SocketError: the path is too long, taken, or can't be written to.
    """
    length = len(os.fsencode(socket_path))
    if length > PATH_LIMIT_BYTES:
        raise SocketError(f"{socket_path}: {length} bytes; a socket's path has at most {PATH_LIMIT_BYTES}")
    is_open = rules.others is not Access.NOTHING
    mode = OPEN_SOCKET_MODE if is_open else SOCKET_MODE
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_folder(socket_path.parent, rules.group_gid, OPEN_FOLDER_MODE if is_open else FOLDER_MODE)
        _clear(socket_path)
        os.fchmod(listener.fileno(), mode)  # Linux makes the file with this mode, less the umask
        listener.bind(str(socket_path))
        _give(socket_path, rules.group_gid)
        socket_path.chmod(mode)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise SocketError(f"{socket_path}: {error.strerror or error}") from error
    except SocketError:
        listener.close()
        raise
    return listener


def _make_folder(folder: Path, group_gid: int | None, mode: int) -> None:
    if folder.is_dir():
        return
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    folder.chmod(mode)
    _give(folder, group_gid)


def _give(path: Path, group_gid: int | None) -> None:
    """Give a file of ours to the group, where it isn't the group's: a sandbox may refuse even a chown to what it is."""
    if group_gid is not None and path.stat().st_gid != group_gid:
        os.chown(path, -1, group_gid)


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
        except (BlockingIOError, TimeoutError):
            pass  # Its queue is full: somebody listens.
    raise SocketError(f"{socket_path}: another server answers there")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
