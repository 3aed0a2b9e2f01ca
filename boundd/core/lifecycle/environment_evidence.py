"""What tells of the environment's failures: error numbers, where they are known, and what others print where not.

Rules: a number counts before words. Words are read at this edge only, of workers that know no other way: an exception
as Python prints it, with the class that its library has documented, or an HTTP status as requests, httpx and
huggingface_hub write it.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from boundd.catalogue.outcomes import ErrorKind

_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.EUSERS})
_MEMORY = frozenset({errno.ENOMEM})
_FILE_SYSTEM = frozenset(
    {errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EUCLEAN}
    | {errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENOLINK, errno.ESHUTDOWN, errno.EBADMSG}
)
_PROGRAM = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELOOP, errno.ETXTBSY}
    | {errno.EISDIR, errno.ELIBBAD, errno.ELIBACC}
)
_NETWORK = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EHOSTUNREACH}
    | {errno.ENETUNREACH, errno.ENETDOWN}
)
PROGRAM, FOLDER = "program", "folder"
"""What an error number of a failed start is about: what was to be executed, or the folder that it was to run in."""
TRIED_AGAIN = frozenset({408, 425, 429})
"""HTTP statuses below 500 that ask to come back later."""


def kind_of_start(number: int | None, about: str) -> ErrorKind:
    """Whose failure it is that a worker could not be started.

    Args:
        number: the system's error number; None where there is none, as for a command that can't be one.
        about: `PROGRAM`, `FOLDER`, or anything else that was tried.
    """
    if number is None:
        return ErrorKind.NOT_STARTED
    if number == errno.EAGAIN:  # fork(2): no more processes
        return ErrorKind.HOST_LIMITS
    found = kind_of_errno(number)
    if found is not None and found is not ErrorKind.HUB_UNAVAILABLE:
        return found
    if number in _PROGRAM and about == PROGRAM:
        return ErrorKind.INTERPRETER
    return ErrorKind.FILE_SYSTEM if number in _PROGRAM and about == FOLDER else ErrorKind.NOT_STARTED


def kind_of_errno(number: int) -> ErrorKind | None:
    """Which failure of the environment an error number tells of, whatever was tried; None where it may be anything."""
    for numbers, kind in (
        (_LIMITS, ErrorKind.HOST_LIMITS),
        (_MEMORY, ErrorKind.HOST_MEMORY),
        (_FILE_SYSTEM, ErrorKind.FILE_SYSTEM),
        (_NETWORK, ErrorKind.HUB_UNAVAILABLE),
    ):
        if number in numbers:
            return kind
    return None


def kind_of_status(status: int) -> ErrorKind | None:
    """Which failure a hub's HTTP status tells of: its own, or the model's; None for what is no failure."""
    if status >= 500 or status in TRIED_AGAIN:
        return ErrorKind.HUB_UNAVAILABLE
    return ErrorKind.MODEL_UNAVAILABLE if status >= 400 else None


@dataclass(frozen=True, slots=True)
class EnvironmentFailure:
    """What an exception's text tells of; `subject` is what it names, such as a package or a host."""

    kind: ErrorKind
    subject: str = ""


# "504 Server Error: Gateway Time-out for url: https://…" (requests, huggingface_hub below 1),
# "Server error '503 Service Unavailable' for url 'https://…'" (httpx).
_STATUS = re.compile(r"\b([1-5]\d\d) (?:Server|Client) Error\b|\b(?:Server|Client) error '([1-5]\d\d)\b", re.IGNORECASE)
_URL_HOST = re.compile(r"https?://(?:[^/@\s'\"]*@)?([\w.:\[\]-]+)|HTTPS?ConnectionPool\(host='([^']+)'")
_UNREACHED = re.compile(
    r"\b(?:ConnectTimeout|ReadTimeout|ConnectError|ReadError|RemoteProtocolError|PoolTimeout|ConnectTimeoutError"
    r"|ReadTimeoutError|NewConnectionError|NameResolutionError|MaxRetryError|ProtocolError|IncompleteRead)\b"
    r"|requests\.exceptions\.(?:ConnectionError|Timeout|ChunkedEncodingError)"
    r"|Max retries exceeded with url|We couldn't connect to|Name or service not known"
    r"|Temporary failure in name resolution|Connection (?:refused|reset by peer)|Gateway Time-?out"
    r"|Please check your connection and try again|LocalEntryNotFoundError"
)
_OFFLINE = re.compile(r"offline mode|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE|OfflineModeIsEnabled", re.IGNORECASE)
_FOR_GOOD = re.compile(r"GatedRepoError|RepositoryNotFoundError|RevisionNotFoundError|EntryNotFoundError: 404")
_ERRNO = re.compile(r"^(?:[\w.]+\.)?(\w*Error|\w*Exception): \[Errno (\d+)\]")
_IMPORT = re.compile(r"^(?:ModuleNotFoundError|ImportError)\b")
_MODULE = re.compile(r"No module named '([^']+)'|from '([^']+)'")
_PYTHON_M = re.compile(r"^\S*python\S*: (?:No module named |Error while finding module specification for )'?([\w.]+)")
_LIBRARY = re.compile(r"^(?:OSError|ImportError): (\S+\.so[.\d]*): cannot open shared object file")


def environment_failure_in(exception: str) -> EnvironmentFailure | None:
    """What the last exception of an output tells of the environment; None where it tells of something else.

    Args:
        exception: its line as Python prints it, such as `OSError: [Errno 24] Too many open files: 'x'`.
    """
    if (library := _LIBRARY.search(exception)) is not None:
        return EnvironmentFailure(ErrorKind.PACKAGE, library[1])
    if _IMPORT.search(exception):
        found = _MODULE.search(exception)
        return EnvironmentFailure(ErrorKind.PACKAGE, "" if found is None else (found[1] or found[2]).partition(".")[0])
    number = _ERRNO.search(exception)
    if number is not None and (kind := kind_of_errno(int(number[2]))) is not None:
        return EnvironmentFailure(kind, _host(exception) if kind is ErrorKind.HUB_UNAVAILABLE else "")
    return hub_failure_in(exception)


def missing_module_in(output: str) -> EnvironmentFailure | None:
    """Whether `python -m` could not find what it was to run, which it says without an exception as its last line."""
    lines = output.rstrip().splitlines()
    found = _PYTHON_M.search(lines[-1]) if lines else None
    return None if found is None else EnvironmentFailure(ErrorKind.PACKAGE, found[1].partition(".")[0])


def hub_failure_in(message: str) -> EnvironmentFailure | None:
    """Whether a message says that a hub is away for now; None where it doesn't, or that it will stay so."""
    if _OFFLINE.search(message) or _FOR_GOOD.search(message):
        return None
    statuses = [int(found[1] or found[2]) for found in _STATUS.finditer(message)]
    away = any(kind_of_status(status) is ErrorKind.HUB_UNAVAILABLE for status in statuses)
    if not away and (statuses or not _UNREACHED.search(message)):
        return None
    return EnvironmentFailure(ErrorKind.HUB_UNAVAILABLE, _host(message))


def _host(text: str) -> str:
    found = _URL_HOST.search(text)
    return "" if found is None else found[1] or found[2]
