"""The store, on real files: round trips, one end an attempt, all or nothing, cancellation, kill -9, a full disk."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, replace
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.attempts import Attempt, AttemptState, CellRecord, CellState, EndReason, attempt_id
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.history import NEWEST_KEPT, Duration, Observation
from boundd.core.model.outcomes import AttemptError, Measurement, Outcome, PointRecord, Verdict
from boundd.core.model.quarantines import device_subject
from boundd.core.model.records import (
    LiftQuarantine,
    Record,
    SaveAttempt,
    SaveCell,
    SaveDuration,
    SaveEnd,
    SaveObservation,
    SavePaused,
    SavePoint,
    SaveQuarantine,
)
from boundd.ports import EndedAttempt, InvariantError, Snapshot, Store, StoreBusyError, StoreError
from boundd.store.sqlite import SqliteStore
from tests.store.release import held

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


def cell(steps: int = 20) -> Cell:
    """A cell of a small matrix."""
    return Cell.of({"model": "digits-sd15", "steps": steps, "methods": ["tome"], "batch_size": 4}, ("model", "steps"))


def record(steps: int = 20) -> CellRecord:
    """A cell that was never run."""
    return CellRecord(cell(steps), CellPolicy())


def attempt(steps: int = 20, number: int = 1) -> Attempt:
    """A cell's n-th attempt, just begun."""
    about = cell(steps)
    return Attempt(
        id=attempt_id(about, number),
        key=about.key,
        label=about.label,
        number=number,
        device="GPU-0",
        reservation_bytes=3 * 1024**3,
        cap_bytes=None,
        batch_size=4,
        exclusive=False,
        timeout_s=60.0,
        grace_s=2.5,
        started_unix_s=1_700_000_000.25,
        started_boot_s=12.5,
    )


ERROR = AttemptError(ErrorKind.OUT_OF_MEMORY, "CUDA out of memory", 1_700_000_001.5, "baseline", 2**40, 7)
MEASURED = Measurement(2.5, None, {"ratio": 0.5, "nested": [1, {"a": None}]}, Isolation.EXCLUSIVE, 3.0, {"n": 1})


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """A store that is closed in the end."""
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.aclose()


