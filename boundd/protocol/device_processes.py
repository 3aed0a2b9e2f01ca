"""What can be seen of the processes on a device: the driver's lists, and what the kernel tells of a pid.

NVML is handed in by whoever has loaded it, so that this needs the standard library only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from boundd.protocol.attestation import ProcessLists
from boundd.protocol.environment import LEASE

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""What /proc/self/ns/pid is in the machine's own pid namespace (PROC_PID_INIT_INO in Linux's proc_ns.h)."""
MAX_PID = 4_194_304
"""No pid is larger (PID_MAX_LIMIT in Linux's threads.h): a driver that writes one doesn't know whose it is."""


def read_process_lists(nvml: Any, handle: Any) -> ProcessLists:
    """All lists of processes that the driver keeps of a device or MIG instance, in one pass.

    A device without an MPS list can have no MPS clients that are not seen: their server is in the list of compute
    processes. That goes for no other kind.

    Args:
        nvml: the module `pynvml`, initialised.
        handle: of the device.

    Raises:
        NVMLError: the device is lost or needs a reset, which is more than a missing list.
    """
    kinds = {
        "compute": nvml.nvmlDeviceGetComputeRunningProcesses,
        "graphics": nvml.nvmlDeviceGetGraphicsRunningProcesses,
        "MPS": getattr(nvml, "nvmlDeviceGetMPSComputeRunningProcesses", None),
    }
    lacking = {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    processes: dict[int, int | None] = {}
    unreadable: dict[str, str] = {}
    for kind, ask in kinds.items():
        if ask is None:
            continue
        try:
            listed = _ask(nvml, ask, handle)
        except nvml.NVMLError as error:
            if error.value in {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}:
                raise
            if kind != "MPS" or error.value not in lacking:
                unreadable[kind] = describe(error)
            continue
        for pid, size in _sizes(listed).items():
            # Listed twice (a process that computes and draws), it holds what the longer entry says.
            before = processes.get(pid, 0)
            processes[pid] = None if size is None or before is None else max(before, size)
    return ProcessLists(processes, unreadable, _used_bytes(nvml, handle))


def describe(error: Any) -> str:
    """An NVML error for people: the driver's words and the code they can search for."""
    return f"{str(error).rstrip('.')} (NVML error {error.value})"


def is_alive(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process of this pid lives where we are.

    The kernel is asked by a signal that does nothing, which tells of other users' processes too where /proc hides them
    (mounted with hidepid, or by systemd's ProtectProc=); kill(2).
    """
    if not 0 < pid <= MAX_PID:
        return True  # nobody's pid is like that: whoever it is, it has not ended
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[:1]
    except OSError:
        return True
    return state not in ([b"Z"], [b"X"])


def is_in_host_pid_namespace(proc: Path = Path("/proc")) -> bool:
    """Whether this process is in the machine's own pid namespace, where no process is without a pid that it knows."""
    try:
        return str((proc / "self" / "ns" / "pid").readlink()) == INITIAL_PID_NAMESPACE
    except OSError:
        return False


def uses_lease(pid: int, folder: Path | None, proc: Path = Path("/proc")) -> bool:
    """Whether a process was started with this lease folder; False where its environment can't be read."""
    try:
        environ = (proc / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return folder is not None and f"{LEASE}={folder}".encode() in environ.split(b"\0")


def _ask(nvml: Any, ask: Any, handle: Any) -> list[Any]:
    """One list; asked again where a process came between the two calls that the binding makes."""
    for _ in range(2):
        try:
            return list(ask(handle))
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_INSUFFICIENT_SIZE:
                raise
    return list(ask(handle))


def _sizes(listed: list[Any]) -> dict[int, int | None]:
    """Pid to bytes of one list. A process with a context holds memory, so 0 is a driver that doesn't tell."""
    sizes: dict[int, int | None] = {}
    for process in listed:
        size, before = process.usedGpuMemory or None, sizes.get(process.pid, 0)
        sizes[process.pid] = None if size is None or before is None else before + size
    return sizes


def _used_bytes(nvml: Any, handle: Any) -> int | None:
    """Memory in use without the driver's own, which the first version of the call doesn't tell apart."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used)
    except nvml.NVMLError:
        return None
