"""Letting go of old attempts' folders: their logs and artifacts. Results are in the store, for ever."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path


def prune(attempts_folder: Path, live: Collection[str], before_unix_s: float) -> int:
    """Remove the folders of attempts whose outcome is older than `before_unix_s` (UTC); returns how many.

    An attempt of `live` is kept whatever its age, and so is one without an outcome: somebody may want to know why.
    """
    removed = 0
    for folder in attempts_folder.iterdir() if attempts_folder.is_dir() else ():
        try:
            ended_unix_s = (folder / "outcome.json").stat().st_mtime
        except OSError:
            continue
        if folder.name not in live and ended_unix_s < before_unix_s:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