async def reloaded(path: Path) -> Snapshot:
    """What another start of the daemon would find."""
    async with opened(path) as store:
        return await store.load()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a new store goes."""
    return tmp_path / "boundd.db"


async def test_a_new_store_is_empty(path: Path) -> None:
    """A new store knows nothing, is a Store, and leaves nothing but its own files behind."""
    async with opened(path) as store:
        port: Store = store
        assert await port.load() == Snapshot()
        assert await port.attempts_of("nothing") == ()
        await port.commit([])
    assert sorted(p.name for p in path.parent.iterdir()) == ["boundd.db", "boundd.db.commits"]


async def test_durability_settings(path: Path) -> None:
    """The connection syncs at every commit, through a write-ahead log, with references checked."""
    async with opened(path) as store:
        answers = [
            [tuple(row) for row in await store._connection.execute_fetchall(f"PRAGMA {name}")]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert answers == [[("wal",)], [(2,)], [(1,)], [(5000,)]]


async def test_cell_round_trip(path: Path) -> None:
    """All of a cell comes back but its policy and its backoff; a second save replaces the first, in its place."""
    full = CellRecord(
        cell(),
        CellPolicy(exclusive=True, timeout_s=1.0),
        CellState.SUCCEEDED,
        attempts=3,
        charged_failures=1,
        free_failures=2,
        memory_level=1,
        alone=True,
        batch_size=2,
        not_before_boot_s=99.0,
        error=ERROR,
        measurement=MEASURED,
        measured_device="GPU-1",
        measured_batch_size=2,
        duration_s=12.25,
    )
    async with opened(path) as store:
        await store.commit([SaveCell(record(20)), SaveCell(record(30))])
        await store.commit([SaveCell(full)])
    found = (await reloaded(path)).cells
    assert found == (replace(full, policy=CellPolicy(), not_before_boot_s=0.0), record(30))
    assert dict(found[0].cell.parameters) == dict(full.cell.parameters)
    assert Cell.of(found[0].cell.parameters, ("model", "steps")) == full.cell


async def test_live_attempt_round_trip(path: Path) -> None:
    """Every field of an attempt but what is seen anew comes back, none at its default; saved again, it is replaced."""
    first = attempt()
    last = replace(
        first,
        cap_bytes=2**33,
        exclusive=True,
        whole_device=True,
        had_company=True,
        foreign_seen=True,
        estimate_bytes=2**32,
        host_memory_bytes=2**31,
        cores=1,
        observed_peak_bytes=2**30,
        state=AttemptState.ENDING,
        end_reason=EndReason.PUT_BACK,
        progress_done=3,
        progress_total=9,
        points=2,
    )
    # Which of its processes can't be killed is seen anew after a restart; who was on its device meanwhile, never.
    not_kept = ("unkillable", "witnessed", "unattested")
    assert all(getattr(last, f.name) for f in fields(last) if f.name not in not_kept)
    async with opened(path) as store:
        await store.commit([SaveCell(record()), SaveAttempt(first)])
        assert (await store.load()).attempts == (first,)
        await store.commit([SaveAttempt(last)])
    assert (await reloaded(path)).attempts == (last,)


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(Outcome.SUCCEEDED, MEASURED, None, 0, None, 12.5, 2**31, 2**32),
        Verdict(Outcome.OUT_OF_MEMORY, None, ERROR, None, 9, 0.25),
        Verdict(Outcome.LOST),
    ],
    ids=lambda verdict: verdict.outcome.value,
)
async def test_end_round_trip(path: Path, verdict: Verdict) -> None:
    """An end comes back with the attempt as it ended; the attempt is no longer among the live ones."""
    live, ended = attempt(number=2), replace(attempt(), state=AttemptState.ENDED, points=1)
    async with opened(path) as store:
        await store.commit([SaveCell(record()), SaveAttempt(live), SaveAttempt(attempt())])
        await store.commit([SaveEnd(ended, verdict, 1_700_000_100.5)])
        assert await store.attempts_of(live.key) == (
            EndedAttempt(ended, verdict, 1_700_000_100.5),
            EndedAttempt(live, None, None),
        )
    assert (await reloaded(path)).attempts == (live,)


async def test_points_round_trip(path: Path) -> None:
    """Points come back by their index; reading a results file again after a restart does no harm."""
    points = [
        PointRecord({"ratio": 0.5}, 1.5, None, Isolation.CONTENDED),
        PointRecord({"ratio": [1, 2]}, 2.0, -0.25, Isolation.UNKNOWN, {"why": {"deep": None}}),
    ]
    saves = [SavePoint(attempt().id, index, point) for index, point in enumerate(points)]
    async with opened(path) as store:
        await store.commit([SaveCell(record()), SaveAttempt(attempt()), *reversed(saves)])
        await store.commit(saves)
        assert [ended.points for ended in await store.attempts_of(attempt().key)] == [tuple(points)]


async def test_a_history_is_read_by_the_page(path: Path) -> None:
    """The latest attempts, the latest below a number, none; each with its own end and points."""
    attempts = [attempt(number=n) for n in range(1, 6)]
    points = [SavePoint(each.id, 0, PointRecord({}, each.number, None, Isolation.UNKNOWN)) for each in attempts]
    ends = [SaveEnd(each, Verdict(Outcome.LOST, wall_s=each.number), float(each.number)) for each in attempts]
    async with opened(path) as store:
        await store.commit([SaveCell(record()), *map(SaveAttempt, attempts), *points, *ends])

        async def numbers(**page: int) -> list[int]:
            found = await store.attempts_of(record().cell.key, **page)
            for each in found:
                number = each.attempt.number
                assert each.verdict is not None
                assert (each.verdict.wall_s, each.ended_unix_s) == (number, number)
                assert [point.speedup for point in each.points] == [number]
            return [each.attempt.number for each in found]

        assert await numbers() == [1, 2, 3, 4, 5]
        assert await numbers(limit=2) == [4, 5]
        assert await numbers(limit=2, before=4) == [2, 3]
        assert await numbers(before=3) == [1, 2]
        assert await numbers(limit=0) == await numbers(before=1) == []


async def test_a_history_is_read_and_checked_once(path: Path) -> None:
    """However many attempts there are: a question for each would check the whole history as many times."""
    async with opened(path) as store:
        asked: dict[int, list[str]] = {}
        for count in (2, 40):
            attempts = [attempt(number=n) for n in range(1, count + 1)]
            points = [SavePoint(each.id, 0, PointRecord({}, 1.0, None, Isolation.UNKNOWN)) for each in attempts]
            await store.commit([SaveCell(record()), *map(SaveAttempt, attempts), *points])
            statements = asked[count] = []
            await store._connection.set_trace_callback(statements.append)
            assert [len(ended.points) for ended in await store.attempts_of(record().cell.key)] == count * [1]
            await store._connection.set_trace_callback(lambda _: None)
    assert len(asked[40]) == len(asked[2])


async def test_observations_cordons_and_pause_round_trip(path: Path) -> None:
    """Observations stay in order, a cordon is changed and lifted, and the pause is remembered."""
    learned = Observation("a", 1, 2**40, pixels=2**20, torch="2.13.0", host_peak_bytes=2**31, estimate_bytes=2**39)
    seen = (learned, Observation("a", 1, 5, censored=True), learned)
    took = (Duration("SD1.5", "tome", "Fake", 20, 32, 4, 71.5), Duration("SD1.5", "tome", "Fake", 20, 32, 4, 2.5))
    async with opened(path) as store:
        await store.commit([*map(SaveObservation, seen), *map(SaveDuration, took)])
        await store.commit([SaveQuarantine(held("GPU-0", "hot")), SaveQuarantine(held("GPU-1", "x")), SavePaused(True)])
        lifted = [LiftQuarantine(device_subject(uuid)) for uuid in ("GPU-1", "GPU-2")]
        await store.commit([SaveQuarantine(held("GPU-0", "hotter")), *lifted])
        assert await store.load() == Snapshot(
            observations=seen, durations=took, quarantines=(held("GPU-0", "hotter"),), paused=True
        )
        await store.commit([SavePaused(False)])
    assert await reloaded(path) == Snapshot(observations=seen, durations=took, quarantines=(held("GPU-0", "hotter"),))


async def test_only_the_newest_that_a_daemon_uses_are_loaded(path: Path) -> None:
    """Of each subject and each model the newest `NEWEST_KEPT`, in their order; the store keeps all of them."""
    seen = [Observation(subject, n, 5) for n in range(NEWEST_KEPT + 3) for subject in ("a", "b")]
    took = [Duration("SD1.5", "tome", "Fake", 20, 32, n, 1.0) for n in range(NEWEST_KEPT + 3)]
    async with opened(path) as store:
        await store.commit([*map(SaveObservation, seen), *map(SaveDuration, took)])
        known = await store.load()
        (count,) = await store._connection.execute_fetchall("SELECT count(*) FROM observations")
    assert known.observations == tuple(seen[6:])
    assert known.durations == tuple(took[3:])
    assert count[0] == len(seen)


async def test_facts(path: Path) -> None:
    """Facts outlive the connection, and don't share names with the daemon's switches."""
    async with opened(path) as store:
        assert await store.recall("paused") is None
        await store.remember("paused", "1")
        await store.remember("export", "a")
        await store.remember("export", "b")
    async with opened(path) as store:
        assert [await store.recall("export"), await store.recall("paused")] == ["b", "1"]
        assert not (await store.load()).paused


counts = st.integers(0, 2**62)
floats = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.text(), json_values, max_size=4)
records = st.builds(
    CellRecord,
    cell=st.builds(Cell, texts, texts, texts, mappings),
    policy=st.just(CellPolicy()),
    state=st.sampled_from(CellState),
    attempts=counts,
    charged_failures=counts,
    free_failures=counts,
    memory_level=counts,
    alone=st.booleans(),
    batch_size=st.none() | counts,
    not_before_boot_s=st.just(0.0),
    error=st.none()
    | st.builds(
        AttemptError,
        st.sampled_from(ErrorKind),
        texts,
        floats,
        st.none() | texts,
        st.none() | counts,
        st.none() | counts,
    ),
    measurement=st.none()
    | st.builds(
        Measurement,
        st.none() | finite,
        st.none() | finite,
        st.none() | mappings,
        st.sampled_from(Isolation),
        st.none() | finite,
        mappings,
    ),
    measured_device=texts,
    measured_batch_size=st.none() | counts,
    duration_s=st.none() | floats,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(records, min_size=1, max_size=4, unique_by=lambda each: each.cell.key))
def test_any_cell_record_round_trips(found: list[CellRecord]) -> None:
    """Whatever a cell's record holds comes back the same, its parameters included."""

    async def main() -> Snapshot:
        with tempfile.TemporaryDirectory() as folder:
            async with opened(Path(folder) / "boundd.db") as store:
                await store.commit([SaveCell(each) for each in found])
                return await store.load()

    cells = anyio.run(main).cells
    assert list(cells) == found
    assert [dict(each.cell.parameters) for each in cells] == [dict(each.cell.parameters) for each in found]


