"""Requests that come again, over a real store.

Seen to matter: with `Answers.turn` yielding `Keeping(), None` at once, every test here but the last two fails; with the
record committed after the change and not with it, `test_the_answer_is_kept_with_the_change_or_not_at_all` does.
tests/faults/test_http.py has the crash of a real daemon.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_server import CELLS, GPU, Running, curl

from boundd.client import Client, NoDaemonError, RefusedError
from boundd.control import idempotency as answers
from boundd.core.model.events import Now
from boundd.core.model.records import SaveAnswer, SavePaused
from boundd.ports import InvariantError
from boundd.store.sqlite import SqliteStore

KEY = "8f14e45f-ceea-467f"


def post(running: Running, path: str, body: Any, *, key: str | None = KEY) -> tuple[int, Any, bool]:
    """Status, answer, and whether it says that it was given before."""
    header = () if key is None else ("-H", f"Idempotency-Key: {key}")
    answer = curl(running, "-i", *header, "--data-binary", json.dumps(body), f"http://localhost{path}").stdout
    head, _, content = answer.partition("\n\n")
    return int(head.split()[1]), json.loads(content), "idempotency-replayed: true" in head.lower()


def test_the_same_request_gets_the_same_answer_and_is_done_once(running: Running) -> None:
    """Also where by now it would be answered otherwise."""
    assert post(running, "/v1/pause", {}) == (200, {"paused": True, "changed": True}, False)
    assert post(running, "/v1/pause", {}) == (200, {"paused": True, "changed": True}, True)
    assert post(running, "/v1/pause", {}, key="another") == (200, {"paused": True, "changed": False}, False)
    assert post(running, "/v1/pause", {}, key=None) == (200, {"paused": True, "changed": False}, False)
    assert len(running.service.submitted) == 1


def test_spelling_does_not_matter_and_content_does(running: Running) -> None:
    """The same request in other words is the same; another one is refused, on another route too."""
    body = {"query": [CELLS[2].label], "dry_run": False}
    first = post(running, "/v1/retry", {**body, "query": [CELLS[3].label]})
    assert first[1]["affected"] == [CELLS[3].label]
    again = post(running, "/v1/retry", {"dry_run": False, "selector": None, "query": [CELLS[3].label]})
    assert again == (*first[:2], True)
    for path, other in (("/v1/retry", body), ("/v1/cancel", body)):
        status, answer, _ = post(running, path, other)
        assert (status, answer["error"]["type"]) == (422, "key_reused")
    assert len(running.service.submitted) == 1


def test_what_affected_nothing_stays_that_way(running: Running) -> None:
    """A request that found nothing to do must not find something when it comes again."""
    cancel = {"query": [CELLS[4].label]}
    assert post(running, "/v1/cancel", cancel)[1]["affected"] == []
    assert post(running, "/v1/retry", {"query": [CELLS[4].label]}, key="k2")[1]["affected"] == [CELLS[4].label]
    assert post(running, "/v1/cancel", cancel) == (200, {"dry_run": False, "affected": []}, True)


def test_a_refusal_is_not_kept(running: Running) -> None:
    """Nothing was changed: the request may be put right, or come again once the store takes it."""
    assert post(running, "/v1/cordon", {"device": "nothing"})[0] == 404
    running.service.busy = True
    assert post(running, "/v1/cordon", {"device": "0"})[0] == 503
    running.service.busy = False
    assert post(running, "/v1/cordon", {"device": "0"}) == (200, {"dry_run": False, "affected": [GPU]}, False)


def test_keys_that_can_not_be(running: Running) -> None:
    """Too long, empty, or two of them."""
    assert post(running, "/v1/pause", {}, key="x" * 256)[0] == 400
    assert post(running, "/v1/pause", {}, key="x" * 255)[0] == 200
    twice = curl(
        running, "-H", "Idempotency-Key: a", "-H", "Idempotency-Key: b", "-d", "", "http://localhost/v1/resume"
    )
    assert "give one" in twice.stdout


def test_two_at_once_are_one(running: Running) -> None:
    """The second waits for the first, and gets its answer."""
    running.service.takes_s = 1.0
    body = b'{"device": "0"}'
    head = f"POST /v1/cordon HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: {KEY}\r\n"
    clients = [socket.socket(socket.AF_UNIX) for _ in range(6)]
    for client in clients:
        client.connect(str(running.socket))
        client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    answers = [b"".join(iter(lambda client=client: client.recv(65536), b"")) for client in clients]
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert sum(b"idempotency-replayed" in answer.lower() for answer in answers) == 5
    assert len(running.service.submitted) == 1


def test_after_a_day_a_key_is_forgotten(running: Running) -> None:
    """It may be used again."""
    assert post(running, "/v1/pause", {})[1]["changed"]
    running.service.clock.now = lambda: Now(1000.0, 1_700_000_000.0 + answers.KEPT_S + 1)  # type: ignore[method-assign]
    assert post(running, "/v1/pause", {}) == (200, {"paused": True, "changed": False}, False)


def test_an_answer_too_long_to_be_kept_is_not_given_twice(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what it tells of done twice."""
    monkeypatch.setattr(answers, "ANSWER_LIMIT_BYTES", 10)
    assert post(running, "/v1/pause", {})[0] == 200
    status, answer, _ = post(running, "/v1/pause", {})
    assert (status, answer["error"]["type"]) == (409, "answer_not_kept")


