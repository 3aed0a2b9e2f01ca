"""The daemon packing eight simulated GPUs: `make demo-gpus`, or `python -m tests.fake_nvml.demo`.

Builds the fake driver, runs `boundd run --until-idle` on examples/gpus.toml against it, and prints what happened on
each device, as the fake saw it. Exit status: the daemon's, and 1 where a device was oversold, an exclusive cell had
company, or nothing ran out of memory and was cured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.fake_nvml import GIB, MAX_PROCESSES, FakeNvml, build

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = "Simulated 24 GiB GPU"
EXCLUSIVE = b"simulated-SDXL"
"""What the command lines of the workers hold that the config wants alone on their devices."""
LOOK_S = 0.05


@dataclass
class Seen:
    """The most that a device was seen with at one instant."""

    held_bytes: int = 0
    processes: int = 0
    company: bool = False
    """An exclusive cell had some."""


class Watcher:
    """Looks at the fake's state while the daemon runs."""

    def __init__(self, fake: FakeNvml) -> None:
        self._fake = fake
        self.seen = [Seen() for _ in range(fake.header.device_count)]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(LOOK_S):
            for index, seen in enumerate(self.seen):
                slots = self._fake.devices[index].processes
                taken = [(slots[n].pid, slots[n].bytes) for n in range(MAX_PROCESSES) if slots[n].pid]
                # Those that have died are still in the list until somebody asks the driver.
                live = [(command, size) for pid, size in taken if (command := _command_of(pid))]
                seen.held_bytes = max(seen.held_bytes, sum(size for _, size in live))
                seen.processes = max(seen.processes, len(live))
                seen.company |= len(live) > 1 and any(EXCLUSIVE in command for command, _ in live)


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_nvml.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--devices", type=int, default=8, metavar="N", help="simulated GPUs of 24 GiB; at most 16")
    parser.add_argument("--config", type=Path, default=EXAMPLES / "gpus.toml", help="what to run on them")
    parser.add_argument("--folder", type=Path, default=EXAMPLES / "gpus-state", help="cleared, and used for all state")
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    fake = FakeNvml(folder / "nvml.state", build(folder / "lib"))
    for number in range(chosen.devices):
        fake.add(f"GPU-simulated-{number}", NAME, 24)
    about = f"{chosen.devices} simulated GPUs of 24 GiB, played by a fake driver"
    print(f"{about}: no figure below is a measurement", flush=True)
    status, watcher = _run(fake, chosen.config, folder)
    return _report(fake, watcher, _log(folder), status)


def _run(fake: FakeNvml, config: Path, folder: Path) -> tuple[int, Watcher]:
    """The daemon to its end: its exit status, and what the devices were seen with."""
    environ = {name: value for name, value in fake.environ.items() if name != "RUNTIME_DIRECTORY"}
    environ |= {"STATE_DIRECTORY": str(folder)}
    command = [sys.executable, "-m", "boundd", "run", "--config", str(config), "--until-idle", "--log-format", "json"]
    with (folder / "log").open("wb") as log, Watcher(fake) as watcher:
        return subprocess.run(command, env=environ, stderr=log, check=False).returncode, watcher


def _log(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "log").read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def _report(fake: FakeNvml, watcher: Watcher, log: list[dict[str, object]], status: int) -> int:
    """Print the devices' table and what went wrong; the exit status."""
    started = [line for line in log if line.get("event.action") == "attempt-starting"]
    print(f"\n{'simulated device':<24}{'size':>10}{'most held':>12}{'cells at once':>16}{'attempts':>11}")
    for index, seen in enumerate(watcher.seen):
        uuid = fake.devices[index].uuid.decode()
        attempts = sum(1 for line in started if line.get("boundd.device") == uuid)
        size, held = fake.devices[index].total / GIB, seen.held_bytes / GIB
        print(f"{uuid:<24}{size:>6.1f} GiB{held:>8.1f} GiB{seen.processes:>16}{attempts:>11}")
    ran_out = [line for line in log if line.get("event.action") == "out-of-memory"]
    for line in ran_out:
        print(f"out of memory (simulated): {line['message']}")
    problems = [line["message"] for line in log if line.get("event.action") == "reservation-exceeded"]
    if not ran_out:
        problems.append("nothing ran out of memory: the demo's own cell should have")
    if any(seen.company for seen in watcher.seen):
        problems.append("a cell that must be alone had company")
    if any(seen.held_bytes > fake.devices[index].total for index, seen in enumerate(watcher.seen)):
        problems.append("a device was oversold")
    for problem in problems:
        print(f"not as it should be: {problem}", file=sys.stderr)
    return status or (1 if problems else 0)


if __name__ == "__main__":
    sys.exit(main())
