"""The daemon's loops with a real store, real processes and the real CPU device.

To see the tests of transactions fail, have `Loop._transactions` give only the event and submit `Wake` after it, have
`step._attempt_started` commit, or have it give only the event with `Wake`. The test of what is kept fails where
`submit` asks `keep` before it has the lock, that of late points without `worker_lives` in `AttemptWatcher._read_chunk`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from boundd.catalogue.outcomes import Isolation
from boundd.core.model.attempts import Attempt, AttemptState, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import AttemptEnded, ConfigLoaded, Now, PauseRequested, ResumeRequested
from boundd.core.model.outcomes import Measurement, Outcome, Verdict
from boundd.core.model.records import Record, SaveAttempt, SaveEnd
from boundd.core.model.state import Rules, State, sanity_check
from boundd.devices.cpu import CpuProbe
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec, StoreBusyError
from boundd.protocol.environment import WorkerEnvironment
from boundd.service.clock import SystemClock
from boundd.service.daemon import Daemon, Hooks
from boundd.store.sqlite import SqliteStore

PROTOCOL_WORKER = """
import json, os
def write(**line):
    with open(os.environ["BOUNDD_RESULTS"], "a") as file:
        file.write(json.dumps(line) + "\\n")
for n in range(3):
    write(type="point", parameters={"n": n}, speedup=1.0 + n, score_loss=0.01 * n, isolation="exclusive")
    write(type="progress", done=n + 1, total=3)
write(type="memory", peak_allocated_bytes=1 << 20, peak_reserved_bytes=2 << 20)
"""
RESULT = """
write(type="result", max_speedup=3.0, max_speedup_within_tolerance=2.0, isolation="exclusive",
      best={"parameters": {"n": 1}, "speedup": 2.0, "score_loss": 0.01})
"""


RESULT_ALONE = """
import os
with open(os.environ["BOUNDD_RESULTS"], "a") as file:
    file.write('{"type": "result", "max_speedup": 1.0, "max_speedup_within_tolerance": null, "isolation": "unknown"}')
    file.write("\\n")
"""


class Remembering:
    """An Observer that keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note, now: Now) -> None:  # noqa: ARG002 - the Observer's signature
        """Keep it."""
        self.notes.append(note)

    def actions(self) -> list[Action]:
        """What happened, in order."""
        return [note.action for note in self.notes]


class FullDisk(SqliteStore):
    """A real store whose commits can be made to fail as a full disk makes them."""

    full = False

    async def commit(self, records: object) -> None:
        """Fail while `full`."""
        if self.full:
            raise StoreBusyError("database or disk is full")
        await super().commit(records)  # type: ignore[arg-type]


class Witness(SqliteStore):
    """A real store that keeps what each commit held, and refuses some, once each, as a full disk does."""

    refuse: Callable[[Sequence[Record]], bool] = staticmethod(lambda _: False)

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        self.commits: list[tuple[Record, ...]] = []

    async def commit(self, records: Sequence[Record]) -> None:
        """Keep them, or fail."""
        if self.refuse(records):
            raise StoreBusyError("database or disk is full")
        await super().commit(records)
        self.commits.append(tuple(records))


async def nothing(*_: object) -> None:
    """No export, no API."""


async def run_daemon(
    folder: Path,
    script: str,
    cells: int = 1,
    *,
    during: Callable[[Daemon], Awaitable[None]] | None = None,
    store_class: type[SqliteStore] = FullDisk,
) -> tuple[Daemon, Remembering, SqliteStore]:
    """Run the script for so many cells until all have ended."""
    heard = Remembering()
    store = await store_class.open(folder / "boundd.db")
    launcher = LocalLauncher(folder / "attempts")

    def spec_of(attempt: Attempt, cell: Cell, state: State) -> LaunchSpec:
        results = launcher.results_path(attempt.id)
        environment = WorkerEnvironment(attempt=attempt.id, results=results, batch_size=attempt.batch_size)
        return LaunchSpec(
            attempt.id,
            (sys.executable, "-c", script),
            {**os.environ, **environment.to_environ()},
            folder,
            attempt.timeout_s,
            attempt.grace_s,
        )

    matrix = tuple((Cell.of({"n": n, "batch_size": 4}, ["n"]), CellPolicy(timeout_s=60)) for n in range(cells))
    daemon = Daemon(
        ConfigLoaded(matrix, Rules(backoff_s=0.1)),
        store,
        launcher,
        CpuProbe(),
        SystemClock(),
        (heard,),
        Hooks(spec_of, lambda: pytest.fail("no reload here"), nothing),
    )
    await daemon.recover()
    async with anyio.create_task_group() as group:
        if during is not None:
            group.start_soon(during, daemon)
        with anyio.fail_after(60):
            await daemon.run(until_idle=True, serve=nothing)
        group.cancel_scope.cancel()
    sanity_check(daemon.state)
    return daemon, heard, store


