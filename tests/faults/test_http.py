"""Malformed and hostile requests against a real daemon, beside a good client; and a crash between change and answer.

Seen to fail with a protection taken out, or a bug put in:
- bad answers: `Connection.eof_received` deleted doesn't answer the half-closed, a status out of `openapi.COMMON` is
  undocumented;
- the good client and answers: `Crowd._make_room` returning False, so that 1,000 idle connections keep others out;
- done twice, or not at all: `Loop.handle` that leaves out the records that `keep` asks for.
A seed that the figures name gives the same requests again: BOUNDD_HTTP_SEED.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from boundd.client import Client, NoDaemonError
from boundd.client.client import cell_path
from boundd.core.model.matrix import expand
from tests.faults import campaign
from tests.faults.fuzz import Attack, attacks

SEED = int(os.environ.get("BOUNDD_HTTP_SEED", "20260301"))
PATIENCE_S = 60.0
EVENTS = "text/event-stream; charset=utf-8"
WARM_UP = 300
"""Requests before anything is counted: threads, imports and caches come with the first ones."""
STORM = 1000
STORM_EVERY = 1500
QUIET_S = 2.0
P99_LIMIT_S = 0.1
P99_SHARE = 5.0
"""Where the machine alone makes the good client slow, it may be so many times slower than when left alone."""
MEMORY_GROWTH_LIMIT_BYTES = 32 * 1024**2
NEVER_STARTED = "it was never started"
AXES: Mapping[str, list[Any]] = {"name": ["one", "two", "three", "; touch boundd-canary"], "seconds": [0, 600]}

CONFIG = """\
[daemon]
state_dir = "state"
socket = "s"
[devices]
backend = "simulated"
max_cells = 2
[[devices.simulated]]
name = "Simulated 24 GiB"
memory = "24GiB"
[matrix.axes]
name = ["one", "two", "three", "; touch boundd-canary"]
seconds = [0, 600]
[matrix.constants]
batch_size = 4
[worker]
command = ["sleep", "{seconds}"]
grace = "100ms"
[retry]
max_attempts = 1
[[rule]]
match = {}
footprint = "1GiB"
lease = true
"""

GOOD_CLIENT = """\
import http.client, json, socket, sys, threading, time
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
        self.sock.settimeout(60)
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
took, refused = [], 0
while not stop.is_set():
    for target in ("/v1/status", "/healthz"):
        began = time.perf_counter()
        connection = Connection("x")
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            json.loads(answer.read())
            refused += answer.status != 200
        except (OSError, http.client.HTTPException):
            refused += 1
        connection.close()
        took.append(time.perf_counter() - began)
    time.sleep(0.02)
print(json.dumps({"took": took, "refused": refused}))
"""


class Daemon:
    """A real daemon in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.log = folder / "daemon.log"
        (folder / "config.toml").write_text(CONFIG)
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "boundd", "run", "--config", "config.toml", "--log-format", "json"]
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_for(self.answers)
        return self.process

    def answers(self) -> bool:
        """Whether it serves."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with contextlib.suppress(NoDaemonError):
            return bool(Client(self.socket).get("/healthz")["ok"])
        return False

    def wait_for(self, condition: Any) -> None:
        """Until it holds; a failure shows the log."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def settle(self) -> None:
        """Nothing runs, nothing waits, and no connection is open but the one that asks."""
        client = Client(self.socket)
        client.post("/v1/resume")
        with contextlib.suppress(Exception):
            client.post("/v1/cancel", {"query": ["*"]})
        self.wait_for(lambda: not client.get("/v1/status")["running"])
        fewest, since_s = 10**9, time.monotonic()
        # Deserted connections are closed in time; until then they are not leaked.
        while time.monotonic() - since_s < 3.0:
            if (now := self.descriptors()) < fewest:
                fewest, since_s = now, time.monotonic()
            time.sleep(0.1)

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory_bytes(self) -> int:
        """Its resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def internal_errors(self) -> list[str]:
        """What it blamed itself for."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [str(line) for line in lines if line["event.action"] == "internal-error"]

    def end(self) -> None:
        """End it and its workers."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One for a test."""
    daemon = Daemon(tmp_path)
    try:
        yield daemon
    finally:
        daemon.end()


