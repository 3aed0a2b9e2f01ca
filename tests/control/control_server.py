"""A real server on a real unix socket, in a thread of its own, over a service that applies events with the core."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.client import Client
from boundd.control.api import ExportText, ImportPreview, create_app
from boundd.control.peers import AccessRules
from boundd.control.server import SocketPlace, serve
from boundd.core.lifecycle.step import step
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState
from boundd.core.model.cells import CellPolicy
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Note
from boundd.core.model.events import ConfigLoaded, DevicesRead, Event, Imported, Now
from boundd.core.model.matrix import expand
from boundd.core.model.outcomes import AttemptError, Measurement, Outcome, PointRecord, Verdict
from boundd.core.model.records import Record, SaveAnswer
from boundd.core.model.state import Rules, State
from boundd.ports import ConfigError, EndedAttempt, Keep, KeptAnswer, StoreBusyError, keep_nothing
from boundd.protocol.regular_file import read_chunk, size_bytes

GIB = 1024**3
AXES = {"model": ["SD1.5", "SDXL"], "scheduler": ["DDIM"], "steps": [20], "method": ["deepcache", "tgate", "tome"]}
CELLS = expand(AXES, {"batch_size": 4})
LABELS = [cell.label for cell in CELLS]
GPU = "GPU-11111111-aaaa"
MEASURED = Measurement(2.5, 2.0, {"parameters": {"cache_interval": 3}, "speedup": 2.0}, Isolation.EXCLUSIVE)


class FixedClock:
    """Both clocks, standing still."""

    def now(self) -> Now:
        """This instant."""
        return Now(1000.0, 1_700_000_000.0)


@dataclass
class MemoryStore:
    """A history for `show`."""

    history: dict[str, tuple[EndedAttempt, ...]] = field(default_factory=dict)
    answers: dict[tuple[int, str], KeptAnswer] = field(default_factory=dict)

    async def attempts_of(
        self, key: str, *, limit: int | None = None, before: int | None = None
    ) -> tuple[EndedAttempt, ...]:
        """The latest attempts of a cell."""
        found = [ended for ended in self.history.get(key, ()) if before is None or ended.attempt.number < before]
        return tuple(found if limit is None else found[len(found) - min(limit, len(found)) :])

    async def commit(self, records: Sequence[Record]) -> None:
        """Keep answers."""
        for record in records:
            assert isinstance(record, SaveAnswer)
            self.answers[record.uid, record.key] = KeptAnswer(record.request_sha256, record.at_unix_s, record.body)

    async def answer_of(self, uid: int, key: str, oldest_unix_s: float) -> KeptAnswer | None:
        """An answer that was kept."""
        known = self.answers.get((uid, key))
        return known if known is not None and known.at_unix_s >= oldest_unix_s else None


@dataclass
class FileLauncher:
    """Logs in a folder."""

    folder: Path

    async def read_log(self, attempt_id: str, offset: int, max_bytes: int) -> bytes:
        """Some of a log."""
        return await anyio.to_thread.run_sync(read_chunk, self.log_path(attempt_id), offset, max_bytes)

    async def log_size_bytes(self, attempt_id: str) -> int | None:
        """How long a log is."""
        return await anyio.to_thread.run_sync(size_bytes, self.log_path(attempt_id))

    def log_path(self, attempt_id: str) -> Path:
        """The log of an attempt."""
        return self.folder / f"{attempt_id}.log"


@dataclass
class MemoryService:
    """A daemon without its loops: events go through the real core, and nothing is spawned."""

    state: State
    store: MemoryStore
    launcher: FileLauncher
    clock: FixedClock = field(default_factory=FixedClock)
    started_unix_s: float = 1_699_999_000.0
    store_problem: str = ""
    submitted: list[Event] = field(default_factory=list)
    stops: list[bool] = field(default_factory=list)
    busy: bool = False
    takes_s: float = 0.0
    """How long it takes to apply an event."""
    config_errors: Sequence[str] = ()
    listeners: list[MemoryObjectSendStream[tuple[Note, Now]]] = field(default_factory=list)

    async def submit(self, event: Event, keep: Keep = keep_nothing) -> None:
        """Apply an event with the real core."""
        if self.busy:
            raise StoreBusyError("the disk is full")
        await anyio.sleep(self.takes_s)
        await self.store.commit(keep(self.state))
        self.submitted.append(event)
        self.state, effects = step(self.state, event, self.clock.now())
        for effect in effects:
            if isinstance(effect, Note):
                for listener in self.listeners:
                    listener.send_nowait((effect, self.clock.now()))

    def request_stop(self, *, end_workers: bool) -> None:
        """Remember that it was asked."""
        self.stops.append(end_workers)

    async def reload(self) -> str:
        """Say what changed, or raise what is wrong."""
        if self.config_errors:
            raise ConfigError(self.config_errors)
        return "2 cells more"

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[MemoryObjectReceiveStream[tuple[Note, Now]]]:
        """The notes from now on."""
        send, receive = anyio.create_memory_object_stream[tuple[Note, Now]](100)
        self.listeners.append(send)
        try:
            with send, receive:
                yield receive
        finally:
            self.listeners.remove(send)


def make_state() -> State:
    """Six cells: pending, running, succeeded, out of memory, timed out, failed; one device."""
    state, _ = step(State(), ConfigLoaded(tuple((cell, CellPolicy()) for cell in CELLS), Rules()), Now(0, 0))
    reading = DeviceReading(GPU, 0, "Simulated 24 GiB", 24 * GIB, 20 * GIB, backend="simulated")
    state, _ = step(state, DevicesRead((reading,)), Now(0, 0))

    def error(kind: ErrorKind, message: str) -> AttemptError:
        return AttemptError(kind, message, 1_699_999_500.0)

    nasty = "\x1b[31mboom\x1b[0m\nCUDA out of memory"
    changes: list[dict[str, Any]] = [
        {},
        {"state": CellState.RUNNING, "attempts": 1},
        {"state": CellState.SUCCEEDED, "attempts": 1, "measurement": MEASURED, "duration_s": 60.0},
        {"state": CellState.OUT_OF_MEMORY, "attempts": 2, "error": error(ErrorKind.OUT_OF_MEMORY, nasty)},
        {"state": CellState.TIMED_OUT, "attempts": 1, "error": error(ErrorKind.TIMEOUT, "timed out after 60 s")},
        {"state": CellState.FAILED, "attempts": 1, "error": error(ErrorKind.NO_RESULT, "no result")},
    ]
    cells = state.cells
    for cell, change in zip(CELLS, changes, strict=True):
        cells = cells.set(cell.key, replace(cells[cell.key], **change))
    attempt = live_attempt()
    return replace(state, cells=cells, attempts=state.attempts.set(attempt.id, attempt))


def live_attempt() -> Attempt:
    """The attempt that runs."""
    cell = CELLS[1]
    return Attempt(
        f"{cell.digest}.1", cell.key, cell.label, 1, GPU, 3 * GIB, None, 4, False, 3600.0, 10.0,
        1_699_999_970.0, 970.0, state=AttemptState.RUNNING, progress_done=3, progress_total=20, points=3,
    )  # fmt: skip


def is_stale(record: CellRecord) -> bool:
    """The cell that succeeded was measured with other versions."""
    return record.state is CellState.SUCCEEDED


def render_export(wanted: str) -> ExportText:
    """An export that says its format; the old one can't hold a cell."""
    if wanted == "legacy":
        return ExportText('{"old": 1}\n', ("SD2.1/DDIM/20/tome: \x1b[1mthe key is SD1.5's",))
    if wanted == "csv":
        return ExportText("label\n", (), "text/csv")
    return ExportText('{"format": "boundd/1"}\n' if wanted == "json" else "{}\n", (), "application/json")


