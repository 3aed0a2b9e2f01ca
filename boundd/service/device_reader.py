"""Reading the devices, the machine and the disk, as one event.

ProcessLists of processes are read where `boundd.core.memory.process_listing` says that they are worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import anyio

from boundd.core.memory.process_listing import Observed, ProcessListing, apply_process_lists, must_list_processes
from boundd.core.model.events import DevicesRead
from boundd.core.model.host import THIS_NODE, HostReading
from boundd.core.model.state import State
from boundd.ports import DeviceProbe, Launcher
from boundd.protocol.device_processes import is_in_host_pid_namespace
from boundd.service.processes import DeviceProcesses, Pids, attempts_by_device, check_lists, observed_in


class DeviceReader:
    """Remembers what the lists of processes said last."""

    def __init__(
        self,
        probe: DeviceProbe,
        launcher: Launcher,
        read_host: Callable[[Pids], HostReading | None],
        read_disk: Callable[[], int | None],
    ) -> None:
        self._probe = probe
        self._launcher = launcher
        self._read_host = read_host
        self._read_disk = read_disk
        self._listed: Mapping[str, ProcessListing] = {}
        self._in_host_namespace = is_in_host_pid_namespace()

    async def read(self, state: State, *, host: bool, lists: bool = False) -> tuple[DevicesRead, DeviceProcesses]:
        """One pass over all devices, and what the lists of processes say.

        With `host`, over the machine's own memory and cores too. Lists are read where that is worth it, or with `lists`
        in any case.

        Raises:
            DeviceError: no device can be read.
            OSError: the system refuses to tell of processes now.
        """
        readings = await self._probe.read(processes=False)
        attempts = attempts_by_device(state)
        lists = lists or must_list_processes(readings, attempts, self._listed)
        if lists:
            readings = await self._probe.read(processes=True)
        # In threads: these walk through /proc, and that takes milliseconds.
        pids: Pids = {}
        if lists or host:
            pids = await anyio.to_thread.run_sync(self._launcher.pids_of, tuple(state.attempts))
        machine = await anyio.to_thread.run_sync(self._read_host, pids) if host else None
        seen = DeviceProcesses()
        if lists:
            look = partial(check_lists, readings, attempts, pids, in_host_namespace=self._in_host_namespace)
            seen = await anyio.to_thread.run_sync(look)
        disk_free_bytes = await anyio.to_thread.run_sync(self._read_disk)
        to_go_by, held, self._listed = apply_process_lists(
            readings, attempts, self._listed, partial(_observed, pids), seen.holders
        )
        reading = DevicesRead(
            to_go_by,
            held,
            {} if machine is None else {THIS_NODE: machine},
            seen.foreign,
            unattested=seen.unattested,
            witnessed=seen.witnessed,
            disk_free_bytes=disk_free_bytes,
        )
        return reading, seen


def _observed(pids: Pids, process_bytes: Mapping[int, int | None], attempts: frozenset[str]) -> Observed:
    return observed_in(process_bytes, attempts, pids)
