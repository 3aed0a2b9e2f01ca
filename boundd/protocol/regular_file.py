"""Opening what a worker may have put anything in the place of: a link, a pipe, a folder, a device.

A link is not followed, because the daemon may be allowed to read what the worker's author is not; a pipe is not waited
for, because nobody may ever write to it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR, errno.ENODEV)


class NotAFileError(Exception):
    """The worker's: where a file is to be, there is something that can't be read as one."""


def open_regular(path: Path) -> BinaryIO | None:
    """A regular file, to be read from its beginning and closed by the caller; None where there is none.

    Raises:
        NotAFileError: it is a link, a pipe, a folder, a device.
        OSError: it can't be opened now.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NO_FILE:
            raise NotAFileError(f"{path.name} can't be read as a file: {error.strerror}") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFileError(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_chunk(path: Path, offset: int, max_bytes: int) -> bytes:
    """Up to so many bytes from `offset` on; empty where there are none, or no file yet.

    Raises:
        NotAFileError: it is a link, a pipe, a folder, a device.
        OSError: it can't be read now.
    """
    file = open_regular(path)
    if file is None:
        return b""
    with file:
        file.seek(offset)
        return file.read(max(0, max_bytes))


def size_bytes(path: Path) -> int | None:
    """How many bytes a file has; None where there is none.

    Raises:
        NotAFileError: it is a link, a pipe, a folder, a device.
        OSError: it can't be told now.
    """
    file = open_regular(path)
    if file is None:
        return None
    with file:
        return os.fstat(file.fileno()).st_size
