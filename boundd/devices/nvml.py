"""NVIDIA devices, read through NVML in a disposable child process with a deadline a reading.

A driver that hangs costs the child: it is killed and abandoned, and until another one answers every device known is
unavailable, with the reason. Devices are known by UUID. One seen once stays known for the life of the probe: when the
driver stops listing it, it is unavailable and not forgotten. What a device's health is held against it stays too,
however often the child is replaced.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio
import anyio.to_thread

from boundd.core.model.devices import UNKNOWN_NAME, UNKNOWN_PREFIX, DeviceReading
from boundd.devices.nvml_process import ChildGoneError, NvmlProcess
from boundd.devices.plausibility import DeviceIdentity, contradiction, identity_of, without_duplicates
from boundd.ports import DeviceError

FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
MAX_ABANDONED = 4
"""So many children that could not be ended are left alone: each may hold the driver's lock."""
SKIP_PAUSES = 30.0
"""A device on which the driver hangs is asked for again after so many times the first backoff; each time in vain
doubles that, up to `LONGEST_SKIP_S`."""
LONGEST_SKIP_S = 1800.0
HEALTH_INTERVAL_S = 10.0
"""Counters of memory errors change seldom, and some drivers take milliseconds to read them."""
UNHEALTHY_XIDS: Mapping[int, str] = {
    48: "double bit ECC error",
    62: "halt of an internal microcontroller",
    64: "a bad row of memory could not be recorded",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
    140: "unrecovered ECC error",
    154: "the GPU needs a recovery action",
}
"""What takes a device out of service, of NVIDIA's catalog of XID errors (docs.nvidia.com,
/deploy/xid-errors/analyzing-xid-catalog.html): those that ask for a reset, and those after which results are not to be
trusted before one. 13, 31, 43, 45, 68, 109 and their like are the application's."""


class NoDriverError(DeviceError):
    """There is no NVIDIA driver: NVML's library isn't installed."""


class BrokenDriverError(DeviceError):
    """There is an NVIDIA driver, or a part of one, and it doesn't work; the message says how and what to do."""


@dataclass(slots=True)
class _Skipped:
    """A device that isn't asked for: why, when it is tried again, and how long to wait after that."""

    why: str
    next_s: float
    pause_s: float


class _NoReading(Exception):  # noqa: N818 - it is how a reading ends, and never leaves this module
    """No reading this time. The first argument says why, for people."""


