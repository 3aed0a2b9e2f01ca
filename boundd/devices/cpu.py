"""The machine's processor as the one device there is, for machines without a GPU.

Its memory is the host's: `free_bytes` is what the kernel calls available, and a process holds its resident set. Only
one cell at a time may run on it, since two would share cores while they are timed.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio.to_thread
import psutil

from boundd.core.model.devices import DeviceReading

CPU_UUID = "CPU-0"
_CPUINFO = Path("/proc/cpuinfo")


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name as the kernel tells it, or `CPU` where it doesn't (some virtual and non-x86 machines)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "CPU"
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return "CPU"


def resident_bytes() -> dict[int, int | None]:
    """Pid to resident bytes of every process of this user; None for one that doesn't tell."""
    uid = os.getuid()
    sizes: dict[int, int | None] = {}
    for process in psutil.process_iter(["uids", "memory_info"]):
        uids, memory = process.info["uids"], process.info["memory_info"]
        if uids is not None and uids.real == uid:
            sizes[process.pid] = None if memory is None else int(memory.rss)
    return sizes


class CpuProbe:
    """Reads the host's memory as that of device `CPU-0`. `remark` is what people should know of its being used."""

    def __init__(self, remark: str = "") -> None:
        self._name = cpu_name()
        self._remark = remark

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """The one device; with `processes`, the resident bytes of this user's processes too."""
        # Walking /proc takes milliseconds on a busy machine, so it stays off the event loop.
        sizes = await anyio.to_thread.run_sync(resident_bytes) if processes else None
        memory = psutil.virtual_memory()
        reading = DeviceReading(
            uuid=CPU_UUID,
            index=0,
            name=self._name,
            total_bytes=int(memory.total),
            free_bytes=int(memory.available),
            process_bytes=sizes,
            max_cells=1,
            backend="cpu",
            remark=self._remark,
        )
        return (reading,)

    async def aclose(self) -> None:
        """Nothing is held, so nothing needs closing."""
