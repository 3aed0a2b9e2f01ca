"""Whether a timed section had the device to itself, as far as the worker can tell, and if not, why.

On the CPU the worker looks at the share of the time in which this process ran, at the time in which tasks waited for a
core (Linux PSI), and at the time that a hypervisor took (steal). On a GPU it looks at the driver's list of processes,
at reasons to throttle, and at retries of torch's allocator. The driver is read before and after timed sections, never
during them, because reading it slows the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from boundd.catalogue.outcomes import Isolation
from boundd.protocol.attestation import ProcessLists, ProcessOwner, attest_isolation
from boundd.protocol.device_processes import is_alive, is_in_host_pid_namespace, read_process_lists, uses_lease
from boundd.protocol.strict_json import Json
from boundd.worker.devices import CallTime

MIN_CPU_SHARE = 0.9
"""Below this share of a core, other processes ran on it for over a tenth of the time."""
MAX_WAITING_SHARE = 0.1
"""With several threads: above it, some task waited for a core for over a tenth of the time (kernel.org, PSI)."""
MAX_STOLEN_SHARE = 0.05
"""Above this share of the time, the hypervisor ran other machines instead (steal time)."""
MIN_JUDGED_S = 0.05
"""Shorter sections can't be judged: the clocks are too coarse."""

