"""What systemd is told: over real sockets, read as systemd reads them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from immutables import Map

from boundd.core.model.attempts import Attempt, CellRecord, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.state import State
from boundd.service.notify import Notifier, status_line

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the daemon runs on."""
    return "asyncio"


class Manager:
    """The receiving end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        """The messages so far, each as its assignments."""
        messages = []
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return messages
            messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def fill(self) -> None:
        """Leave no room in the queue."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            while True:
                try:
                    other.sendto(b"X=1", self._socket.getsockname())
                except BlockingIOError:
                    return

    def close(self) -> None:
        """Be gone."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A manager at a path, and one at an abstract address."""
    made = Manager(str(tmp_path / "n") if request.param == "path" else f"@boundd-test-{os.getpid()}")
    yield made
    made.close()


def state_of(*states: CellState, running_on: tuple[str, ...] = ()) -> State:
    """A state with a cell in each of these states, and live attempts on these devices."""
    cells = {}
    for place, state in enumerate(states):
        cell = Cell.of({"n": place}, ["n"])
        cells[cell.key] = CellRecord(cell, CellPolicy(), state)
    keys = list(cells)
    attempts = {
        f"{place}.1": Attempt(f"{place}.1", keys[place], str(place), 1, device, 1, None, None, False, 60, 1, 0, 0)
        for place, device in enumerate(running_on)
    }
    return State(order=tuple(keys), cells=Map(cells), attempts=Map(attempts))


def test_the_environment_is_taken_and_not_passed_on(manager: Manager) -> None:
    """A worker that inherited NOTIFY_SOCKET could say READY, or keep the watchdog quiet, in the daemon's name."""
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7", "HOME": "/"}
    notifier = Notifier.from_environ(environ, 7)
    assert environ == {"HOME": "/"}
    assert notifier.watchdog_s == 60.0
    notifier.ready()
    assert manager.heard() == [{"READY": "1"}]


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("1000000", "", 1.0),
        ("1000000", "8", None),
        ("0", "7", None),
        ("", "7", None),
        ("-5", "7", None),
        ("x", "", None),
    ],
)
def test_whose_watchdog_it_is(usec: str, pid: str, expected: float | None) -> None:
    """sd_watchdog_enabled(3): not another process's, and not one of no length."""
    assert Notifier.from_environ({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}, 7).watchdog_s == expected


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "nonsense", "/nowhere/at/all", "@nobody-listens"])
async def test_nobody_to_tell_is_no_error(address: str) -> None:
    """Without a manager, or with one that is gone, the daemon works as ever."""
    notifier = Notifier(address, 1.0)
    assert not notifier.send("READY=1")
    with notifier.reloading():
        pass
    with anyio.move_on_after(0.05):
        await notifier.keep_informed(lambda: "x")


def test_a_manager_that_does_not_read_holds_nobody_up(manager: Manager) -> None:
    """The socket's queue is full: what can't be sent is not sent."""
    manager.fill()
    assert not Notifier(manager.address).send("READY=1")


def test_a_reload_is_told_and_its_end_too(manager: Manager) -> None:
    """READY follows whatever came of it; without it systemd would think that it still reloads."""
    notifier = Notifier(manager.address)
    with pytest.raises(ValueError, match="bad config"), notifier.reloading():
        raise ValueError("bad config")
    first, last = manager.heard()
    assert first["RELOADING"] == "1"
    assert int(first["MONOTONIC_USEC"]) > 0
    assert last == {"READY": "1"}


@given(st.text(st.characters(exclude_categories=()), max_size=2000))
def test_no_text_makes_an_assignment_of_its_own(text: str) -> None:
    """A config's name or a driver's message may hold line breaks; surrogates can't be sent at all."""
    address = f"@boundd-hypothesis-{os.getpid()}"
    manager = Manager(address)
    try:
        Notifier(address).status(text)
        (message,) = manager.heard()
        assert set(message) == {"STATUS"}
        assert len(message["STATUS"]) <= 500
    finally:
        manager.close()


async def test_the_status_is_told_when_it_changes(manager: Manager) -> None:
    """And a stop asks for more time, again and again, until the workers have ended."""
    notifier = Notifier(manager.address)
    lines = iter(["a", "a", "b"])
    with anyio.move_on_after(2.5):
        await notifier.keep_informed(lambda: next(lines, "b"))
    assert manager.heard() == [{"STATUS": "a"}, {"STATUS": "b"}]
    notifier.note(Note(Action.DAEMON_STOPPING, "ending 2 worker(s)"), Now(0.0, 0.0))
    with anyio.move_on_after(0.1):
        await notifier.keep_informed(lambda: "ending")
    stopping, *later = manager.heard()
    assert stopping == {"STOPPING": "1", "STATUS": "ending 2 worker(s)"}
    assert {"EXTEND_TIMEOUT_USEC": "30000000"} in later


async def test_the_pings_stop_when_the_proof_does(manager: Manager) -> None:
    """The store's thread hangs, or says that it can't: no ping. Then it answers: pings again."""
    answers = iter(["fine", "fails", "hangs"])
    hangs, start_worker = anyio.Event(), anyio.Event()

    async def prove_alive() -> None:
        answer = next(answers, "fine")
        if answer == "fails":
            raise OSError("no")
        if answer == "hangs":
            hangs.set()
            await start_worker.wait()

    notifier = Notifier(manager.address, 0.03)
    async with anyio.create_task_group() as group:
        group.start_soon(notifier.keep_alive, prove_alive)
        with anyio.fail_after(10):
            await hangs.wait()
        assert manager.heard() == [{"WATCHDOG": "1"}], "one for the answer, none for the failure"
        await anyio.sleep(0.2)
        assert manager.heard() == []
        start_worker.set()
        with anyio.fail_after(10):
            while not manager.heard():  # noqa: ASYNC110 - what is waited for is another socket's
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("state", "problem", "line"),
    [
        (state_of(), "", "0 of 0 cells done, nothing running"),
        (state_of(CellState.PENDING), "", "0 of 1 cell done, nothing running"),
        (
            state_of(*[CellState.RUNNING] * 3, *[CellState.SUCCEEDED] * 12, *[CellState.PENDING] * 66,
                     running_on=("a", "b", "b")),
            "",
            "12 of 81 cells done, 3 running on 2 devices",
        ),
        (
            state_of(CellState.SUCCEEDED, CellState.FAILED, CellState.TIMED_OUT),
            "",
            "3 of 3 cells done, 2 of them without a result, nothing running",
        ),
        (
            state_of(CellState.PENDING),
            "disk full",
            "0 of 1 cell done, nothing running, nothing new is started: disk full",
        ),
        (replace(state_of(CellState.PENDING), paused=True), "", "0 of 1 cell done, nothing running, paused"),
        (replace(state_of(CellState.PENDING), stopping=True), "x", "0 of 1 cell done, nothing running, stopping"),
    ],
)  # fmt: skip
def test_the_line(state: State, problem: str, line: str) -> None:
    """What `systemctl status` shows."""
    assert status_line(state, problem) == line
