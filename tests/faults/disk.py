"""Makes the n-th system call on boundd's files fail, in scenario after scenario, and counts what came of it.

Run by test_disk_errors.py with `diskfault.c` loaded by LD_PRELOAD. A scenario is run once undisturbed, which counts its
calls of each kind on its files; a point is then one kind, one of these calls (and, sometimes, a few after it) and one
error. The daemon is forked from this process, which has imported everything, so that a start costs little.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from boundd.cli.boundd import RunOptions
from boundd.composition import run as daemon_main
from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.events import Now
from boundd.core.model.records import SaveCell
from boundd.launch import processes, shim
from boundd.launch.local import LocalLauncher
from boundd.launch.prune import prune
from boundd.launch.records import RecordError, read_outcome
from boundd.ports import LaunchError, LaunchSpec, StoreBusyError, StoreError
from boundd.service.instance_lock import hold
from boundd.store import migrate, sqlite
from boundd.store.sqlite import SqliteStore
from boundd.telemetry.export_file import is_boundd_json, write_export

CONTROL_VARIABLE = "DISKFAULT_CONTROL"
KINDS = (
    *("open", "write", "pwrite", "fsync", "fdatasync", "rename", "ftruncate", "fallocate", "mkdir", "unlink", "pread"),
)
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EINTR")}
READS = ("pread",)
"""Kinds that a full disk does not fail."""
NO_EINTR = ("rename", "mkdir", "unlink", "ftruncate", "pread")
"""Kinds that no signal interrupts on a local file system."""
LENGTHS = (1, 1, 1, 5)
PATIENCE_S = 60.0
FINE, NOT_ALL, STORE = 0, 3, 5
CELLS = 2
LEFT_BEHIND_S = 0.2


class Control(ctypes.Structure):
    """`struct control` of diskfault.c, shared with every process that it is loaded into."""

    _fields_ = [
        ("counts", ctypes.c_int64 * 16),
        *((name, ctypes.c_int64) for name in ("kind", "first", "length", "error", "injected")),
        ("prefix", ctypes.c_char * 1024),
    ]


@dataclass(frozen=True, slots=True)
class Point:
    """What is made to fail."""

    scenario: str
    kind: str
    nth: int
    error: str
    length: int = 1


class WrongError(Exception):
    """Something that must not come of a fault did; the first word names what is counted."""


class Disk:
    """Arms and disarms the faults."""

    def __init__(self) -> None:
        with Path(os.environ[CONTROL_VARIABLE]).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self._control = Control.from_buffer(self._memory)

    @contextlib.contextmanager
    def failing(self, prefix: Path, point: Point | None) -> Iterator[None]:
        """Count the calls on what is below `prefix`, and make those of `point` fail."""
        control = self._control
        control.kind = -1
        control.counts[:] = [0] * 16
        control.injected = 0
        if point is not None:
            control.first, control.length, control.error = point.nth, point.length, ERRORS[point.error]
            control.kind = KINDS.index(point.kind)
        control.prefix = os.fsencode(prefix)
        try:
            yield
        finally:
            control.prefix = b""

    def counts(self) -> dict[str, int]:
        """The calls of each kind since it was armed."""
        return {kind: self._control.counts[i] for i, kind in enumerate(KINDS)}

    @property
    def injected(self) -> int:
        """How many calls failed."""
        return int(self._control.injected)


def has_ended(pid: int) -> bool:
    """Whether a child of ours has ended; it is reaped by whoever asks how."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


# The daemon's scenarios


class Daemons:
    """A state folder, and daemons on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.log = folder / "stderr"
        self.config = folder / "config.toml"
        self.cells, self.sleep_s, self.daemon_table, self.log_table = CELLS, 0.0, "", ""

    def configure(self) -> None:
        """Write the config anew."""
        self.folder.mkdir(exist_ok=True)
        self.config.write_text(
            f"""