THROTTLES: Mapping[int, str] = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that spoil a timing (nvml.h, nvmlClocksEventReason*); a power cap
(0x04) is how a GPU under load always runs, and is not among them."""


@dataclass(frozen=True)
class Attestation:
    """What was seen of a timed section: isolation, the reasons against `exclusive`, and readings at its ends."""

    isolation: Isolation
    reasons: tuple[str, ...] = ()
    readings: Mapping[str, Json] | None = None

    def as_json(self) -> dict[str, Json]:
        """For a result line."""
        return {"reasons": list(self.reasons), **(self.readings or {})}


class IsolationMonitor(Protocol):
    """Watches for other users of the device."""

    def begin(self) -> None:
        """Call before timed sections."""

    def judge(self, timed: Sequence[CallTime]) -> Attestation:
        """Call after them; returns what was seen."""


class CpuIsolationMonitor:
    """With one thread it judges by this process's share of a core. Several threads also wait for each other, so it then
    judges by the time in which any task on the machine waited for a core."""

    def __init__(self, threads: int, proc: Path = Path("/proc")) -> None:
        self._threads = threads
        self._proc = proc
        self._begun = self._read()

    def begin(self) -> None:
        """Read what the kernel counts."""
        self._begun = self._read()

    def judge(self, timed: Sequence[CallTime]) -> Attestation:
        """Contended if, over all timed sections, the process had too small a share of the machine."""
        wall_s = sum(watch.wall_s for watch in timed)
        if wall_s < MIN_JUDGED_S:
            return Attestation(Isolation.UNKNOWN, ("too short to judge",))
        return self._verdict(sum(watch.cpu_s for watch in timed) / wall_s)

    def _verdict(self, share: float) -> Attestation:
        before, after = self._begun, self._read()
        readings: dict[str, Json] = {"cpu_share": round(share, 3)}
        waiting = _share(before.waiting_s, after.waiting_s, after.at_s - before.at_s)
        stolen = _share(before.stolen_ticks, after.stolen_ticks, after.ticks - before.ticks)
        readings |= {"cpu_waiting_share": waiting, "cpu_stolen_share": stolen}
        reasons = []
        if self._threads == 1 and share < MIN_CPU_SHARE:
            reasons.append(f"the process had {share:.0%} of a core")
        if self._threads != 1 and waiting is not None and waiting > MAX_WAITING_SHARE:
            reasons.append(f"something waited for a core for {waiting:.0%} of the time")
        if stolen is not None and stolen > MAX_STOLEN_SHARE:
            reasons.append(f"the hypervisor took {stolen:.0%} of the time")
        if reasons:
            return Attestation(Isolation.CONTENDED, tuple(reasons), readings)
        if self._threads != 1 and waiting is None:
            return Attestation(Isolation.UNKNOWN, ("several threads, and the kernel counts no pressure",), readings)
        return Attestation(Isolation.EXCLUSIVE, (), readings)

    def _read(self) -> _CpuCounts:
        return _CpuCounts(time.monotonic(), *_ticks(self._proc / "stat"), _waiting_s(self._proc / "pressure" / "cpu"))


@dataclass(frozen=True)
class _CpuCounts:
    at_s: float
    ticks: float
    stolen_ticks: float | None
    waiting_s: float | None


class GpuIsolationMonitor:
    """Judges by the processes that the driver lists on the device (`boundd.protocol.attestation`), by what
    throttles it, and by whether torch's allocator had to flush and try again.

    Attributes:
        in_host_namespace: whether this process is in the machine's own pid namespace; None to find out.
    """

    def __init__(
        self,
        uuid: str | None,
        lease_folder: Path | None,
        proc: Path = Path("/proc"),
        *,
        in_host_namespace: bool | None = None,
    ) -> None:
        self._uuid = uuid
        self._lease_folder = lease_folder
        self._proc = proc
        self._in_host_namespace = is_in_host_pid_namespace(proc) if in_host_namespace is None else in_host_namespace
        self._before = Attestation(Isolation.UNKNOWN)
        self._retries = 0

    def begin(self) -> None:
        """Read the driver."""
        self._retries = _allocator_retries()
        self._before = self.seen(read_gpu(self._uuid))

    def judge(self, timed: Sequence[CallTime]) -> Attestation:  # noqa: ARG002 - a GPU's share is not in them
        """Read the driver again. What is there before or after may have been there in between."""
        after = self.seen(read_gpu(self._uuid))
        retries = _allocator_retries() - self._retries
        allocator = Attestation(Isolation.EXCLUSIVE)
        if retries > 0:
            allocator = Attestation(
                Isolation.CONTENDED, (f"memory was so short that the allocator retried {retries} time(s)",)
            )
        return merge([self._before, after, allocator])

    def seen(self, reading: GpuReading) -> Attestation:
        """The attestation of one reading."""
        readings: dict[str, Json] = {"sm_clock_mhz": reading.sm_clock_mhz}
        throttled = tuple(f"the GPU throttles: {name}" for bit, name in THROTTLES.items() if reading.throttle & bit)
        attest = (
            Attestation(Isolation.CONTENDED, throttled, readings)
            if throttled
            else Attestation(Isolation.EXCLUSIVE, (), readings)
        )
        if reading.lists is None:
            return merge(
                [attest, Attestation(Isolation.UNKNOWN, ("the driver could not be asked who is on the device",))]
            )
        verdict = attest_isolation(
            reading.lists, self._whose, in_host_namespace=self._in_host_namespace, own_bytes=reading.own_bytes
        )
        return merge([attest, Attestation(verdict.isolation, verdict.reasons)])

    def _whose(self, pid: int) -> ProcessOwner:
        if pid == os.getpid():
            return ProcessOwner.OURS
        if not is_alive(pid, self._proc):
            return ProcessOwner.ABSENT
        if uses_lease(pid, self._lease_folder, self._proc):
            return ProcessOwner.PARTNER
        # It may have ended in between.
        return ProcessOwner.STRANGER if is_alive(pid, self._proc) else ProcessOwner.ABSENT


@dataclass(frozen=True)
class GpuReading:
    """What NVML says of a device at one instant: its lists of processes (None where it can't be asked), the bits of
    what throttles it, and its clock."""

    lists: ProcessLists | None = None
    throttle: int = 0
    sm_clock_mhz: int | None = None
    own_bytes: int | None = None
    """Device memory that this process is known to hold, by torch's allocator."""

    @property
    def held_bytes(self) -> int | None:
        """What the driver says that this very process holds on the device."""
        return None if self.lists is None else self.lists.processes.get(os.getpid())


def worst(verdicts: Iterable[Isolation]) -> Isolation:
    """The least trustworthy of them; of none, 'exclusive'."""
    rank: dict[Isolation, int] = {Isolation.EXCLUSIVE: 0, Isolation.UNKNOWN: 1, Isolation.CONTENDED: 2}
    return max(verdicts, key=rank.__getitem__, default=Isolation.EXCLUSIVE)


def merge(attests: Sequence[Attestation]) -> Attestation:
    """The least trustworthy isolation of several, with all reasons; of equal readings the last one counts."""
    reasons = dict.fromkeys(reason for attest in attests for reason in attest.reasons)
    readings: dict[str, Json] = {}
    for attest in attests:
        readings |= attest.readings or {}
    return Attestation(worst([attest.isolation for attest in attests]), tuple(reasons), readings)


def read_gpu(uuid: str | None) -> GpuReading:
    """A reading of the device with this UUID, or of the first one; empty where NVML can't be asked."""
    try:
        import pynvml
    except ImportError:
        return GpuReading()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return GpuReading()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(0)
        return GpuReading(
            lists=read_process_lists(pynvml, handle),
            throttle=_asked(pynvml, 0, pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
            sm_clock_mhz=_asked(pynvml, None, pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            own_bytes=_allocated_bytes(),
        )
    except pynvml.NVMLError:
        return GpuReading()
    finally:
        pynvml.nvmlShutdown()


def _asked(pynvml: Any, default: Any, question: Any, *arguments: Any) -> Any:
    """The answer, or the default where this device or driver does not give one."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return default


def _allocator_retries() -> int:
    import torch

    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0))


def _allocated_bytes() -> int | None:
    """What torch's allocator holds on the device; None where it holds nothing, or torch uses no GPU."""
    import torch

    return torch.cuda.memory_reserved() or None if torch.cuda.is_available() else None


def _share(before: float | None, after: float | None, whole: float) -> float | None:
    if before is None or after is None or whole <= 0:
        return None
    return round((after - before) / whole, 3)


def _ticks(path: Path) -> tuple[float, float | None]:
    """All ticks of all cores so far, and those that a hypervisor took: proc_stat(5)."""
    try:
        with path.open() as file:
            fields = [int(text) for text in file.readline().split()[1:]]
    except (OSError, ValueError):
        return 0.0, None
    return float(sum(fields[:8])), float(fields[7]) if len(fields) > 7 else None


def _waiting_s(path: Path) -> float | None:
    """Seconds so far in which some task waited for a core; None where the kernel doesn't count them."""
    try:
        first = path.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    total = next((part for part in first.split() if part.startswith("total=")), None)
    return None if total is None else int(total.removeprefix("total=")) / 1e6
