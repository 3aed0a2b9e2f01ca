"""A small hub on loopback: serves folders as huggingface_hub asks for them, and is odd on request."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "1" * 40


@dataclass
class Oddity:
    """How the hub answers instead: with this status and these headers, late, cut, or not at all."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: bool = False
    """The body ends before its length is reached."""
    hang: bool = False
    garbage: bytes = b""
    """Sent in place of an HTTP answer."""


@dataclass
class Hub:
    """A hub: repositories by id, folders on this machine; `odd` answers everything, while it is set."""

    repositories: dict[str, Path] = field(default_factory=dict)
    odd: Oddity | None = None
    cut_files: bool = False
    asked: Counter[str] = field(default_factory=Counter)
    """How often each file was sent whole."""
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """A file, or what is known of a repository."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """The same without its body."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        odd = self.hub.odd
        if odd is not None:
            self._oddly(odd)
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            place = parts.index("resolve")
            self._file("/".join(parts[:place]), "/".join(parts[place + 2 :]), body=body)
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"})

    def _oddly(self, odd: Oddity) -> None:
        time.sleep(3600 if odd.hang else odd.delay_s)
        if odd.garbage:
            self.wfile.write(odd.garbage)
            self.close_connection = True
            return
        self._send(odd.status, odd.headers, b"x" * 10, 1000 if odd.cut else None)

    def _api(self, source: str, more: list[str]) -> None:
        folder = self.hub.repositories.get(source)
        if folder is None:
            self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        answer: Any = {"id": source, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        if more[:1] == ["tree"]:
            answer = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in zip(names, files, strict=True)
            ]
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _file(self, source: str, name: str, *, body: bool) -> None:
        folder = self.hub.repositories.get(source)
        if folder is None:
            self._send(404, {"X-Error-Code": "RepoNotFound"})
            return
        path = folder / name
        if not path.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        if not body:
            self._send(200, headers, content)
            return
        self.hub.asked[f"{source}/{name}"] += 1
        cut = self.hub.cut_files and len(content) > 1000
        self._send(200, headers, content[: len(content) // 2] if cut else content, len(content))

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"", length: int | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError:
            pass  # The client has gone.
        if length is not None and length != len(content):
            self.close_connection = True


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
