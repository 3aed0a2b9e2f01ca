"""The device lease, between real processes."""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from boundd.protocol.lease import TURN, WORK, DeviceLease, LeaseUse, NoLease, lease_use, waiting_pids

ROOT = Path(__file__).parents[2]

_HOLD = """
import sys
from pathlib import Path
from boundd.protocol.lease import DeviceLease
lease = DeviceLease(Path(sys.argv[1]))
print("started", flush=True)
with getattr(lease, sys.argv[2])():
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""
"""Takes the lease, says so, and holds it until told to let go."""

_APPEND_EVENTS = """
import os, sys, time
from pathlib import Path
from boundd.protocol.lease import DeviceLease
folder, mode, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
lease = DeviceLease(folder)
log = os.open(folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(60):
    with getattr(lease, mode)():
        os.write(log, f"+{name}\\n".encode())
        time.sleep(0.002)
        os.write(log, f"-{name}\\n".encode())
"""
"""Takes the lease again and again, and leaves a mark at the start and the end of each hold."""

_SHARE_FOR_EVER = """
import sys, time
from pathlib import Path
from boundd.protocol.lease import DeviceLease
lease = DeviceLease(Path(sys.argv[1]))
print("started", flush=True)
while True:
    with lease.shared():
        time.sleep(0.02)
"""
"""Keeps the shared lease nearly all the time."""


_USE = """
import os, sys, time
from contextlib import nullcontext
from pathlib import Path
from boundd.protocol.lease import DeviceLease
folder, mode, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
uses_lease, sections = sys.argv[4] == "lease", int(sys.argv[5])
lease = DeviceLease(folder)
with (folder / f"intervals-{name}").open("w") as log:
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    while done < sections and not (folder / "enough").exists():
        with getattr(lease, mode)() if uses_lease else nullcontext():
            begun = time.monotonic_ns()
            time.sleep(0.003 if mode == "exclusive" else 0.004)
            ended = time.monotonic_ns()
        log.write(f"{begun} {ended}\\n")
        done += 1
"""
"""Uses the device again and again, and leaves the interval of each use, as all processes' clock has it."""


def spawn(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A process of its own that runs `program`: record locks only mean something between processes."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


class Holder:
    """A process that holds the lease of a folder."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.process = spawn(_HOLD, folder, mode)
        self.expect("started")

    def says_something(self, within_s: float) -> bool:
        """Whether there is a word to read, waiting for it at most so long."""
        return bool(select.select([self.process.stdout], [], [], within_s)[0])

    def expect(self, word: str) -> None:
        """Read the next word, which must be this one."""
        assert self.says_something(20), f"no {word!r} within 20 s"
        assert self.process.stdout is not None
        heard = b""
        while not heard.endswith(b"\n"):
            heard += os.read(self.process.stdout.fileno(), 1)
        assert heard.decode().strip() == word

    def waits(self) -> bool:
        """Whether it still waits for the lease a moment later."""
        return not self.says_something(0.3)

    def release(self) -> None:
        """Tell it to let go, and wait until it has."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        self.expect("released")

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[str], Holder]]:
    """Starts holders in one folder and ends them all."""
    with contextlib.ExitStack() as stack:

        def start(mode: str) -> Holder:
            holder = Holder(tmp_path, mode)
            stack.callback(holder.kill)
            return holder

        yield start


def test_many_share_and_one_is_alone(hold: Callable[[str], Holder]) -> None:
    """Two sharers hold it together; a timer waits for both, and keeps both out while it holds it."""
    first, second = hold("shared"), hold("shared")
    first.expect("held")
    second.expect("held")
    timer = hold("exclusive")
    assert timer.waits()
    first.release()
    assert timer.waits()
    second.release()
    timer.expect("held")
    late = hold("shared")
    assert late.waits()
    timer.release()
    late.expect("held")


def test_a_waiting_timer_is_not_overtaken(hold: Callable[[str], Holder]) -> None:
    """A sharer that comes after a waiting timer waits behind it."""
    early = hold("shared")
    early.expect("held")
    timer = hold("exclusive")
    assert timer.waits()
    late = hold("shared")
    assert late.waits()
    early.release()
    timer.expect("held")
    assert late.waits()
    timer.release()
    late.expect("held")


def test_a_dead_holder_frees_it(hold: Callable[[str], Holder]) -> None:
    """SIGKILL of the holder lets the next one in, and a killed waiter does not block the turnstile."""
    holder = hold("exclusive")
    holder.expect("held")
    waiter, heir = hold("exclusive"), hold("shared")
    assert waiter.waits()
    waiter.kill()
    holder.kill()
    heir.expect("held")