[daemon]
state_dir = "{self.state}"
socket = "{self.folder}/socket"
export = "{self.state}/bounds.json"
disk_reserve = "0MiB"
{self.daemon_table}
[log]
{self.log_table}
[devices]
backend = "simulated"
[[devices.simulated]]
name = "Fake 24"
memory = "24GiB"
[matrix.axes]
n = [{", ".join(map(str, range(self.cells)))}]
[worker]
result = "stdout"
command = ["/bin/sh", "-c", "sleep {self.sleep_s}; echo speedup: 1.{{n}}"]
timeout = "60s"
grace = "1s"
"""
        )

    def start(self, *, until_idle: bool = True) -> int:
        """Fork a daemon; its pid."""
        pid = os.fork()
        if pid == 0:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
            options = RunOptions(self.config, until_idle=until_idle, log_format="json")
            os._exit(daemon_main.run(options))
        return pid

    def until_said(self, action: str, pid: int) -> None:
        """Until the log has a line of this action, or the daemon is at its end."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.said(action) and not has_ended(pid):
            if time.monotonic() > deadline:
                raise WrongError(f"wedged: no {action} in {PATIENCE_S:.0f} s")
            time.sleep(0.02)

    def said(self, action: str) -> list[dict[str, object]]:
        """The lines of an action in the log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines() if self.log.exists() else ():
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict) and told.get("event.action") == action:
                    found.append(told)
        return found

    def ended(self, pid: int) -> int:
        """How a daemon ended."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGABRT)
                os.waitpid(pid, 0)
                raise WrongError(f"wedged: it neither ended nor went on for {PATIENCE_S:.0f} s")
            time.sleep(0.01)

    def check_end(self, code: int) -> None:
        """A documented exit code, and words for it."""
        if self.said("internal-error"):
            raise WrongError(f"unclear: {self.said('internal-error')[-1]['message']}")
        if code not in (FINE, 1, NOT_ALL, STORE):
            raise WrongError(f"unclear: exit code {code}")
        if code in (1, STORE) and not self.said("store-unavailable"):
            raise WrongError(f"unclear: exit code {code} without a word")

    def finish(self) -> None:
        """With the disk well again, the next daemon measures what is left; then look at everything."""
        code = self.ended(self.start())
        if code != FINE:
            raise WrongError(f"lost: the next daemon ended with {code}: {self.why()}")
        self.check_results()

    def why(self) -> str:
        """What was told last of what went wrong."""
        told = [*self.said("cell-gave-up"), *self.said("attempt-ended"), *self.said("store-unavailable")]
        return "; ".join(f"{t.get('message')} {t.get('boundd.error_message', '')}" for t in told[-3:])

    def check_results(self) -> None:
        """Every cell has its own figure, every attempt one end, and what was told is stored."""

        async def look() -> None:
            store = await SqliteStore.open(self.state / "boundd.db")
            try:
                known = {}
                for record in (await store.load()).cells:
                    n = record.cell.parameters["n"]
                    speedup = record.measurement.max_speedup if record.measurement else None
                    if record.state is not CellState.SUCCEEDED or speedup != float(f"1.{n}"):
                        raise WrongError(f"lost: cell {n} is {record.state} with {speedup}")
                    for ended in await store.attempts_of(record.cell.key):
                        known[ended.attempt.id] = ended.verdict.outcome if ended.verdict else None
            finally:
                await store.aclose()
            for told in self.said("attempt-ended"):
                if known.get(str(told["boundd.attempt"])) != told["boundd.outcome"]:
                    raise WrongError(f"lost: {told['boundd.attempt']} was said to be {told['boundd.outcome']}")

        anyio.run(look)
        document = json.loads((self.state / "bounds.json").read_text())
        if sorted(cell["max_speedup"] for cell in document["cells"]) != [float(f"1.{n}") for n in range(self.cells)]:
            raise WrongError("lost: the export lacks results")
        for lock in (self.state / "attempts").glob(f"*/{shim.LOCK}"):
            if processes.lock_is_held(lock):
                raise WrongError(f"orphan: {lock} is held")