async def test_a_worker_s_odd_text_is_kept(path: Path) -> None:
    """NULs and lone surrogates in a message, which a worker's JSON can hold, don't stop the store."""
    odd = replace(record(), error=replace(ERROR, message="a\0b\ud800c", phase="\udfff"))
    async with opened(path) as store:
        await store.commit([SaveCell(odd)])
        error = (await store.load()).cells[0].error
    assert error is not None
    assert (error.message, error.phase) == ("a\0b?c", "?")


async def test_exactly_one_end(path: Path) -> None:
    """A second end is our error, and what came with it is not kept; the first one stands."""
    first, second = Verdict(Outcome.SUCCEEDED, MEASURED), Verdict(Outcome.LOST)
    async with opened(path) as store:
        await store.commit([SaveCell(record()), SaveAttempt(attempt()), SaveEnd(attempt(), first, 1.0)])
        with pytest.raises(InvariantError, match="nothing was kept"):
            await store.commit([SavePaused(True), SaveEnd(replace(attempt(), points=9), second, 2.0)])
        assert await store.attempts_of(attempt().key) == (EndedAttempt(attempt(), first, 1.0),)
        assert not (await store.load()).paused


@pytest.mark.parametrize(
    "bad",
    [
        SaveAttempt(attempt(steps=99)),
        SaveAttempt(replace(attempt(), id="another")),
        SavePoint("unknown", 0, PointRecord({}, 1.0, None, Isolation.UNKNOWN)),
        SavePoint(attempt().id, 0, PointRecord({}, float("nan"), None, Isolation.UNKNOWN)),
        SavePoint(attempt().id, 0, PointRecord({"x": float("nan")}, 1.0, None, Isolation.UNKNOWN)),
        SavePoint(attempt().id, 0, PointRecord({"x": object()}, 1.0, None, Isolation.UNKNOWN)),
        SaveObservation(Observation("a", 1, 2**63)),
        SaveCell(replace(record(), cell=Cell("\ud800", "d", "l", {}))),
        SaveCell(replace(record(), attempts=-1)),
    ],
    ids=[
        "attempt of no cell",
        "two attempts with one number",
        "point of no attempt",
        "NaN",
        "NaN in JSON",
        "no JSON",
        "over 64 bits",
        "a key that is not UTF-8",
        "negative count",
    ],
)
async def test_a_commit_is_all_or_nothing(path: Path, bad: Record) -> None:
    """One record that can't be kept, in the middle, and none is; the store goes on."""
    async with opened(path) as store:
        await store.commit([SaveCell(record()), SaveAttempt(attempt())])
        before = await store.load()
        with pytest.raises(InvariantError):
            await store.commit([SaveCell(record(30)), SavePaused(True), bad, SaveQuarantine(held("GPU-0", "x"))])
        assert not store._connection.in_transaction
        assert await store.load() == before
        await store.commit([SaveCell(record(30))])
        assert len((await store.load()).cells) == 2