@dataclass
class Tally:
    """What came of the requests."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that aren't what the document says, or no JSON, or a 5xx that isn't documented."""
    hangs: list[str] = field(default_factory=list)

    @property
    def unexpected_5xx(self) -> int:
        """5xx but for the documented 503."""
        return sum(count for status, count in self.statuses.items() if status >= 500 and status != 503)


class Checker:
    """Compares answers with the daemon's own document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._validators: dict[str, Any] = {}
        self._refusal = self._validator({"$ref": "#/components/schemas/ErrorReply"})

    def _validator(self, schema: Any) -> Any:
        text = json.dumps(schema, sort_keys=True)
        if text not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            self._validators[text] = jsonschema_rs.Draft202012Validator(whole)
        return self._validators[text]

    def fault(self, attack: Attack, status: int, media_type: str, body: bytes | None) -> str:
        """What is wrong with an answer; empty where nothing is. A body of None was not read to its end."""
        media_type = media_type.split(";")[0]
        if attack.operation is not None:
            method, path = attack.operation
            answers = self._document["paths"][path][method.lower()]["responses"]
            if str(status) not in answers:
                return f"{status} is not documented"
            content = answers[str(status)]["content"]
            if media_type not in content:
                return f"{status} as {media_type} is not documented"
            if body is not None and media_type == "application/json":
                return self._mismatch(self._validator(content[media_type]["schema"]), body)
        if status >= 400 and body:
            return self._mismatch(self._refusal, body) if media_type == "application/json" else f"{status} is no JSON"
        return ""

    @staticmethod
    def _mismatch(validator: Any, body: bytes) -> str:
        try:
            errors = [str(error.message) for error in validator.iter_errors(json.loads(body))]
        except ValueError as error:
            return f"no JSON: {error}"
        return "; ".join(errors[:2])


def connect(path: Path) -> socket.socket:
    """A plain connection."""
    plain = socket.socket(socket.AF_UNIX)
    plain.connect(str(path))  # blocking: with a timeout a full queue is an error and not a wait
    plain.settimeout(PATIENCE_S)
    return plain


def send(path: Path, attack: Attack, checker: Checker, tally: Tally) -> None:
    """Make one attack and judge what comes of it."""
    tally.kinds[attack.kind] += 1
    with contextlib.closing(connect(path)) as plain:
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                plain.sendall(attack.content)
                if attack.half_close:
                    plain.shutdown(socket.SHUT_WR)
            if not attack.reads:
                return
            got = 0
            while attack.answers is None or got < attack.answers:
                if not read_one(plain, attack, checker, tally):
                    break
                got += 1
            if attack.answers is not None and got == 0:
                tally.wrong.append(f"{attack.kind}: closed without an answer: {attack.content[:200]!r}")
        except TimeoutError:
            tally.hangs.append(f"{attack.kind}: {attack.content[:200]!r}")


def read_one(plain: socket.socket, attack: Attack, checker: Checker, tally: Tally) -> bool:
    """One answer; False where there is none. Raises TimeoutError where the daemon keeps us waiting."""
    method = attack.content.split(b" ", 1)[0].decode("latin-1")
    response = http.client.HTTPResponse(plain, method=method)
    try:
        response.begin()
        follows = response.getheader("content-type") == EVENTS or b"follow=" in attack.content
        endless = response.status == 200 and follows
        body = None if endless else response.read()
    except (ConnectionResetError, http.client.HTTPException):
        return False
    tally.statuses[response.status] += 1
    fault = checker.fault(attack, response.status, response.getheader("content-type", ""), body)
    if fault or (response.status >= 500 and response.status != 503):
        about = f"{attack.kind}: {response.status} {fault}"
        tally.wrong.append(f"{about}: {attack.content[:300]!r} -> {(body or b'')[:200]!r}")
    return True


class Storm:
    """1,000 connections at once, some of them slow, held while the requests go on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[socket.socket] = []

    def begin(self) -> None:
        """Connect them all; each sends nothing, half a head, half a body, or a request whose answer it doesn't read."""
        for number in range(STORM):
            plain = connect(self._path)
            plain.settimeout(0.0)
            self._held.append(plain)
            with contextlib.suppress(OSError):
                plain.send(
                    (
                        b"",
                        b"GET /v1/sta",
                        b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
                        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
                    )[number % 4]
                )

    def drip(self) -> None:
        """A byte more of each that is slow."""
        for plain in self._held[1::2]:
            with contextlib.suppress(OSError):
                plain.send(b"x")

    def end(self) -> None:
        """Go away."""
        for plain in self._held:
            plain.close()
        self._held.clear()