def test_a_worker_of_the_protocol(tmp_path: Path) -> None:
    """Points, progress, memory and result arrive, once each, and the footprint is learned."""

    async def main() -> None:
        daemon, heard, store = await run_daemon(tmp_path, PROTOCOL_WORKER + RESULT, cells=2)
        try:
            for record in daemon.state.matrix():
                assert record.state is CellState.SUCCEEDED
                assert record.measurement is not None
                assert record.measurement.max_speedup_within_tolerance == 2.0
                (ended,) = await store.attempts_of(record.cell.key)
                assert len(ended.points) == 3
            assert heard.actions().count(Action.POINT_MEASURED) == 6
            assert len((await store.load()).observations) == 2
        finally:
            await store.aclose()

    anyio.run(main)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (PROTOCOL_WORKER, "no_result"),
        (PROTOCOL_WORKER + "write(type='point', parameters={}, speedup='fast')", "malformed_result"),
        (PROTOCOL_WORKER + "write(type='error', error='bad_data', message='NaN')\nraise SystemExit(5)", "bad_data"),
    ],
)
def test_what_is_wrong_with_a_result_is_said(tmp_path: Path, script: str, kind: str) -> None:
    """No result, a malformed one, an error of the worker's own: one attempt each, and the points are kept."""

    async def main() -> None:
        daemon, _, store = await run_daemon(tmp_path, script)
        try:
            (record,) = daemon.state.matrix()
            assert record.state is CellState.FAILED
            assert record.error is not None
            assert record.error.kind == kind
            assert record.attempts == 1
            (ended,) = await store.attempts_of(record.cell.key)
            assert len(ended.points) == 3
        finally:
            await store.aclose()

    anyio.run(main)


LATE_WRITER = """
import json, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while os.getppid() == int(os.environ["WORKER"]):
    time.sleep(0.01)
for n in range(20):
    with open(os.environ["BOUNDD_RESULTS"], "a") as file:
        point = {"parameters": {"late": n}, "speedup": 9.0, "score_loss": 0.0, "isolation": "exclusive"}
        file.write(json.dumps({"type": "point", **point}) + "\\n")
    time.sleep(0.1)
"""
LEAVE_BEHIND = f"""
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", {LATE_WRITER!r}], env={{**os.environ, "WORKER": str(os.getpid())}}, stdout=subprocess.PIPE
)
child.stdout.readline()
"""
"""Who goes on writing points while it is being ended, once the worker has ended."""


def test_points_from_after_the_workers_end_do_not_count(tmp_path: Path) -> None:
    """Nor are they told: those that the daemon reads while it follows are as little the worker's as the last ones."""

    async def main() -> None:
        daemon, heard, store = await run_daemon(tmp_path, PROTOCOL_WORKER + RESULT + LEAVE_BEHIND)
        (record,) = daemon.state.matrix()
        (ended,) = await store.attempts_of(record.cell.key)
        await store.aclose()
        assert record.state is CellState.SUCCEEDED
        assert [dict(point.parameters) for point in ended.points] == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert heard.actions().count(Action.POINT_MEASURED) == 3

    anyio.run(main)


def test_an_unterminated_last_line_is_ignored(tmp_path: Path) -> None:
    """A worker that was killed in the middle of a line is a killed worker, not a malformed result."""

    async def main() -> None:
        script = PROTOCOL_WORKER + (
            "import signal\nopen(os.environ['BOUNDD_RESULTS'], 'a').write('{\"type\": \"po')\n"
            "os.kill(os.getpid(), signal.SIGSEGV)\n"
        )
        daemon, _, store = await run_daemon(tmp_path, script)
        await store.aclose()
        (record,) = daemon.state.matrix()
        assert record.error is not None
        assert record.error.kind == "killed_by_signal"

    anyio.run(main)


def test_a_full_disk_holds_new_work_back_and_recovers(tmp_path: Path) -> None:
    """While nothing can be stored nothing is started; once it can, the run goes on by itself."""

    async def during(daemon: Daemon) -> None:
        store = daemon.store
        assert isinstance(store, FullDisk)
        await daemon.submit(PauseRequested())
        store.full = True
        with pytest.raises(StoreBusyError):
            await daemon.submit(ResumeRequested())
        assert daemon.state.paused, "what could not be stored did not happen"
        assert daemon.store_problem
        await anyio.sleep(1.5)
        store.full = False
        await daemon.submit(ResumeRequested())
        assert daemon.store_problem == ""

    async def main() -> None:
        daemon, heard, store = await run_daemon(tmp_path, PROTOCOL_WORKER + RESULT, cells=2, during=during)
        await store.aclose()
        assert all(record.state is CellState.SUCCEEDED for record in daemon.state.matrix())
        assert Action.STORE_UNAVAILABLE in heard.actions()
        assert Action.STORE_RECOVERED in heard.actions()

    anyio.run(main)


