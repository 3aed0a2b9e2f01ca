"""kill -9 of the daemon while cells run: at swept system calls, during what people ask of it, and at random times.

A box has twelve cells of six kinds. Its daemon is killed several times in a row, so that recoveries are killed too; the
last one runs to idle, and the audit (audit.py) compares the store, the workers' journal, the export and the machine.

- *Swept*: a first run counts what a daemon does of each system call; the points are spread evenly over those, from the
  very first creation of the store on. strace kills before the n-th call of a thread is made, and lets go of what the
  daemon executes. The daemon is forked from a process that has imported boundd already: an import has nothing to lose.
- *Asked*: the same, from an instant on at which the daemon answers, while it is told to end (SIGTERM, SIGINT), to retry
  or to cancel. What it has acknowledged must be so at the end.
- *Random*: `python -m boundd run` as anybody starts it, killed after a random time.

A failure prints the seed and the points: BOUNDD_CAMPAIGN_SEED=N runs the same ones again.

To see it fail, take out one of these:

- in `Loop.handle`, yield the effects before the commit, with an `await anyio.sleep(0)` in `Driver._handle` after each:
  what was executed counts as lost, or as rejected because it "is alive already";
- in `LocalLauncher`, let `is_alive` return False, `_wait_for_shim` return at once for what isn't in `_ours`, and
  `_kill_until_gone` kill nothing: attempts that run count as lost, and their cells are executed again beside them;
- in `transaction` of boundd/store/sqlite.py, leave out the COMMIT, and begin only where no transaction is
  open: nothing is kept.
"""

from __future__ import annotations

import collections
import random
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from boundd.client import Client, NoDaemonError
from boundd.client.client import cell_path
from boundd.client.transport import why_not
from tests.faults import audit
from tests.faults.campaign import Report, drawn_seed, sizes
from tests.faults.daemons import Box, Nursery, finish, kill_at, record_calls, wait_for

