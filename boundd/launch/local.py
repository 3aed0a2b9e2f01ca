"""Starts attempts on this machine, finds them again after a restart, ends them.

Everything that matters is on disk, in the attempt's folder, and in the kernel, in the attempt's lock: a launcher
keeps nothing that a second one, in the next daemon, would have to be told.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from boundd.launch import processes, shim
from boundd.launch.records import RecordError, ShimRecord, read_outcome, read_shim
from boundd.ports import LaunchError, LaunchSpec, ProcessEnd

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0
_END_PATIENCE_S = 5.0
_TOLD_BYTES = 2000
_COMPLAINTS = "shim.log"
_RESULTS = "results.jsonl"


class LocalLauncher:
    """A Launcher (see ports) whose attempts live in folders of `attempts_folder`, one each, named by their ids.

    Of one event loop; any number of launchers, in any number of processes, may look at the same attempts.
    """

    def __init__(self, attempts_folder: Path) -> None:
        self._attempts_folder = attempts_folder.absolute()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._failures: dict[str, int] = {}
        """How shims of ours ended that should not have: a status, or a signal's number below 0."""

    async def launch(self, spec: LaunchSpec) -> None:
        """Start the attempt's shim; returns once it has taken over: from then on this process may die.

        What a crashed launch of the same id left behind is cleared away. The environment is passed as given.

        Raises:
            LaunchError: nothing was started: the attempt lives or has ended already, or the system refused.
        """
        self._reap()
        # Not to be cut in two: a shim that nobody knows of would be the result.
        with anyio.CancelScope(shield=True):
            child, ready = await to_thread.run_sync(self._spawn, spec)
            self._children[spec.attempt_id] = child
        try:
            await anyio.wait_readable(ready)
            said = os.read(ready, _TOLD_BYTES)
            if said == shim.READY:
                return
        finally:
            os.close(ready)
        await _until_exit(child)
        self._reap()
        self._failures.pop(spec.attempt_id, None)
        raise LaunchError(
            f"the shim of attempt {spec.attempt_id} ended with status {child.returncode} before it started the worker: "
            f"{said.decode(errors='replace') or _last_words(spec.folder)}"
        )

    async def wait(self, attempt_id: str) -> ProcessEnd:
        """How it ended, once nothing of the attempt is alive; for attempts of this launcher or of an earlier one.

        Any number of callers may wait for the same attempt, also after it has ended.

        Raises:
            OSError: the system refuses to tell (no descriptors left, an I/O error).
        """
        await self._until_shim_gone(attempt_id)
        try:
            outcome = self.outcome(attempt_id)
            if outcome is not None:
                return outcome
            reason = self._why_lost(attempt_id)
        except RecordError as error:
            reason = str(error)
        await self._until_nothing_left(attempt_id)
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
        self._reap()
        return processes.lock_is_held(self._folder(attempt_id) / shim.LOCK)

    async def end(self, attempt_id: str) -> None:
        """Ask the shim for TERM, grace, KILL on the whole tree. Returns at once; `wait` tells when it is over.

        Asking again, or when it has ended, or when it was never started, changes nothing.

        Raises:
            OSError: the system refuses.
        """
        pause_s = _FIRST_PAUSE_S
        with anyio.move_on_after(_END_PATIENCE_S):
            # Alive, and nobody to ask: the shim has yet to write its record, and until then it doesn't listen.
            while (record := self._record(attempt_id)) is None and self.is_alive(attempt_id):
                await anyio.sleep(pause_s)
                pause_s *= 2
        if record is None:
            return
        pidfd = self._open_shim(attempt_id, record)
        if pidfd is None:
            if self.is_alive(attempt_id):
                await to_thread.run_sync(self._kill_remnants, attempt_id)
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    def pids(self, attempt_id: str) -> frozenset[int]:
        """The host pids of the attempt's processes, its shim among them, as far as they can be told."""
        record = self._record(attempt_id)
        if record is None or not record.of_this_boot():
            return frozenset()
        return processes.tree(record) or frozenset(stat.pid for stat in self._remnants(attempt_id))

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

    def _spawn(self, spec: LaunchSpec) -> tuple[subprocess.Popen[bytes], int]:
        """In a thread: lock the folder, clear it, write the spec, start the shim.

        Returns the shim and the reading end of the pipe on which it says that it has taken over.
        """
        try:
            folder = self._folder(spec.attempt_id)
            if spec.folder.absolute() != folder:
                raise LaunchError(f"the folder of attempt {spec.attempt_id} is {folder}, not {spec.folder}")
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / shim.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _claim(folder, lock, spec.attempt_id)
                # The environment may hold a token.
                shim.write_atomically(str(folder / shim.SPEC), _spec_document(spec, lock), mode=0o600)
                return _start_shim(folder, lock)
            finally:
                # The shim has its own copy of the descriptor, and with it the lock.
                os.close(lock)
        except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
            raise LaunchError(f"attempt {spec.attempt_id} can't be started: {error}") from error

    def _record(self, attempt_id: str) -> ShimRecord | None:
        """Who the shim is; None where that is not known, or not to us."""
        try:
            return read_shim(self._folder(attempt_id))
        except RecordError:
            return None

    def _open_shim(self, attempt_id: str, record: ShimRecord | None) -> int | None:
        """A pidfd of the attempt's shim; None where it is gone or not known."""
        child = self._children.get(attempt_id)
        if child is not None and child.poll() is None:
            # A child that has not been reaped keeps its pid.
            return os.pidfd_open(child.pid)
        if record is None or not record.of_this_boot():
            return None
        return shim.open_verified(record.pid, record.start_ticks)

    async def _until_shim_gone(self, attempt_id: str) -> None:
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
                self._reap()
                return
            if record is not None or not self.is_alive(attempt_id):
                return
            # Somebody holds the lock and we can't tell who: a shim that has yet to write its record, or one of a
            # later release. Its lock will tell.
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _until_nothing_left(self, attempt_id: str) -> None:
        """Kill what a dead shim left behind, until none of it is there: the kernel may take its time."""
        pause_s = _FIRST_PAUSE_S
        while await to_thread.run_sync(self._kill_remnants, attempt_id) or self.is_alive(attempt_id):
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _kill_remnants(self, attempt_id: str) -> int:
        """KILL what is left of an attempt without a shim; how many processes that were."""
        found = self._remnants(attempt_id)
        processes.kill(found)
        return len(found)

    def _remnants(self, attempt_id: str) -> list[shim.Stat]:
        lock = self._folder(attempt_id) / shim.LOCK
        return processes.remnants(lock, self.results_path(attempt_id), self._record(attempt_id))

    def _why_lost(self, attempt_id: str) -> str:
        """Why there is no outcome, in words.

        Raises:
            RecordError: shim.json is there and can't be understood.
        """
        folder = self._folder(attempt_id)
        record = read_shim(folder)
        if record is None:
            return "it was never started"
        if not record.of_this_boot():
            return "the machine was restarted while it ran"
        how = "is gone without an outcome"
        code = self._failures.get(attempt_id)
        if code is not None:
            how = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        words = _last_words(folder)
        return f"its shim (pid {record.pid}) {how}" + (f": {words}" if words else "")

    def _reap(self) -> None:
        """Take the exits of shims of ours, waited for or not, so that none stays a zombie."""
        for attempt_id, child in list(self._children.items()):
            code = child.poll()
            if code is not None:
                del self._children[attempt_id]
            if code:
                self._failures[attempt_id] = code


