"""kill -9 at the system calls of the very first creation of a store, and of an upgrade: the next start just works.

strace is attached to a process that makes or upgrades a store and kills it as it enters its n-th call of a kind, for
every n until the process ends by itself; then a second start has to succeed, with the data of the first, and to leave
nothing half-made. After every second kill of an upgrade that start is by the release before, as long as that can read
the store: whoever gives an upgrade up finds no rest of it either.

Seen to fail: `migrate._create` that makes the store at `path` itself instead of `temporary` (a kill leaves what the
next start refuses: 32 of 61 points); without the loop over `.before-*.new` in `_sweep` (halves of copies are left).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from boundd.ports import StoreError
from boundd.store.migrate import migrations_folder, prepare, read_migrations
from tests.faults import campaign
from tests.store.test_released import RELEASED, moved, rows

CALLS = ("openat", "pwrite64", "write", "fsync", "fdatasync", "rename", "unlink", "ftruncate")
PATIENCE_S = 60.0

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (Debian: strace)")


def killed_at(path: Path, call: str, number: int) -> bool:
    """Make or upgrade the store at `path`, killed at its n-th such call; False where it ended before that."""
    gate, gate_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(gate_end)
            os.read(gate, 1)
            prepare(path)
            status = 0
        finally:
            os._exit(status)
    os.close(gate)
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    tracer = subprocess.Popen(["strace", "-p", str(child), "-o", os.devnull, *inject], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
            if tracer.poll() is not None or time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                pytest.skip("strace may not attach to processes here (ptrace is restricted)")
            time.sleep(0.001)
        os.write(gate_end, b"g")
        _, status = os.waitpid(child, 0)
    finally:
        os.close(gate_end)
        tracer.wait(PATIENCE_S)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def points(stride: int) -> Iterator[tuple[str, int]]:
    """Every `stride`-th call of each kind, without an end; the first ones of those that are few."""
    for call in CALLS:
        step = stride if call in ("openat", "pwrite64", "write") else 1
        yield from ((call, number) for number in range(1, 10_000, step))


def sweep(folder: Path, begin: Path | None, stride: int) -> tuple[int, list[str]]:
    """How many points there were, and what was wrong after which."""
    # Of a copy: SQLite leaves files beside what it reads.
    before = None if begin is None else rows(Path(shutil.copy(begin, folder / "released.db")))
    ended: set[str] = set()
    count, wrong = 0, []
    for call, number in points(stride):
        if call in ended:
            continue
        state = folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        path = state / "boundd.db"
        if begin is not None:
            shutil.copy(begin, path)
        if not killed_at(path, call, number):
            ended.add(call)
            continue
        count += 1
        try:
            start_again(path, begin, gives_up=count % 2 == 1)
            wrong += [f"{call} {number}: {problem}" for problem in problems(path, before)]
        except Exception as error:
            wrong.append(f"{call} {number}: {type(error).__name__}: {error}")
    return count, wrong


def start_again(path: Path, begin: Path | None, *, gives_up: bool) -> None:
    """The second start: by this release, or by the one that made `begin`, where it still can."""
    if begin is not None and gives_up:
        try:
            prepare(path, read_migrations(migrations_folder())[: int(begin.stem)])
        except StoreError as error:
            if "made by a newer boundd" not in str(error):
                raise
        else:
            return
    prepare(path)


def problems(path: Path, before: dict[str, list[dict[str, object]]] | None) -> list[str]:
    """What a second start should not have left, or lost."""
    left = sorted(each.name for each in path.parent.iterdir() if each != path)
    copies = [name for name in left if ".before-" in name and ".new" not in name]
    found = [f"left {name}" for name in left if name not in copies and not name.endswith(("-wal", "-shm"))]
    for name in (path.name, *copies):
        # A copy from between two migrations has columns more, and no row and no value less.
        after = rows(path.with_name(name))
        for table, old in moved(before or {}, after).items():
            kept = [row for row in after[table] if row.get("name") != "store"]
            if [{column: row[column] for column in was} for was, row in zip(old, kept, strict=True)] != old:
                found.append(f"{table} of {name} has changed")
    return found


@campaign.sizes("share", short=1, long=7)
def test_creation(tmp_path: Path, share: int) -> None:
    """What a kill during the very first creation leaves is no hindrance to the next start, and is gone after it."""
    count, wrong = sweep(tmp_path, None, max(1, 8 - share))
    print(f"kill -9 while a store is made: points {count}, refused or left over {len(wrong)}")
    assert not wrong, "\n".join(wrong)
    assert count >= 15


@campaign.sizes("share", short=1, long=7)
def test_upgrade(tmp_path: Path, share: int) -> None:
    """A kill during an upgrade loses nothing, and the next start does the rest of it."""
    count, wrong = sweep(tmp_path, RELEASED / "0001.db", max(1, 15 - 2 * share))
    print(f"kill -9 while a store is upgraded: points {count}, refused, changed or left over {len(wrong)}")
    assert not wrong, "\n".join(wrong)
    assert count >= 15
