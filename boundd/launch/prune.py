"""Letting go of old attempts' folders: their logs and artifacts. Results are in the store, for ever."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from boundd.core.model.events import Now
from boundd.launch import shim
from boundd.launch.records import RecordError, read_shim

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def prune(attempts_folder: Path, live: Collection[str], keep_s: float, now: Now, *, wall_clock: bool = True) -> int:
    """Remove the folders of attempts that ended more than `keep_s` ago; returns how many.

    An attempt of `live` is kept whatever its age, and so is one without an outcome: somebody may want to know why.
    A clock that was set by weeks makes everything look old: of this boot, an attempt must also have begun that long ago
    by the clock that nobody can set. Of earlier boots only the other one tells, unless `wall_clock` is false.
    """
    removed = 0
    for folder in attempts_folder.iterdir() if attempts_folder.is_dir() else ():
        try:
            age_s = now.unix_s - (folder / shim.OUTCOME).stat().st_mtime
            if folder.name in live or age_s <= keep_s or _age_by_boot_s(folder, now, wall_clock=wall_clock) <= keep_s:
                continue
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed += 1
    return removed


def _age_by_boot_s(folder: Path, now: Now, *, wall_clock: bool) -> float:
    """Seconds since the attempt began, sleep included; where it began in an earlier boot, none or endless."""
    try:
        record = read_shim(folder)
    except RecordError:
        record = None
    if record is not None and record.of_this_boot():
        return now.boot_s - record.start_ticks / _TICKS_A_SECOND
    return float("inf") if wall_clock else 0.0
