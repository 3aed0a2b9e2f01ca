"""Starts attempts on this machine, finds them again after a restart, ends them.

Everything that matters is on disk, in the attempt's folder, and in the kernel, in the attempt's lock: a launcher
keeps nothing that a second one, in the next daemon, would have to be told.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from boundd.launch import cgroups, processes, shim
from boundd.launch.records import RecordError, ShimRecord, read_outcome, read_shim
from boundd.launch.spawner import ShimSpawner
from boundd.ports import LaunchError, LaunchSpec, ProcessEnd, UnkillableProcess
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.regular_file import NotAFileError, open_regular, read_chunk, size_bytes

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0
_END_TIMEOUT_S = 5.0
_REPORT_TIMEOUT_S = 2.0
_LOG_TAIL_BYTES = 2000
_SHIM_LOG = "shim.log"
_RESULTS = "results.jsonl"
_FETCHING = "fetching"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class LocalLauncher:
    """A Launcher (see ports) whose attempts live in folders of `attempts_folder`, one each, named by their ids. The
    leases of devices are in folders of `leases_folder`, named by their UUIDs.

    Of one event loop; any number of launchers, in any number of processes, may look at the same attempts.
    """

    def __init__(
        self, attempts_folder: Path, groups: cgroups.Cgroups = cgroups.NONE, *, leases_folder: Path | None = None
    ) -> None:
        self._attempts_folder = attempts_folder.absolute()
        self._leases_folder = leases_folder
        self._cgroups = groups
        self._spawner = ShimSpawner(self._attempts_folder)
        self._ours: set[str] = set()
        """The attempts launched here and not seen to end."""
        self._failures: dict[str, int] = {}
        """How shims of ours ended that should not have: a status, or a signal's number below 0."""
        self._pipes: dict[str, int] = {}
        """What shims of ours said READY on: a pipe that ends with the shim, and that nobody has waited for yet."""

    def close(self) -> None:
        """End what starts shims; attempts go on."""
        self._spawner.close()
        while self._pipes:
            os.close(self._pipes.popitem()[1])

    async def launch(self, spec: LaunchSpec) -> None:
        """Start the attempt's shim; returns once it has taken over: from then on this process may die.

        What a crashed launch of the same id left behind is cleared away. The environment is passed as given, with where
        the attempt's files are.

        Raises:
            LaunchError: nothing was started: the attempt lives or has ended already, or the system refused.
        """
        # Not to be cut in two: a shim that nobody knows of would be the result.
        with anyio.CancelScope(shield=True):
            ready = await to_thread.run_sync(self._spawn, spec)
            self._ours.add(spec.attempt_id)
        said = b""
        try:
            await anyio.wait_readable(ready)
            said = os.read(ready, shim.START_FAILURE_BYTES)
            if said == shim.READY:
                self._pipes[spec.attempt_id] = ready
                return
        finally:
            if said != shim.READY:
                os.close(ready)
        how = _describe_exit(await self._failure(spec.attempt_id))
        self._failures.pop(spec.attempt_id, None)
        number, words = shim.parse_start_failure(said)
        why = words or _last_log_line(self._folder(spec.attempt_id))
        raise LaunchError(
            f"the shim of attempt {spec.attempt_id} {how} before it started the worker: {why}",
            transient=number in _DISK_ERRORS,
            errno=number or None,
        )

    async def wait(self, attempt_id: str) -> ProcessEnd:
        """How it ended, once nothing of the attempt is alive; for attempts of this launcher or of an earlier one.

        Any number of callers may wait for the same attempt, also after it has ended.

        Raises:
            OSError: the system refuses to tell (no descriptors left, an I/O error).
        """
        await self._wait_for_shim(attempt_id)
        try:
            outcome = self.outcome(attempt_id)
            if outcome is not None:
                self._ours.discard(attempt_id)
                return outcome
            reason = self._why_lost(attempt_id, await self._failure(attempt_id))
        except RecordError as error:
            reason = str(error)
        await self._kill_until_gone(attempt_id)
        return ProcessEnd(lost=reason)

    def outcome(self, attempt_id: str) -> ProcessEnd | None:
        """The outcome on disk; None where there is none (yet).

        Raises:
            RecordError: it is there and can't be understood.
            OSError: it can't be read.
        """
        return read_outcome(self._folder(attempt_id))

    def is_alive(self, attempt_id: str) -> bool:
        """Whether anything of the attempt lives, whoever started it.

        Raises:
            OSError: it can't be told.
        """
        return processes.lock_is_held(self._folder(attempt_id) / shim.LOCK)

    async def end(self, attempt_id: str) -> None:
        """Ask the shim for TERM, grace, KILL on the whole tree. Returns at once; `wait` tells when it is over.

        Asking again, or when it has ended, or when it was never started, changes nothing.

        Raises:
            OSError: the system refuses.
        """
        pause_s = _FIRST_PAUSE_S
        with anyio.move_on_after(_END_TIMEOUT_S):
            # Alive, and nobody to ask: the shim has yet to write its record, and until then it doesn't listen.
            while (record := self._record(attempt_id)) is None and self.is_alive(attempt_id):
                await anyio.sleep(pause_s)
                pause_s *= 2
        if record is None:
            return
        pidfd = self._open_shim(attempt_id, record)
        if pidfd is None:
            if self.is_alive(attempt_id):
                await to_thread.run_sync(self._kill_leftovers, attempt_id)
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    def why_not_endable(self, attempt_id: str) -> str:
        """Why a live attempt can only be waited for, and not asked to end; empty where it isn't so.

        Raises:
            OSError: it can't be told.
        """
        try:
            read_shim(self._folder(attempt_id))
        except RecordError as error:
            if self.is_alive(attempt_id):
                return f"who its shim is can't be told, so it is left alone until nothing of it lives: {error}"
        return ""

    def unkillable(self, attempt_id: str) -> frozenset[UnkillableProcess]:
        """Its processes that were sent KILL and are there all the same, as of now: most of them will be gone soon."""
        record = self._record(attempt_id)
        lock = self._folder(attempt_id) / shim.LOCK
        if record is not None and record.of_this_boot() and processes.tree(record, lock):
            # Ended threads and all: a process whose first thread is a zombie lives as long as another one doesn't end.
            return processes.unkillable(shim.descendants(record.pid, zombies=True))
        return processes.unkillable(self._leftovers(attempt_id)) if self.is_alive(attempt_id) else frozenset()

    def pids(self, attempt_id: str) -> frozenset[int]:
        """The host pids of the attempt's processes, its shim among them, as far as they can be told."""
        return self.pids_of([attempt_id])[attempt_id]

    def pids_of(self, attempt_ids: Iterable[str]) -> dict[str, frozenset[int]]:
        """The same of many attempts, in one look at the machine's processes."""
        wanted = list(attempt_ids)
        shims = {}
        for each in wanted:
            # A file that can't be read now tells nothing now; the next look is a second away.
            with contextlib.suppress(OSError):
                if (record := self._record(each)) and record.of_this_boot():
                    shims[each] = (record, self._folder(each) / shim.LOCK)
        found = processes.trees(shims)
        # Looking for what a dead shim left reads every process's descriptors: for when something is to be found.
        for each in shims:
            with contextlib.suppress(OSError):
                if not found[each] and self.is_alive(each):
                    found[each] = frozenset(stat.pid for stat in self._leftovers(each))
        return {each: found.get(each, frozenset()) for each in wanted}

    async def read_results(
        self, attempt_id: str, offset: int, max_bytes: int, *, only_while_alive: bool = False
    ) -> bytes:
        """Some of what the worker has appended to its results; see `boundd.ports.Launcher`."""

        def read() -> bytes:
            data = read_chunk(self.results_path(attempt_id), offset, max_bytes)
            # In this order: of a worker that still lives now, all that was read is from before its end.
            return b"" if data and only_while_alive and not self.worker_lives(attempt_id) else data

        return await to_thread.run_sync(read)

    async def read_log(self, attempt_id: str, offset: int, max_bytes: int) -> bytes:
        """Some of what the worker printed; see `boundd.ports.Launcher`."""
        return await to_thread.run_sync(read_chunk, self.log_path(attempt_id), offset, max_bytes)

    async def log_size_bytes(self, attempt_id: str) -> int | None:
        """How long the log is; None where there is none."""
        return await to_thread.run_sync(size_bytes, self.log_path(attempt_id))

    def worker_lives(self, attempt_id: str) -> bool:
        """Whether the worker's own process has yet to end, whatever it left behind; true where that can't be told.

        Raises:
            OSError: the system refuses to tell now.
        """
        record = self._record(attempt_id)
        if record is None or not record.of_this_boot():
            return record is None
        worker = shim.stat_of(record.worker_pid)
        return worker is not None and worker.start_ticks == record.worker_start_ticks and worker.state not in "ZX"

    def results_path(self, attempt_id: str) -> Path:
        """The file that the worker appends its lines to."""
        return self._folder(attempt_id) / _RESULTS

    def log_path(self, attempt_id: str) -> Path:
        """The file that the worker's two output streams end up in."""
        return self._folder(attempt_id) / shim.LOG

    def _folder(self, attempt_id: str) -> Path:
        if attempt_id in ("", ".", "..") or "/" in attempt_id or "\0" in attempt_id:
            raise ValueError(f"not an attempt's id: {attempt_id!r}")
        return self._attempts_folder / attempt_id

    def _spawn(self, spec: LaunchSpec) -> int:
        """In a thread: lock the folder, clear it, write the spec, start the shim.

        Returns the reading end of the pipe on which the shim says that it has taken over.
        """
        try:
            folder = self._folder(spec.attempt_id)
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / shim.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _take_lock(folder, lock, spec.attempt_id)
                # The environment may hold a token.
                place = str(folder / shim.SPEC)
                document = shim.checked(place, _spec_document(spec, self._environment(spec), self._cgroup(spec)))
                shim.write_atomically(place, document, mode=0o600)
                return self._start_shim(folder, lock)
            finally:
                # The shim has its own copy of the descriptor, and with it the lock.
                os.close(lock)
        except (OSError, ValueError, TypeError, subprocess.SubprocessError, cgroups.CgroupError) as error:
            number = error.errno if isinstance(error, OSError) else None
            message = f"attempt {spec.attempt_id} can't be started: {error}"
            raise LaunchError(message, transient=number in _DISK_ERRORS, errno=number) from error

    def _environment(self, spec: LaunchSpec) -> dict[str, str]:
        """The worker's environment, with where its files are; makes the folder of its lease."""
        earlier = (self.results_path(each) for each in spec.earlier_attempts)
        lease = None
        if spec.device and self._leases_folder is not None:
            lease = self._leases_folder / spec.device
            lease.mkdir(parents=True, exist_ok=True)
        files = WorkerEnvironment(
            results=self.results_path(spec.attempt_id),
            fetching=self._folder(spec.attempt_id) / _FETCHING,
            lease_folder=lease,
            earlier_results=tuple(path for path in earlier if path.exists()),
        )
        return {**spec.env, **files.to_environ()}

    def _cgroup(self, spec: LaunchSpec) -> str:
        """The path of the attempt's cgroup; empty where it has none.

        Raises:
            CgroupError: a limit can't be kept to.
        """
        limits = {"memory_max_bytes": spec.memory_max_bytes, "pids_max": spec.pids_max}
        return str(self._cgroups.make(spec.attempt_id, self._attempts_folder, **limits) or "")

    def _start_shim(self, folder: Path, lock: int) -> int:
        ready, ready_end = os.pipe()
        try:
            with (folder / _SHIM_LOG).open("wb") as shim_log:
                self._spawner.start(folder, lock, ready_end, shim_log.fileno())
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(ready_end)
        return ready

    def _record(self, attempt_id: str) -> ShimRecord | None:
        """Who the shim is; None where that is not known, or not to us."""
        try:
            return read_shim(self._folder(attempt_id))
        except RecordError:
            return None

    def _open_shim(self, attempt_id: str, record: ShimRecord | None) -> int | None:
        """A pidfd of the attempt's shim; None where it is gone or not known."""
        if record is None or not record.of_this_boot():
            return None
        pidfd = shim.open_verified(record.pid, record.start_ticks)
        # A clock tick is long: a stranger may have both the pid and the start. But the lock it can't have.
        if pidfd is not None and processes.holds(record.pid, self._folder(attempt_id) / shim.LOCK) is False:
            os.close(pidfd)
            return None
        return pidfd

    async def _wait_for_shim(self, attempt_id: str) -> None:
        # One that we started ourselves needs no looking up, and can't be mistaken for another.
        pipe = self._pipes.pop(attempt_id, None)
        if pipe is not None:
            try:
                await anyio.wait_readable(pipe)
            finally:
                os.close(pipe)
            # An ending process closes its descriptors in no order that is promised: the lock may be the last of them.
            pause_s = _FIRST_PAUSE_S
            while pause_s < _LONGEST_PAUSE_S and self.is_alive(attempt_id):
                await anyio.sleep(pause_s)
                pause_s *= 2
            return
        pause_s = _FIRST_PAUSE_S
        while True:
            # Read once: a record that appears between two looks would make a starting shim seem a dead one.
            record = self._record(attempt_id)
            pidfd = self._open_shim(attempt_id, record)
            if pidfd is not None:
                try:
                    await anyio.wait_readable(pidfd)
                finally:
                    os.close(pidfd)
                return
            if record is not None or not self.is_alive(attempt_id):
                return
            # Somebody holds the lock and we can't tell who: a shim that has yet to write its record, or one of a
            # later release. Its lock will tell.
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _kill_until_gone(self, attempt_id: str) -> None:
        """Kill what a dead shim left behind, until none of it is there: the kernel may take its time."""
        pause_s = _FIRST_PAUSE_S
        while await to_thread.run_sync(self._kill_leftovers, attempt_id) or self.is_alive(attempt_id):
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _kill_leftovers(self, attempt_id: str) -> int:
        """KILL what is left of an attempt without a shim; how many processes that were."""
        found = self._leftovers(attempt_id)
        processes.kill(found)
        record = self._record(attempt_id)
        if record is not None and record.cgroup and record.of_this_boot():
            # Who left everything that could name it as ours can't have left its cgroup.
            return len(found) + cgroups.kill(Path(record.cgroup))
        return len(found)

    def _leftovers(self, attempt_id: str) -> list[shim.Stat]:
        lock = self._folder(attempt_id) / shim.LOCK
        return processes.leftovers(lock, self.results_path(attempt_id), self._record(attempt_id))

    async def _failure(self, attempt_id: str) -> int | None:
        """How the attempt's shim ended that left no outcome; None where nobody can tell.

        Waits until whoever forked it has reaped it, so that it isn't there as a zombie either.
        """
        with anyio.move_on_after(_REPORT_TIMEOUT_S):
            while True:
                self._failures.update(self._spawner.failures())
                if attempt_id in self._failures or attempt_id not in self._ours or not self._spawner.is_up:
                    break
                await anyio.sleep(_FIRST_PAUSE_S)
        self._ours.discard(attempt_id)
        return self._failures.get(attempt_id)

    def _why_lost(self, attempt_id: str, code: int | None) -> str:
        """Why there is no outcome, in words; `code` is how the shim ended, where that is known.

        Raises:
            RecordError: shim.json is there and can't be understood.
        """
        folder = self._folder(attempt_id)
        record = read_shim(folder)
        if record is None:
            return "it was never started"
        if not record.of_this_boot():
            return "the machine was restarted while it ran"
        # The disk that takes no outcome may take no last words either.
        words = _last_log_line(folder) or (shim.GAVE_UP_MESSAGE if code == shim.GAVE_UP else "")
        return f"its shim (pid {record.pid}) {_describe_exit(code)}" + (f": {words}" if words else "")


