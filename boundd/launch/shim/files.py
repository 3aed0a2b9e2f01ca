"""The files of an attempt that the shim reads and writes, and their formats."""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: PTH104, PTH108, PTH109, PTH119

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import zlib
from typing import TYPE_CHECKING, Any

from .kernel import LIBC, read_file

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC_FORMAT, SHIM_FORMAT, OUTCOME_FORMAT = 1, 1, 1
"""What is written. A format is raised where a reader of the one before would be wrong about what it reads, not where it
would miss a field; then the number before stays among the known ones for at least a release, with its reader."""
KNOWN_SPEC_FORMATS: tuple[int, ...] = (1,)
"""What this shim can run: the daemon that starts it may be a later one."""
SPEC, SHIM, OUTCOME, LOG, LOCK = "spec.json", "shim.json", "outcome.json", "output.log", "lock"
READY = b"ready\n"
START_FAILURE_BYTES = 2000
"""Said on standard output once shim.json is there and before the worker runs; anything else there is why not."""

_OUTCOME_DRAFT = OUTCOME + ".draft"
_OUTCOME_ROOM_BYTES = 8192
_FALLOC_FL_KEEP_SIZE = 1
OUTCOME_RETRY_S = 1.0
OUTCOME_RETRIES = 3600
GAVE_UP = 75
"""The status of a shim that was told to end while the disk took no outcome (EX_TEMPFAIL of sysexits.h)."""
GAVE_UP_MESSAGE = "it was told to end before the disk took its outcome"
_READ_BYTES = 65536


class GaveUpError(Exception):
    """The shim was told to end, and the disk did not take the outcome in the time that it had left."""


def start_failure(failure: BaseException) -> bytes:
    """What is said in READY's place: the error's number (0 where it has none), a line break, and words for people."""
    number = failure.errno if isinstance(failure, OSError) and failure.errno is not None else 0
    return f"{number}\n{type(failure).__name__}: {failure}".encode(errors="replace")[:START_FAILURE_BYTES]


def parse_start_failure(said: bytes) -> tuple[int, str]:
    """The number and the words of a start_failure; 0 and what was said where it is none."""
    number, _, words = said.decode(errors="replace").partition("\n")
    return (int(number), words) if number.isascii() and number.isdigit() else (0, number + words)


def check_of(path: str, document: dict[str, Any]) -> str:
    """What `check` says in a document that is as it was written at `path` (whole, or a name in this folder), in hex.

    It is CRC-32 over the attempt's id, the file's name and the rest of the document as sorted JSON: another file's or
    another attempt's content is noticed too, and the folder of all attempts may be moved.
    """
    folder, _, name = path.rpartition("/") if "/" in path else (os.getcwd(), "", path)
    rest = {key: value for key, value in document.items() if key != "check"}
    return f"{zlib.crc32(json.dumps([os.path.basename(folder), name, rest], sort_keys=True).encode()):08x}"


def checked(path: str, document: dict[str, Any]) -> dict[str, Any]:
    """A document that goes to `path`, with its `check`."""
    return {**document, "check": check_of(path, document)}


def read_spec(path: str) -> dict[str, Any]:
    """What the launcher wrote, as it wrote it.

    Raises:
        OSError: it can't be read.
        ValueError: it was written by a version that this shim doesn't know, or has changed since.
    """
    spec: dict[str, Any] = json.loads(read_file(path).decode("ascii"))
    if spec["format"] not in KNOWN_SPEC_FORMATS:
        raise ValueError(f"{SPEC} has format {spec['format']}, known: {KNOWN_SPEC_FORMATS}")
    if spec.get("check") != check_of(path, spec):
        raise ValueError(f"{SPEC} is not what was written: its check doesn't fit")
    return spec


def write_atomically(path: str, value: object, *, mode: int = 0o644) -> None:
    """Put `value` as JSON at `path`, whole or not at all (against a crash of ours, not of the machine).

    Raises:
        OSError: it could not be written.
    """
    draft = path + ".draft"
    # In one piece: to a file, the encoder of the standard library goes from value to value in Python.
    text = memoryview(json.dumps(value).encode("ascii"))
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        while text:
            text = text[os.write(descriptor, text) :]
    finally:
        os.close(descriptor)
    os.rename(draft, path)


def reserve_outcome() -> None:
    """Take the room of the outcome now, when a full disk is an error to report and not yet a result to lose."""
    descriptor = os.open(_OUTCOME_DRAFT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # Without a size of its own, the file needs no cutting at the end, for which ext4 would wait for its journal.
        size = ctypes.c_int64(_OUTCOME_ROOM_BYTES)
        if LIBC.fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(0), size) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
            raise OSError(number, os.strerror(number), _OUTCOME_DRAFT)
        os.posix_fallocate(descriptor, 0, _OUTCOME_ROOM_BYTES)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    finally:
        os.close(descriptor)


def is_folder_gone() -> bool:
    """Whether the current folder was removed, or unmounted under our feet: nobody will find what is written to it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def sync_written(path: str) -> None:
    """Bring what others wrote to a file to the disk; does nothing where there is none.

    After a failed fsync the next one may succeed for having forgotten what the first could not write. Writing it again
    in its place is not enough: ext4 goes on taking the blocks for ones that were never written. So another file with
    the same content takes its place. Where that fails too, the outcome has to do without: it waits for the disk itself.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_size == 0:
            return  # the worker was silent, and a flush would wait for the disk's journal for nothing
        try:
            os.fsync(descriptor)
        except OSError:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                _replace_with_copy(path, descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _replace_with_copy(path: str, descriptor: int) -> None:
    """Put a file with the content of `descriptor` at `path`, on the disk; its folder is not synced.

    Raises:
        OSError: it could not be written; what was there is there.
    """
    draft, found = path + ".draft", os.fstat(descriptor)
    new = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(found.st_mode))
    try:
        offset = 0
        # No more than there was, and no longer than there is: somebody may still write to it, or have cut it.
        while offset < found.st_size and (data := os.pread(descriptor, _READ_BYTES, offset)):
            offset += os.pwrite(new, data, offset)
        os.fsync(new)
        os.rename(draft, path)
    except OSError:
        os.unlink(draft)
        raise
    finally:
        os.close(new)


def write_outcome(outcome: dict[str, object], pause: Callable[[], bool]) -> None:
    """Write, fsync, rename, fsync the folder; all of it tried again while the disk is full or fails.

    Args:
        outcome: what to write.
        pause: waits before the next try; false where there is to be none.

    Raises:
        OSError: it could not be written in an hour, or the folder is gone or out of reach.
        GaveUpError: `pause` said so.
    """
    text = json.dumps(checked(OUTCOME, outcome)).encode()
    for left in range(OUTCOME_RETRIES, -1, -1):
        try:
            _write_outcome(text)
        except OSError as error:
            if left == 0 or error.errno == errno.ENOENT or is_folder_gone():
                raise
            if not pause():
                raise GaveUpError(f"{GAVE_UP_MESSAGE}: {error}") from error
        else:
            return


def _write_outcome(text: bytes) -> None:
    descriptor = os.open(_OUTCOME_DRAFT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.pwrite(descriptor, text, 0) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _OUTCOME_DRAFT)
        if os.fstat(descriptor).st_size != len(text):
            os.ftruncate(descriptor, len(text))
        try:
            os.fsync(descriptor)
        except OSError:
            # The next try is of another file: see `sync_written`.
            os.unlink(_OUTCOME_DRAFT)
            raise
    finally:
        os.close(descriptor)
    os.rename(_OUTCOME_DRAFT, OUTCOME)
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