def test_an_illegal_event_changes_nothing(tmp_path: Path) -> None:
    """It raises where it was submitted; the state is the same value, nothing was committed, and the run goes on."""

    async def during(daemon: Daemon) -> None:
        await daemon.submit(PauseRequested())
        with anyio.fail_after(30):
            while daemon.state.attempts:  # noqa: ASYNC110 - nothing tells of it
                await anyio.sleep(0.02)
        state, stored = daemon.state, await daemon.store.load()
        measured = Measurement(9.0, 9.0, {}, Isolation.EXCLUSIVE)
        for number in range(3):
            cell = state.cells[state.order[0]].cell
            ended = AttemptEnded(f"{cell.digest}.{number}", Verdict(Outcome.SUCCEEDED, measured))
            with pytest.raises((AssertionError, KeyError)):
                await daemon.submit(ended)
        assert (daemon.state.cells.records, daemon.state.attempts) == (state.cells.records, state.attempts)
        assert await daemon.store.load() == stored
        await daemon.submit(ResumeRequested())

    async def main() -> None:
        daemon, _, store = await run_daemon(tmp_path, PROTOCOL_WORKER + RESULT, cells=2, during=during)
        await store.aclose()
        assert all(record.state is CellState.SUCCEEDED for record in daemon.state.matrix())

    anyio.run(main)


def starts(records: Sequence[Record]) -> list[str]:
    """The attempts whose intent is among these records."""
    saved = [each.attempt for each in records if isinstance(each, SaveAttempt)]
    return [attempt.id for attempt in saved if attempt.state is AttemptState.STARTING]


def ends(records: Sequence[Record]) -> list[str]:
    """The attempts whose end is among these records."""
    return [each.attempt.id for each in records if isinstance(each, SaveEnd)]


def test_an_end_and_what_takes_its_place_are_one_transaction(tmp_path: Path) -> None:
    """Each is a flush of the disk: two for three short cells one after the other would be six, and three more for
    that they have started.
    """

    async def main() -> None:
        _, _, store = await run_daemon(tmp_path, RESULT_ALONE, cells=3, store_class=Witness)
        assert isinstance(store, Witness)
        await store.aclose()
        told = [(len(ends(commit)), len(starts(commit))) for commit in store.commits]
        assert told == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 0)], "the matrix, the first intent, ends with the next one"

    anyio.run(main)


def test_an_end_is_kept_where_the_plan_after_it_cannot_be(tmp_path: Path) -> None:
    """The end has happened: a commit that fails with both is tried with it alone, and the next reading plans again."""
    refused: list[list[str]] = []

    def with_both(records: Sequence[Record]) -> bool:
        if refused or not (ends(records) and starts(records)):
            return False
        refused.append(ends(records))
        return True

    class Refusing(Witness):
        refuse = staticmethod(with_both)

    async def main() -> None:
        daemon, heard, store = await run_daemon(tmp_path, RESULT_ALONE, cells=2, store_class=Refusing)
        assert isinstance(store, Refusing)
        await store.aclose()
        assert len(refused) == 1
        alone = [ends(commit) for commit in store.commits if ends(commit) and not starts(commit)]
        assert alone[0] == refused[0]
        assert all(record.state is CellState.SUCCEEDED and record.attempts == 1 for record in daemon.state.matrix())
        assert heard.actions().count(Action.STORE_RECOVERED) == 1

    anyio.run(main)


def test_what_is_kept_is_made_of_the_state_that_the_event_is_applied_to(tmp_path: Path) -> None:
    """Whoever waits for its turn meanwhile is not told of how things were when it came."""
    seen: list[bool] = []

    def keep(state: State) -> Sequence[Record]:
        seen.append(state.paused)
        return ()

    async def during(daemon: Daemon) -> None:
        async with anyio.create_task_group() as group, daemon._driver._lock:
            group.start_soon(daemon.submit, PauseRequested())
            group.start_soon(daemon.submit, ResumeRequested(), keep)
            await anyio.wait_all_tasks_blocked()

    async def main() -> None:
        daemon, _, store = await run_daemon(tmp_path, RESULT_ALONE, during=during)
        await store.aclose()
        assert seen == [True]
        assert not daemon.state.paused

    anyio.run(main)


def test_a_subscriber_hears_and_holds_nobody_up(tmp_path: Path) -> None:
    """One that never reads costs nothing."""

    async def during(daemon: Daemon) -> None:
        with daemon.subscribe() as lazy, daemon.subscribe() as eager:
            note, _ = await eager.receive()
            assert isinstance(note, Note)
            await anyio.sleep_forever()
            assert lazy

    async def main() -> None:
        _, _, store = await run_daemon(tmp_path, PROTOCOL_WORKER + RESULT, cells=2, during=during)
        await store.aclose()

    anyio.run(main)
