"""The shim: a small process of its own that owns one attempt, whether or not a daemon is there.

The zygote (zygote.py) forks one for each attempt, which then does what `spec.json` in the attempt's folder says. It
imports nothing but the standard library, and of that as little as it can, because one of it is alive for each attempt.
It leaves `shim.json` (who it is), `output.log` (what the worker said, capped) and `outcome.json` (how it went). See
docs/launch.md for the files.

Being a subreaper, it inherits whatever the worker forks and forgets; "it has no child left" therefore means that
nothing of the attempt is left.
"""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: PTH104, PTH106, PTH112, PTH116, PTH123, PTH208, SIM105

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import time
from typing import Any, NamedTuple, NoReturn

FORMAT = 1
"""The version of spec.json, shim.json and outcome.json."""
SPEC, SHIM, OUTCOME, LOG, LOCK = "spec.json", "shim.json", "outcome.json", "output.log", "lock"
READY = b"ready\n"
"""Said on standard output once shim.json is there and before the worker runs; anything else there is why not."""

_OUTCOME_DRAFT = OUTCOME + ".draft"
_OUTCOME_ROOM_BYTES = 8192
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_READ_BYTES = 65536
_LAST_DRAIN_BYTES = 4 * 1024**2
_MARK_ROOM_BYTES = 96
_TAIL_PERIOD_S = 2.0
# poll() counts in a clock that stands still while the machine sleeps; looking up now and then keeps the deadline,
# which counts in one that doesn't, from being late by the length of the sleep.
_LONGEST_POLL_S = 10.0
_LEASE_LOOK_S = 1.0
_SHORTEST_LEASE_LOOK_S = 0.05
_LEASE_LOOKS_A_TIMEOUT = 50
_LEASE_FILES = ("turn", "work")
_PARENTS = 100
_KILL_PAUSE_S = 0.02
_KILL_PAUSE_MAX_S = 1.0
_KILL_PASSES = 50
_REMOVALS = 50
_OUTCOME_RETRY_S = 1.0
_OUTCOME_RETRIES = 3600


