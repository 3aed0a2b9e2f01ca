"""The process that calls NVML: a hung or crashing driver costs this process, not the daemon.

It speaks JSON lines. First, unasked, it says how initialising went: {"ready": true, "driver": "550.54"} or
{"ready": false, "kind": "absent" | "broken", "message": "..."}. Then each line {"id": 1, "processes": false} on
standard input is answered by {"id": 1, "devices": [...]} or {"id": 1, "error": "..."}. The end of standard
input ends the process, even in the middle of a call that doesn't return.

It is run by path and imports nothing of boundd, so that starting it costs as little as possible.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_NOT_AVAILABLE = 2**64 - 1
"""What NVML writes in a 64-bit field for N/A."""

COMPUTE_MODE_EXCLUSIVE_THREAD = 1
COMPUTE_MODE_PROHIBITED = 2
COMPUTE_MODE_EXCLUSIVE_PROCESS = 3


def load_library() -> tuple[str, str] | None:
    """Load NVML's library; None if that went well, else the kind of failure and the loader's words."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError as error:
        text = str(error)
        # The loader names the file it misses: if that is another than NVML's, NVML is there and incomplete.
        absent = text.startswith(f"{_LIBRARY}:") and "No such file" in text
        return ("absent" if absent else "broken"), text
    return None


def describe(error: Any) -> str:
    """An NVML error for people: the driver's words and the code they can search for."""
    return f"{str(error).rstrip('.')} (NVML error {error.value})"


def read_memory(nvml: Any, handle: Any) -> tuple[int, int] | None:
    """Total and free bytes, by the second version of the call and else the first; None where the driver has none.

    Raises:
        NVMLError: the device could not be asked.
    """
    unsupported = {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    # How drivers refuse the second version differs; anything else is about the device and must not be papered over.
    refused = unsupported | {nvml.NVML_ERROR_INVALID_ARGUMENT, nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH}
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    except nvml.NVMLError as error:
        if error.value not in refused:
            raise
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as again:
            if again.value not in unsupported:
                raise
            return None
    total, free = int(memory.total), int(memory.free)
    if total in (0, _NOT_AVAILABLE) or free > total:
        return None
    return total, free


def read_processes(nvml: Any, handle: Any) -> dict[str, int | None] | None:
    """Pid to bytes of the compute processes (bytes None: not told), or None where the list can't be had.

    Raises:
        NVMLError: the device is lost or needs a reset, which is more than a missing list.
    """
    try:
        listed = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError as error:
        if error.value in {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}:
            raise
        return None
    sizes: dict[str, int | None] = {}
    for process in listed:
        pid = str(process.pid)
        # A process with a context holds memory, so 0 is a driver that doesn't tell.
        size = process.usedGpuMemory or None
        before = sizes.get(pid, 0)
        sizes[pid] = None if size is None or before is None else before + size
    return sizes


def read_compute_mode(nvml: Any, handle: Any) -> int:
    """The compute mode; 0 (default) where the device has none, as MIG instances."""
    try:
        return int(nvml.nvmlDeviceGetComputeMode(handle))
    except nvml.NVMLError as error:
        if error.value in {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}:
            raise
        return 0


def read_device(nvml: Any, handle: Any, index: int, *, processes: bool) -> dict[str, Any]:
    """One device or MIG instance that takes cells; what went wrong with it is in `unavailable`."""
    entry: dict[str, Any] = {"index": index, "uuid": "", "name": ""}
    try:
        entry["uuid"] = nvml.nvmlDeviceGetUUID(handle)
        entry["name"] = nvml.nvmlDeviceGetName(handle)
        mode = read_compute_mode(nvml, handle)
        memory = read_memory(nvml, handle)
        if processes:
            entry["processes"] = read_processes(nvml, handle)
    except nvml.NVMLError as error:
        entry["unavailable"] = f"the driver reports: {describe(error)}"
        return entry
    if mode in {COMPUTE_MODE_EXCLUSIVE_PROCESS, COMPUTE_MODE_EXCLUSIVE_THREAD}:
        entry["max_cells"] = 1
    if mode == COMPUTE_MODE_PROHIBITED:
        entry["unavailable"] = "its compute mode is PROHIBITED (nvidia-smi --compute-mode=DEFAULT allows computing)"
        entry["lasting"] = True
    elif memory is None:
        entry["unavailable"] = "the driver answers N/A for its memory, as it does where memory is shared with the host"
        entry["lasting"] = True
    else:
        entry["total"], entry["free"] = memory
    return entry


def has_mig(nvml: Any, handle: Any) -> bool:
    """Whether the device is divided into MIG instances now; a device without MIG, or one that can't tell, is not."""
    try:
        return int(nvml.nvmlDeviceGetMigMode(handle)[0]) == 1
    except nvml.NVMLError:
        return False


def read_instances(nvml: Any, parent: Any, index: int, *, processes: bool) -> list[dict[str, Any]]:
    """The MIG parent, which takes no cells, and its instances, which do."""
    entry: dict[str, Any] = {"index": index, "uuid": "", "name": "", "lasting": True}
    instances: list[dict[str, Any]] = []
    try:
        entry["uuid"] = nvml.nvmlDeviceGetUUID(parent)
        entry["name"] = nvml.nvmlDeviceGetName(parent)
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(parent)
    except nvml.NVMLError as error:
        entry["unavailable"] = f"the driver reports: {describe(error)}"
        return [entry]
    for slot in range(slots):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, slot)
        except nvml.NVMLError:
            continue  # an empty slot; an instance known before is missed by the daemon, which then says so
        instances.append(read_device(nvml, handle, index, processes=processes))
    entry["unavailable"] = f"it is in MIG mode: its {len(instances)} instances take cells, the whole does not"
    return [entry, *instances]


def read_all(nvml: Any, *, processes: bool) -> list[dict[str, Any]]:
    """Every device in NVML's order, the instances of one after it.

    Raises:
        NVMLError: the driver doesn't list its devices.
    """
    entries: list[dict[str, Any]] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            reason = f"the driver reports: {describe(error)}"
            entries.append({"index": index, "uuid": "", "name": "", "unavailable": reason})
            continue
        if has_mig(nvml, handle):
            entries += read_instances(nvml, handle, index, processes=processes)
        else:
            entries.append(read_device(nvml, handle, index, processes=processes))
    return entries


def initialise() -> tuple[Any, dict[str, Any]]:
    """Load and start NVML; the module (None where that failed) and what to say about it."""
    failure = load_library()
    if failure is not None:
        return None, {"ready": False, "kind": failure[0], "message": failure[1]}
    try:
        import pynvml as nvml
    except ImportError as error:
        return None, {"ready": False, "kind": "broken", "message": f"the package nvidia-ml-py is missing: {error}"}
    try:
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError as error:
        return None, {"ready": False, "kind": "broken", "message": describe(error)}
    return nvml, {"ready": True, "driver": driver}


def _read_requests(requests: queue.SimpleQueue[str]) -> None:
    """Hand on each line of standard input, and end the process at its end.

    This runs in a thread of its own because the main one may be inside a call that never returns: without it, such a
    process would outlive its daemon.
    """
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def main() -> None:
    """Serve readings until standard input ends."""
    # A library that prints must not break the protocol: its output goes to standard error instead.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    nvml, greeting = initialise()
    reply(greeting)
    while nvml is not None:
        request = json.loads(requests.get())
        try:
            devices = read_all(nvml, processes=bool(request["processes"]))
        except nvml.NVMLError as error:
            reply({"id": request["id"], "error": describe(error)})
        else:
            reply({"id": request["id"], "devices": devices})


if __name__ == "__main__":
    main()