Scenario = Callable[[Disk, Path, "Point | None"], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Make it known by its name."""
    SCENARIOS[function.__name__] = function
    return function


def _run_with(
    disk: Disk, daemons: Daemons, point: Point | None, prefix: str = "", during: Callable[[int], None] | None = None
) -> None:
    """A daemon while the disk fails, and one after."""
    with disk.failing(daemons.state / prefix if prefix else daemons.state, point):
        pid = daemons.start(until_idle=during is None)
        if during is not None:
            during(pid)
        code = daemons.ended(pid)
    daemons.check_end(code)
    daemons.finish()


def _begun(folder: Path) -> Daemons:
    """A state whose first daemon was killed while a worker ran; the worker goes on for a moment."""
    daemons = Daemons(folder)
    daemons.sleep_s = LEFT_BEHIND_S
    daemons.configure()
    pid = daemons.start()
    daemons.until_said("attempt-started", pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return daemons


@scenario
def first_start(disk: Disk, folder: Path, point: Point | None) -> None:
    """Everything is made: folders, store, lock, attempts, export."""
    daemons = Daemons(folder)
    daemons.configure()
    _run_with(disk, daemons, point)


@scenario
def attempts_alone(disk: Disk, folder: Path, point: Point | None) -> None:
    """Faults in the attempts' folders only: spec.json, shim.json, the log, the outcome."""
    daemons = Daemons(folder)
    daemons.configure()
    _run_with(disk, daemons, point, "attempts")


@scenario
def store_alone(disk: Disk, folder: Path, point: Point | None) -> None:
    """Faults in the store's files only."""
    daemons = Daemons(folder)
    daemons.configure()
    _run_with(disk, daemons, point, "boundd.db")


@scenario
def leases(disk: Disk, folder: Path, point: Point | None) -> None:
    """Faults in making the leases' folders."""
    daemons = Daemons(folder)
    daemons.configure()
    _run_with(disk, daemons, point, "leases")


@scenario
def adoption(disk: Disk, folder: Path, point: Point | None) -> None:
    """A worker runs whose daemon was killed."""
    _run_with(disk, _begun(folder), point)


@scenario
def outcome_unread(disk: Disk, folder: Path, point: Point | None) -> None:
    """A worker ended while no daemon was there."""
    daemons = _begun(folder)
    deadline = time.monotonic() + PATIENCE_S
    while not list((daemons.state / "attempts").glob("*/outcome.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    _run_with(disk, daemons, point)


@scenario
def upgrade(disk: Disk, folder: Path, point: Point | None) -> None:
    """The store is one migration old."""
    daemons = Daemons(folder)
    daemons.configure()
    daemons.state.mkdir()
    migrations = migrate.read_migrations(migrate.migrations_folder())
    migrate.prepare(daemons.state / "boundd.db", migrations[:-1])
    _run_with(disk, daemons, point)


@scenario
def log_file(disk: Disk, folder: Path, point: Point | None) -> None:
    """The daemon's own log is on the disk that fails."""
    daemons = Daemons(folder)
    daemons.log_table = f'file = "{daemons.state}/boundd.log"'
    daemons.configure()
    with disk.failing(daemons.state / "boundd.log", point):
        code = daemons.ended(daemons.start())
    if code == 2 and daemons.said("config-rejected"):
        code = FINE  # it could not be opened, and that is said as what it is
    daemons.check_end(code)
    daemons.finish()


@scenario
def export(disk: Disk, folder: Path, point: Point | None) -> None:
    """Faults in writing the export."""
    daemons = Daemons(folder)
    daemons.configure()
    _run_with(disk, daemons, point, ".bounds.json")


@scenario
def pruning(disk: Disk, folder: Path, point: Point | None) -> None:
    """Old attempts' folders are removed at the start."""
    daemons = Daemons(folder)
    daemons.daemon_table = 'keep_logs = "0s"'
    daemons.configure()
    daemons.finish()
    daemons.cells += 1
    daemons.configure()
    _run_with(disk, daemons, point, "attempts")


@scenario
def reload(disk: Disk, folder: Path, point: Point | None) -> None:
    """SIGHUP brings one more cell."""
    daemons = Daemons(folder)
    daemons.sleep_s = 0.1
    daemons.configure()

    def during(pid: int) -> None:
        daemons.until_said("attempt-started", pid)
        daemons.cells += 1
        daemons.configure()
        os.kill(pid, signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE_S
        while len(daemons.said("cell-succeeded")) < daemons.cells and time.monotonic() < deadline:
            if has_ended(pid) or (daemons.said("store-unavailable") and not daemons.said("config-reloaded")):
                break  # a reload that could not be stored did not happen; the next start has the cell
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    _run_with(disk, daemons, point, "boundd.db", during)


@scenario
def stop_and_leave(disk: Disk, folder: Path, point: Point | None) -> None:
    """SIGTERM while a worker runs, which goes on."""
    daemons = Daemons(folder)
    daemons.sleep_s = LEFT_BEHIND_S
    daemons.configure()

    def during(pid: int) -> None:
        daemons.until_said("attempt-starting", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    _run_with(disk, daemons, point, "attempts", during)


@scenario
def stop_and_end(disk: Disk, folder: Path, point: Point | None) -> None:
    """SIGINT while a worker runs, which is ended."""
    daemons = Daemons(folder)
    daemons.sleep_s = LEFT_BEHIND_S
    daemons.configure()

    def during(pid: int) -> None:
        daemons.until_said("attempt-starting", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)

    _run_with(disk, daemons, point, "attempts", during)


# Scenarios of one part, in this process


def _record(n: int) -> CellRecord:
    return replace(CellRecord(Cell.of({"n": n % 7}, ["n"]), CellPolicy()), attempts=n)


async def _committed(path: Path, commits: int) -> tuple[int, int]:
    """Commit 1, 2, 3 and so on, each again until it is kept; the last that was kept, and the last that was tried."""
    kept = tried = 0
    store: SqliteStore | None = None
    for n in range(1, commits + 1):
        for _ in range(20):
            try:
                if store is None:
                    store = await SqliteStore.open(path)
                tried = n
                await store.commit([SaveCell(_record(n))])
            except StoreBusyError:
                continue
            kept = n
            break
        else:
            raise WrongError(f"wedged: commit {n} is refused for ever")
    assert store is not None
    await store.aclose()
    return kept, tried


async def _check_kept(path: Path, kept: int) -> None:
    store = await SqliteStore.open(path)
    try:
        found = {record.cell.parameters["n"]: record.attempts for record in (await store.load()).cells}
    finally:
        await store.aclose()
    wanted = {n % 7: n for n in range(max(1, kept - 6), kept + 1)}
    if found != wanted:
        raise WrongError(f"lost: {found} instead of {wanted}")


@scenario
def commits(disk: Disk, folder: Path, point: Point | None) -> None:
    """A store alone: opened, a few commits, closed."""
    folder.mkdir()
    path = folder / "boundd.db"
    with disk.failing(path, point):
        kept, _ = anyio.run(_committed, path, 5)
    anyio.run(_check_kept, path, kept)


@scenario
def checkpoints(disk: Disk, folder: Path, point: Point | None) -> None:
    """The log is brought to the database file after every few pages."""
    folder.mkdir()
    path = folder / "boundd.db"
    before = sqlite.CHECKPOINT_STATEMENTS
    sqlite.CHECKPOINT_STATEMENTS = 2  # type: ignore[misc]
    try:
        with disk.failing(path, point):
            kept, _ = anyio.run(_committed, path, 12)
    finally:
        sqlite.CHECKPOINT_STATEMENTS = before  # type: ignore[misc]
    anyio.run(_check_kept, path, kept)


@scenario
def refused_commits(disk: Disk, folder: Path, point: Point | None) -> None:
    """A commit that was refused is not there after a kill; nothing acknowledged is missing."""
    folder.mkdir()
    path = folder / "boundd.db"
    copy = folder / "copy"

    async def main() -> None:
        refused, kept = False, 0
        store = await SqliteStore.open(path)
        try:
            with disk.failing(path, point):
                for n in range(1, 5):
                    try:
                        await store.commit([SaveCell(_record(n))])
                    except StoreBusyError:
                        refused = True
                        break
                    kept = n
            # As kill -9 would leave it.
            copy.mkdir()
            for file in folder.glob("boundd.db*"):  # noqa: ASYNC240
                shutil.copy(file, copy / file.name)
            if refused or kept:
                with contextlib.closing(sqlite3.connect(copy / "boundd.db")) as connection:
                    found = connection.execute("SELECT max(attempts) FROM cells").fetchone()[0] or 0
                if found < kept:
                    raise WrongError(f"lost: {kept} was acknowledged, {found} is there")
                if found > kept and point is not None and point.length == 1:
                    raise WrongError(f"resurrected: {found} is there, and was refused")
        finally:
            await store.aclose()

    anyio.run(main)


@scenario
def loading(disk: Disk, folder: Path, point: Point | None) -> None:
    """A store is opened and read."""
    folder.mkdir()
    path = folder / "boundd.db"
    anyio.run(_committed, path, 5)

    async def main() -> None:
        for _ in range(20):
            try:
                store = await SqliteStore.open(path)
            except StoreBusyError:
                continue
            try:
                await store.load()
            except StoreBusyError:
                continue
            else:
                return
            finally:
                await store.aclose()
        raise WrongError("wedged: it can't be opened any more")

    with disk.failing(path, point):
        anyio.run(main)
    anyio.run(_check_kept, path, 5)


@scenario
def backup_copy(disk: Disk, folder: Path, point: Point | None) -> None:
    """An upgrade copies the store first; a copy is whole or not there."""
    folder.mkdir()
    path = folder / "boundd.db"
    migrations = migrate.read_migrations(migrate.migrations_folder())
    migrate.prepare(path, migrations[:-1])
    with disk.failing(folder, point):
        for _ in range(20):
            try:
                migrate.prepare(path)
            except StoreBusyError:
                continue
            break
        else:
            raise WrongError("wedged: it can't be upgraded any more")
    for each in [path, *(p for p in folder.glob("*.before-????*") if p.suffix != ".new")]:
        with contextlib.closing(sqlite3.connect(each)) as connection:
            if [row[0] for row in connection.execute("PRAGMA integrity_check")] != ["ok"]:
                raise WrongError(f"torn: {each.name}")
    anyio.run(_check_kept, path, 0)


@scenario
def export_file(disk: Disk, folder: Path, point: Point | None) -> None:
    """The export is the old or the new one."""
    folder.mkdir()
    path = folder / "bounds.json"
    texts = [json.dumps({"format": "boundd/1", "n": n, "padding": "x" * 9000}) for n in range(3)]
    write_export(path, texts[0], is_boundd_json)
    with disk.failing(folder, point):
        for text in texts[1:]:
            for _ in range(20):
                with contextlib.suppress(OSError):
                    write_export(path, text, is_boundd_json)
                    break
                with contextlib.suppress(OSError):
                    if path.read_text() not in texts:
                        raise WrongError("torn: the export is neither the old nor the new one")
            else:
                raise WrongError("wedged: the export can't be written any more")
    if path.read_text() != texts[-1]:
        raise WrongError("lost: the export is an old one")


HOLD = """
import pathlib, sys
from boundd.ports import AlreadyRunningError
from boundd.service.instance_lock import hold
try:
    with hold(pathlib.Path(sys.argv[1])):
        pass
except AlreadyRunningError as error:
    print(error)
"""


@scenario
def hold_lock(disk: Disk, folder: Path, point: Point | None) -> None:
    """The state's lock is taken, and taken again."""
    folder.mkdir()
    with disk.failing(folder, point):
        for _ in range(20):
            try:
                with hold(folder):
                    break
            except StoreBusyError:
                continue
        else:
            raise WrongError("wedged: it can't be held any more")
    with hold(folder):
        # Another process: the one that holds a state may hold it twice.
        said = subprocess.run(
            [sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True, check=True
        ).stdout
        if str(os.getpid()) not in said:
            raise WrongError(f"lost: two hold one state, or who does is not said: {said!r}")


@scenario
def shims(disk: Disk, folder: Path, point: Point | None) -> None:
    """Attempts started and ended by the launcher alone."""

    async def main() -> None:
        launcher = LocalLauncher(folder / "attempts")
        try:
            with anyio.fail_after(PATIENCE_S):
                for _ in range(20):
                    try:
                        await launcher.launch(
                            LaunchSpec(
                                *("1", ("/bin/sh", "-c", "echo speedup: 1.5")),
                                *({"PATH": "/usr/bin:/bin"}, Path("/"), 60.0, 0.3),
                            )
                        )
                    except LaunchError as error:
                        if not error.transient:
                            raise WrongError(f"unclear: {error}") from error
                        await anyio.sleep(0.05)
                        continue
                    break
                else:
                    raise WrongError("wedged: nothing can be started any more")
                while True:
                    try:
                        end = await launcher.wait("1")
                    except OSError:
                        continue
                    break
        except TimeoutError:
            raise WrongError(f"wedged: no end in {PATIENCE_S:.0f} s") from None
        finally:
            launcher.close()
        if end.exit_status != 0:
            raise WrongError(f"lost: {end}")
        if "speedup: 1.5" not in launcher.log_path("1").read_text():
            raise WrongError("lost: the output")

    folder.mkdir()
    with disk.failing(folder / "attempts", point):
        anyio.run(main)
    try:
        if read_outcome(folder / "attempts" / "1") is None:
            raise WrongError("lost: no outcome")
    except RecordError as error:
        raise WrongError(f"torn: {error}") from error


@scenario
def prune_alone(disk: Disk, folder: Path, point: Point | None) -> None:
    """Old folders are removed; those of live attempts never."""
    for name in ("old", "live"):
        (folder / name).mkdir(parents=True)
        (folder / name / "outcome.json").write_text("{}")
    with disk.failing(folder, point), contextlib.suppress(OSError):
        prune(folder, {"live"}, 0.0, Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time() + 9))
    prune(folder, {"live"}, 0.0, Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time() + 9))
    if not (folder / "live" / "outcome.json").exists():
        raise WrongError("lost: a live attempt's folder")


# Points


def points_of(name: str, counts: dict[str, int]) -> list[Point]:
    """Every point of a scenario."""
    return [
        Point(name, kind, nth, error)
        for kind, count in counts.items()
        for nth in range(1, count + 1)
        for error in ERRORS
        if not (error == "ENOSPC" and kind in READS) and not (error == "EINTR" and kind in NO_EINTR)
    ]


def run_point(disk: Disk, folder: Path, point: Point, counts: Counter[str], trouble: list[str]) -> None:
    """One fault, and what came of it."""
    try:
        SCENARIOS[point.scenario](disk, folder, point)
    except (WrongError, StoreError, AssertionError, OSError) as error:
        words = str(error) if isinstance(error, WrongError) else f"unclear: {type(error).__name__}: {error}"
        counts[words.split(":")[0]] += 1
        trouble.append(f"{point}: {words}")
        told = folder / "stderr"
        if os.environ.get("DISKFAULT_DEBUG") and told.exists():
            sys.stderr.write(told.read_text()[-3000:])
    counts["points"] += 1
    counts["injected"] += disk.injected > 0
    counts["calls_failed"] += disk.injected
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run the points, and print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, required=True, help="0 for every one of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", default="0/1", help="which part of the points, of how many")
    parser.add_argument("--only", default="", help="a scenario, or a point: SCENARIO,KIND,NTH,ERROR[,LENGTH]")
    given = parser.parse_args()
    disk, chance = Disk(), random.Random(given.seed)
    counts: Counter[str] = Counter()
    trouble: list[str] = []
    part, parts = map(int, given.share.split("/"))
    fields = given.only.split(",")
    names = [fields[0]] if given.only else list(SCENARIOS)
    every: dict[str, list[Point]] = {}
    for name in names[part::parts]:
        SCENARIOS[name](disk, given.folder / name, None)
        every[name] = points_of(name, disk.counts())
        shutil.rmtree(given.folder / name, ignore_errors=True)
    if len(fields) > 1:
        every = {fields[0]: [Point(fields[0], fields[1], int(fields[2]), fields[3], int((*fields, "1")[4]))]}
    counts["scenarios"] = len(every)
    counts["points_there"] = sum(map(len, every.values()))
    if given.points and len(fields) == 1:
        chosen = [
            replace(chance.choice(every[name]), length=chance.choice(LENGTHS))
            for i in range(given.points)
            for name in [list(every)[i % len(every)]]
        ]
    else:
        chosen = [point for found in every.values() for point in found]
    for number, point in enumerate(chosen):
        run_point(disk, given.folder / f"{number}", point, counts, trouble)
    print(json.dumps({"counts": counts, "trouble": trouble[:30]}))


if __name__ == "__main__":
    main()
