"""Run as the first process of a pid namespace: attempts die, strangers get their pids, a launcher adopts.

`python -m tests.faults.pid_reuse FOLDER ROUNDS SEED` prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import anyio

from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
PATIENCE_S = 30.0
TRIES = 200
ROLES = ("shim", "worker")
RECORDS = ("as it was", "equal start", "equal start, another boot")
LEFT = ("nothing", "a child")
DEEDS = ("end", "wait", "end and wait", "pids")


def spec_of(attempts: Path, attempt_id: str, left: str) -> LaunchSpec:
    """A worker that is killed; with a child in a session of its own, deaf to TERM, where one is to be left."""
    stays = 'trap "" TERM; echo there > $0; while :; do sleep 5; done'
    leave = f"(setsid sh -c '{stays}' \"$1\" &) ; " if left != "nothing" else ""
    env = {"PATH": os.environ["PATH"], "BOUNDD_RESULTS": str(attempts / attempt_id / "results.jsonl")}
    argv = ("sh", "-c", f"{leave} exec sleep 600", "worker", str(attempts / attempt_id / "left"))
    return LaunchSpec(attempt_id, argv, env, attempts, 600, 0.2)


def stranger_with(pid: int) -> subprocess.Popen[bytes] | None:
    """A process of nobody's with this pid, which leads a session as a worker does; None where it can't be had."""
    for _ in range(TRIES):
        LAST_PID.write_text(str(pid - 1))
        made = subprocess.Popen(["sleep", "600"], start_new_session=True)
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
    return None


def until_gone(pid: int) -> None:
    """Wait until a pid is free. We are who orphans are left to."""
    deadline_s = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, f"pid {pid} stays"
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            time.sleep(0.002)


class Round:
    """One attempt, dead, and a stranger in its place."""

    def __init__(self, attempts: Path, number: int, draw: random.Random) -> None:
        self._attempts, self.id = attempts, str(number)
        self.role, self.left, self.deed = draw.choice(ROLES), draw.choice(LEFT), draw.choice(DEEDS)
        self.record = RECORDS[number % len(RECORDS)]
        self.words = f"round {number}: {self.role}'s pid, {self.record}, {self.left} left, {self.deed}"

    async def prepare(self, launcher: LocalLauncher) -> subprocess.Popen[bytes] | None:
        """Launch, kill, and put the stranger in; the record says what the round wants of it."""
        folder = self._attempts / self.id
        await launcher.launch(spec_of(self._attempts, self.id, self.left))
        deadline_s = time.monotonic() + PATIENCE_S
        while self.left != "nothing" and not (folder / "left").exists():
            assert time.monotonic() < deadline_s, "no child was left"
            await anyio.sleep(0.002)
        record = json.loads((folder / shim.SHIM).read_text())
        os.kill(record["pid"], signal.SIGKILL)
        for pid in (record["pid"], record["worker_pid"]):
            until_gone(pid)
        pid = record["pid" if self.role == "shim" else "worker_pid"]
        stranger = stranger_with(pid)
        if stranger is not None and self.record != "as it was":
            stat = shim.stat_of(pid)
            assert stat is not None
            record["start_ticks" if self.role == "shim" else "worker_start_ticks"] = stat.start_ticks
            record["boot_id"] = "another" if "another" in self.record else record["boot_id"]
            place = folder / shim.SHIM
            place.write_text(json.dumps(shim.checked(str(place), record)))
        return stranger

    async def adopt(self) -> bool:
        """What a daemon does that finds the attempt; False where it waits for the stranger, or leaves something."""
        successor = LocalLauncher(self._attempts)
        with anyio.move_on_after(PATIENCE_S):
            if self.deed == "pids":
                successor.pids(self.id)
                successor.unkillable(self.id)
            if "end" in self.deed:
                await successor.end(self.id)
            end = await successor.wait(self.id)
            return bool(end.lost) and not successor.is_alive(self.id)
        return False


async def main(folder: Path, rounds: int, seed: int) -> None:
    """Make the rounds."""
    draw = random.Random(seed)
    launcher = LocalLauncher(folder)
    counts: Counter[str] = Counter()
    failed: list[str] = []
    for number in range(rounds):
        each = Round(folder, number, draw)
        stranger = await each.prepare(launcher)
        if stranger is None:
            failed.append(f"{each.words}: the pid was not to be had")
            continue
        counts["reused"] += 1
        counts[each.role] += 1
        counts["equal_start"] += each.record == "equal start"
        counts["left"] += each.left != "nothing"
        ended = await each.adopt()
        if stranger.poll() is not None:
            counts["wrong_kills"] += 1
            failed.append(f"{each.words}: the stranger was killed")
        if not ended:
            counts["never_ended"] += 1
            failed.append(f"{each.words}: it does not end")
        stranger.kill()
        stranger.wait()
    launcher.close()
    print(json.dumps({"counts": counts, "failed": failed}))


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
