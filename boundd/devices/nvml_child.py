"""The process that calls NVML: a hung or crashing driver costs this process, not the daemon.

It speaks JSON lines. First, unasked, it says how initialising went: {"ready": true, "driver": "550.54"} or
{"ready": false, "kind": "absent" | "broken", "message": "..."}. Then each line
{"id": 1, "processes": false, "health": false, "unlisted": [], "skip": [], "only": null} on standard input is answered
by {"id": 1, "devices": [...], "xids": {"GPU-...": [79]}} or {"id": 1, "error": "..."}: `processes` asks for process
lists, but of the devices in `unlisted`, and `health` for the counters of memory errors. `skip` are the indices of
devices that are not touched, and `only` is that of the one device that is. Before each device {"id": 1, "at": 0} tells
its index, so that whoever waits in vain knows for which. The end of standard input ends the process, even in the
middle of a call that doesn't return.

It imports little of boundd, and no library but NVML's binding, so that starting it costs as little as possible.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from boundd.protocol.device_processes import describe, read_process_lists

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
    skip: Container[int] = ()
    only: int | None = None
    at: Callable[[int], None] = lambda _index: None
    """Called before each device that is touched."""


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


def read_host_memory(path: str = "/proc/meminfo") -> tuple[int, int] | None:
    """Total and available bytes of the host; None where the kernel doesn't tell."""
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123 - pathlib costs start-up time
            lines = (line.split() for line in file)
            kib = {fields[0]: int(fields[1]) for fields in lines if len(fields) > 1}
        return kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError):
        return None


RECOVERY_ACTIONS: Mapping[int, str] = {
    1: "a reset of the GPU",
    2: "a reboot of the node",
    3: "its peer-to-peer traffic to be drained",
    4: "its work to be drained, and a reset",
    5: "a recovery of the IMEX domain",
    6: "a reset of its bus",
    7: "a reboot of the system",
}
"""NVML's nvmlDeviceGpuRecoveryAction_t. XID 154 tells when it changes; whoever comes later has to ask."""


class ImplausibleError(Exception):
    """The driver's numbers can't be true; the message says which."""


def read_health(nvml: Any, handle: Any) -> list[str]:
    """What the driver's counters and states hold against a device, in words. One that it lacks says nothing.

    Raises:
        NVMLError: the device is lost or needs a reset.
    """
    found: list[str] = []
    for ask in (_ecc_errors, _row_remaps, _retired_pages, _recovery_action):
        try:
            found += ask(nvml, handle)
        except nvml.NVMLError as error:
            if error.value in {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}:
                raise
    return found


def _ecc_errors(nvml: Any, handle: Any) -> Iterator[str]:
    uncorrected, volatile = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    count = nvml.nvmlDeviceGetTotalEccErrors(handle, uncorrected, volatile)
    if count:
        yield f"{count} uncorrected ECC error(s) since the driver was loaded"


def _row_remaps(nvml: Any, handle: Any) -> Iterator[str]:
    """Since Ampere."""
    _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(handle)
    if pending:
        yield "a bad row of its memory is replaced at the next reset"
    if failed:
        yield "a bad row of its memory could not be replaced"


def _retired_pages(nvml: Any, handle: Any) -> Iterator[str]:
    """Up to Volta and Turing."""
    if nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle):
        yield "a bad page of its memory is retired at the next reboot"


