"""The machine's own memory and cores, in one reading."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import psutil

from boundd.core.model.host import HostReading


def read_host(pids: Mapping[str, Iterable[int]]) -> HostReading:
    """What there is and what is free; `pids` names the processes of each attempt whose memory is to be counted.

    A process's own pages are counted and not those that it shares, since every worker maps the same libraries. The
    cores are those that this process may use.
    """
    memory = psutil.virtual_memory()
    return HostReading(
        int(memory.total),
        int(memory.available),
        len(os.sched_getaffinity(0)),
        {attempt: sum(map(_own_bytes, found)) for attempt, found in pids.items()},
    )


def _own_bytes(pid: int) -> int:
    """Bytes of resident memory that are the process's own; 0 for one that has ended or doesn't tell."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return max(0, int(memory.rss) - int(memory.shared))