pytestmark = [pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"), pytest.mark.timeout(1200)]

SYSCALLS = (
    *("pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "openat", "mkdir", "flock", "fcntl", "close"),
    *("sendmsg", "sendto", "recvfrom", "write", "read", "vfork", "clone3", "pidfd_open", "bind", "socket", "accept4"),
    *("epoll_wait", "epoll_ctl", "poll", "futex", "newfstatat", "lseek", "pread64", "mmap", "exit_group"),
)
ACTS = ("terminate", "interrupt", "retry", "cancel")
ACT_SYSCALLS = (
    "pwrite64",
    "fdatasync",
    "sendto",
    "epoll_wait",
    "rename",
    "fsync",
    "unlink",
    "openat",
    "close",
    "write",
)
RETRIED, CANCELLED = ("quick/0", "points/1"), ("slow/1", "hangs/1")
LONGEST_RANDOM_S = 1.8
PARALLEL = 2


@dataclass(frozen=True, slots=True)
class Point:
    """Where a daemon is to be killed."""

    syscall: str = ""
    nth: int = 0
    act: str = ""
    """What is asked of it first; the n-th call is counted from there on. Without one, killed once it has answered."""
    after_s: float = 0.0
    """For a random time: how long after its start."""


@dataclass(slots=True)
class Tally:
    """What came of all the boxes."""

    killed: collections.Counter[str] = field(default_factory=collections.Counter)
    missed: int = 0
    boxes: int = 0
    executions: int = 0
    never_started: int = 0
    """Attempts whose daemon died between their intent and their start: lost by design, and free."""
    acknowledged: int = 0
    findings: list[str] = field(default_factory=list)
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)


def counted(folder: Path) -> dict[str, int]:
    """How many times one thread of a daemon makes each system call from its start to idle."""
    box, nursery, log = Box(folder), Nursery(), folder / "strace"
    try:
        tracer = record_calls(nursery.fork(box, "--until-idle"), SYSCALLS, log)
        assert tracer is not None
        nursery.send(signal.SIGCONT)
        assert nursery.ended() == 3, box.told()
        finish(tracer)
    finally:
        nursery.close()
        box.clear()
    calls: collections.Counter[tuple[str, str]] = collections.Counter()
    for match in re.finditer(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE):
        calls[match.groups()] += 1
    most: dict[str, int] = {}
    for (_, syscall), number in calls.items():
        most[syscall] = max(most.get(syscall, 0), number)
    return {syscall: most[syscall] for syscall in SYSCALLS if syscall in most}


def points(number: int, calls: dict[str, int], rng: random.Random) -> Iterator[Point]:
    """So many points in a random order, and after them more, for those that no daemon came to."""
    swept, asked = number * 6 // 10, number * 2 // 10
    share = -(-swept // len(calls))
    found = [
        Point(syscall, 1 + (2 * place + 1) * most // (2 * share))
        for syscall, most in calls.items()
        for place in range(share)
    ]
    found = rng.sample(found, swept)
    found += [_asked(rng) for _ in range(asked)]
    found += [Point(after_s=rng.uniform(0, LONGEST_RANDOM_S)) for _ in range(number - swept - asked)]
    rng.shuffle(found)
    yield from found
    while True:
        syscall = rng.choice(list(calls))
        yield Point(syscall, rng.randint(1, calls[syscall])) if rng.random() < 0.5 else _asked(rng)


def _asked(rng: random.Random) -> Point:
    act = rng.choice(ACTS)
    if act in ("retry", "cancel") and rng.random() < 0.5:
        return Point(act=act)
    return Point(rng.choice(ACT_SYSCALLS), round(2 ** rng.uniform(0, 5)), act=act)


class Campaign:
    """Hands the points to boxes until enough daemons were killed. Of several threads."""

    def __init__(self, folder: Path, number: int, seed: int) -> None:
        self._folder, self._number, self._seed = folder, number, seed
        self._points = points(number, counted(folder / "counted"), random.Random(seed))
        self._lock = threading.Lock()
        self._given = 0
        self.tally = Tally()

    def run(self) -> Tally:
        """All of it."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(self._boxes, range(PARALLEL)))
        return self.tally

    def _wanted(self) -> int:
        """How many points the next box gets; 0 once there were enough."""
        with self._lock:
            number = self._given
            left = self._number - self.tally.killed.total()
            # A point that is never met must not make this endless.
            if left <= 0 or number > 4 * self._number or len(self.tally.findings) > 20:
                return 0
            self._given += min(left, 5)
            return min(left, 5)

    def _boxes(self, lane: int) -> None:
        nursery = Nursery()
        try:
            for number in range(self._number):
                wanted = self._wanted()
                if not wanted:
                    return
                box = Box(self._folder / f"{lane}-{number}")
                self._one_box(box, nursery, wanted)
                shutil.rmtree(box.folder)
        finally:
            nursery.close()

    def _one_box(self, box: Box, nursery: Nursery, wanted: int) -> None:
        asked, history = audit.Asked(), []
        try:
            for _ in range(wanted):
                with self._lock:
                    point = next(self._points)
                died = strike(box, nursery, point, asked)
                history.append(f"{point}{'' if died else ' (missed)'}")
                with self._lock:
                    self.tally.missed += not died
                    self.tally.killed[point.act or ("swept" if point.syscall else "random")] += died
                if not died and not point.act:
                    break  # It is idle: nothing would run while the next ones are killed.
            code = box.run_until_idle()
            findings = audit.audit(box, asked)
            if code != 3:
                findings.append(audit.Finding("unended", f"the last daemon ended with {code}: {box.told()}"))
        finally:
            box.clear()
        with self._lock:
            self.tally.boxes += 1
            self.tally.executions += len(audit.read_journal(box.journal))
            self.tally.never_started += sum(end["outcome"] == "lost" for end in audit.read_store(box.store).ends)
            self.tally.acknowledged += len(asked.cancelled) + len(asked.retried)
            self.tally.kinds.update(audit.count(findings))
            self.tally.findings += [f"{finding} after {'; '.join(history)}" for finding in findings]


def strike(box: Box, nursery: Nursery, point: Point, asked: audit.Asked) -> bool:
    """Start a daemon and have it killed there; False where it ended by itself before that."""
    if not point.syscall and not point.act:
        daemon = box.start("--until-idle")
        with suppress(Exception):
            daemon.wait(point.after_s)
        daemon.kill()
        return daemon.wait() == -signal.SIGKILL
    pid = nursery.fork(box, "--until-idle")
    if point.act:
        nursery.send(signal.SIGCONT)
        wait_for(lambda: nursery.ended(0) is not None or _is_ready(box, point.act), "a daemon that answers or ends")
        if not point.syscall:
            _act(point.act, nursery, box, asked)
            nursery.send(signal.SIGKILL)
            return nursery.ended() == -signal.SIGKILL
    tracer = kill_at(pid, point.syscall, point.nth) if nursery.ended(0) is None else None
    if tracer is None:
        return False
    if point.act:
        _act(point.act, nursery, box, asked)
    else:
        nursery.send(signal.SIGCONT)
    code = nursery.ended()
    assert code is not None, f"a daemon that was to be killed at {point} neither died nor ended: {box.told()}"
    finish(tracer)
    return code == -signal.SIGKILL


def _is_ready(box: Box, act: str) -> bool:
    """Whether the daemon answers, and there is what is to be retried."""
    if act != "retry":
        return not why_not(str(box.socket))
    try:
        return bool(Client(box.socket).get(cell_path(RETRIED[0]))["state"] == "succeeded")
    except NoDaemonError:
        return False


def _act(act: str, nursery: Nursery, box: Box, asked: audit.Asked) -> None:
    """Ask something of the daemon that is about to be killed."""
    if act == "terminate":
        nursery.send(signal.SIGTERM)
    elif act == "interrupt":
        nursery.send(signal.SIGINT)
    else:
        with suppress(NoDaemonError):
            _change(act, Client(box.socket), asked)


def _change(act: str, client: Client, asked: audit.Asked) -> None:
    """Retry what has succeeded, or cancel what has not, over HTTP; what is acknowledged is kept to.

    Raises:
        NoDaemonError: it died meanwhile.
    """
    if act == "cancel":
        for label in CANCELLED:
            if label not in asked.cancelled:
                asked.unsure.add(label)
                if client.post("/v1/cancel", {"query": [label]})["affected"]:
                    asked.cancelled.add(label)
        return
    for label in RETRIED:
        before = client.get(cell_path(label))
        if client.post("/v1/retry", {"query": ["state=succeeded", label]})["affected"]:
            asked.retried[label] = (
                before["attempts"] if isinstance(before["attempts"], int) else len(before["attempts"])
            )


@sizes("number", short=100, long=10_000)
def test_kill_the_daemon(number: int, tmp_path: Path, report: Report) -> None:
    """Whenever the daemon is killed: nothing is lost, doubled or left behind, and every cell comes to its end."""
    seed = drawn_seed()
    tally = Campaign(tmp_path, number, seed).run()
    killed = tally.killed
    report(
        "kill -9 of the daemon",
        points=killed.total(),
        at_system_calls=killed["swept"],
        while_asked=sum(killed[act] for act in ACTS),
        at_random_times=killed["random"],
        missed=tally.missed,
        boxes=tally.boxes,
        executions=tally.executions,
        never_started=tally.never_started,
        acknowledged_changes=tally.acknowledged,
        **{kind: tally.kinds[kind] for kind in audit.KINDS},
        seed=seed,
    )
    assert not tally.findings, "\n".join(tally.findings)
    assert killed.total() >= number
    assert min(killed["swept"], killed["random"], *(killed[act] for act in ACTS)) > 0, killed
