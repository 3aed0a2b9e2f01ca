"""Cuts the power of a file system again and again while boundd writes to it, and counts what was lost.

Run by test_power_cuts.py as `unshare --mount --pid --fork --kill-child --mount-proc python -m tests.faults.power …`, so
that mounts, loop devices and processes are its own and end with it, whatever happens. It is process 1 there.

Each round mounts an ext4 in a file, starts writers, cuts (EXT4_IOC_SHUTDOWN without flushing the journal) at a random
instant, kills the writers, mounts again, which replays the journal, and looks at what is there. Writers acknowledge
through pipes, and the daemon through its log, neither of which is on that file system.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio

from boundd.cli.boundd import RunOptions
from boundd.composition import run as daemon_main
from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.records import SaveCell
from boundd.launch.local import LocalLauncher
from boundd.launch.records import RecordError, read_outcome
from boundd.ports import LaunchSpec, StoreBusyError, StoreError
from boundd.service.instance_lock import hold
from boundd.store import queries
from boundd.store.sqlite import SqliteStore
from boundd.telemetry.export_file import is_boundd_json, write_export

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
SIZE_BYTES = 48 * 1024**2
CELLS = 20
FIRST_ACKNOWLEDGEMENTS = 3
"""A cut comes once so many of each writer's are there: sooner there would be nothing to lose."""
LONGEST_WAIT_S = 0.12
PATIENCE_S = 60.0
DAEMON_EVERY = 5
DAEMON_CELLS = 400
RESULT_LINES = 40
WORKER = f'i=0; while [ $i -lt {RESULT_LINES} ]; do echo "{{\\"line\\": $i}}" >> "$BOUNDD_RESULTS"; i=$((i+1)); done'


class Writer:
    """A child process that writes until it is killed, and its pipe of acknowledgements, a line each."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]) -> None:
        self._reading, writing = os.pipe()
        self._text = b""
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._reading)
                work(lambda line: (os.write(writing, f"{line}\n".encode()), None)[1])
                status = 0
            except BaseException as error:  # after the cut everything fails
                if os.environ.get("POWER_DEBUG"):
                    os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(status)
        os.close(writing)
        os.set_blocking(self._reading, False)

    def read(self) -> list[str]:
        """The whole lines that have been acknowledged so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reading, 65536):
                self._text += data
        return self._text.decode().split("\n")[:-1]

    def wait_for(self, lines: int, name: str) -> None:
        """Until there are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.read()) < lines:
            if time.monotonic() > deadline:
                raise SystemExit(f"{name}: acknowledged {len(self.read())} of {lines} in {PATIENCE_S} s")
            select.select([self._reading], [], [], 0.05)

    def close(self) -> None:
        """Once it is dead."""
        os.close(self._reading)


def record(n: int) -> CellRecord:
    """What commit `n` keeps: one of a few cells, over and over."""
    return replace(CellRecord(Cell.of({"n": n % CELLS}, ["n"]), CellPolicy()), attempts=n)


class Campaign:
    """The file system, and the counts."""

    def __init__(self, folder: Path, seed: int, synchronous: str, *, daemon: bool) -> None:
        self._image, self.mounted = folder / "disk.img", folder / "mnt"
        self._scratch = folder
        self._random = random.Random(seed)
        self._synchronous = synchronous
        self._with_daemon = daemon
        self.counts: Counter[str] = Counter()
        self.trouble: list[str] = []
        with self._image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", self._image], check=True)
        self.mounted.mkdir()
        self._config = folder / "config.toml"
        self._config.write_text(
            f"""