class GoodClient:
    """A client in a process of its own, which asks all the time."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-I", "-S", "-c", GOOD_CLIENT, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(self) -> tuple[int, float, int]:
        """How many requests it made, the 99th percentile of what they took in seconds, and how many were refused."""
        output, _ = self._process.communicate(b"", timeout=PATIENCE_S * 2)
        found = json.loads(output)
        took = sorted(found["took"])
        return len(took), took[min(len(took) - 1, int(len(took) * 0.99))], found["refused"]


def good_client_alone(daemon: Daemon) -> float:
    """Its 99th percentile in seconds while nobody else asks."""
    good = GoodClient(daemon.socket)
    time.sleep(QUIET_S)
    return good.end()[1]


def known_strings(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Strings that mean something to this daemon, by where they are used."""
    cells = expand(AXES, {"batch_size": 4})
    labels = [cell.label for cell in cells]
    assert document["paths"]
    return {
        "cells": [*labels, *(cell.digest for cell in cells), cells[0].key],
        "q": ["state=failed", "name=one", "*/0", "*", "seconds=0", "state=nothing", *labels],
        "devices": ["4x24GiB", "1x1GiB", "999999999x1GiB", "x"],
        "body": [*labels, "SIM-0", "0", "name=two", "state=failed", "seconds=0"],
    }


def fuzz(daemon: Daemon, number: int, seed: int, checker: Checker, document: Mapping[str, Any], tally: Tally) -> None:
    """So many requests, with storms between and beside them."""
    storm = Storm(daemon.socket)
    try:
        for count, attack in enumerate(attacks(seed, document, known_strings(document))):
            if count == number:
                return
            if count % STORM_EVERY == STORM_EVERY // 3:
                storm.begin()
            if count % STORM_EVERY == STORM_EVERY * 2 // 3:
                storm.end()
            if count % 50 == 0:
                storm.drip()
            send(daemon.socket, attack, checker, tally)
    finally:
        storm.end()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for a storm in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * STORM
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@campaign.sizes("requests", short=5_000, long=1_000_000)
def test_malformed_and_hostile_requests(
    daemon: Daemon, requests: int, report: campaign.Report, many_descriptors: None
) -> None:
    """Crashes 0, descriptors leaked 0, hangs 0, answers that aren't as documented 0; a good client hardly notices."""
    document = Client(daemon.socket).get("/openapi.json")
    checker, tally = Checker(document), Tally()
    fuzz(daemon, WARM_UP, SEED + 1, checker, document, Tally())
    daemon.settle()
    descriptors, memory_bytes = daemon.descriptors(), daemon.memory_bytes()
    for seed in (SEED, SEED + 2):
        quiet_s = good_client_alone(daemon)
        good = GoodClient(daemon.socket)
        fuzz(daemon, requests, seed, checker, document, tally)
        asked, p99_s, refused = good.end()
        # Before and after: what else the machine does changes in between.
        quiet_s = max(quiet_s, good_client_alone(daemon))
        if p99_s < max(P99_LIMIT_S, P99_SHARE * quiet_s):
            break
    crashed = daemon.process.poll() is not None
    if not crashed:
        daemon.settle()
    leaked = 0 if crashed else daemon.descriptors() - descriptors
    growth_bytes = 0 if crashed else daemon.memory_bytes() - memory_bytes
    errors = daemon.internal_errors()
    report(
        "hostile requests",
        requests=tally.kinds.total(),
        seed=seed,
        crashes=int(crashed),
        descriptors_leaked=max(0, leaked),
        hangs=len(tally.hangs),
        answers_not_as_documented=len(tally.wrong),
        unexpected_5xx=tally.unexpected_5xx,
        documented_503=tally.statuses[503],
        internal_errors=len(errors),
        memory_growth_mib=round(growth_bytes / 1024**2, 1),
        good_requests=asked,
        good_refused=refused,
        good_p99_ms=round(1000 * p99_s, 1),
        good_p99_ms_alone=round(1000 * quiet_s, 1),
        kinds=dict(tally.kinds),
        statuses=dict(sorted(tally.statuses.items())),
    )
    assert not crashed, daemon.log.read_text()[-3000:]
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert not tally.hangs, "\n".join(tally.hangs[:5])
    assert not errors, errors[:3]
    assert leaked <= 0
    assert refused == 0
    assert growth_bytes < MEMORY_GROWTH_LIMIT_BYTES
    assert p99_s < max(P99_LIMIT_S, P99_SHARE * quiet_s)
    assert not list(daemon.folder.glob("**/boundd-canary"))


