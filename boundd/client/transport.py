"""HTTP over the daemon's unix socket, on the standard library alone, because `boundctl` imports it at every call."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from boundd.api.constants import KEY_HEADER
from boundd.client.errors import LostAnswerError, NoDaemonError, NotFoundError, RefusedError

CONNECT_S = 5.0
ANSWER_S = 60.0
CHUNK_BYTES = 64 * 1024
RETURN_S = 10.0
"""How long a daemon that went away in the middle of a request is given to come back, before we ask it again."""
RETURN_POLL_S = 0.2
KEY_BYTES = 16
QUEUE_POLL_S = 0.01

Parameters = Mapping[str, "str | int | float | Sequence[str] | None"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=CONNECT_S)
        self._path = path
        self._answer_timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(self.sock, self._path)
            self.sock.settimeout(self._answer_timeout_s)
        except BaseException:
            self.sock.close()
            raise


def _connect(plain: socket.socket, path: str) -> None:
    """Connect, and for a while wait for room in the daemon's queue, which a unix socket doesn't do by itself."""
    deadline_s = time.monotonic() + CONNECT_S
    plain.settimeout(CONNECT_S)
    while True:
        try:
            return plain.connect(path)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(QUEUE_POLL_S)


def why_not(path: str) -> str:
    """Why nobody answers at a path; empty where somebody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            _connect(probe, path)
        except OSError as error:
            return error.strerror or str(error)
    return ""


class Transport:
    """Requests to the daemon at a socket, a connection each. A path may be any of the API's (docs/http.md)."""

    def __init__(self, socket_path: str | os.PathLike[str]) -> None:
        self.socket_path = os.fspath(socket_path)

    def get(self, path: str, parameters: Parameters | None = None, *, timeout_s: float = ANSWER_S) -> Any:
        """The JSON that GET answers.

        Raises:
            NoDaemonError: nobody answers.
            RefusedError: the answer is no.
        """
        return self._json("GET", path, parameters, None, timeout_s)

    def post(self, path: str, body: Any = None, *, timeout_s: float = ANSWER_S) -> Any:
        """The JSON that POST answers.

        The request has an idempotency key of its own: where the connection breaks before the answer, it is made once
        more, of the next daemon if need be, and is not done twice.

        Raises:
            NoDaemonError: nobody answers.
            RefusedError: the answer is no.
        """
        content = json.dumps({} if body is None else body).encode()
        key = os.urandom(KEY_BYTES).hex()
        try:
            return self._json("POST", path, None, content, timeout_s, key)
        except LostAnswerError:
            self._await_daemon()
        try:
            return self._json("POST", path, None, content, timeout_s, key)
        except NoDaemonError as error:
            why = f"it went away before it answered ({error.tried[0][1]}); whether it was done, the daemon's log says"
            raise NoDaemonError([(self.socket_path, why)]) from None

    def _await_daemon(self) -> None:
        """Wait a moment for somebody to answer at the socket."""
        deadline_s = time.monotonic() + RETURN_S
        while why_not(self.socket_path) and time.monotonic() < deadline_s:
            time.sleep(RETURN_POLL_S)

    def stream(self, path: str, parameters: Parameters | None = None) -> Iterator[bytes]:
        """What GET answers, as it comes; it may go on for as long as the daemon does.

        Raises:
            NoDaemonError: nobody answers.
            RefusedError: the answer is no.
        """
        connection, response = self._open("GET", path, parameters, None, None)
        try:
            while data := response.read1(CHUNK_BYTES):
                yield data
        except http.client.HTTPException:
            return  # The daemon ended in the middle of it.
        finally:
            connection.close()

    def download(self, path: str, take: Callable[[bytes], object]) -> Mapping[str, str]:
        """Hand what GET answers to `take`, to its end; returns the answer's headers, their names in small letters.

        Raises:
            NoDaemonError: nobody answers, or the answer was cut short.
            RefusedError: the answer is no.
        """
        connection, response = self._open("GET", path, None, None, None)
        try:
            length = 0
            while data := response.read1(CHUNK_BYTES):
                take(data)
                length += len(data)
            headers = {name.lower(): value for name, value in response.getheaders()}
        except http.client.HTTPException as error:
            raise NoDaemonError([(self.socket_path, f"it went away while it answered ({error})")]) from None
        finally:
            connection.close()
        if headers.get("content-length") not in (None, str(length)):
            raise NoDaemonError([(self.socket_path, f"it went away after {length:,} bytes of its answer")])
        return headers

    def _json(
        self,
        method: str,
        path: str,
        parameters: Parameters | None,
        body: bytes | None,
        timeout_s: float,
        key: str | None = None,
    ) -> Any:
        connection, response = self._open(method, path, parameters, body, timeout_s, key)
        try:
            return json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise LostAnswerError([(self.socket_path, f"it went away while it answered ({error})")]) from None
        except ValueError:
            raise RefusedError(f"{self.socket_path} doesn't answer as boundd does", response.status) from None
        finally:
            connection.close()

    def _open(
        self,
        method: str,
        path: str,
        parameters: Parameters | None,
        body: bytes | None,
        timeout_s: float | None,
        key: str | None = None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        target = f"{path}?{urlencode(given, doseq=True)}" if given else path
        connection = _UnixConnection(self.socket_path, timeout_s)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        headers |= {KEY_HEADER: key} if key is not None else {}
        connected = False
        try:
            connection.connect()
            connected = True
            try:
                connection.request(method, target, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                # It may have said why it takes no more.
                sent = False
            else:
                sent = True
            response = connection.getresponse() if sent else _unasked_response(connection)
            if response.status < http.client.BAD_REQUEST:
                return connection, response
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            timed_out = isinstance(error, TimeoutError)
            raised = LostAnswerError if connected and not timed_out else NoDaemonError
            raise raised([(self.socket_path, why)]) from None
        connection.close()
        raise _refusal(response.status, content)


def _unasked_response(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """The answer to a request that could not be sent to its end."""
    response = http.client.HTTPResponse(connection.sock, method="POST")
    response.begin()
    return response


def _refusal(status: int, content: bytes) -> RefusedError:
    kind = NotFoundError if status == http.client.NOT_FOUND else RefusedError
    try:
        details = json.loads(content)["error"]
        return kind(str(details["message"]), status, details)
    except (ValueError, KeyError, TypeError):
        text = content.decode("utf-8", "replace").strip()
        return kind(text or f"HTTP {status}", status)