def _describe_exit(code: int | None) -> str:
    """How a shim ended, in words."""
    if code is None:
        return "is gone without an outcome"
    return f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _take_lock(folder: Path, lock: int, attempt_id: str) -> None:
    """Take the lock, and clear away what a crashed launch left.

    Raises:
        LaunchError: the attempt lives, or has ended.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Most likely what a launch left that failed a moment ago: it ends by itself.
        raise LaunchError(f"attempt {attempt_id} is alive already", transient=True) from None
    if (folder / shim.OUTCOME).exists():
        # Hours of a GPU may be in there; whoever wants to start anew takes a new attempt.
        raise LaunchError(f"attempt {attempt_id} has ended already")
    for path in folder.iterdir():
        if path.name == shim.LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _spec_document(spec: LaunchSpec, env: dict[str, str], cgroup: str) -> dict[str, Any]:
    """spec.json.

    Raises:
        ValueError: the spec can't be executed.
    """
    if not spec.argv:
        raise ValueError("the command is empty")
    return {
        "format": shim.SPEC_FORMAT,
        "argv": list(spec.argv),
        "env": env,
        "cwd": str(spec.cwd),
        "timeout_s": spec.timeout_s,
        "grace_s": spec.grace_s,
        "fetch_timeout_s": spec.fetch_timeout_s,
        "cgroup": cgroup,
        "log_limit_bytes": spec.log_limit_bytes,
        "kept_lines": [dict(kind) for kind in spec.kept_lines],
    }


def _last_log_line(folder: Path) -> str:
    """The last line of what a failing shim said; empty where it said nothing."""
    try:
        file = open_regular(folder / _SHIM_LOG)
        if file is None:
            return ""
        with file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            lines = file.read(_LOG_TAIL_BYTES).decode(errors="replace").strip().splitlines()
    except (OSError, NotAFileError):
        return ""
    return lines[-1] if lines else ""