class Stat(NamedTuple):
    """The part of /proc/PID/stat that tells who a process is."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int
    """When it started, in clock ticks since boot: with the boot id and the pid, its identity."""


def stat_of(pid: int) -> Stat | None:
    """Who `pid` is now; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The second field is the program's name, which may hold blanks and brackets of its own.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def all_stats() -> list[Stat]:
    """Every process that can be seen, in no order."""
    found = (stat_of(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [stat for stat in found if stat is not None]


def descendants(root_pid: int) -> list[Stat]:
    """The living processes below `root_pid`, itself and zombies left out."""
    children: dict[int, list[Stat]] = {}
    for stat in all_stats():
        children.setdefault(stat.parent, []).append(stat)
    found: list[Stat] = []
    waiting = [root_pid]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += [stat.pid for stat in below]
    return [stat for stat in found if stat.state not in "ZX"]


def open_verified(pid: int, start_ticks: int) -> int | None:
    """A pidfd of the process with this pid and start time; None where it is gone, whoever has its pid now.

    Raises:
        OSError: it can't be told (no descriptors left, no pidfds in this kernel).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Looked at after opening: from here on the pidfd means one process for good, and this says which.
    stat = stat_of(pid)
    if stat is None or stat.start_ticks != start_ticks:
        os.close(pidfd)
        return None
    return pidfd


def signal_verified(stat: Stat, *numbers: int) -> bool:
    """Send signals to exactly this process, never to a successor of its pid; False where it is gone or not ours."""
    pidfd = open_verified(stat.pid, stat.start_ticks)
    if pidfd is None:
        return False
    try:
        for number in numbers:
            signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True


def boot_id() -> str:
    """Which boot of the machine this is."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def now_s() -> float:
    """Seconds since boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write_atomically(path: str, value: object, *, mode: int = 0o644) -> None:
    """Put `value` as JSON at `path`, whole or not at all (against a crash of ours, not of the machine).

    Raises:
        OSError: it could not be written.
    """
    draft = path + ".draft"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "w", encoding="ascii") as file:
        json.dump(value, file)
    os.rename(draft, path)


class CappedLog:
    """A file that never outgrows `limit_bytes`: once more was said, it holds the first half, a mark, and the last half.

    Up to the limit everything goes straight to the file, so that it can be followed. After that the last half lives
    in a ring in memory and is brought to the file every two seconds and at the end. A full disk loses output, not
    the worker.
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._limit_bytes = limit_bytes
        self._head_bytes = limit_bytes // 2
        self._tail_bytes = max(0, limit_bytes - self._head_bytes - _MARK_ROOM_BYTES)
        self._ring: bytearray | None = None
        self._ring_at = 0
        self._written_bytes = 0
        self._cut_bytes = 0
        self._failed_bytes = 0
        self._tail_due_s: float | None = None

    @property
    def tail_due_s(self) -> float | None:
        """When the tail wants to be brought to the file, in seconds since boot; None where it is there already."""
        return self._tail_due_s

    def write(self, data: bytes) -> None:
        """Take all of `data`, whatever becomes of it."""
        if self._ring is None:
            room = self._limit_bytes - self._written_bytes
            self._straight(data[:room])
            data = data[room:]
            if not data:
                return
            self._ring = self._cut()
        self._push(self._ring, data)
        if self._tail_due_s is None:
            self._tail_due_s = now_s() + _TAIL_PERIOD_S

    def flush_tail(self) -> None:
        """Bring the file up to date."""
        self._tail_due_s = None
        if self._ring is None:
            return
        mark = b"\n[boundd: %d bytes left out here]\n" % self._cut_bytes
        ring = memoryview(self._ring)
        offset = self._head_bytes
        try:
            for part in (mark, ring[self._ring_at :], ring[: self._ring_at]):
                self._put(part, offset)
                offset += len(part)
            os.ftruncate(self._descriptor, offset)
        except OSError:
            # A full disk: what is in the file stays, and the next flush tries again.
            return

    def close(self) -> None:
        """Bring the file up to date and close it."""
        self.flush_tail()
        if self._failed_bytes:
            try:
                self._put(
                    b"\n[boundd: %d bytes could not be written]\n" % self._failed_bytes,
                    os.fstat(self._descriptor).st_size,
                )
            except OSError:
                pass  # Still no room; the log is short, and that is all.
        os.close(self._descriptor)

    def _straight(self, data: bytes) -> None:
        try:
            self._put(data, self._written_bytes)
        except OSError:
            self._failed_bytes += len(data)
        else:
            self._written_bytes += len(data)

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view = view[count:]
            offset += count

    def _cut(self) -> bytearray:
        """A ring that holds what the file's last part holds now; the middle is given up."""
        # Less than the limit was written where the disk filled up on the way.
        last = os.pread(self._descriptor, self._tail_bytes, max(0, self._written_bytes - self._tail_bytes))
        self._cut_bytes = max(0, self._written_bytes - self._head_bytes - self._tail_bytes)
        return bytearray(last.rjust(self._tail_bytes, b"\n"))

    def _push(self, ring: bytearray, data: bytes) -> None:
        size = self._tail_bytes
        self._cut_bytes += len(data)
        if len(data) >= size:
            ring[:] = data[len(data) - size :]
            self._ring_at = 0
            return
        until_end = min(len(data), size - self._ring_at)
        ring[self._ring_at : self._ring_at + until_end] = data[:until_end]
        ring[: len(data) - until_end] = data[until_end:]
        self._ring_at = (self._ring_at + len(data)) % size


class LeaseWatch:
    """How long the attempt has waited for its device's lease, told by what the kernel lists of locks (proc_locks(5)).

    It is looked at every so often: where a process of the attempt waits at a look, the time to the look before and to
    the one after counts as waited. That errs on the worker's side, by up to two periods a wait; a wait that
    falls between two looks is not seen. A process that waits for what another one of the same attempt holds waits for
    nobody else, and doesn't count.
    """

    def __init__(self, folder: str, timeout_s: float, now: float) -> None:
        self._folder = folder
        self._period_s = max(_SHORTEST_LEASE_LOOK_S, min(_LEASE_LOOK_S, timeout_s / _LEASE_LOOKS_A_TIMEOUT))
        self._last_s = now
        self._was_waiting = False
        self.waited_s = 0.0

    @property
    def due_s(self) -> float:
        """When to look again, in seconds since boot."""
        return self._last_s + self._period_s

    def look(self, now: float) -> None:
        """Count the time since the look before."""
        waiting = self._is_waiting()
        if waiting or self._was_waiting:
            # Not more than two periods: a machine that slept meanwhile didn't wait.
            self.waited_s += min(now - self._last_s, 2 * self._period_s)
        self._was_waiting = waiting
        self._last_s = now

    def _is_waiting(self) -> bool:
        try:
            inodes = {str(os.stat(f"{self._folder}/{name}").st_ino).encode() for name in _LEASE_FILES}
            with open("/proc/locks", "rb") as file:
                text = file.read()
        except OSError:
            return False  # Nobody has used the lease yet, or the kernel doesn't say.
        waiters, holders = lease_locks(text, inodes)
        own = os.getpid()
        return any(is_below(pid, own) for pid in waiters) and not any(is_below(pid, own) for pid in holders - waiters)


def lease_locks(text: bytes, inodes: set[bytes]) -> tuple[set[int], set[int]]:
    """Of /proc/locks, the pids that wait for a lock on one of these files, and those that hold one.

    The device is not compared: some file systems (btrfs, overlayfs) give stat() another number than the kernel's own.
    """
    waiters: set[int] = set()
    holders: set[int] = set()
    for line in text.splitlines():
        # `3: -> POSIX  ADVISORY  WRITE 812 fd:00:2531452 0 EOF`; without the arrow for who holds it.
        fields = line.split()[1:]
        waits = fields[:1] == [b"->"]
        fields = fields[waits:]
        if len(fields) == 7 and fields[0] == b"POSIX" and fields[4].rpartition(b":")[2] in inodes:
            (waiters if waits else holders).add(int(fields[3]))
    return waiters, holders


def is_below(pid: int, root_pid: int) -> bool:
    """Whether a process is a descendant of another one."""
    for _ in range(_PARENTS):
        stat = stat_of(pid) if pid > 1 else None
        if stat is None:
            return False
        if stat.parent == root_pid:
            return True
        pid = stat.parent
    return False


class Shim:
    """One attempt, from its fork until nothing is left of it. The current folder is the attempt's."""

    def __init__(self, spec: dict[str, Any], lock: int) -> None:
        self._argv: list[str] = spec["argv"]
        self._env: dict[str, str] = spec["env"]
        self._cwd: str = spec["cwd"]
        self._timeout_s: float = spec["timeout_s"]
        self._grace_s: float = spec["grace_s"]
        self._lock = lock
        self._log_limit_bytes: int = spec["log_limit_bytes"]
        self._cgroup: str = spec.get("cgroup", "")
        self._lease_folder = self._env.get("BOUNDD_LEASE", "")
        self._lease: LeaseWatch | None = None
        self._asked_to_end = False
        self._worker = 0
        self._status: int | None = None
        self._started_s = 0.0
        self._ended_s = 0.0
        self._timed_out = False
        self._ended_on_request = False
        self._kill_at_s: float | None = None
        self._kill_pause_s = _KILL_PAUSE_S
        self._machine_oom_kills = machine_oom_kills()

    def run(self) -> None:
        """Start the worker, see it through, write the outcome.

        Raises:
            OSError: nothing was started (no room for the outcome, no process to be had).
        """
        self._check_lock()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._wake = self._take_signals()
        _reserve_outcome()
        self._log = CappedLog(LOG, self._log_limit_bytes)
        self._output, self._error = self._start()
        self._see_through()
        self._drain(_LAST_DRAIN_BYTES)
        self._log.close()
        _write_outcome({**self._outcome(), **self._host_memory()})
        if self._cgroup:
            remove_cgroup(self._cgroup)

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
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_request)
        signal.signal(signal.SIGINT, self._on_request)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Whoever forked us may have held signals back.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return wake

    def _on_request(self, *_: object) -> None:
        self._asked_to_end = True

    def _start(self) -> tuple[int, int]:
        """Fork the worker and let it go once shim.json names it; returns its output and its start error to read."""
        output, output_end = os.pipe()
        error, error_end = os.pipe()
        gate, gate_end = os.pipe()
        shim_pid = os.getpid()
        # A TERM that reached the child while it still had our handlers would be swallowed: it waits for their end.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        self._worker = os.fork()
        if self._worker == 0:
            os.close(gate_end)
            self._become_worker(shim_pid, gate, output_end, error_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)
        for descriptor in (output_end, error_end, gate):
            os.close(descriptor)
        os.set_blocking(output, False)
        os.set_blocking(error, False)
        self._introduce(shim_pid)
        self._started_s = now_s()
        if self._lease_folder:
            self._lease = LeaseWatch(self._lease_folder, self._timeout_s, self._started_s)
        os.write(gate_end, b"g")
        os.close(gate_end)
        return output, error

    def _introduce(self, shim_pid: int) -> None:
        """Leave shim.json, and tell the launcher that it is there."""
        shim, worker = stat_of(shim_pid), stat_of(self._worker)
        if shim is None or worker is None:
            raise OSError(errno.ESRCH, "/proc does not show this process")
        value = {
            "format": FORMAT,
            "boot_id": boot_id(),
            "pid": shim_pid,
            "start_ticks": shim.start_ticks,
            "worker_pid": self._worker,
            "worker_start_ticks": worker.start_ticks,
            "cgroup": self._cgroup,
        }
        write_atomically(SHIM, value)
        try:
            os.write(1, READY)
        except OSError:
            pass  # The launcher died; the next daemon finds shim.json.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 1)
        os.close(nothing)

    def _become_worker(self, shim_pid: int, gate: int, output_end: int, error_end: int) -> NoReturn:
        """In the child: wait to be let go, then execute the worker."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (
                signal.SIGPIPE,
                signal.SIGXFSZ,
                signal.SIGHUP,
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGCHLD,
            ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # A shim that died before the line above took effect can't kill us any more.
            if os.getppid() != shim_pid or os.read(gate, 1) != b"g":
                os._exit(127)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(output_end, 1)
            os.dup2(output_end, 2)
            os.set_inheritable(self._lock, True)
            if self._cgroup:
                write_file(self._cgroup + "/cgroup.procs", b"0")
            _be_no_dearer_than_others()
            os.chdir(self._cwd)
            os.execvpe(self._argv[0], self._argv, self._env)  # noqa: S606 - a shell is what this must not be
        except BaseException as error:
            os.write(error_end, _start_error(error, self._argv, self._cwd).encode(errors="replace")[:4000])
        finally:
            os._exit(127)

    def _see_through(self) -> None:
        """Until no process of the attempt is left."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._output, select.POLLIN)
        while self._reap():
            self._advance(now_s())
            for descriptor, _ in poller.poll(self._poll_ms(now_s())):
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                elif not self._drain(_READ_BYTES):
                    poller.unregister(self._output)

    def _poll_ms(self, now: float) -> int:
        due = [now + _LONGEST_POLL_S]
        due.append(self._deadline_s if self._kill_at_s is None else self._kill_at_s)
        if self._lease is not None and self._kill_at_s is None:
            due.append(self._lease.due_s)
        if self._log.tail_due_s is not None:
            due.append(self._log.tail_due_s)
        # Rounded up: rounding down would spin through the last millisecond.
        return max(0, int((min(due) - now) * 1000) + 1)

    @property
    def _deadline_s(self) -> float:
        """When the worker is to be ended; waiting for the lease puts it off."""
        waited_s = 0.0 if self._lease is None else self._lease.waited_s
        return self._started_s + self._timeout_s + waited_s

    def _advance(self, now: float) -> None:
        """What the time and the signals call for."""
        runs = self._status is None and self._kill_at_s is None
        # Before the deadline is held against it, one more look: it may be waiting just now.
        if runs and self._lease is not None and now >= min(self._lease.due_s, self._deadline_s):
            self._lease.look(now)
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
                    os.killpg(self._worker, each)
                reached = self._worker
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
            if pid == self._worker and self._status is None:
                self._status, self._ended_s = status, now_s()

    def _drain(self, most_bytes: int) -> bool:
        """Move up to about `most_bytes` of output to the log; False at its end."""
        while most_bytes > 0:
            try:
                data = os.read(self._output, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._log.write(data)
            most_bytes -= len(data)
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
        try:
            start_error = os.read(self._error, 4096).decode(errors="replace")
        except BlockingIOError:
            start_error = ""
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        return {
            "format": FORMAT,
            "exit_status": code if code is not None and code >= 0 and not start_error else None,
            "signal": -code if code is not None and code < 0 else None,
            "timed_out": self._timed_out,
            "ended_on_request": self._ended_on_request,
            "start_error": start_error,
            "wall_s": round(max(0.0, self._ended_s - self._started_s), 3),
            "lease_waited_s": None if self._lease is None else round(self._lease.waited_s, 3),
        }


def write_file(path: str, data: bytes) -> None:
    """Write to a file of the kernel's in one go.

    Raises:
        OSError: it is not there, or takes no such thing.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def read_keyed(path: str) -> dict[str, int]:
    """A file of `name number` lines; empty where it isn't there."""
    try:
        with open(path, encoding="ascii") as file:
            pairs = [line.split() for line in file]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def read_number(path: str) -> int | None:
    """A file that holds one number; None where it isn't there, or says `max`."""
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def machine_oom_kills() -> int:
    """How many processes of this machine the kernel has ended for want of host memory since boot."""
    return read_keyed("/proc/vmstat").get("oom_kill", 0)


def kill_cgroup(path: str) -> None:
    """KILL everything in a cgroup at once, whatever it forks; does nothing where the kernel can't (before 5.14)."""
    try:
        write_file(path + "/cgroup.kill", b"1")
    except OSError:
        pass


def remove_cgroup(path: str) -> None:
    """Remove an attempt's cgroup with whatever may still be in it; what stays, the next daemon removes."""
    kill_cgroup(path)
    for _ in range(_REMOVALS):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(_KILL_PAUSE_S)
        else:
            return


def _be_no_dearer_than_others() -> None:
    """Undo what keeps the daemon from being chosen when the host's memory runs out: it is not for workers."""
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            if int(file.read()) < 0:
                file.seek(0)
                file.write("0")
    except OSError:
        pass  # What can't be undone is no reason not to measure.


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl({option})")


def _start_error(error: BaseException, argv: list[str], cwd: str) -> str:
    """Why the worker could not be executed, in words."""
    if not isinstance(error, OSError):
        return f"{argv[0] if argv else 'an empty command'}: {error}"
    if error.filename == cwd and not os.path.isdir(cwd):
        return f"no such folder: {cwd}"
    if error.errno == errno.ENOENT:
        return f"no such file: {argv[0]}"
    return f"{error.filename or argv[0]}: {os.strerror(error.errno or 0)}"


def _reserve_outcome() -> None:
    """Take the room of the outcome now, when a full disk is an error to report and not yet a result to lose."""
    descriptor = os.open(_OUTCOME_DRAFT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, _OUTCOME_ROOM_BYTES)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    finally:
        os.close(descriptor)


def _write_outcome(outcome: dict[str, object]) -> None:
    """Write, fsync, rename, fsync the folder; tried again while the disk is full.

    Raises:
        OSError: it could not be written in an hour, or the folder is gone.
    """
    text = json.dumps(outcome).encode()
    for left in range(_OUTCOME_RETRIES, -1, -1):
        try:
            descriptor = os.open(_OUTCOME_DRAFT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(descriptor, text, 0)
                os.ftruncate(descriptor, len(text))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(_OUTCOME_DRAFT, OUTCOME)
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if left == 0 or error.errno == errno.ENOENT:
                raise
            time.sleep(_OUTCOME_RETRY_S)
        else:
            return


def run_attempt(folder: str, lock: int) -> None:
    """Run the attempt of this folder, in a process of its own; `lock` is the descriptor of its lock.

    Raises:
        OSError: nothing was started.
        ValueError: its spec is of a version that this shim doesn't know.
    """
    try:
        os.chdir(folder)
        with open(SPEC, encoding="ascii") as file:
            spec = json.load(file)
        if spec["format"] != FORMAT:
            raise ValueError(f"{SPEC} has format {spec['format']}, known is {FORMAT}")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Shim(spec, lock).run()
    except Exception as failure:
        # Not only to the log of failures: the disk that is too full for the one is too full for the other. After
        # the worker has been let go, this is the null device.
        os.write(1, f"{type(failure).__name__}: {failure}".encode(errors="replace")[:2000])
        raise
