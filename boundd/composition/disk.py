"""The disk of the state folder: what is free there, and what old attempts left that can go."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path

import anyio

from boundd.composition.config import settings_of
from boundd.launch.prune import prune
from boundd.ports import Service

PRUNE_INTERVAL_S = 3600.0
CLOCK_SET_S = 60.0
"""Somebody has set the clock by more than this since the daemon started: it doesn't tell how old logs are."""


def disk_free_bytes(folder: Path) -> int | None:
    """What this user may still write where the folder is; None where that can't be told."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


async def prune_now_and_then(service: Service, folder: Path) -> None:
    """Remove what old attempts left in this folder of theirs, by the settings in force; until cancelled."""
    first = service.clock.now()
    while True:
        now = service.clock.now()
        set_by_s = (now.unix_s - first.unix_s) - (now.boot_s - first.boot_s)
        keep_logs_s = settings_of(service.state).keep_logs_s
        live = frozenset(service.state.attempts)
        trusted = abs(set_by_s) < CLOCK_SET_S
        # A folder that can't be read now is looked at the next time.
        with contextlib.suppress(OSError):
            await anyio.to_thread.run_sync(partial(prune, folder, live, keep_logs_s, now, wall_clock=trusted))
        await anyio.sleep(PRUNE_INTERVAL_S)