async def test_records_of_a_commit_may_come_in_any_order(path: Path) -> None:
    """References are checked at the end of the transaction."""
    point = PointRecord({}, 1.0, None, Isolation.UNKNOWN)
    async with opened(path) as store:
        await store.commit([SavePoint(attempt().id, 0, point), SaveAttempt(attempt()), SaveCell(record())])
        assert [ended.points for ended in await store.attempts_of(attempt().key)] == [(point,)]


def whole(snapshot: Snapshot, count: int) -> bool:
    """Whether a commit of `count` cells is there; half of one fails."""
    assert len(snapshot.cells) in (0, count)
    return bool(snapshot.cells)


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_commit_is_not_split(path: Path, steps: int) -> None:
    """A scope cancelled at any point of a commit leaves all of it or none, and no open transaction."""
    many = [SaveCell(record(n)) for n in range(50)]
    done = False
    async with opened(path) as store:
        async with anyio.create_task_group() as group:

            async def work() -> None:
                nonlocal done
                await store.commit(many)
                done = True

            group.start_soon(work)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert not store._connection.in_transaction
        assert whole(await store.load(), 50) or not done
        await store.commit(many)
        assert whole(await store.load(), 50)


@pytest.mark.parametrize("delay_s", [0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004])
async def test_a_commit_cancelled_from_outside_anyio_is_not_split(path: Path, delay_s: float) -> None:
    """`Task.cancel`, even thrice, goes through the shield: still all or none, and no transaction stays open."""
    many = [SaveCell(record(n)) for n in range(50)]
    async with opened(path) as store:
        task = asyncio.ensure_future(store.commit(many))
        await asyncio.sleep(delay_s)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        whole(await store.load(), 50)
        await store.commit([SaveCell(record(n)) for n in range(50)])
        assert not store._connection.in_transaction
        assert whole(await store.load(), 50)


