"""The failures that the worker reports, their exit codes, and how out-of-memory errors are recognised.

Importing this module loads no heavy library. Exceptions of torch are recognised by name and text, because their classes
differ between versions.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from boundd.catalogue.outcomes import ErrorKind
from boundd.protocol.lines import Error
from boundd.protocol.out_of_memory import find_out_of_memory
from boundd.protocol.strict_json import Json

EXIT_CODES: Mapping[ErrorKind, int] = {
    ErrorKind.OTHER: 1,
    ErrorKind.OUT_OF_MEMORY: 3,
    ErrorKind.MODEL_UNAVAILABLE: 4,
    ErrorKind.HUB_UNAVAILABLE: 4,
    ErrorKind.BAD_DATA: 5,
    ErrorKind.HOST_MEMORY: 6,
    ErrorKind.HOST_LIMITS: 6,
    ErrorKind.PACKAGE: 6,
    ErrorKind.FILE_SYSTEM: 6,
    ErrorKind.DEVICE_FAILED: 6,
}
"""0 is success and 2 is usage."""

_MESSAGE_CHARACTERS = 4000

_REQUESTED = re.compile(r"[Tt]ried to allocate (\d+(?:\.\d+)?) ?(bytes|[KMGT]iB)")
_FREE = re.compile(r"(\d+(?:\.\d+)?) ?(bytes|[KMGT]iB) (?:is )?free")
_UNIT_BYTES = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class WorkerError(Exception):
    """A failure that the worker reports. `kind` says what failed: the data, the model, the hub or the machine."""

    kind: ErrorKind = ErrorKind.OTHER

    def __init__(self, message: str, subject: str = "") -> None:
        super().__init__(message)
        self.subject = subject
        """For a failure of the environment, what needs attention: a hub's host name, a package, a path."""

    def line(self, phase: str | None) -> Error:
        """The line that reports it."""
        extra: dict[str, Json] = {"subject": printable(self.subject)} if self.subject else {}
        return Error(error=self.kind, message=printable(str(self)), phase=phase, extra=extra)


class ModelUnavailableError(WorkerError):
    """The model or the scorer was not found or is damaged. The message says where it was looked for and what to do."""

    kind: ErrorKind = ErrorKind.MODEL_UNAVAILABLE


class HubUnavailableError(WorkerError):
    """The hub can't be reached, or can't answer now. Trying again may help."""

    kind: ErrorKind = ErrorKind.HUB_UNAVAILABLE


class PackageError(WorkerError):
    """A package that is needed is missing or broken."""

    kind: ErrorKind = ErrorKind.PACKAGE


class FileSystemError(WorkerError):
    """A disk or a share fails, is full, read-only or gone."""

    kind: ErrorKind = ErrorKind.FILE_SYSTEM


class HostLimitsError(WorkerError):
    """No descriptors or processes are left on this machine."""

    kind: ErrorKind = ErrorKind.HOST_LIMITS


class HostMemoryError(WorkerError):
    """This machine is out of memory; the device is not."""

    kind: ErrorKind = ErrorKind.HOST_MEMORY


class DeviceFailedError(WorkerError):
    """The device failed before it was used."""

    kind: ErrorKind = ErrorKind.DEVICE_FAILED


class BadDataError(WorkerError):
    """The cell can't be measured: images with NaN, a method that does not fit the model, a file without prompts."""

    kind: ErrorKind = ErrorKind.BAD_DATA


ERRORS_BY_KIND: Mapping[str, type[WorkerError]] = {
    error.kind: error
    for error in (
        ModelUnavailableError,
        HubUnavailableError,
        PackageError,
        FileSystemError,
        HostLimitsError,
        HostMemoryError,
        DeviceFailedError,
        BadDataError,
    )
}
_BY_ERRNO: Mapping[int, type[WorkerError]] = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), HostLimitsError),
    errno.ENOMEM: HostMemoryError,
    **dict.fromkeys((errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ESTALE), FileSystemError),
    **dict.fromkeys((errno.ENOTCONN, errno.EHOSTDOWN, errno.EUCLEAN, errno.EBADMSG), FileSystemError),
}


def environment_of(error: BaseException) -> WorkerError | None:
    """The failure of the environment that an exception stands for, by its class and errno; None for other errors."""
    if isinstance(error, OSError) and (kind := _BY_ERRNO.get(error.errno or 0)) is not None:
        return kind(f"{type(error).__name__}: {error}", str(error.filename or ""))
    if isinstance(error, ImportError):
        message = f"{type(error).__name__}: {error}. Install it for this interpreter, {sys.executable}"
        return PackageError(message, (error.name or "").partition(".")[0])
    return None


@dataclass(frozen=True)
class Shortage:
    """An out-of-memory error: the library's message, and the sizes that it names (None where it names none)."""

    message: str
    requested_bytes: int | None
    free_bytes: int | None

    def line(self, phase: str | None) -> Error:
        """The line that reports it."""
        return Error(
            error=ErrorKind.OUT_OF_MEMORY,
            message=self.message,
            phase=phase,
            requested_bytes=self.requested_bytes,
            free_bytes=self.free_bytes,
        )


def shortage_of(error: BaseException) -> Shortage | None:
    """The out-of-memory error that `error` is, or was raised from; None for any other error."""
    short = None if isinstance(error, WorkerError) else find_out_of_memory(error)
    if short is None:
        return None
    text = str(short)
    message = printable(text) or type(short).__name__
    return Shortage(message, _size_bytes(_REQUESTED, text), _size_bytes(_FREE, text))


def printable(text: str) -> str:
    """`text` as a result line may hold it: valid Unicode, and cut to a length limit."""
    return text.encode("utf-8", "replace").decode()[:_MESSAGE_CHARACTERS]


def _size_bytes(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(float(found[1]) * _UNIT_BYTES[found[2]]) if found else None