class NvmlProbe:
    """Reads every NVIDIA device and MIG instance.

    `deadline_s` bounds a reading and `start_deadline_s` the start of a child, which takes seconds where persistence
    mode is off. `environ` is the child's environment; the daemon's own by default. `first_backoff_s` is the pause
    before a second restart in a row, doubled for each further one up to 30 s; the first one comes at the next read.
    `is_timed` says of a UUID whether somebody times on the device just now: then its process list is not read, which
    would slow it down.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        deadline_s: float = 2.0,
        start_deadline_s: float = 20.0,
        first_backoff_s: float = FIRST_BACKOFF_S,
        health_interval_s: float = HEALTH_INTERVAL_S,
        is_timed: Callable[[str], bool] = lambda _uuid: False,
    ) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._deadline_s = deadline_s
        self._start_deadline_s = start_deadline_s
        self._first_backoff_s = first_backoff_s
        self._lock = anyio.Lock()
        self._child: NvmlProcess | None = None
        self._abandoned: list[NvmlProcess] = []
        self._failures = 0
        self._not_before_s = 0.0
        self._last_failure = ""
        self._known: dict[str, DeviceReading] = {}
        self._identities: dict[str, DeviceIdentity] = {}
        self._suspect: int | None = None
        self._blamed = False
        self._skipped: dict[int, _Skipped] = {}
        self._health_interval_s = health_interval_s
        self._health_due_s = 0.0
        self._is_timed = is_timed
        self._errors: dict[str, list[str]] = {}
        self._xids: dict[str, Counter[int]] = {}
        self._closed = False

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """Every device known, in NVML's order, a MIG device before its instances (they share its index).

        Takes `deadline_s` at most, twice that where a device is tried again on which the driver hung, and
        `start_deadline_s` and a `deadline_s` or two a device in addition while none is known yet. Once any device is
        known, a driver that is gone or silent makes all of them unavailable and raises nothing. Where it is silent
        twice in a row about the same device, the next readings leave that one out.

        Raises:
            NoDriverError: no driver, and no device was ever seen.
            BrokenDriverError: the driver doesn't work or lists nothing, and no device was ever seen.
        """
        async with self._lock:
            self._abandoned = [child for child in self._abandoned if not child.is_reaped()]
            await self._try_skipped()
            try:
                reply, driver = await self._ask_until_blamed(processes=processes)
            except (_NoReading, DeviceError) as error:
                if not self._known:
                    raise error if isinstance(error, DeviceError) else BrokenDriverError(_advice(str(error))) from None
                self._known = {uuid: _failed(reading, str(error)) for uuid, reading in self._known.items()}
                return self._ordered()
            for uuid, xids in reply["xids"].items():
                self._xids.setdefault(uuid, Counter()).update(xid for xid in xids if xid in UNHEALTHY_XIDS)
            return self._merge(reply["devices"], driver)

    async def aclose(self) -> None:
        """End the child. A later `read` raises RuntimeError."""
        self._closed = True
        # A reading under way still uses the pipes; it ends within its deadline.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                child, self._child = self._child, None
                if child is not None:
                    await child.aclose()

    async def _ask_until_blamed(self, *, processes: bool) -> tuple[dict[str, Any], str]:
        """`_ask`; while no device is known yet, again as long as one device after the other is found to hang."""
        while True:
            self._blamed = False
            try:
                return await self._ask(processes=processes)
            except _NoReading:
                if self._known or not self._blamed:
                    raise

    async def _try_skipped(self) -> None:
        """See, in a child of its own, whether the driver answers for a device again on which it hung."""
        now_s = time.monotonic()
        due = [index for index, skipped in self._skipped.items() if now_s >= skipped.next_s]
        if not due or len(self._abandoned) >= MAX_ABANDONED or self._closed:
            return
        index = due[0]
        try:
            trial = await anyio.to_thread.run_sync(NvmlProcess, self._environ)
        except OSError:
            return
        try:
            with anyio.fail_after(self._deadline_s):
                greeting = await trial.greet()
                reply = await trial.ask(only=index) if greeting.get("ready") else {}
        except (TimeoutError, ChildGoneError):
            reply = {}
        except BaseException:
            trial.kill()
            raise
        if "devices" in reply:
            del self._skipped[index]
            await trial.aclose()
            return
        trial.kill()
        self._abandoned.append(trial)
        skipped = self._skipped[index]
        skipped.pause_s = min(LONGEST_SKIP_S, 2 * skipped.pause_s)
        skipped.next_s = time.monotonic() + skipped.pause_s

    async def _ask(self, *, processes: bool) -> tuple[dict[str, Any], str]:
        """The child's reply and the driver's version, within the deadlines.

        Raises:
            _NoReading: no reading this time.
            DeviceError: there is nothing that could be asked.
        """
        child = await self._started()
        allowed_s = self._deadline_s if self._known else self._start_deadline_s
        try:
            with anyio.fail_after(allowed_s):
                greeting = await child.greet()
        except TimeoutError:
            if child.age_s < self._start_deadline_s:
                # Healthy drivers are slow here too, and killing the child would only begin it all again.
                raise _NoReading(f"the driver is still initialising, after {child.age_s:.0f} s") from None
            raise self._failed_with(f"the driver did not initialise within {self._start_deadline_s:.1f} s") from None
        except ChildGoneError as error:
            raise self._failed_with(str(error)) from None
        if not greeting.get("ready"):
            message = str(greeting.get("message"))
            self._failed_with(message)
            if greeting.get("kind") == "absent":
                raise NoDriverError(f"no NVIDIA driver: {message}")
            raise BrokenDriverError(_advice(message))
        health = time.monotonic() >= self._health_due_s
        try:
            with anyio.fail_after(self._deadline_s):
                reply = await child.ask(
                    processes=processes,
                    health=health,
                    unlisted=[uuid for uuid in self._known if processes and self._is_timed(uuid)],
                    skip=self._skipped,
                )
        except TimeoutError:
            raise self._failed_with(f"the driver did not answer within {self._deadline_s:.1f} s") from None
        except ChildGoneError as error:
            raise self._failed_with(str(error)) from None
        if "devices" not in reply:
            # NVML doesn't get over losing its driver within one process, so the next reading has a new one.
            raise self._failed_with(f"the driver reports: {reply.get('error')}")
        for entry in reply["devices"]:
            if entry["index"] in self._skipped:
                entry["unavailable"] = self._skipped[entry["index"]].why
        self._failures, self._suspect = 0, None
        if health:
            self._health_due_s = time.monotonic() + self._health_interval_s
        return reply, str(greeting.get("driver", ""))

    async def _started(self) -> NvmlProcess:
        """The child, started if there is none and its time has come.

        Raises:
            _NoReading: it is too soon for another, or it can't be started.
        """
        if self._closed:
            raise RuntimeError("this probe is closed")
        if self._child is None:
            if time.monotonic() < self._not_before_s:
                raise _NoReading(self._last_failure)
            if len(self._abandoned) >= MAX_ABANDONED:
                raise _NoReading(f"{self._last_failure}; {len(self._abandoned)} stuck probes could not be ended")
            try:
                # In a thread: the kernel may take its time over a process, and the loop has others to serve.
                self._child = await anyio.to_thread.run_sync(NvmlProcess, self._environ)
            except OSError as error:
                raise self._failed_with(f"the probe's process could not be started: {error}") from None
        return self._child

    def _failed_with(self, reason: str) -> _NoReading:
        """Give the child up and put off the next one; the exception to raise. Where it fails for the second time in a
        row on the same device, that is left out from now on, and the next child comes at once."""
        at = None if self._child is None else self._child.at
        if self._child is not None:
            self._child.kill()
            self._abandoned.append(self._child)
            self._child = None
        pause_s = 0.0 if self._failures == 0 else min(MAX_BACKOFF_S, self._first_backoff_s * 2 ** (self._failures - 1))
        # Beyond a dozen in a row the pause has long been at its limit, and the power need not grow.
        self._failures = min(self._failures + 1, 12)
        self._not_before_s = time.monotonic() + pause_s
        self._last_failure = reason
        self._blamed = at is not None
        if at is not None and at == self._suspect:
            why = f"{reason} when it was asked for this device; the others are read without it"
            pause_s = min(LONGEST_SKIP_S, self._first_backoff_s * SKIP_PAUSES)
            self._skipped[at] = _Skipped(why, time.monotonic() + pause_s, pause_s)
            self._failures, self._not_before_s = 0, 0.0
        self._suspect = at
        return _NoReading(reason)

    def _merge(self, entries: Sequence[Mapping[str, Any]], driver: str) -> tuple[DeviceReading, ...]:
        """Take over a pass of the child; the devices that it doesn't name any more are kept as unavailable.

        Raises:
            BrokenDriverError: the driver lists nothing, and never did.
        """
        entries = without_duplicates(entries)
        named = {str(entry["uuid"]) for entry in entries if entry["uuid"]}
        missing = {uuid: reading for uuid, reading in self._known.items() if uuid not in named}
        fresh: dict[str, DeviceReading] = {}
        nameless: list[DeviceReading] = []
        for entry in entries:
            if entry["uuid"]:
                entry = self._refuse_contradiction(entry, driver)
                reading = _reading(entry, driver, self._known.get(entry["uuid"]))
                fresh[reading.uuid] = replace(reading, driver_fault=self._health_problems(entry))
                continue
            # A device too broken to tell its UUID is the one that was at its index, if that one is missed.
            same = [reading for reading in missing.values() if reading.index == entry["index"]]
            for reading in same:
                unhealthy = replace(
                    missing.pop(reading.uuid), driver_fault=self._health_problems({"uuid": reading.uuid})
                )
                fresh[reading.uuid] = _failed(unhealthy, entry["unavailable"])
            if not same:
                nameless.append(_reading({**entry, "uuid": f"{UNKNOWN_PREFIX}{entry['index']}"}, driver, None))
        for uuid, reading in missing.items():
            fresh[uuid] = _failed(reading, "the driver doesn't list it any more")
        if not fresh and not nameless:
            raise BrokenDriverError(
                f"the NVIDIA driver {driver} works but lists no device: see `nvidia-smi -L`, and whether the device "
                "files are passed into this container"
            )
        self._known = fresh
        return self._ordered(nameless)

    def _refuse_contradiction(self, entry: Mapping[str, Any], driver: str) -> Mapping[str, Any]:
        """The entry, unavailable where it contradicts what was told of its device."""
        if entry.get("unavailable"):
            return entry
        told = self._identities.get(entry["uuid"])
        against = contradiction(entry, driver, told)
        if against:
            return {**entry, "unavailable": against, "total": None, "free": None}
        self._identities[entry["uuid"]] = identity_of(entry, driver)
        return entry

    def _health_problems(self, entry: Mapping[str, Any]) -> str:
        """What is held against a device's health, in words; an instance shares its whole device's errors."""
        if "health" in entry:
            self._errors[entry["uuid"]] = entry["health"]
        whole = entry.get("parent") or entry["uuid"]
        xids = [_xid_text(xid, count) for xid, count in sorted(self._xids.get(whole, Counter()).items())]
        errors = dict.fromkeys((*self._errors.get(whole, ()), *self._errors.get(entry["uuid"], ())))
        return "; ".join((*xids, *errors))

    def _ordered(self, more: list[DeviceReading] | None = None) -> tuple[DeviceReading, ...]:
        """The known devices and `more` by index; the sort is stable, so instances stay behind their device."""
        return tuple(sorted([*self._known.values(), *(more or [])], key=lambda reading: reading.index))


def _xid_text(xid: int, count: int) -> str:
    return f"XID {xid} ({UNHEALTHY_XIDS[xid]})" + (f", {count} times" if count > 1 else "")


def _failed(reading: DeviceReading, reason: str) -> DeviceReading:
    """The device of an earlier reading, unavailable now."""
    return replace(reading, total_bytes=None, free_bytes=None, process_bytes=None, unavailable=reason)


def _reading(entry: Mapping[str, Any], driver: str, before: DeviceReading | None) -> DeviceReading:
    """The child's entry as a reading; a device that can't tell its name keeps the one it had `before`."""
    processes = entry.get("processes")
    unavailable = str(entry.get("unavailable", ""))
    # Without the list of compute processes nothing is known of who holds what.
    is_listed = processes is not None and not unavailable and "compute" not in entry.get("unreadable", {})
    listed = {int(pid): size for pid, size in processes.items()} if processes is not None and is_listed else None
    return DeviceReading(
        uuid=entry["uuid"],
        index=entry["index"],
        name=entry["name"] or (before.name if before is not None else UNKNOWN_NAME),
        total_bytes=entry.get("total"),
        free_bytes=entry.get("free"),
        process_bytes=listed,
        max_cells=entry.get("max_cells"),
        unavailable=unavailable,
        backend="nvml",
        driver=driver,
        remark=entry.get("remark", ""),
        unreadable=entry.get("unreadable", {}),
        reserved_bytes=entry.get("reserved"),
        parent=entry.get("parent", ""),
        slot=entry.get("slot"),
    )


def _advice(message: str) -> str:
    """What is wrong with the driver, and what to do about it."""
    hint = "see `nvidia-smi` and `dmesg | grep -i nvrm`"
    if "version mismatch" in message:
        hint = "the driver was updated under a running kernel module: reboot, or reload the nvidia modules"
    elif "Driver Not Loaded" in message:
        hint = "the kernel module isn't loaded: `modprobe nvidia`, or pass the GPUs into this container"
    elif "nvidia-ml-py" in message:
        hint = "reinstall boundd with its dependencies"
    return f"the NVIDIA driver is broken: {message}; {hint}. To work without it, set the backend to cpu"
