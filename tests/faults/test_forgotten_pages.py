"""An fsync that failed once: the next one succeeds although the data isn't on the disk, because the kernel forgot it.

Not injected but real: an ext4 in a file with holes on a tmpfs that is full. What the file can't take is an I/O error of
the block device, after which Linux takes the pages for clean; once there is room again, fsync has nothing to do, and
says so. What is on the disk is what the next mount reads. The first test is the control: neither a second fsync nor
writing the same again in its place brings the data to the disk. Seen to fail:

- `sync_written` of boundd/launch/shim/files.py with `os.fsync(descriptor)` for `_write_anew`: the results are zeros; so
  they are where it writes them again in their place.
- `_write_outcome` without `os.unlink(_OUTCOME_DRAFT)`: the outcome is zeros.
- `SqliteStore._checkpoint` that looks at no error, or `wal_autocheckpoint` as it was instead of it: the store
  is damaged, and no commit was refused.
- `SqliteStore._ready` without `rewrite`: the store is damaged, or lacks commits that were acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.records import SaveCell
from boundd.launch import records
from boundd.launch.shim import files
from boundd.ports import StoreBusyError
from boundd.store import sqlite
from boundd.store.sqlite import SqliteStore

TMPFS_BYTES, IMAGE_BYTES = 40 * 1024**2, 32 * 1024**2
MAKE = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")
LINES = b"".join(b'{"line": %d}\n' % n for n in range(20_000))
"""More than one of the pieces that are written anew."""
REMEMBERS = "on this kernel a disk that failed once does not lose what it is asked to sync again"
OUTCOME = {
    "format": 1,
    "exit_status": 5,
    "signal": None,
    "timed_out": False,
    "ended_on_request": False,
    "start_error": "",
    "wall_s": 1.5,
}


COMMITS, REFUSALS, FULL_COMMITS = 60, 3, 4
PADDING = "x" * 2000


class Disk:
    """An ext4 on a disk that can be full underneath it."""

    def __init__(self, folder: Path) -> None:
        self._below, self.mounted = folder / "below", folder / "mounted"
        self._below.mkdir()
        self.mounted.mkdir()
        self._filler = self._below / "filler"
        self._stack = contextlib.ExitStack()
        self._do("mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(self._below))
        self._stack.callback(self._do, "umount", "-l", str(self._below))
        image = self._below / "image"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        self._do(*MAKE, str(image))
        # All of it takes room now, and then what no file has is given back. So the journal and all else of the file
        # system's own keeps its room: had it none, ext4 would not forget but give up.
        image.write_bytes(image.read_bytes())
        self._mount()
        self._do("fstrim", str(self.mounted))

    @staticmethod
    def _do(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    def _mount(self) -> None:
        self._do("mount", "-o", "loop", str(self._below / "image"), str(self.mounted))
        self._stack.callback(self._do, "umount", str(self.mounted))

    def fill(self) -> None:
        """Let the block device take nothing that it hasn't got yet; what is on the way to it gets there first."""
        os.sync()
        free = os.statvfs(self._below)
        self._filler.write_bytes(bytes(free.f_bavail * free.f_frsize))

    def empty(self) -> None:
        """Give it room again."""
        self._filler.unlink(missing_ok=True)

    def mount_again(self) -> None:
        """Forget what is in memory; what is there now is what is on the disk."""
        self.empty()
        self._do("umount", str(self.mounted))
        self._do("mount", "-o", "loop", str(self._below / "image"), str(self.mounted))

    def close(self) -> None:
        """Unmount both."""
        self.empty()
        self._stack.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk, with no process in it afterwards."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    try:
        made = Disk(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"can't mount a file system here: {error.stderr.decode(errors='replace').strip()}")
    yield made
    made.close()