def import_legacy(text: str, model: str | None) -> ImportPreview:
    """Reads 'ambiguous' or anything."""
    if text.startswith("bad"):
        raise ValueError("not an old file")
    if text.startswith("ambiguous") and model is None:
        return ImportPreview((), ("('StableDiffusionPipeline', …)",), (), ("SD1.5", "SD2.1"))
    measured = Measurement(None, None, None, Isolation.UNKNOWN, imported_upper_bound=2.2)
    entries = tuple(Imported(cell.key, measured) for cell in (CELLS[0], CELLS[2]))
    return ImportPreview(entries, (), ("something else",))


@dataclass
class Running:
    """A server that runs, and its service."""

    service: MemoryService
    socket: Path
    client: Client
    call: Callable[..., Any]
    """Runs an async function in the server's loop."""
    look: Callable[[], object] = lambda: None
    """Has the socket looked after."""

    def submit(self, event: Event) -> None:
        """Apply an event in the server's loop."""
        self.call(self.service.submit, event)


def curl(running: Running, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real curl, on the server's socket."""
    command = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(running.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, **options)


def everything_of(plain: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := plain.recv(65536):
            got += data
    return got


def hung_up(plain: socket.socket) -> bool:
    """Whether the other side has closed, without reading."""
    poller = select.poll()
    poller.register(plain, 0)
    return bool(poller.poll(0))


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; a loaded machine has a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def connect(running: Running) -> socket.socket:
    """A plain connection."""
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plain.settimeout(10)
    plain.connect(str(running.socket))
    return plain


@contextlib.contextmanager
def running_server(
    folder: Path, service: MemoryService | None = None, rules: AccessRules | None = None
) -> Iterator[Running]:
    """A server, until the end of the block."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True, parents=True)
    served = service or MemoryService(make_state(), MemoryStore(), FileLauncher(logs))
    app = create_app(
        served,
        render_export=render_export,
        render_metrics=lambda: b"boundd_cells 6\n",
        import_legacy=import_legacy,
        is_stale=is_stale,
        rules=rules,
    )
    path, ready = folder / "run" / "boundd.sock", threading.Event()
    place = SocketPlace(path, rules)

    async def main() -> None:
        await serve(app, place, ready=ready.set)

    with anyio.from_thread.start_blocking_portal() as portal:
        future = portal.start_task_soon(main)
        while not ready.wait(0.05):
            if future.done():
                future.result()
        try:
            yield Running(served, path, Client(path), portal.call, lambda: portal.call(place.look))
        finally:
            future.cancel()


@contextlib.contextmanager
def populated(folder: Path) -> Iterator[Running]:
    """A server over six cells in six states."""
    with running_server(folder) as server:
        cell, folder = CELLS[1], server.service.launcher.folder
        (folder / f"{cell.digest}.1.log").write_text("first line\n\x1b[31msecond\x1b[0m\n")
        ended = replace(live_attempt(), id=f"{CELLS[2].digest}.1", key=CELLS[2].key, label=CELLS[2].label)
        verdict = Verdict(Outcome.SUCCEEDED, MEASURED, exit_status=0, wall_s=60.0)
        point = PointRecord({"cache_interval": 3}, 2.0, 0.004, Isolation.EXCLUSIVE)
        server.service.store.history[CELLS[2].key] = (EndedAttempt(ended, verdict, 1_700_000_000.0, (point,)),)
        yield server


@contextlib.contextmanager
def held_up(running: Running) -> Iterator[None]:
    """The server's loop stands still for the time of the block, so that all that is sent is there at once."""
    stands, goes_on = threading.Event(), threading.Event()

    async def stand() -> None:
        stands.set()
        goes_on.wait(60)

    thread = threading.Thread(target=running.call, args=(stand,))
    thread.start()
    assert stands.wait(60)
    try:
        yield
    finally:
        goes_on.set()
        thread.join()


def requests_under_way(running: Running) -> list[str]:
    """The paths of the requests that the server serves, whether or not they have a connection."""

    async def look() -> list[str]:
        frames = [getattr(task.get_coro(), "cr_frame", None) for task in asyncio.all_tasks()]
        cycles = [frame.f_locals["self"] for frame in frames if frame and frame.f_code.co_name == "run_asgi"]
        return [cycle.scope["path"] for cycle in cycles]

    found: list[str] = running.call(look)
    return found


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What boundd would blame itself for: errors that libraries log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