def _recovery_action(nvml: Any, handle: Any) -> Iterator[str]:
    (field,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    action = field.value.uiVal if field.nvmlReturn == nvml.NVML_SUCCESS else 0
    if action:
        yield f"the driver asks for {RECOVERY_ACTIONS.get(action, f'recovery action {action}')}"


def read_memory(nvml: Any, handle: Any) -> tuple[int, int, int | None] | None:
    """Total and free bytes and the driver's own, by the second version of the call; by the first, which doesn't tell
    the last of them, where there is no second. None where the driver answers N/A.

    Raises:
        NVMLError: the device could not be asked.
        ImplausibleError: the numbers can't be true.
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
    total, free, reserved = int(memory.total), int(memory.free), getattr(memory, "reserved", None)
    if total == _NOT_AVAILABLE:
        return None
    if total == 0 or free > total:
        raise ImplausibleError(f"the driver tells {free:,} free bytes of {total:,}, which can't be true")
    return total, free, None if reserved is None else int(reserved)


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
        _identify(nvml, handle, entry)
        mode = read_compute_mode(nvml, handle)
        memory = read_memory(nvml, handle)
        if request.processes and entry["uuid"] not in request.unlisted:
            lists = read_process_lists(nvml, handle)
            entry["processes"] = {str(pid): size for pid, size in lists.processes.items()}
            entry["unreadable"] = dict(lists.unreadable)
        if request.health:
            entry["health"] = read_health(nvml, handle)
    except Exception as error:  # whatever it is, it is this device's, and the others are read
        return entry | {"unavailable": _why(nvml, error), "failed": True}
    if mode in {COMPUTE_MODE_EXCLUSIVE_PROCESS, COMPUTE_MODE_EXCLUSIVE_THREAD}:
        entry["max_cells"] = 1
    if mode == COMPUTE_MODE_PROHIBITED:
        entry["unavailable"] = "its compute mode is PROHIBITED (nvidia-smi --compute-mode=DEFAULT allows computing)"
        entry["max_cells"] = 0
    if memory is None:
        hosts = read_host_memory()
        memory = None if hosts is None else (*hosts, None)
        entry |= {"remark": SHARED_MEMORY, "shared": True}
    if memory is None:
        entry.setdefault("unavailable", "the driver answers N/A for its memory, and the kernel doesn't tell the host's")
    elif "unavailable" not in entry:
        entry["total"], entry["free"], entry["reserved"] = memory
    return entry


def _identify(nvml: Any, handle: Any, entry: dict[str, Any]) -> None:
    """Put the UUID and the name into an entry, as far as the driver tells them.

    Raises:
        NVMLError: it doesn't.
        ImplausibleError: what it tells is no text.
    """
    for what, ask in (("uuid", nvml.nvmlDeviceGetUUID), ("name", nvml.nvmlDeviceGetName)):
        try:
            entry[what] = ask(handle)
        except UnicodeDecodeError as error:
            called = "UUID" if what == "uuid" else "name"
            raise ImplausibleError(f"its {called} is no UTF-8 text, a bug of the driver's: {error.object!r}") from None


def _why(nvml: Any, error: Exception) -> str:
    """Why a device could not be read, for people."""
    if isinstance(error, nvml.NVMLError):
        return f"the driver reports: {describe(error)}"
    return str(error) if isinstance(error, ImplausibleError) else f"its answers can't be read: {error!r}"


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
        _identify(nvml, parent, entry)
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(parent)
        if request.health:
            entry["health"] = read_health(nvml, parent)
    except Exception as error:
        return [entry | {"unavailable": _why(nvml, error), "failed": True}]
    for slot in range(slots):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, slot)
        except nvml.NVMLError:
            continue  # an empty slot; an instance known before is missed by the daemon, which then says so
        instances.append(read_device(nvml, handle, index, request))
        # Errors are told of the whole.
        instances[-1] |= {"parent": entry["uuid"], "slot": slot}
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
        if request.only is not None and index != request.only:
            continue
        if index in request.skip:
            entries.append({"index": index, "uuid": "", "name": "", "unavailable": "skipped"})
            events.forget(index)
            continue
        request.at(index)
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            entries.append({"index": index, "uuid": "", "name": "", "unavailable": _why(nvml, error)})
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

        def at(index: int, number: int = asked["id"]) -> None:
            reply({"id": number, "at": index})

        unlisted, skip = frozenset(asked["unlisted"]), frozenset(asked["skip"])
        request = Request(asked["processes"], asked["health"], unlisted, skip, asked["only"], at)
        try:
            devices = read_all(nvml, events, request)
        except nvml.NVMLError as error:
            reply({"id": asked["id"], "error": describe(error)})
        else:
            reply({"id": asked["id"], "devices": devices, "xids": events.take()})


if __name__ == "__main__":
    main()
