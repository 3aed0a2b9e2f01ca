"""One attempt, seen through by its shim."""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: PTH116, SIM105

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
from typing import Any

from .files import (
    LOCK,
    LOG,
    OUTCOME_FORMAT,
    OUTCOME_RETRIES,
    OUTCOME_RETRY_S,
    READY,
    SHIM,
    SHIM_FORMAT,
    SPEC,
    checked,
    is_folder_gone,
    read_spec,
    reserve_outcome,
    start_failure,
    sync_written,
    write_atomically,
    write_outcome,
)
from .identity import boot_id, descendants, signal_verified, stat_of
from .kernel import (
    PR_SET_CHILD_SUBREAPER,
    file_size,
    handle_signals,
    kill_cgroup,
    machine_oom_kills,
    now_s,
    prctl,
    read_keyed,
    read_number,
    remove_cgroup,
    set_process_name,
)
from .lease import FetchWatch, LeaseWatch
from .log import CappedLog
from .worker import Worker, discard_worker, fork_worker, start_worker, why_not_started

NAME = "boundd-shim"
"""What `ps -o comm` and `top` call it: its arguments are those of the zygote that forked it."""
_READ_BYTES = 65536
_LOG_RETRIES = 2
_LAST_DRAIN_BYTES = 4 * 1024**2
_LONGEST_POLL_S = 10.0
_KILL_PAUSE_S = 0.02
_KILL_PAUSE_MAX_S = 1.0
_KILL_PASSES = 50


