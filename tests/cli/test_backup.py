"""`boundctl backup` against the real daemon: a copy that another daemon takes for its own store.

To see the tests fail: let `_appearing` use `draft.replace(file)` whether or not `force` is given and take the check
before it out of `backup` (a file that is there is overwritten), or take the comparison of the SHA-256 or of the length
(client.download) out (a cut or changed answer is kept).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import socketserver
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
[daemon]
state_dir = "state"
export = ""
[devices]
backend = "cpu"
[matrix.axes]
n = [1, 2]
[worker]
command = ["{python}", "worker.py"]
timeout = "60s"
"""
WORKER = """
import os
with open(os.environ["BOUNDD_RESULTS"], "a") as results:
    results.write('{"type": "result", "max_speedup": 2.0, "max_speedup_within_tolerance": 1.5, '
                  '"isolation": "exclusive"}\\n')
"""


def boundctl(socket: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "boundd.cli.boundctl", *arguments, "--socket", str(socket)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Path]:
    """The real daemon on a folder; its socket, once it answers."""
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(CONFIG)
    (folder / "worker.py").write_text(WORKER)
    socket = folder / "state" / "boundd.sock"
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "boundd", "run", "--config", str(folder / "config.toml")], stdout=log, stderr=log
    )
    try:
        while boundctl(socket, "status").returncode != 0:
            assert process.poll() is None, (folder / "log").read_text()
        yield socket
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def test_a_daemon_takes_a_copy_for_its_store(tmp_path: Path) -> None:
    """Backed up from a running daemon, restored under another one: the same cells, results and attempts."""
    copy = tmp_path / "copy.db"
    with daemon(tmp_path / "first") as socket:
        assert boundctl(socket, "wait", "--timeout", "50").returncode == 0
        cells = json.loads(boundctl(socket, "cells", "--json").stdout)
        history = [json.loads(boundctl(socket, "show", cell["label"], "--json").stdout) for cell in cells]
        done = boundctl(socket, "backup", str(copy), "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        content = copy.read_bytes()
        assert answer["file"] == str(copy)
        assert (answer["bytes"], answer["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert answer["commits"] > 0
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert "written:" in boundctl(socket, "backup", str(copy), "--force").stdout
        assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == ["copy.db"]
        assert not [path.name for path in (tmp_path / "first/state").iterdir() if "copy" in path.name]
    assert [cell["state"] for cell in cells] == ["succeeded", "succeeded"]
    (tmp_path / "second/state").mkdir(parents=True)
    (tmp_path / "second/state/boundd.db").write_bytes(content)
    with daemon(tmp_path / "second") as socket:
        assert json.loads(boundctl(socket, "cells", "--json").stdout) == cells
        assert [json.loads(boundctl(socket, "show", cell["label"], "--json").stdout) for cell in cells] == history


def test_restored_over_the_store_that_was_there(tmp_path: Path) -> None:
    """An older copy put in the place of a newer store is told, with exit 5, until the mark of the newer is removed."""
    folder = tmp_path / "box"
    copy = tmp_path / "copy.db"
    with daemon(folder) as socket:
        assert boundctl(socket, "backup", str(copy)).returncode == 0
        assert boundctl(socket, "pause").returncode == 0
    store = folder / "state/boundd.db"
    store.write_bytes(copy.read_bytes())
    command = [sys.executable, "-m", "boundd", "run", "--config", str(folder / "config.toml"), "--until-idle"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 5
    assert "commits of" in refused.stdout + refused.stderr
    assert "remove boundd.db.commits" in refused.stdout + refused.stderr
    assert store.read_bytes() == copy.read_bytes()
    store.with_name("boundd.db.commits").unlink()
    with daemon(folder) as socket:
        assert boundctl(socket, "status").returncode == 0


class Answering(http.server.BaseHTTPRequestHandler):
    """A daemon that answers with what the test says."""

    headers_sent: dict[str, str] = {}  # noqa: RUF012 - the test's, a class each
    body = b""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        """A unix socket's client has no address."""
        return ""


@contextlib.contextmanager
def answering(path: Path, body: bytes, **headers: str) -> Iterator[Path]:
    """A socket that answers every request like this."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    handler = type("Handler", (Answering,), {"body": body, "headers_sent": names})
    with socketserver.ThreadingUnixStreamServer(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("wrong", ["cut short", "changed"])
def test_what_did_not_come_whole_is_not_kept(tmp_path: Path, wrong: str) -> None:
    """An answer that was cut or changed leaves no file, and an older one of that name as it was."""
    body = b"SQLite" * 1000
    length = len(body) + (10 if wrong == "cut short" else 0)
    digest = hashlib.sha256(body if wrong == "cut short" else b"other").hexdigest()
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "older.db").write_text("precious")
    headers = {"Content_Length": str(length), "Boundd_Sha256": digest, "Boundd_Commits": "1"}
    with answering(tmp_path / "s", body, **headers) as socket:
        for arguments in (("new.db",), ("older.db", "--force")):
            done = boundctl(socket, "backup", str(folder / arguments[0]), *arguments[1:])
            assert done.returncode == 3, done.stderr
    assert [path.name for path in folder.iterdir()] == ["older.db"]
    assert (folder / "older.db").read_text() == "precious"


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    """Without --force a file that is there, or comes to be while the copy is made, is left alone: exit 2."""
    body = b"SQLite"
    headers = {
        "Content_Length": str(len(body)),
        "Boundd_Sha256": hashlib.sha256(body).hexdigest(),
        "Boundd_Commits": "1",
    }
    taken = tmp_path / "taken"
    taken.write_text("precious")
    with answering(tmp_path / "s", body, **headers) as socket:
        done = boundctl(socket, "backup", str(taken))
        assert (done.returncode, done.stdout, taken.read_text()) == (2, "", "precious")
        assert "--force" in done.stderr
        assert boundctl(socket, "backup", str(tmp_path / "missing" / "x")).returncode == 2
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "nowhere")
        assert boundctl(socket, "backup", str(link)).returncode == 2
        assert not (tmp_path / "nowhere").exists()
        assert boundctl(socket, "backup", str(tmp_path / "free")).returncode == 0
    assert (tmp_path / "free").read_bytes() == body


def test_a_file_that_comes_to_be_meanwhile(tmp_path: Path) -> None:
    """The name is taken between the first look and the end: it is left to whoever took it."""
    from boundd.cli.backup import _appearing

    file = tmp_path / "file"

    def write_while_it_is_taken() -> None:
        with _appearing(file, force=False) as output:
            output.write(b"copy")
            file.write_text("somebody's")

    with pytest.raises(FileExistsError):
        write_while_it_is_taken()
    assert file.read_text() == "somebody's"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_the_daemon_says_no(tmp_path: Path) -> None:
    """Damage in a history that no start looks at is found by the backup: exit 1, the reason, and no file."""
    with daemon(tmp_path / "box") as socket:
        assert boundctl(socket, "wait", "--timeout", "50").returncode == 0
    store = tmp_path / "box/state/boundd.db"
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        (text,) = connection.execute("SELECT outcome FROM ends LIMIT 1").fetchone()
    content = store.read_bytes()
    assert text == "succeeded"
    # A row of `ends`, whose columns stand one after another: the attempt's id, eight bytes of time, the outcome.
    damaged, count = re.subn(rb"([0-9a-f]{12}\.1.{8})succeeded", rb"\1cancelled", content, count=1, flags=re.DOTALL)
    assert count == 1
    store.write_bytes(damaged)
    with daemon(tmp_path / "box") as socket:
        done = boundctl(socket, "backup", str(tmp_path / "copy.db"))
        assert done.returncode == 1
        assert "damaged" in done.stderr
        labels = [cell["label"] for cell in json.loads(boundctl(socket, "cells", "--json").stdout)]
        shown = [boundctl(socket, "show", label) for label in labels]
        assert sorted(each.returncode for each in shown) == [0, 1]
        assert "damaged" in "".join(each.stderr for each in shown)
    assert not (tmp_path / "copy.db").exists()
