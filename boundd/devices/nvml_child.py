"""The process that calls NVML: a hung or crashing driver costs this process, not the daemon.

It speaks JSON lines. First, unasked, it says how initialising went: {"ready": true, "driver": "550.54"} or
{"ready": false, "kind": "absent" | "broken", "message": "..."}. Then each line
{"id": 1, "processes": false, "health": false, "unlisted": []} on standard input is answered by
{"id": 1, "devices": [...], "xids": {"GPU-...": [79]}} or {"id": 1, "error": "..."}: `processes` asks for process lists,
but of the devices in `unlisted`, and `health` for the counters of memory errors. The end of standard input ends the
process, even in the middle of a call that doesn't return.

It is run by path and imports nothing of boundd, so that starting it costs as little as possible.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_NOT_AVAILABLE = 2**64 - 1
"""What NVML writes in a 64-bit field for N/A."""
_MOST_EVENTS = 64
"""A pass takes no more events than this, so that a storm of them can't hold it up; the next takes the rest."""

COMPUTE_MODE_EXCLUSIVE_THREAD = 1
COMPUTE_MODE_PROHIBITED = 2
COMPUTE_MODE_EXCLUSIVE_PROCESS = 3

SHARED_MEMORY = "its memory is the host's: the driver answers N/A for it, and the numbers are the host's"


@dataclass(frozen=True)
class Request:
    """What is asked of a pass; see the module's docstring."""

    processes: bool = False
    health: bool = False
    unlisted: Container[str] = ()


class Events:
    """The XID errors that the driver tells of as they happen. Those from before a device was registered are lost.

    Where the driver has no events (in some virtual machines), there are none.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._registered: dict[int, tuple[str, int | None]] = {}
        self._uuids: dict[int | None, str] = {}
        try:
            self._set = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            self._set = None

    def register(self, index: int, uuid: str, handle: Any) -> None:
        """Hear of a device, whose index NVML counts now; does nothing where that is so already."""
        address = ctypes.cast(handle, ctypes.c_void_p).value
        if self._set is None or self._registered.get(index) == (uuid, address):
            return
        try:
            self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, self._set)
        except self._nvml.NVMLError as error:
            if error.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                return  # it may be lost just now: the next pass tries again
        self._registered[index] = (uuid, address)
        self._uuids[address] = uuid

    def forget(self, index: int) -> None:
        """The device could not be read: once it is back, it is registered anew."""
        self._registered.pop(index, None)

    def take(self) -> dict[str, list[int]]:
        """UUID to the XIDs since the last time; also of a device that can't be read any more."""
        found: dict[str, list[int]] = {}
        for _ in range(_MOST_EVENTS if self._set is not None else 0):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._set, 0)
            except self._nvml.NVMLError:
                break  # usually TIMEOUT: there are no more
            uuid = self._uuids.get(ctypes.cast(event.device, ctypes.c_void_p).value)
            if uuid is not None and event.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                found.setdefault(uuid, []).append(int(event.eventData))
        return found


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


def read_host_memory(path: str = "/proc/meminfo") -> tuple[int, int] | None:
    """Total and available bytes of the host; None where the kernel doesn't tell."""
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123 - pathlib costs start-up time
            lines = (line.split() for line in file)
            kib = {fields[0]: int(fields[1]) for fields in lines if len(fields) > 1}
        return kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError):
        return None