class Shim:
    """One attempt, from its fork until nothing is left of it. The current folder is the attempt's."""

    def __init__(self, spec: dict[str, Any], lock: int, worker: Worker) -> None:
        self._argv: list[str] = spec["argv"]
        self._env: dict[str, str] = spec["env"]
        self._cwd: str = spec["cwd"]
        self._timeout_s: float = spec["timeout_s"]
        self._grace_s: float = spec["grace_s"]
        self._lock = lock
        self._worker = worker
        self._log_limit_bytes: int = spec["log_limit_bytes"]
        self._kept_lines: list[dict[str, Any]] = spec.get("kept_lines", [])
        self._cgroup: str = spec.get("cgroup", "")
        self._lease_folder = self._env.get("BOUNDD_LEASE", "")
        self._lease: LeaseWatch | None = None
        self._fetching = self._env.get("BOUNDD_FETCHING", "")
        self._fetch_timeout_s: float = spec.get("fetch_timeout_s", 0.0)
        self._fetch: FetchWatch | None = None
        self._asked_to_end = False
        self._status: int | None = None
        self._started_s = 0.0
        self._ended_s = 0.0
        self._results_bytes: int | None = None
        self._timed_out = False
        self._ended_on_request = False
        self._kill_at_s: float | None = None
        self._kill_pause_s = _KILL_PAUSE_S
        self._give_up_at_s: float | None = None
        self._machine_oom_kills = machine_oom_kills()

    def start(self) -> None:
        """Make ready, and tell whoever looks for the worker who it is.

        Raises:
            OSError: there is no room for the outcome, or the lock isn't the attempt's.
        """
        self._check_lock()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        set_process_name(NAME)
        self._wake = self._take_signals()
        reserve_outcome()
        self._log = CappedLog(LOG, self._log_limit_bytes, self._kept_lines)
        self._write_identity()

    def supervise(self) -> None:
        """Let the worker go, see it to its end, and write the outcome.

        Raises:
            OSError: the disk took no outcome in an hour.
            GaveUpError: it was told to end, and the disk did not take the outcome in the grace period.
        """
        self._started_s = now_s()
        if self._lease_folder:
            self._lease = LeaseWatch(self._lease_folder, self._timeout_s, self._started_s)
        if self._fetching and self._fetch_timeout_s > 0:
            self._fetch = FetchWatch(self._fetching, self._fetch_timeout_s, self._timeout_s, self._started_s)
        start_worker(self._worker, self._argv, self._env, self._cwd, self._cgroup)
        self._wait_until_empty()
        self._drain(_LAST_DRAIN_BYTES)
        output_lost = not self._finish_log()
        # Before the outcome: after a power cut, one that says 0 beside results that are gone would be a lost result.
        for path in (LOG, self._env.get("BOUNDD_RESULTS", "")):
            sync_written(path)
        try:
            write_outcome({**self._outcome(), **self._host_memory(), "output_lost": output_lost}, self._pause)
        finally:
            if self._cgroup:
                remove_cgroup(self._cgroup)

    def _finish_log(self) -> bool:
        """Close the log once its end is in the file: the last lines may be the result. False where it never got there.

        A disk that this log itself has filled is not waited for; one that others have filled is, as for the outcome.
        """
        for tried in range(OUTCOME_RETRIES):
            if self._log.catch_up() or (self._log.has_reusable_room and tried >= _LOG_RETRIES):
                break
            if is_folder_gone() or not self._pause():
                break
        return self._log.close()

    def _pause(self) -> bool:
        """Wait for a disk that is full or fails; false once it was told to end and has had its grace period since.

        Nothing of the attempt lives any more, and whoever wants this process gone, a machine that is shut down above
        all, must not be held up by a disk. Being told cuts the pause short: there is one more try at least.
        """
        now = now_s()
        if self._asked_to_end and self._give_up_at_s is None:
            self._give_up_at_s = now + self._grace_s
        until_s = now + OUTCOME_RETRY_S
        if self._give_up_at_s is not None:
            if now >= self._give_up_at_s:
                return False
            until_s = min(until_s, self._give_up_at_s)
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if poller.poll(int((until_s - now) * 1000) + 1):
            os.read(self._wake, 4096)
        return True

    def _check_lock(self) -> None:
        """Without the lock nobody could tell that this attempt lives."""
        held, named = os.fstat(self._lock), os.stat(LOCK)
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino):
            raise OSError(errno.EBADF, "the descriptor handed over is not the attempt's lock")

    def _take_signals(self) -> int:
        """Turn signals into bytes in a pipe, so that one poll hears of everything; returns its reading end."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        handle_signals(woken, self._on_request)
        return wake

    def _on_request(self, *_: object) -> None:
        self._asked_to_end = True

    def _write_identity(self) -> None:
        """Leave shim.json, and tell the launcher that it is there."""
        shim_pid = os.getpid()
        shim, worker = stat_of(shim_pid), stat_of(self._worker.pid)
        if shim is None or worker is None:
            raise OSError(errno.ESRCH, "/proc does not show this process")
        value = {
            "format": SHIM_FORMAT,
            "boot_id": boot_id(),
            "pid": shim_pid,
            "start_ticks": shim.start_ticks,
            "worker_pid": self._worker.pid,
            "worker_start_ticks": worker.start_ticks,
            "cgroup": self._cgroup,
        }
        write_atomically(SHIM, checked(SHIM, value))
        try:
            os.write(1, READY)
        except OSError:
            pass  # The launcher died; the next daemon finds shim.json.
        # A copy stays open, which the worker, forked before, has not: its other end tells when this process has ended.
        os.dup(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 1)
        os.close(nothing)

    def _wait_until_empty(self) -> None:
        """Until no process of the attempt is left."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._worker.output, select.POLLIN)
        while self._reap():
            self._enforce_limits(now_s())
            for descriptor, _ in poller.poll(self._poll_ms(now_s())):
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                elif not self._drain(_READ_BYTES):
                    poller.unregister(self._worker.output)

    def _poll_ms(self, now: float) -> int:
        due = [now + _LONGEST_POLL_S]
        due.append(self._deadline_s if self._kill_at_s is None else self._kill_at_s)
        due += [watch.due_s for watch in (self._lease, self._fetch) if watch is not None and self._kill_at_s is None]
        if self._log.tail_due_s is not None:
            due.append(self._log.tail_due_s)
        # Rounded up: rounding down would spin through the last millisecond.
        return max(0, int((min(due) - now) * 1000) + 1)

    @property
    def _deadline_s(self) -> float:
        """When the worker is to be ended; waiting for the lease puts it off, and so does fetching."""
        waited_s = 0.0 if self._lease is None else self._lease.waited_s
        fetched_s = 0.0 if self._fetch is None else self._fetch.fetched_s
        return self._started_s + self._timeout_s + waited_s + fetched_s

    def _enforce_limits(self, now: float) -> None:
        """What the time and the signals call for."""
        runs = self._status is None and self._kill_at_s is None
        # Before the deadline is held against it, one more look: it may be waiting just now.
        for watch in (self._lease, self._fetch) if runs else ():
            if watch is not None and now >= min(watch.due_s, self._deadline_s):
                watch.look(now)
        if self._log.tail_due_s is not None and now >= self._log.tail_due_s:
            self._log.flush_tail()
        if self._kill_at_s is not None:
            if now >= self._kill_at_s:
                self._signal_all(signal.SIGKILL)
                self._kill_at_s = now + self._kill_pause_s
                self._kill_pause_s = min(2 * self._kill_pause_s, _KILL_PAUSE_MAX_S)
            return
        if self._status is None:
            self._ended_on_request = self._asked_to_end
            self._timed_out = not self._asked_to_end and now >= self._deadline_s
            if not self._ended_on_request and not self._timed_out:
                return
        # Also for what a worker that ended by itself has left behind.
        self._signal_all(signal.SIGTERM)
        self._kill_at_s = now + self._grace_s

    def _signal_all(self, number: int) -> None:
        """Signal the worker's group at once, and then whatever else is below us until a look finds nobody new."""
        if number == signal.SIGKILL and self._cgroup:
            kill_cgroup(self._cgroup)
        numbers = (number, signal.SIGCONT) if number == signal.SIGTERM else (number,)
        reached = 0
        # Until it is reaped, nobody else can have the worker's pid for a group.
        if self._status is None:
            try:
                for each in numbers:
                    os.killpg(self._worker.pid, each)
                reached = self._worker.pid
            except ProcessLookupError:
                pass  # It has not made its group yet; the look below finds it.
            except PermissionError:
                pass  # All of the group is beyond us; the look below tries one by one.
        seen: set[tuple[int, int]] = set()
        for _ in range(_KILL_PASSES):
            found = [stat for stat in descendants(os.getpid()) if (stat.pid, stat.start_ticks) not in seen]
            if not found:
                return
            for stat in found:
                seen.add((stat.pid, stat.start_ticks))
                if stat.group != reached:
                    signal_verified(stat, *numbers)

    def _reap(self) -> bool:
        """Take the exits that have happened; False once no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._worker.pid and self._status is None:
                self._status, self._ended_s = status, now_s()
                self._results_bytes = file_size(self._env.get("BOUNDD_RESULTS", ""))

    def _drain(self, max_bytes: int) -> bool:
        """Move up to about `max_bytes` of output to the log; False at its end."""
        while max_bytes > 0:
            try:
                data = os.read(self._worker.output, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._log.write(data)
            max_bytes -= len(data)
        return True

    def _host_memory(self) -> dict[str, object]:
        """What the attempt took of the host's memory, and whether the kernel ended some of it for want of any."""
        events = read_keyed(self._cgroup + "/memory.events") if self._cgroup else {}
        return {
            "host_peak_bytes": read_number(self._cgroup + "/memory.peak") if self._cgroup else None,
            "oom_killed": events.get("oom_kill"),
            "over_memory_max": events.get("oom", 0) > 0,
            "machine_oom_kills": max(0, machine_oom_kills() - self._machine_oom_kills),
        }

    def _outcome(self) -> dict[str, object]:
        number, about, subject, start_error = why_not_started(self._worker) or (None, "", "", "")
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        return {
            "format": OUTCOME_FORMAT,
            "exit_status": code if code is not None and code >= 0 and not start_error else None,
            "signal": -code if code is not None and code < 0 else None,
            "timed_out": self._timed_out,
            "ended_on_request": self._ended_on_request,
            "start_error": start_error,
            "start_errno": number,
            "start_about": about,
            "start_subject": subject,
            "wall_s": round(max(0.0, self._ended_s - self._started_s), 3),
            "results_bytes": self._results_bytes,
            "fetched_s": None if self._fetch is None else round(self._fetch.fetched_s, 3),
            "lease_waited_s": None if self._lease is None else round(self._lease.waited_s, 3),
        }


def run_attempt(folder: str, lock: int) -> None:
    """Run the attempt of this folder, in a process of its own; `lock` is the descriptor of its lock.

    Raises:
        OSError: nothing was started.
        ValueError: its spec is of a version that this shim doesn't know.
    """
    try:
        worker = fork_worker(lock)
        try:
            os.chdir(folder)
            spec = read_spec(SPEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            attempt = Shim(spec, lock, worker)
            attempt.start()
        except BaseException:
            discard_worker(worker)
            raise
        attempt.supervise()
    except Exception as failure:
        # Not only to the log of failures: the disk that is too full for the one is too full for the other. After
        # the worker has been let go, this is the null device.
        os.write(1, start_failure(failure))
        raise
