"""Two, and fifty, daemons started at once on one state folder: one owns it, the others exit 4 and name it.

The rounds take turns: a folder that isn't there yet, one that is, the same by a symbolic link or by a bind mount for
half of them, one whose lock file somebody deletes again and again, and one whose owner is killed meanwhile.

Who owns is not asked of the lock, but seen: a thread looks through /proc for who has the store open, all the time. In
the end the audit (audit.py) says whether anything was harmed.

To see it fail: in `boundd/service/instance_lock.py`, let `_take` return at once (several owners); leave out the `_take`
of the folder (the rounds in which the file is deleted); let `_holder` return what is in the file (a dead owner is
named).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import audit
from tests.faults.campaign import Report, drawn_seed, sizes
from tests.faults.daemons import PATIENCE_S, Box, wait_for

pytestmark = pytest.mark.timeout(1200)
"""A loaded machine is given its time; a campaign of full length has none."""

EXIT_HELD = 4
LOOK_S = 0.02
VARIANTS = ("used", "new", "deleted", "replaced", "link", "mount")
KINDS = ("quick", "slow")


class Watch:
    """Looks who has the store open, until it is told to end."""

    def __init__(self, box: Box) -> None:
        self._store = (str(box.store), str(box.store) + "-wal")
        self._pids: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.looks = 0
        self.most = 0
        self.seen: set[int] = set()

    def add(self, pid: int) -> None:
        """Look at this one too."""
        self._pids.append(pid)

    @contextmanager
    def __call__(self) -> Iterator[Watch]:
        """Look, as long as the block goes on."""
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            # Twice: whoever is seen in both had it open when the first look ended.
            first = {pid for pid in tuple(self._pids) if self._has_it_open(pid)}
            owners = {pid for pid in first if self._has_it_open(pid)}
            self.looks += 1
            self.most = max(self.most, len(owners))
            self.seen |= owners

    def _has_it_open(self, pid: int) -> bool:
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            return False
        # By a bind mount the kernel may give another path to the same file.
        return any(link in self._store or link.endswith(("/boundd.db", "/boundd.db-wal")) for link in links)


@dataclass(slots=True)
class Tally:
    """What came of the rounds."""

    daemons: int = 0
    refused: int = 0
    replaced: int = 0
    looks: int = 0
    most_owners: int = 0
    problems: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


class Round:
    """So many daemons at once on one state."""

    def __init__(self, box: Box, variant: str, number: int, rng: random.Random) -> None:
        self.box, self.variant, self.number, self.rng = box, variant, number, rng
        self.watch = Watch(box)
        self.daemons: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
        self.problems: list[str] = []
        self.killed = 0
        self._aliases = [box.config]

    def run(self) -> None:
        """Start them, let the owner be found, and end it once its cells are done."""
        self._prepare()
        with self.watch():
            for number in range(self.number):
                self._start(self._aliases[number % len(self._aliases)], number)
            if self.variant == "replaced":
                self._kill_the_owner()
            self._until_one_is_left()
            owner = next(process for process, _ in self.daemons.values() if process.poll() is None)
            wait_for(lambda: self._is_idle() or owner.poll() is not None, f"an idle owner: {self.box.told()}")
            owner.send_signal(signal.SIGTERM)
            if owner.wait(PATIENCE_S) != 0:
                self.problems.append(f"the owner ended with {owner.returncode}")
            self._check_the_others(owner.pid)

    def clear(self) -> None:
        """KILL what is left."""
        for process, _ in self.daemons.values():
            process.kill()
            process.wait()
        self.box.clear()

    def _prepare(self) -> None:
        if self.variant == "new":
            return
        self.box.state_dir.mkdir()
        if self.variant in ("link", "mount"):
            alias = self.box.folder / "alias"
            alias.mkdir() if self.variant == "mount" else alias.symlink_to("state")
            other = self.box.folder / "alias.toml"
            other.write_text(self.box.config.read_text().replace('state_dir = "state"', 'state_dir = "alias"'))
            self._aliases.append(other)

    def _start(self, config: Path, number: int) -> None:
        log = self.box.folder / f"log-{number}"
        command = [sys.executable, "-m", "boundd", "run", "--config", str(config), "--log-format", "json"]
        if self.variant == "mount" and config != self.box.config:
            mount = f"mount --bind '{self.box.state_dir}' '{self.box.folder / 'alias'}' && exec \"$@\""
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        with log.open("wb") as told:
            daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, cwd=self.box.folder, start_new_session=True
            )
        self.daemons[daemon.pid] = (daemon, log)
        self.watch.add(daemon.pid)

    def _kill_the_owner(self) -> None:
        wait_for(lambda: bool(self.watch.seen), "an owner")
        (owner,) = self.watch.seen
        time.sleep(self.rng.uniform(0, 0.1))
        self.daemons[owner][0].kill()
        self.daemons[owner][0].wait()
        self.killed = owner
        if all(process.poll() is not None for process, _ in self.daemons.values()):
            self._start(self.box.config, len(self.daemons))

    def _until_one_is_left(self) -> None:
        lock = self.box.state_dir / "daemon.lock"

        def is_so() -> bool:
            if self.variant == "deleted":
                lock.unlink(missing_ok=True)
            if self.killed and all(process.poll() is not None for process, _ in self.daemons.values()):
                self._start(self.box.config, len(self.daemons))  # all were refused while the killed one lived
            return sum(process.poll() is None for process, _ in self.daemons.values()) <= 1

        wait_for(is_so, "that all but one are refused")
        if self.variant == "deleted":
            lock.unlink(missing_ok=True)
            self._start(self.box.config, self.number)
            late = list(self.daemons.values())[-1][0]
            if late.wait(PATIENCE_S) != EXIT_HELD:
                self.problems.append(f"with its lock file deleted, the state was taken: exit {late.returncode}")

    def _is_idle(self) -> bool:
        if not self.box.store.exists():
            return False
        rows = audit.read_store(self.box.store)
        return len(rows.cells) == len(KINDS) and not any(audit.check_ends(rows, audit.NOTHING_ASKED))

    def _check_the_others(self, owner: int) -> None:
        owners = {owner, self.killed} - {0}
        for pid, (process, log) in self.daemons.items():
            if pid in owners:
                continue
            told = log.read_text()
            if process.returncode != EXIT_HELD:
                self.problems.append(f"{pid} ended with {process.returncode}: {told[-500:]}")
                continue
            named = re.findall(r"\(pid (\S+)\)", json.loads(told.splitlines()[-1])["message"])
            if len(named) != 1 or named[0] not in {str(one) for one in owners}:
                self.problems.append(f"{pid} names {named}, and the owner is {' or '.join(map(str, owners))}")
        if not self.watch.seen <= owners:
            self.problems.append(f"the store was opened by {self.watch.seen - owners}")


def variants(number: int) -> Iterator[str]:
    """What the rounds are, in turns; half of them without a mount where that isn't possible."""
    known = [variant for variant in VARIANTS if variant != "mount" or _can_mount()]
    for place in range(number):
        yield known[place % len(known)]


