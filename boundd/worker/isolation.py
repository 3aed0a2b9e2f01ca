"""Whether a timed section had its device to itself, as far as it can be told from inside.

On the CPU: by the share of the time in which this process really ran. On a GPU: by the driver's list of
processes, read before and after the timed sections and never inside them (reading it slows the device).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from boundd.protocol.environment import LEASE
from boundd.protocol.lines import Isolation
from boundd.worker.devices import Stopwatch

MIN_CPU_SHARE = 0.9
"""Below it, somebody else had this process's core for over a tenth of the time."""
MIN_JUDGED_S = 0.05
"""The clocks tick too coarsely to judge the share of less."""


class Witness(Protocol):
    """Says what was seen of other users of the device."""

    def begin(self) -> None:
        """Before the timed sections of a point."""

    def judge(self, timed: Sequence[Stopwatch]) -> Isolation:
        """After them."""


class CpuWitness:
    """Judges by this process's share of CPU time. Only one thread can be judged: more of them also wait for
    each other."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def begin(self) -> None:
        """Nothing to note: the stopwatches hold all there is."""

    def judge(self, timed: Sequence[Stopwatch]) -> Isolation:
        """Contended when, over all timed sections, the process had less of the core than it should have."""
        wall_s = sum(watch.wall_s for watch in timed)
        if self._threads != 1 or wall_s < MIN_JUDGED_S:
            return "unknown"
        share = sum(watch.cpu_s for watch in timed) / wall_s
        return "exclusive" if share >= MIN_CPU_SHARE else "contended"


class GpuWitness:
    """Judges by the processes the driver lists on the device, those aside which keep to the same lease."""

    def __init__(self, uuid: str | None, lease_folder: Path | None, proc: Path = Path("/proc")) -> None:
        self._uuid = uuid
        self._lease_folder = lease_folder
        self._proc = proc
        self._before: Isolation = "unknown"

    def begin(self) -> None:
        """Read the list."""
        self._before = self.verdict(_device_pids(self._uuid))

    def judge(self, timed: Sequence[Stopwatch]) -> Isolation:  # noqa: ARG002 - a GPU's share is not in them
        """Read the list again: what was there at either end may have been there all along."""
        return worst([self._before, self.verdict(_device_pids(self._uuid))])

    def verdict(self, pids: frozenset[int] | None) -> Isolation:
        """What a list of processes means; None is a list that can't be read."""
        if pids is None or os.getpid() not in pids:
            # Not seeing ourselves, we are not looking at our own list (another pid namespace).
            return "unknown"
        return worst([self._of_neighbour(pid) for pid in pids - {os.getpid()}])

    def _of_neighbour(self, pid: int) -> Isolation:
        try:
            environ = (self._proc / str(pid) / "environ").read_bytes()
        except FileNotFoundError:
            return "exclusive"  # it has ended
        except OSError:
            return "contended"  # somebody else's
        ours = f"{LEASE}={self._lease_folder}".encode()
        keeps_lease = self._lease_folder is not None and ours in environ.split(b"\0")
        return "exclusive" if keeps_lease else "contended"


def worst(verdicts: Iterable[Isolation]) -> Isolation:
    """The least trustworthy of them; of none, 'exclusive'."""
    rank: dict[Isolation, int] = {"exclusive": 0, "unknown": 1, "contended": 2}
    return max(verdicts, key=rank.__getitem__, default="exclusive")


def _device_pids(uuid: str | None) -> frozenset[int] | None:
    """The processes computing on the device, by NVML; None when it can't be asked."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(0)
        return frozenset(entry.pid for entry in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