@campaign.sizes("rounds", short=4, long=200)
def test_a_crash_between_the_change_and_its_answer(daemon: Daemon, rounds: int, report: campaign.Report) -> None:
    """A request that is made again, of the next daemon, with its key, is done once, wherever the first was killed."""
    client = Client(daemon.socket)
    cell = next(cell for cell in expand({"name": ["one"], "seconds": [0]}, {"batch_size": 4}))
    client.post("/v1/cancel", {"query": ["seconds=600"]})
    daemon.wait_for(lambda: not client.get("/v1/status")["running"] and attempts(client, cell.label) == 1)
    done_twice = not_done = replayed = 0
    for number in range(rounds):
        before = attempts(client, cell.label)
        body = json.dumps({"query": [cell.label]}).encode()
        request = (
            f"POST /v1/retry HTTP/1.1\r\nHost: x\r\nIdempotency-Key: round-{number}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        with connect(daemon.socket) as lost:
            lost.sendall(request)
            # From before it was read to after it was done and run.
            time.sleep((0.0, 0.004, 0.02, 0.5)[number % 4])
            daemon.process.kill()
            daemon.process.wait()
        daemon.start()
        with connect(daemon.socket) as again:
            again.sendall(request)
            answer = b"".join(iter(lambda: again.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200"), answer
        replayed += b"idempotency-replayed: true" in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["affected"] == [cell.label]
        daemon.wait_for(lambda: client.get("/v1/cells", {"q": [cell.label]})[0]["state"] == "failed")
        done = attempts(client, cell.label) - before
        done_twice += done > 1
        not_done += done < 1
    report("crash before an answer", rounds=rounds, replayed=replayed, done_twice=done_twice, not_done=not_done)
    assert (done_twice, not_done) == (0, 0)


def attempts(client: Client, label: str) -> int:
    """How many attempts a cell has made, less those that a killed daemon had stored and not yet begun to start.

    The next one gives such an attempt up as lost, at no charge, and makes another: the request was done once for that.
    """
    history = client.get(cell_path(label))["history"]
    return sum((each["error"] or {}).get("message") != NEVER_STARTED for each in history)


def test_a_thousand_idle_connections_lock_nobody_out(daemon: Daemon, many_descriptors: None) -> None:
    """Of the owner's own user even; and they don't stay."""
    storm = Storm(daemon.socket)
    try:
        storm.begin()
        assert Client(daemon.socket).post("/v1/pause")["changed"]
        assert daemon.descriptors() < STORM
    finally:
        storm.end()