def test_shutting_down_is_kept_before_it_is_done(running: Running) -> None:
    """The next daemon must not take it for itself."""
    assert post(running, "/v1/shutdown", {})[0] == 200
    assert post(running, "/v1/shutdown", {})[2]
    assert running.service.stops == [False]


ANSWER = SaveAnswer(0, KEY, "abc", 1_700_000_000.0, b"x", 1_699_990_000.0, 3)


@pytest.mark.anyio
async def test_the_answer_is_kept_with_the_change_or_not_at_all(tmp_path: Path) -> None:
    """One transaction: a second answer for a key takes its change down with it."""
    store = await SqliteStore.open(tmp_path / "boundd.db")
    try:
        await store.commit([SavePaused(True), ANSWER])
        assert (await store.load()).paused
        with pytest.raises(InvariantError):
            await store.commit([SavePaused(False), ANSWER])
        assert (await store.load()).paused
        known = await store.answer_of(0, KEY, 0.0)
        assert known is not None
        assert (known.request_sha256, known.body) == ("abc", b"x")
        assert await store.answer_of(1, KEY, 0.0) is None
        assert await store.answer_of(0, KEY, 1_700_000_001.0) is None
    finally:
        await store.aclose()


@pytest.mark.anyio
async def test_answers_are_bounded_in_number_and_age(tmp_path: Path) -> None:
    """The newest are kept, and none that are older than the oldest asked for."""
    store = await SqliteStore.open(tmp_path / "boundd.db")
    try:
        for number in range(10):
            await store.commit([replace(ANSWER, key=str(number))])
        assert [await store.answer_of(0, str(n), 0.0) is not None for n in range(10)] == [False] * 7 + [True] * 3
        await store.commit([replace(ANSWER, key="new", at_unix_s=1_800_000_000.0, oldest_unix_s=1_799_000_000.0)])
        assert await store.answer_of(0, "9", 0.0) is None
        assert await store.answer_of(0, "new", 0.0) is not None
    finally:
        await store.aclose()


class Breaking:
    """A socket in front of the server that swallows the first answers."""

    def __init__(self, folder: Path, server: Path, swallowed: int) -> None:
        self.path = folder / "front.sock"
        self.asked: list[bytes] = []
        self._server = server
        self._swallowed = swallowed
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client, socket.socket(socket.AF_UNIX) as server:
                request = client.recv(1 << 20)
                if not request:
                    continue
                while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                    request += client.recv(1 << 20)
                self.asked.append(request)
                server.connect(str(self._server))
                server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                answer = b""
                while data := server.recv(1 << 16):
                    answer += data
                if len(self.asked) > self._swallowed:
                    client.sendall(answer)


@pytest.fixture
def front(running: Running, tmp_path: Path) -> Iterator[Breaking]:
    """One that swallows one answer."""
    return Breaking(tmp_path, running.socket, 1)


def test_the_client_asks_again_where_its_answer_was_lost(running: Running, front: Breaking) -> None:
    """With the same key, so that it is done once, and it learns that it changed something."""
    assert Client(front.path).post("/v1/pause") == {"paused": True, "changed": True}
    keys = [line for asked in front.asked for line in asked.split(b"\r\n") if line.startswith(b"Idempotency-Key: ")]
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert len(running.service.submitted) == 1


def test_the_client_asks_again_once_only(running: Running, tmp_path: Path) -> None:
    """Then it says that it does not know."""
    front = Breaking(tmp_path, running.socket, 99)
    with pytest.raises(NoDaemonError, match="whether it was done"):
        Client(front.path).post("/v1/pause")
    assert len(front.asked) == 2


def test_the_client_reads_why_a_request_was_cut_short(running: Running, tmp_path: Path) -> None:
    """A body that is refused before it has been sent, by a server that goes on reading, or by one that doesn't."""
    with pytest.raises(RefusedError, match="bytes") as caught:
        running.client.post("/v1/import", {"text": "x" * 40 * 1024**2})
    assert caught.value.status == 413
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "hasty.sock"))
    listener.listen(1)

    def hasty() -> None:
        plain, _ = listener.accept()
        with plain:
            plain.recv(1000)
            plain.sendall(b'HTTP/1.1 503 No\r\nContent-Length: 33\r\n\r\n{"error": {"message": "no room"}}')

    threading.Thread(target=hasty, daemon=True).start()
    with pytest.raises(RefusedError, match="no room") as caught:
        Client(tmp_path / "hasty.sock").post("/v1/import", {"text": "x" * 40 * 1024**2})
    assert caught.value.status == 503
