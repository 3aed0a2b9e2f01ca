"""What a shim costs: from the request until the worker runs, and the memory that is its own while the worker does.

Beside it, in turns on the same machine: the bare worker, the worker under coreutils' `timeout`, which keeps a deadline
and nothing else, and under a Python of its own (`python -I -S`), which is what a shim would cost without the zygote.
The worker says that it runs by writing a byte into a pipe that the benchmark has open.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from benchmarks.machine import command_line, describe
from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec

TARGET_MS = 50.0
TARGET_BYTES = 12_000_000
SUPERVISES = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
Start = Callable[[str, list[str]], Awaitable[Callable[[], Awaitable[int]]]]
"""Starts a command under a name; what comes back gives the supervisor's private bytes, and ends it."""


def private_bytes(pid: int) -> int:
    """The memory that would be free without this process: Private_Clean and Private_Dirty of smaps_rollup (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def peer(*before: str) -> Start:
    """A supervisor that is a command put before the worker's."""

    async def start(_name: str, argv: list[str]) -> Callable[[], Awaitable[int]]:
        process = subprocess.Popen([*before, *argv], stdin=subprocess.DEVNULL)  # noqa: ASYNC220 - it is what is timed

        async def end() -> int:
            held = private_bytes(process.pid)
            process.terminate()
            process.wait()
            return held

        return end

    return start


def shims(launcher: LocalLauncher, folder: Path) -> Start:
    """boundd's own."""

    async def start(name: str, argv: list[str]) -> Callable[[], Awaitable[int]]:
        env = {"PATH": os.environ["PATH"]}
        await launcher.launch(LaunchSpec(name, tuple(argv), env, folder, 600, 0.5))

        async def end() -> int:
            record = json.loads((folder / name / shim.SHIM).read_text())
            held = private_bytes(record["pid"])
            await launcher.end(name)
            await launcher.wait(name)
            return held

        return end

    return start


async def one(start: Start, name: str, pipe: Path) -> tuple[float, int]:
    """Milliseconds until the worker runs, and the supervisor's private bytes."""
    descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        begun = time.perf_counter()
        end = await start(name, ["sh", "-c", f"echo > '{pipe}'; exec sleep 600"])
        await anyio.wait_readable(descriptor)
        took_ms = 1000 * (time.perf_counter() - begun)
        os.read(descriptor, 16)
        return took_ms, await end()
    finally:
        os.close(descriptor)


async def measure(count: int) -> dict[str, list[tuple[float, int]]]:
    """`count` turns of each."""
    found: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory(prefix="boundd-shim-") as name:
        folder = Path(name)
        os.mkfifo(folder / "pipe")
        launcher = LocalLauncher(folder / "attempts")
        ways: dict[str, Start] = {"bare": peer(), "boundd's shim": shims(launcher, folder / "attempts")}
        if shutil.which("timeout"):
            ways["timeout(1)"] = peer("timeout", "600")
        ways["python -I -S"] = peer(sys.executable, "-I", "-S", "-c", SUPERVISES)
        for number in range(-1, count):
            for way, start in ways.items():
                each = await one(start, f"turn-{number}", folder / "pipe")
                if number >= 0:  # the first starts the zygote, and reads everybody's files
                    found.setdefault(way, []).append(each)
        launcher.close()
    return found


def report(found: dict[str, list[tuple[float, int]]]) -> str:
    """The table."""
    lines = ["supervisor      until the worker runs: median, 95%   private memory"]
    for way, each in found.items():
        times = sorted(took_ms for took_ms, _ in each)
        held = statistics.median(size for _, size in each)
        middle, late = statistics.median(times), times[min(len(times) - 1, int(0.95 * len(times)))]
        lines.append(f"{way:15} {middle:20.1f} ms {late:8.1f} ms {held / 1e6:15.1f} MB")
    lines.append(f"the targets of a shim: under {TARGET_MS:.0f} ms, under {TARGET_BYTES / 1e6:.0f} MB")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=50)
    options = parser.parse_args()
    print(f"$ {command_line()}\n{describe()}\n", flush=True)
    print(report(anyio.run(measure, options.turns)))


if __name__ == "__main__":
    main()
