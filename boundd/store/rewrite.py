"""The store's file on other blocks, after the disk has failed.

After a failed fsync Linux takes what it could not write for written, and the next fsync says that all is well. To write
the same pages again in their place is not enough: ext4 goes on taking their blocks for ones that were never written,
and after a power cut they are zeros. A file that is written from the first byte to the last has blocks of its own.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from boundd.ports import StoreBusyError
from boundd.store.migrate import beside, discard

CHUNK_BYTES = 1024**2


def rewrite(path: Path) -> None:
    """Put a synced copy of the store's file in its place. Its log must be empty, and nobody may write to it meanwhile.

    Blocks; in a thread of its own. The name of the copy is one that a start sweeps.

    Raises:
        StoreBusyError: there is no room for it, or the disk fails. The file is as it was.
    """
    temporary = beside(path, ".new")
    try:
        discard(temporary)
        try:
            with path.open("rb") as old, temporary.open("xb") as new:
                shutil.copyfileobj(old, new, CHUNK_BYTES)
                new.flush()
                os.fsync(new.fileno())
            shutil.copystat(path, temporary)
            temporary.rename(path)
        finally:
            discard(temporary)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreBusyError(
            f"{path}: the disk has failed, and the store can't be written anew: {error}. See to the disk; it needs "
            "as much room once more."
        ) from error