@pytest.fixture
def failures(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """The fsyncs that failed, each for real; the disk is well again as soon as one has."""
    seen: list[OSError] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        try:
            real(descriptor)
        except OSError as error:
            seen.append(error)
            disk.empty()
            raise

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


@pytest.mark.parametrize("again", [False, True], ids=["a second fsync", "and writing it again"])
def test_the_kernel_forgets(disk: Disk, failures: list[OSError], again: bool) -> None:
    """The controls: without anything of ours the next fsync says that all is well, and nothing is there. ext4 takes the
    blocks for unwritten whatever is written to them.
    """
    results = disk.mounted / "results.jsonl"
    results.touch()
    disk.fill()
    with results.open("wb", buffering=0) as file:
        file.write(LINES)
        with pytest.raises(OSError, match="Errno"):
            os.fsync(file.fileno())
        if again:
            os.pwrite(file.fileno(), LINES, 0)
        os.fsync(file.fileno())
    assert len(failures) == 1
    disk.mount_again()
    if results.read_bytes() == LINES:
        pytest.skip(REMEMBERS)


def test_results_are_written_anew(disk: Disk, failures: list[OSError]) -> None:
    """What the worker wrote is on the disk after a sync of it that failed at first."""
    results = disk.mounted / "results.jsonl"
    results.touch()
    disk.fill()
    results.write_bytes(LINES)
    results.chmod(0o640)
    files.sync_written(str(results))
    assert len(failures) == 1
    disk.mount_again()
    assert results.read_bytes() == LINES
    assert results.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in disk.mounted.glob("*jsonl*")] == ["results.jsonl"]


def test_an_outcome_is_written_anew(disk: Disk, failures: list[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try is of another file, to which no blocks belong that the kernel takes for unwritten."""
    folder = disk.mounted / "1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    files.reserve_outcome()
    disk.fill()
    files.write_outcome(dict(OUTCOME), lambda: True)
    assert len(failures) == 1
    monkeypatch.undo()
    disk.mount_again()
    end = records.read_outcome(folder)
    assert end is not None
    assert end.exit_status == 5


def numbered(n: int) -> SaveCell:
    """A cell that tells its number, and takes some room."""
    return SaveCell(CellRecord(Cell.of({"n": n, "padding": PADDING}, ["n"]), CellPolicy()))


async def found_by_the_next_mount(disk: Disk, path: Path) -> list[int]:
    """The numbers of the cells that are on the disk."""
    disk.mount_again()
    store = await SqliteStore.open(path)
    try:
        return sorted(int(str(record.cell.parameters["n"])) for record in (await store.load()).cells)
    finally:
        await store.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("full_at", [2, 10, 30])
async def test_a_store_goes_to_other_blocks(disk: Disk, full_at: int) -> None:
    """What was acknowledged before a disk failed, while it did and afterwards is there, and what was refused is not."""
    path = disk.mounted / "boundd.db"
    kept, refused = [], []
    store = await SqliteStore.open(path)
    for n in range(COMMITS):
        if n == full_at:
            disk.fill()
        try:
            await store.commit([numbered(n)])
        except StoreBusyError:
            refused.append(n)
            if len(refused) == REFUSALS:
                disk.empty()
        else:
            kept.append(n)
    assert len(refused) == REFUSALS, "the disk did not fail, or is not well again"
    await store.aclose()
    assert await found_by_the_next_mount(disk, path) == kept
    assert not list(disk.mounted.glob("*.new*"))


@pytest.mark.anyio
@pytest.mark.parametrize("full_at", [5, 10, 30])
async def test_a_checkpoint_that_fails_is_not_kept_quiet(
    disk: Disk, full_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has room, and the file has not: commits are kept while what is brought into the file is forgotten."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_STATEMENTS", 1)
    path = disk.mounted / "boundd.db"
    kept = []
    store = await SqliteStore.open(path)
    for n in range(COMMITS):
        if n == full_at:
            disk.fill()
        if n == full_at + FULL_COMMITS:
            disk.empty()
        with contextlib.suppress(StoreBusyError):
            await store.commit([numbered(n)])
            kept.append(n)
    assert len(kept) >= COMMITS - FULL_COMMITS
    await store.aclose()
    assert await found_by_the_next_mount(disk, path) == kept