async def _until_exit(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        pidfd = os.pidfd_open(child.pid)
        try:
            await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        child.poll()


def _claim(folder: Path, lock: int, attempt_id: str) -> None:
    """Take the lock, and clear away what a crashed launch left.

    Raises:
        LaunchError: the attempt lives, or has ended.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LaunchError(f"attempt {attempt_id} is alive already") from None
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


def _spec_document(spec: LaunchSpec, lock: int) -> dict[str, Any]:
    """spec.json.

    Raises:
        ValueError: the spec can't be executed.
    """
    if not spec.argv:
        raise ValueError("the command is empty")
    return {
        "format": shim.FORMAT,
        "argv": list(spec.argv),
        "env": dict(spec.env),
        "cwd": str(spec.cwd),
        "timeout_s": spec.timeout_s,
        "grace_s": spec.grace_s,
        "log_limit_bytes": spec.log_limit_bytes,
        "lock_descriptor": lock,
    }


def _start_shim(folder: Path, lock: int) -> tuple[subprocess.Popen[bytes], int]:
    ready, ready_end = os.pipe()
    try:
        with (folder / _COMPLAINTS).open("wb") as complaints:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(shim.__file__).absolute()), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=ready_end,
                stderr=complaints,
                pass_fds=(lock,),
                start_new_session=True,
            )
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(ready_end)
    return child, ready


def _last_words(folder: Path) -> str:
    """The last line of what a failing shim said; empty where it said nothing."""
    try:
        lines = (folder / _COMPLAINTS).read_bytes()[-_TOLD_BYTES:].decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