@pytest.mark.slow
def test_exclusive_never_overlaps_anything(tmp_path: Path) -> None:
    """Over hundreds of holds by five processes, whoever holds it exclusively is alone."""
    plan = [("a", "exclusive"), ("b", "exclusive"), ("s", "shared"), ("t", "shared"), ("u", "shared")]
    processes = [spawn(_APPEND_EVENTS, tmp_path, mode, name) for name, mode in plan]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    inside: set[str] = set()
    shared_together = False
    for event in (tmp_path / "events").read_text().split():
        sign, name = event
        if sign == "-":
            inside.remove(name)
            continue
        inside.add(name)
        assert not (inside & {"a", "b"}) or len(inside) == 1, f"{sorted(inside)} held it together"
        shared_together |= len(inside) > 1
    assert not inside
    assert shared_together


class Interval(NamedTuple):
    """A use of the device, from the first instant to the last, by one process."""

    begun_ns: int
    ended_ns: int
    user: str


def use_together(folder: Path, uses_lease: str) -> tuple[list[Interval], list[Interval]]:
    """200 timed sections by four processes, while three others use the device all the time: what each did."""
    plan = [(f"timer-{n}", "exclusive", 50) for n in range(4)] + [(f"sharer-{n}", "shared", 10**6) for n in range(3)]
    users = {name: spawn(_USE, folder, mode, name, uses_lease, sections) for name, mode, sections in plan}
    for user in users.values():
        assert user.stdout is not None
        assert user.stdout.readline() == b"ready\n"
    for user in users.values():
        assert user.stdin is not None
        user.stdin.write(b"go\n")
        user.stdin.flush()
    for name, user in users.items():
        if name == "sharer-0":
            (folder / "enough").touch()  # the timers are done
        assert user.wait(timeout=120) == 0
        user.communicate()
    found: dict[str, list[Interval]] = {"timer": [], "sharer": []}
    for name in users:
        for line in (folder / f"intervals-{name}").read_text().splitlines():
            begun_ns, ended_ns = line.split()
            found[name.split("-")[0]].append(Interval(int(begun_ns), int(ended_ns), name))
    return found["timer"], found["sharer"]


def overlaps(timed: list[Interval], all_uses: list[Interval]) -> int:
    """How many timed sections share an instant with a use by somebody else."""

    def meets(section: Interval, use: Interval) -> bool:
        return section.user != use.user and section.begun_ns < use.ended_ns and use.begun_ns < section.ended_ns

    return sum(any(meets(section, use) for use in all_uses) for section in timed)


@pytest.mark.slow
def test_200_timed_sections_under_load_overlap_nothing(tmp_path: Path) -> None:
    """Seven processes on one device: no timed section shares an instant with anybody's work, and neither side starves.

    The control below shows that the same processes without the lease do overlap.
    """
    timed, shared = use_together(tmp_path, "lease")
    count = overlaps(timed, timed + shared)
    print(f"{len(timed)} timed sections, {len(shared)} shared uses beside them, {count} overlaps")
    assert len(timed) == 200
    assert len(shared) >= 50
    assert count == 0


@pytest.mark.slow
def test_without_the_lease_timed_sections_do_overlap(tmp_path: Path) -> None:
    """The control: the same processes, which don't take it."""
    timed, shared = use_together(tmp_path, "none")
    count = overlaps(timed, timed + shared)
    print(f"without the lease: {len(timed)} timed sections, {count} overlaps")
    assert len(timed) == 200
    assert count > 100


def test_sharers_do_not_starve_a_timer(tmp_path: Path) -> None:
    """Three processes which keep the shared lease nearly always let a timer in, ten times over, and soon."""
    sharers = [spawn(_SHARE_FOR_EVER, tmp_path) for _ in range(3)]
    for process in sharers:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
    lease = DeviceLease(tmp_path)
    try:
        started = time.monotonic()
        for _ in range(10):
            with lease.exclusive():
                pass
        assert time.monotonic() - started < 10
        assert lease.waited_s > 0
    finally:
        for process in sharers:
            process.kill()
            process.communicate()
        lease.close()


def test_waiting_is_counted_and_holding_is_not(tmp_path: Path) -> None:
    """waited_s adds up the time until the lease was had."""
    ticks = iter([10.0, 12.5, 100.0, 100.25])
    lease = DeviceLease(tmp_path, clock=lambda: next(ticks))
    with lease.shared():
        pass
    with lease.exclusive():
        pass
    assert lease.waited_s == 2.75
    lease.close()