def _can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("unshare") is not None


@pytest.mark.parametrize("daemons", [2, 50])
@sizes("rounds", short=5, long=1000)
def test_one_owner(rounds: int, daemons: int, tmp_path: Path, report: Report) -> None:
    """At any time at most one of them has the store; the others say whose it is and do no harm."""
    seed = drawn_seed()
    rng, tally = random.Random(seed), Tally()
    # The two sizes begin elsewhere, so that short runs of both see every variant.
    kinds = list(variants(rounds + 2))[2 if daemons == 2 else 0 :][:rounds]
    for number, variant in enumerate(kinds):
        box = Box(tmp_path / str(number), numbers=1, kinds=KINDS)
        one = Round(box, variant, daemons, rng)
        try:
            one.run()
            findings = audit.audit(box)
        finally:
            one.clear()
        tally.daemons += len(one.daemons)
        tally.refused += sum(process.returncode == EXIT_HELD for process, _ in one.daemons.values())
        tally.replaced += one.killed != 0
        tally.looks += one.watch.looks
        tally.most_owners = max(tally.most_owners, one.watch.most)
        tally.kinds.update(audit.count(findings))
        tally.problems += [f"{variant}: {problem}" for problem in [*one.problems, *map(str, findings)]]
        shutil.rmtree(box.folder)
    report(
        f"{daemons} daemons on one state",
        rounds=rounds,
        daemons=tally.daemons,
        refused=tally.refused,
        owners_killed=tally.replaced,
        looks=tally.looks,
        owners_at_any_time=tally.most_owners,
        problems=len(tally.problems),
        **{kind: tally.kinds[kind] for kind in audit.KINDS},
        variants="/".join(sorted(set(kinds))),
        seed=seed,
    )
    assert not tally.problems, "\n".join(tally.problems)
    assert tally.most_owners == 1
    assert tally.refused == tally.daemons - rounds - tally.replaced
