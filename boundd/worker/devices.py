"""The device a worker runs on: choosing it, capping its memory, reading its clock and its peak."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace
from typing import Any

from boundd.protocol.lines import Memory
from boundd.worker.errors import BadDataError
from boundd.worker.settings import BUILTIN, Settings


@dataclass(frozen=True)
class Stopwatch:
    """What one call took: seconds on the wall, of CPU time by this process, and by the device's own clock."""

    wall_s: float
    cpu_s: float
    device_s: float | None = None

    @property
    def elapsed_s(self) -> float:
        """The time to compare by: the device's own where it has a clock, else the wall's."""
        return self.wall_s if self.device_s is None else self.device_s


@dataclass(frozen=True)
class Device:
    """Where to run. `name` is torch's: 'cpu' or 'cuda:0' (CUDA_VISIBLE_DEVICES has already chosen which)."""

    name: str
    threads: int

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.name.startswith("cuda")

    def dtype_for(self, settings: Settings) -> str:
        """The dtype asked for; else half precision on a GPU, and full on the CPU and for the built-in
        models."""
        half = self.is_cuda and settings.source != BUILTIN
        return settings.dtype or ("float16" if half else "float32")

    def time(self, call: Any) -> tuple[Any, Stopwatch]:
        """Run `call` to its end on the device, and say what it took."""
        import torch

        if not self.is_cuda:
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            value = call()
            took = Stopwatch(time.perf_counter() - wall_s, time.process_time() - cpu_s)
            # For one thread, CPU time is what the wall would show on a core of its own, with a third of the
            # noise.
            return value, replace(took, device_s=took.cpu_s) if self.threads == 1 else took
        make_event: Any = torch.cuda.Event  # not typed in every version
        start, end = (make_event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        start.record()
        value = call()
        end.record()
        torch.cuda.synchronize()
        stopped_s = time.perf_counter()
        took = Stopwatch(stopped_s - wall_s, time.process_time() - cpu_s, start.elapsed_time(end) / 1000)
        return value, took

    def free_unused(self) -> None:
        """Give what the allocator holds and nothing uses back to the device."""
        import torch

        if self.is_cuda:
            torch.cuda.empty_cache()

    def peak_memory(self) -> Memory:
        """The peak so far: of the allocator on a GPU, of the resident set on the CPU."""
        import torch

        if self.is_cuda:
            return Memory(
                peak_allocated_bytes=torch.cuda.max_memory_allocated(),
                peak_reserved_bytes=torch.cuda.max_memory_reserved(),
                extra={"measure": "cuda_allocator"},
            )
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
        return Memory(peak_allocated_bytes=peak_bytes, peak_reserved_bytes=peak_bytes, extra={"measure": "peak_rss"})

    def label(self) -> str:
        """The device model's name, as results are compared by."""
        import torch

        return str(torch.cuda.get_device_name(0)) if self.is_cuda else _cpu_model()


def open_device(settings: Settings, memory_cap_bytes: int | None) -> Device:
    """The device to run on: the one asked for, else the GPU if there is one, else the CPU.

    On the CPU one thread computes, unless more were asked for: with more, waiting for a core looks like work
    (the threads spin), a neighbour slows every step, and small models get slower, not faster.

    Raises:
        BadDataError: when the device asked for isn't there.
    """
    import torch

    name = settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = "cuda:0"
    if name != "cpu" and not name.startswith("cuda:"):
        raise BadDataError(f"--device {name}: must be cpu, cuda or cuda:N")
    device = Device(name, settings.threads)
    if not device.is_cuda:
        torch.set_num_threads(settings.threads)
        return device
    if not torch.cuda.is_available():
        raise BadDataError(f"--device {name}: torch {torch.__version__} sees no CUDA device")
    torch.cuda.set_device(name)
    if memory_cap_bytes is not None:
        total_bytes = torch.cuda.get_device_properties(name).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_cap_bytes / total_bytes), name)
    return device


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as listing:  # noqa: PTH123 - a virtual file, read a line at a time
            names = [line.split(":", 1)[1].strip() for line in listing if line.startswith("model name")]
    except OSError:
        return "CPU"
    return names[0] if names else "CPU"
