"""The device that a worker runs on: its choice, its memory cap, its clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from boundd.worker.errors import BadDataError, DeviceFailedError, PackageError
from boundd.worker.settings import BUILTIN, RunSettings


@dataclass(frozen=True)
class CallTime:
    """How long one call took: wall time, CPU time of this process, time by CUDA events (None on the CPU), and the time
    of its denoising loop (None if it was not observed)."""

    wall_s: float
    cpu_s: float
    device_s: float | None = None
    loop_s: float | None = None

    @property
    def elapsed_s(self) -> float:
        """The time that speed-ups are computed from: by CUDA events or CPU time if known, else wall time."""
        return self.wall_s if self.device_s is None else self.device_s


@dataclass(frozen=True)
class Instant:
    """A moment by three clocks; `event` is a CUDA event, recorded in the stream."""

    wall_s: float
    cpu_s: float
    event: Any = None


@dataclass(frozen=True)
class TorchDevice:
    """Where to run. `name` is torch's: 'cpu' or 'cuda:0' (CUDA_VISIBLE_DEVICES has already chosen which)."""

    name: str
    threads: int

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.name.startswith("cuda")

    @property
    def clock_name(self) -> str:
        """The clock that speed-ups are measured by."""
        return "cuda events" if self.is_cuda else "cpu time" if self.threads == 1 else "wall"

    def dtype_for(self, settings: RunSettings) -> str:
        """The dtype asked for. By default float16 on a GPU, and float32 on the CPU and for the built-in models."""
        half = self.is_cuda and settings.source != BUILTIN
        return settings.dtype or ("float16" if half else "float32")

    def now(self) -> Instant:
        """This moment; on a GPU, the one at which the work queued so far will be done."""
        if not self.is_cuda:
            return Instant(time.perf_counter(), time.process_time())
        import torch

        make_event: Any = torch.cuda.Event  # not typed in every version
        event = make_event(enable_timing=True)
        event.record()
        return Instant(time.perf_counter(), time.process_time(), event)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.is_cuda:
            import torch

            torch.cuda.synchronize()

    def between(self, start: Instant, end: Instant) -> float:
        """Seconds between two moments by the clock that speed-ups are measured by.

        On the CPU with one thread that is CPU time: it equals wall time on a free core, with a third of the noise. On a
        GPU the device must have passed both moments (`synchronize`).
        """
        if self.is_cuda:
            elapsed_ms: float = start.event.elapsed_time(end.event)
            return elapsed_ms / 1000
        return end.cpu_s - start.cpu_s if self.threads == 1 else end.wall_s - start.wall_s

    def time(self, call: Any) -> tuple[Any, CallTime]:
        """Run `call` until the device has finished; returns its value and its time."""
        self.synchronize()
        start = self.now()
        value = call()
        end = self.now()
        self.synchronize()
        stopped_s = time.perf_counter()
        return value, CallTime(stopped_s - start.wall_s, time.process_time() - start.cpu_s, self.between(start, end))

    def free_unused(self) -> None:
        """Release unused memory of the allocator's cache."""
        import torch

        if self.is_cuda:
            torch.cuda.empty_cache()

    def free_bytes(self, cap_bytes: int | None) -> int | None:
        """What this process may still take on the device; None on the CPU."""
        if not self.is_cuda:
            return None
        import torch

        free_bytes, _ = torch.cuda.mem_get_info(self.name)
        reserved_bytes = torch.cuda.memory_reserved(self.name)
        return free_bytes if cap_bytes is None else min(free_bytes, cap_bytes - reserved_bytes)

    def uuid(self, visible_devices: str | None) -> str | None:
        """The GPU's UUID as NVML has it; None on the CPU, and where neither torch nor the environment has it.

        Args:
            visible_devices: what CUDA_VISIBLE_DEVICES is. It names a MIG instance better than torch, which may name the
                whole device.
        """
        if not self.is_cuda:
            return None
        if visible_devices and visible_devices.startswith("MIG-") and "," not in visible_devices:
            return visible_devices
        import torch

        told = getattr(torch.cuda.get_device_properties(self.name), "uuid", None)  # not in every version
        if told is not None:
            return f"GPU-{str(told).removeprefix('GPU-')}"
        alone = visible_devices and visible_devices.startswith("GPU-") and "," not in visible_devices
        return visible_devices if alone else None

    def label(self) -> str:
        """The device model's name, as results are compared by."""
        import torch

        return str(torch.cuda.get_device_name(self.name)) if self.is_cuda else _cpu_model()


def open_device(settings: RunSettings, memory_cap_bytes: int | None, visible_devices: str | None = None) -> TorchDevice:
    """The device to run on: the one asked for, else the GPU if there is one, else the CPU.

    A worker that was given a GPU by its UUID (`visible_devices`, as boundd sets CUDA_VISIBLE_DEVICES) never falls back
    to the CPU: its figures would be taken for the GPU's.

    On the CPU one thread computes unless more are asked for. Several threads spin while they wait, so waiting for a
    core would count as work; one busy core slows every step, and small models get slower, not faster.

    Raises:
        BadDataError: when the device asked for isn't there.
        PackageError: it was given a GPU, and torch is built for none.
        DeviceFailedError: it was given a GPU, and torch can't use it.
    """
    import torch

    if not settings.device and _is_uuid(visible_devices) and not torch.cuda.is_available():
        if torch.version.cuda is None:
            raise PackageError(
                f"torch {torch.__version__} is built without CUDA, and the worker was given {visible_devices}: install "
                "a build with CUDA (pytorch.org), or set the backend to cpu"
            )
        raise DeviceFailedError(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU, and the worker was given "
            f"{visible_devices}: see `boundd doctor` and `nvidia-smi` for the driver and its device files"
        )
    name = settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = "cuda:0"
    if name != "cpu" and not name.startswith("cuda:"):
        raise BadDataError(f"--device {name}: must be cpu, cuda or cuda:N")
    device = TorchDevice(name, settings.threads)
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


def _is_uuid(visible_devices: str | None) -> bool:
    """Whether it names one GPU or MIG instance by its UUID."""
    return visible_devices is not None and visible_devices.startswith(("GPU-", "MIG-"))


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as listing:  # noqa: PTH123 - a virtual file, read a line at a time
            names = [line.split(":", 1)[1].strip() for line in listing if line.startswith("model name")]
    except OSError:
        return "CPU"
    return names[0] if names else "CPU"