[daemon]
state_dir = "{self.mounted}/daemon"
socket = "{folder}/socket"
export = "{self.mounted}/daemon-export.json"
disk_reserve = "0MiB"
[log]
level = "info"
[devices]
backend = "simulated"
[[devices.simulated]]
name = "Fake 24"
memory = "24GiB"
[matrix.axes]
n = [{", ".join(map(str, range(DAEMON_CELLS)))}]
[worker]
result = "stdout"
command = ["/bin/sh", "-c", "echo speedup: 1.5"]
timeout = "60s"
"""
        )

    # The disk

    def mount(self) -> None:
        """Mount it; replays the journal.

        By default ext4 itself brings a file to the disk that is renamed over another one, as if it had been synced.
        """
        subprocess.run(["mount", "-o", "loop,noauto_da_alloc", self._image, self.mounted], check=True)

    def unmount(self) -> None:
        """Unmount it; nobody uses it any more."""
        subprocess.run(["umount", self.mounted], check=True)

    def cut(self) -> None:
        """From here on nothing reaches the disk."""
        descriptor = os.open(self.mounted, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH.to_bytes(4, sys.byteorder))
        os.close(descriptor)

    # The writers

    def commit(self, acknowledge: Callable[[str], None], begin: int) -> None:
        """Commits 1, 2, 3 and so on, as the daemon's store makes them."""
        queries.PRAGMAS = tuple(p.replace("FULL", self._synchronous) for p in queries.PRAGMAS)  # type: ignore[misc]

        async def main() -> None:
            store = await SqliteStore.open(self.mounted / "boundd.db")
            n = begin
            while True:
                n += 1
                await store.commit([SaveCell(record(n))])
                acknowledge(str(n))

        anyio.run(main)

    def attempt(self, acknowledge: Callable[[str], None], number: int) -> None:
        """Attempts by real shims, one after another; acknowledged once the launcher has seen the outcome."""

        async def main() -> None:
            launcher = LocalLauncher(self.mounted / "attempts")
            for n in range(1_000_000):
                name = f"{number}.{n}"
                folder = launcher.results_path(name).parent
                env = {"PATH": "/usr/bin:/bin", "BOUNDD_RESULTS": str(folder / "results.jsonl")}
                spec = LaunchSpec(name, ("/bin/sh", "-c", WORKER), env, Path("/"), 60.0, 0.3)
                await launcher.launch(spec)
                end = await launcher.wait(name)
                if end.exit_status == 0:
                    acknowledge(name)

        anyio.run(main)

    def export(self, acknowledge: Callable[[str], None], begin: int) -> None:
        """Exports 1, 2, 3 and so on over one file."""
        n = begin
        while True:
            n += 1
            text = json.dumps({"format": "boundd/1", "n": n, "padding": ["x" * 50] * 400, "again": n})
            write_export(self.mounted / "export.json", text, is_boundd_json)
            acknowledge(str(n))

    def hold(self, acknowledge: Callable[[str], None]) -> None:
        """Take and leave the state's lock."""
        state = self.mounted / "held"
        state.mkdir(exist_ok=True)
        while True:
            with hold(state):
                acknowledge("held")
            time.sleep(0.01)

    def daemon(self, acknowledge: Callable[[str], None]) -> None:
        """The daemon itself; its log is its acknowledgement."""
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        pid = os.fork()
        if pid == 0:
            os._exit(daemon_main.run(RunOptions(self._config, until_idle=True, log_format="json")))
        os.close(writing)
        os.close(2)
        with os.fdopen(reading) as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    told = json.loads(line)
                    if told.get("event.action") == "attempt-ended":
                        acknowledge(f"{told['boundd.attempt']} {told['boundd.outcome']}")

    # A round

    def round(self, number: int) -> None:
        """One cut, and what was lost by it."""
        self.mount()
        begun = anyio.run(self._stored) if (self.mounted / "boundd.db").exists() else 0
        exported = self._exported() or 0
        writers = {"commits": Writer(lambda acknowledge: self.commit(acknowledge, begun))}
        if self._with_daemon:
            writers["outcomes"] = Writer(lambda acknowledge: self.attempt(acknowledge, number))
            writers["exports"] = Writer(lambda acknowledge: self.export(acknowledge, exported))
            writers["holds"] = Writer(self.hold)
            if number % DAEMON_EVERY == 0:
                writers["ends"] = Writer(self.daemon)
        for name, writer in writers.items():
            writer.wait_for(FIRST_ACKNOWLEDGEMENTS, name)
        time.sleep(self._random.uniform(0, LONGEST_WAIT_S))
        # Before the cut: without power nobody says anything. Here the processes live on for an instant, and an fsync
        # that was under way can come back as if it had succeeded, once the kernel has thrown its transaction away.
        said = {name: writer.read() for name, writer in writers.items()}
        self.cut()
        kill_all()
        for writer in writers.values():
            writer.close()
        self.unmount()
        self.mount()
        self.counts["cuts"] += 1
        self.counts["daemon_cuts"] += "ends" in said
        self._judge(number, said)
        self.unmount()

    def _judge(self, number: int, said: dict[str, list[str]]) -> None:
        self.counts.update({name: len(lines) for name, lines in said.items()})
        try:
            stored = anyio.run(self._stored)
        except (StoreError, StoreBusyError, AssertionError) as error:
            self._bad("stores_refused", f"cut {number}: {error}")
            return
        self._bad("commits_lost", f"cut {number}: {stored} of {said['commits'][-1]}", int(said["commits"][-1]) - stored)
        if "exports" in said:
            exported = self._exported()
            if exported is None:
                self._bad("exports_torn", f"cut {number}: the export is not whole")
                # What isn't boundd's is never overwritten, and the campaign is to go on.
                (self.mounted / "export.json").unlink()
            elif exported < int(said["exports"][-1]):
                self._bad("exports_lost", f"cut {number}: export {exported} of {said['exports'][-1]}")
            self._judge_daemon_export(number)
        if "outcomes" in said:
            self._judge_attempts(number, set(said["outcomes"]))
            with hold(self.mounted / "held"):
                pass
        if "ends" in said:
            anyio.run(self._judge_daemon, number, said["ends"])

    def _judge_attempts(self, number: int, seen: set[str]) -> None:
        for folder in (self.mounted / "attempts").glob(f"{number}.*"):
            try:
                end = read_outcome(folder)
            except RecordError as error:
                self._bad("outcomes_torn", f"cut {number}: {folder.name}: {error}")
                continue
            if end is None:
                self.counts["judged_lost"] += 1
                continue
            results = folder / "results.jsonl"
            lines = results.read_text(errors="replace").splitlines() if results.exists() else []
            if end.exit_status == 0 and lines != [json.dumps({"line": i}) for i in range(RESULT_LINES)]:
                self._bad("results_lost", f"cut {number}: {folder.name}: {len(lines)} of {RESULT_LINES} result lines")
            seen.discard(folder.name)
        # A daemon that had seen one may have told of it, or be about to: the next one must not judge it lost.
        self._bad("outcomes_lost", f"cut {number}: {', '.join(sorted(seen))}", len(seen))

    def _judge_daemon_export(self, number: int) -> None:
        path = self.mounted / "daemon-export.json"
        if path.exists() and not is_boundd_json(path.read_bytes()):
            self._bad("exports_torn", f"cut {number}: the daemon's export is not whole")
            path.unlink()

    async def _judge_daemon(self, number: int, ends: list[str]) -> None:
        store = await SqliteStore.open(self.mounted / "daemon" / "boundd.db")
        try:
            known = {}
            for record_ in (await store.load()).cells:
                for ended in await store.attempts_of(record_.cell.key):
                    known[ended.attempt.id] = ended.verdict.outcome if ended.verdict else None
        finally:
            await store.aclose()
        lost = [end for end in ends if known.get(end.split()[0]) != end.split()[1]]
        self._bad("ends_lost", f"cut {number}: {lost[:3]}", len(lost))

    async def _stored(self) -> int:
        """The latest commit in the store, which must hold all before it as well."""
        store = await SqliteStore.open(self.mounted / "boundd.db")
        try:
            cells = {record_.cell.parameters["n"]: record_.attempts for record_ in (await store.load()).cells}
        finally:
            await store.aclose()
        latest = max(cells.values(), default=0)
        for back in range(min(latest, CELLS)):
            n = latest - back
            assert cells[n % CELLS] == n, f"commit {n} is missing, and {latest} is there"
        return latest

    def _exported(self) -> int | None:
        """The number of the export; 0 where there is none, None for one that isn't whole."""
        try:
            document = json.loads((self.mounted / "export.json").read_text())
        except FileNotFoundError:
            return 0
        except ValueError:
            return None
        return int(document["n"]) if document["n"] == document["again"] else None

    def _bad(self, name: str, what: str, count: int = 1) -> None:
        if count > 0:
            self.counts[name] += count
            self.trouble.append(f"{name}: {what}")

    def finish(self) -> None:
        """After the last cut the daemon measures what is left: every cell ends."""
        self.mount()
        if (self.mounted / "daemon").exists():
            pid = os.fork()
            if pid == 0:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
                short = self._config.with_name("short.toml")
                cells = ", ".join(map(str, range(CELLS)))
                text = self._config.read_text().replace(", ".join(map(str, range(DAEMON_CELLS))), cells)
                short.write_text(text)
                os._exit(daemon_main.run(RunOptions(short, until_idle=True, log_format="json")))
            _, status = os.waitpid(pid, 0)
            if os.waitstatus_to_exitcode(status) != 0:
                self._bad("runs_unfinished", f"the last daemon ended with {os.waitstatus_to_exitcode(status)}")
        kill_all()
        self.unmount()


def kill_all() -> None:
    """Kill and reap every other process of this namespace; all of them are the campaign's."""
    if os.getpid() != 1:
        raise SystemExit("not process 1 of a namespace of its own")
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def main() -> None:
    """Run so many cuts, and print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuts", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--synchronous", default="FULL")
    parser.add_argument("--store-alone", action="store_true")
    given = parser.parse_args()
    campaign = Campaign(given.folder, given.seed, given.synchronous, daemon=not given.store_alone)
    for number in range(given.cuts):
        campaign.round(number)
    if not given.store_alone:
        campaign.finish()
    print(json.dumps({"counts": campaign.counts, "trouble": campaign.trouble[:20]}))


if __name__ == "__main__":
    main()