async def test_tasks_take_turns(path: Path) -> None:
    """Many tasks committing and loading at once don't collide on the connection."""
    async with opened(path) as store:
        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(store.commit, [SaveCell(record(n))])
                group.start_soon(store.load)
        assert len((await store.load()).cells) == 20


async def test_locked_by_another_process_is_passing(path: Path) -> None:
    """While somebody else writes, a commit is refused as busy; afterwards it is kept."""
    async with opened(path) as store:
        await store._connection.execute_fetchall("PRAGMA busy_timeout = 20")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusyError, match="locked"):
                await store.commit([SavePaused(True)])
            other.execute("ROLLBACK")
        await store.commit([SavePaused(True)])
        assert (await store.load()).paused


async def test_a_row_that_is_not_understood(path: Path) -> None:
    """A state that this version doesn't know is told as the store's fault, not as a crash of ours."""
    async with opened(path) as store:
        await store.commit([SaveCell(record())])
        await store._connection.execute_fetchall("UPDATE cells SET state = 'dancing'")
        with pytest.raises(StoreError, match="dancing"):
            await store.load()


async def test_closing_twice_and_using_a_closed_store(path: Path) -> None:
    """A second close does nothing; anything else after it is our error."""
    store = await SqliteStore.open(path)
    await store.aclose()
    await store.aclose()
    with pytest.raises(InvariantError, match="closed"):
        await store.load()
    with pytest.raises(InvariantError, match="closed"):
        await store.commit([SavePaused(True)])


_COMMIT_FOR_EVER = """
import sys
from pathlib import Path
import anyio
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.attempts import CellRecord
from boundd.core.model.records import SaveCell
from boundd.store.sqlite import SqliteStore
from tests.store.release import held

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    try:
        for n in range(1_000_000):
            pair = [SaveCell(CellRecord(Cell.of({"n": n, "half": half}, ("n",)), CellPolicy())) for half in (0, 1)]
            await store.commit(pair)
            print(n, flush=True)
    finally:
        await store.aclose()

anyio.run(main)
"""


@pytest.mark.parametrize("acknowledged", [1, 17, 60])
def test_kill_9_loses_no_acknowledged_commit(path: Path, acknowledged: int) -> None:
    """Every commit that returned before kill -9 is there, whole; so is, or isn't, the one that was under way."""
    command = [sys.executable, "-c", _COMMIT_FOR_EVER, str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    try:
        for _ in range(acknowledged):
            assert child.stdout.readline()
    finally:
        child.kill()
    last = acknowledged - 1 + len(child.stdout.read().split())
    child.wait()
    found = [each.cell.parameters["n"] for each in anyio.run(reloaded, path).cells]
    assert found in ([n for n in range(last + 1) for _ in (0, 1)], [n for n in range(last + 2) for _ in (0, 1)])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_is_passing(small_disk: Path) -> None:
    """On a full disk a commit is refused as busy and keeps nothing; with room again, the same store goes on."""
    path, junk = small_disk / "boundd.db", small_disk / "junk"
    large = [SaveCell(replace(record(n), measured_device="x" * 2000)) for n in range(100)]
    async with opened(path) as store:
        await store.commit([SaveCell(record(0))])
        with contextlib.suppress(OSError), junk.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        for _ in range(2):
            with pytest.raises(StoreBusyError, match=r"full|I/O"):
                await store.commit(large)
            assert not store._connection.in_transaction
            assert (await store.load()).cells == (record(0),)
        junk.unlink()
        await store.commit(large)
        assert len((await store.load()).cells) == 100
    assert len((await reloaded(path)).cells) == 100
