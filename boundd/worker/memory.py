"""Peak memory of each phase of a cell: loading, the baseline, decoding, scoring, each point.

On a GPU it is the peak of torch's caching allocator, and what the driver says that the process holds, which includes
the CUDA context. On the CPU it is the peak resident set size, which Linux lets a process reset
(proc_pid_clear_refs(5)). Where it can't be reset, a phase's peak includes all earlier phases.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from boundd.protocol.lines import Memory
from boundd.protocol.strict_json import Json
from boundd.worker.devices import TorchDevice
from boundd.worker.isolation import read_gpu

_RESET_PEAK_RSS = "5"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Peak:
    """A phase's peaks, in bytes; `held_bytes` is the driver's figure at its end, None where there is none."""

    allocated_bytes: int
    reserved_bytes: int
    held_bytes: int | None = None

    def __or__(self, other: Peak) -> Peak:
        """The larger of both in each figure."""
        held = [size for size in (self.held_bytes, other.held_bytes) if size is not None]
        return Peak(
            max(self.allocated_bytes, other.allocated_bytes),
            max(self.reserved_bytes, other.reserved_bytes),
            max(held, default=None),
        )

    def as_json(self) -> dict[str, Json]:
        """For a result line."""
        return {
            "peak_allocated_bytes": self.allocated_bytes,
            "peak_reserved_bytes": self.reserved_bytes,
            "held_bytes": self.held_bytes,
        }


class Meter(Protocol):
    """Reads a device's peaks."""

    measure: str
    """What the figures are."""

    def reset(self) -> None:
        """Forget the peaks so far."""

    def read(self) -> Peak:
        """The peaks since."""


class CudaMeter:
    """The caching allocator's counters, and NVML for what the process holds."""

    measure = "cuda_allocator"

    def __init__(self, uuid: str | None) -> None:
        self._uuid = uuid

    def reset(self) -> None:
        """Reset the allocator's peaks."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def read(self) -> Peak:
        """The allocator's peaks, and what the driver says now."""
        import torch

        held_bytes = read_gpu(self._uuid).held_bytes
        return Peak(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), held_bytes)


class RssMeter:
    """The peak resident set of this process."""

    measure = "peak_rss"

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc

    def reset(self) -> None:
        """Reset the peak, where the kernel allows it."""
        try:
            (self._proc / "clear_refs").write_text(_RESET_PEAK_RSS)
        except OSError:
            return

    def read(self) -> Peak:
        """VmHWM of /proc, else getrusage."""
        try:
            status = (self._proc / "status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
            peak_bytes = int(line.split()[1]) * 1024
        except (OSError, StopIteration):
            peak_bytes = _max_rss_bytes()
        return Peak(peak_bytes, peak_bytes)


class MemoryLog:
    """The peaks by phase. Entering a phase ends the one before."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._phase: str | None = None
        self._peaks: dict[str, Peak] = {}
        self._host_peak_bytes = 0

    def enter(self, phase: str) -> None:
        """Begin a phase. A phase that is entered several times has one peak over all of them."""
        self.close()
        self._meter.reset()
        self._phase = phase

    def close(self) -> None:
        """End the current phase."""
        # A meter that resets the process's peak resets what getrusage says too.
        self._host_peak_bytes = max(self._host_peak_bytes, _max_rss_bytes())
        if self._phase is not None:
            peak = self._meter.read()
            self._peaks[self._phase] = self._peaks.get(self._phase, peak) | peak
            self._phase = None

    def during(self, phase: str, work: Callable[[], Value]) -> Value:
        """Do `work` as a phase, then return to the phase before."""
        before = self._phase
        self.enter(phase)
        try:
            return work()
        finally:
            self.close()
            if before is not None:
                self.enter(before)

    def peak(self, phase: str) -> Peak | None:
        """A phase's peak so far."""
        return self._peaks.get(phase)

    def line(self) -> Memory:
        """The peak over all phases, and each phase's own."""
        self.close()
        whole = Peak(0, 0)
        for peak in self._peaks.values():
            whole |= peak
        return Memory(
            peak_allocated_bytes=whole.allocated_bytes,
            peak_reserved_bytes=whole.reserved_bytes,
            extra={
                "measure": self._meter.measure,
                "held_bytes": whole.held_bytes,
                "host_peak_bytes": self._host_peak_bytes,
                "phases": {phase: peak.as_json() for phase, peak in self._peaks.items()},
            },
        )


def meter_for(device: TorchDevice, uuid: str | None) -> Meter:
    """The meter of a device."""
    return CudaMeter(uuid) if device.is_cuda else RssMeter()


def _max_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