def test_it_cannot_be_taken_twice(tmp_path: Path) -> None:
    """A nested hold would silently change the outer one's mode, so it is an error; and the lease stays
    usable."""
    lease = DeviceLease(tmp_path / "made" / "for it")
    with lease.exclusive(), pytest.raises(RuntimeError, match="already held"), lease.shared():
        pass
    with lease.shared():
        pass
    lease.close()


def test_an_exception_inside_lets_go(tmp_path: Path, hold: Callable[[str], Holder]) -> None:
    """An error in a timed section frees the device."""
    lease = DeviceLease(tmp_path)
    with contextlib.suppress(ZeroDivisionError), lease.exclusive():
        _ = 1 / 0
    other = hold("exclusive")
    other.expect("held")
    lease.close()


def test_alone_there_is_nothing_to_wait_for() -> None:
    """The null lease never waits."""
    lease = NoLease()
    with lease.shared(), lease.exclusive():
        assert lease.waited_s == 0


def test_who_uses_it_is_read_from_the_kernels_list(tmp_path: Path) -> None:
    """Holders of `work` by how they hold it; a file system whose stat() names another device goes by inode."""
    DeviceLease(tmp_path).close()
    status = (tmp_path / WORK).stat()
    here = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    lines = [
        f"1: POSIX  ADVISORY  WRITE 100 {here} 0 EOF",
        f"2: POSIX  ADVISORY  READ  101 00:2a:{status.st_ino} 0 EOF",
        f"3: POSIX  ADVISORY  READ  102 ff:2a:{status.st_ino} 0 EOF",
        f"4: -> POSIX  ADVISORY  WRITE 103 {here} 0 EOF",
        f"5: OFDLCK ADVISORY  READ  -1 {here} 0 EOF",
    ]
    listing = tmp_path / "locks"
    listing.write_text("\n".join(lines))
    assert lease_use(tmp_path, listing) == LeaseUse(
        timing=frozenset({100}), sharing=frozenset({101}), waiting=frozenset({103})
    )
    assert lease_use(tmp_path, tmp_path / "none") == LeaseUse()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel lists no locks")
def test_it_is_seen_from_outside_who_times(tmp_path: Path, hold: Callable[[str], Holder]) -> None:
    """Timing while it is held exclusively, sharing while it is held so, and nothing after a death."""
    timer = hold("exclusive")
    timer.expect("held")
    assert lease_use(tmp_path) == LeaseUse(timing=frozenset({timer.process.pid}))
    timer.kill()
    sharer = hold("shared")
    sharer.expect("held")
    assert lease_use(tmp_path) == LeaseUse(sharing=frozenset({sharer.process.pid}))
    sharer.release()
    assert lease_use(tmp_path) == LeaseUse()


def test_waiters_are_read_from_the_kernels_list(tmp_path: Path) -> None:
    """Only waiters, only on this folder's files; a kernel that says nothing gives nobody."""
    DeviceLease(tmp_path).close()
    entries = []
    for name in (WORK, TURN):
        status = (tmp_path / name).stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        entries.append(f"1: POSIX  ADVISORY  WRITE 10{len(entries)} {device} 0 EOF")
        entries.append(f"1: -> POSIX  ADVISORY  WRITE 20{len(entries)} {device} 0 EOF")
    entries += ["2: -> POSIX  ADVISORY  READ  300 00:00:1 0 EOF", "3: -> FLOCK  ADVISORY  WRITE 301 00:00:1 0 EOF", ""]
    listing = tmp_path / "locks"
    listing.write_text("\n".join(entries))
    assert waiting_pids(tmp_path, listing) == {201, 203}
    assert waiting_pids(tmp_path, tmp_path / "none") == frozenset()
    assert waiting_pids(tmp_path / "no lease here", listing) == frozenset()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel lists no locks")
def test_a_real_waiter_is_seen_waiting(tmp_path: Path, hold: Callable[[str], Holder]) -> None:
    """While it waits, and neither before nor after; the holder never."""
    holder = hold("exclusive")
    holder.expect("held")
    assert waiting_pids(tmp_path) == frozenset()
    waiter = hold("shared")
    assert waiter.waits()
    assert waiting_pids(tmp_path) == {waiter.process.pid}
    holder.release()
    waiter.expect("held")
    assert waiting_pids(tmp_path) == frozenset()