def read_health(nvml: Any, handle: Any) -> list[str]:
    """What the counters of memory errors say against a device, in words. One that has none says nothing.

    Raises:
        NVMLError: the device is lost or needs a reset.
    """
    found = []
    gone = {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}
    try:
        count = nvml.nvmlDeviceGetTotalEccErrors(
            handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
        if count:
            found.append(f"{count} uncorrected ECC error(s) since the driver was loaded")
    except nvml.NVMLError as error:
        if error.value in gone:
            raise
    try:
        _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(handle)
        if pending:
            found.append("a bad row of its memory is replaced at the next reset")
        if failed:
            found.append("a bad row of its memory could not be replaced")
    except nvml.NVMLError as error:
        if error.value in gone:
            raise
    return found


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


def read_device(nvml: Any, handle: Any, index: int, request: Request) -> dict[str, Any]:
    """One device or MIG instance that takes cells; what went wrong with it is in `unavailable`."""
    entry: dict[str, Any] = {"index": index, "uuid": "", "name": ""}
    try:
        entry["uuid"] = nvml.nvmlDeviceGetUUID(handle)
        entry["name"] = nvml.nvmlDeviceGetName(handle)
        mode = read_compute_mode(nvml, handle)
        memory = read_memory(nvml, handle)
        if request.processes and entry["uuid"] not in request.unlisted:
            entry["processes"] = read_processes(nvml, handle)
        if request.health:
            entry["health"] = read_health(nvml, handle)
    except nvml.NVMLError as error:
        return entry | {"unavailable": f"the driver reports: {describe(error)}", "failed": True}
    if mode in {COMPUTE_MODE_EXCLUSIVE_PROCESS, COMPUTE_MODE_EXCLUSIVE_THREAD}:
        entry["max_cells"] = 1
    if mode == COMPUTE_MODE_PROHIBITED:
        entry["unavailable"] = "its compute mode is PROHIBITED (nvidia-smi --compute-mode=DEFAULT allows computing)"
        entry["max_cells"] = 0
    if memory is None:
        memory = read_host_memory()
        entry["remark"] = SHARED_MEMORY
    if memory is None:
        entry.setdefault("unavailable", "the driver answers N/A for its memory, and the kernel doesn't tell the host's")
    elif "unavailable" not in entry:
        entry["total"], entry["free"] = memory
    return entry


def has_mig(nvml: Any, handle: Any) -> bool:
    """Whether the device is divided into MIG instances now; a device without MIG, or one that can't tell, is not."""
    try:
        return int(nvml.nvmlDeviceGetMigMode(handle)[0]) == 1
    except nvml.NVMLError:
        return False


def read_instances(nvml: Any, parent: Any, index: int, request: Request) -> list[dict[str, Any]]:
    """The MIG parent, which takes no cells, and its instances, which do."""
    entry: dict[str, Any] = {"index": index, "uuid": "", "name": ""}
    instances: list[dict[str, Any]] = []
    try:
        entry["uuid"] = nvml.nvmlDeviceGetUUID(parent)
        entry["name"] = nvml.nvmlDeviceGetName(parent)
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(parent)
    except nvml.NVMLError as error:
        return [entry | {"unavailable": f"the driver reports: {describe(error)}", "failed": True}]
    for slot in range(slots):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, slot)
        except nvml.NVMLError:
            continue  # an empty slot; an instance known before is missed by the daemon, which then says so
        instances.append(read_device(nvml, handle, index, request))
        # Errors are told of the whole.
        instances[-1]["parent"] = entry["uuid"]
    entry["max_cells"] = 0
    entry["unavailable"] = f"it is in MIG mode: its {len(instances)} instances take cells, the whole does not"
    return [entry, *instances]


def read_all(nvml: Any, events: Events, request: Request) -> list[dict[str, Any]]:
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
            events.forget(index)
            continue
        if has_mig(nvml, handle):
            found = read_instances(nvml, handle, index, request)
        else:
            found = [read_device(nvml, handle, index, request)]
        if found[0].get("failed"):
            events.forget(index)
        else:
            events.register(index, found[0]["uuid"], handle)
        entries += found
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
    if nvml is None:
        return
    events = Events(nvml)
    while True:
        asked = json.loads(requests.get())
        request = Request(asked["processes"], asked["health"], frozenset(asked["unlisted"]))
        try:
            devices = read_all(nvml, events, request)
        except nvml.NVMLError as error:
            reply({"id": asked["id"], "error": describe(error)})
        else:
            reply({"id": asked["id"], "devices": devices, "xids": events.take()})


if __name__ == "__main__":
    main()
