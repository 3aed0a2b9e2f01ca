"""What a model hub's answers mean: gated, missing, renamed, disabled, or unavailable for now.

Only the status and headers are used, never the body's text. A permanent answer is a
`ModelUnavailableError` and ends the cell; a temporary one is a `HubUnavailableError` and is not charged to it. No heavy
library is imported here.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from boundd.worker.errors import HubUnavailableError, ModelUnavailableError, WorkerError, environment_of

FIRST_FILES = {"model": "model_index.json", "scorer": "config.json"}
"""The file that is asked for first. Every model or scorer has it, and a gated repository refuses it."""
TRIED_AGAIN = frozenset({408, 425, 429})
"""Status codes below 500 that mean "try again later"."""
_SAID_CHARACTERS = 300


@dataclass(frozen=True)
class HubAnswer:
    """The parts of an HTTP response that are used. Header values are as the server sent them, unchecked."""

    status: int
    error_code: str = ""
    """X-Error-Code: GatedRepo, RepoNotFound, EntryNotFound, RevisionNotFound."""
    error_message: str = ""
    """X-Error-Message: the hub's own words."""
    location: str = ""

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str]) -> HubAnswer:
        """From a response's status and headers; header names in any case."""
        by_name = {name.lower(): value for name, value in headers.items()}
        return cls(
            status,
            by_name.get("x-error-code", "").strip(),
            " ".join(by_name.get("x-error-message", "").split())[:_SAID_CHARACTERS],
            by_name.get("location", "").strip(),
        )


def judge(answer: HubAnswer, what: str, source: str, host: str) -> str:
    """Interpret an answer about `source`. Returns its new id if it was renamed, else '': it can be fetched.

    Args:
        answer: to a request for one of its files.
        what: 'model' or 'scorer', for the message.
        source: the id that was asked for.
        host: of the hub.

    Raises:
        ModelUnavailableError: it is gated, missing, disabled or no model.
        HubUnavailableError: the hub can't answer now.
    """
    status, said = answer.status, f": {answer.error_message}" if answer.error_message else ""
    asked = f"the {what} {source!r} of the hub {host}"
    if status >= 500 or status < 200 or status in TRIED_AGAIN:
        raise HubUnavailableError(f"{host} answers {status} to the request for the {what} {source!r}{said}", host)
    if 300 <= status < 400:
        return renamed_to(answer.location, source)
    if 200 <= status < 300 or status in (405, 501):  # one that knows no HEAD may have the file all the same
        return ""
    if answer.error_code == "GatedRepo" or (status == 403 and answer.error_code == ""):
        raise ModelUnavailableError(
            f"{asked} is gated ({status}{said}): accept its terms at https://{host}/{source} with an account of yours,"
            " and give the worker a token of it (`hf auth login`, or HF_TOKEN in worker.env)"
        )
    if answer.error_code == "EntryNotFound":
        raise ModelUnavailableError(
            f"{asked} is there, but holds no {FIRST_FILES.get(what, 'such file')} ({status}{said}): it is no model that"
            f" can be loaded as a {'diffusers pipeline' if what == 'model' else 'CLIP model'}; name another in source"
        )
    if status == 401:
        raise ModelUnavailableError(
            f"{asked} is missing or private ({status}{said}): look for a slip of the pen in its id, or give the worker"
            " a token that may read it (`hf auth login`, or HF_TOKEN in worker.env)"
        )
    if status == 404:
        raise ModelUnavailableError(
            f"{asked} is missing ({status}{said}): look for a slip of the pen in its id; it may have been deleted"
        )
    raise ModelUnavailableError(f"{asked} is refused by the hub ({status} {answer.error_code}{said})")


def renamed_to(location: str, source: str) -> str:
    """The repository id that a redirect leads to, if it is not `source`; else ''.

    A hub also redirects to storage servers. Only an address of a repository names a new id.
    """
    try:
        parts = [unquote(part) for part in urlsplit(location).path.split("/") if part]
    except ValueError:
        return ""
    for head in (["api", "models"], ["api", "resolve-cache", "models"], ["models"]):
        if parts[: len(head)] == head:
            parts = parts[len(head) :]
            break
    else:
        if "resolve" not in parts:
            return ""
        parts = parts[: parts.index("resolve")]
    found = "/".join(parts[:2])
    return found if len(parts) >= 1 and found.lower() != source.lower() and _is_id(found) else ""


def _is_id(text: str) -> bool:
    names = text.split("/")
    return len(names) == 2 and all(name and all(c.isalnum() or c in "-_." for c in name) for name in names)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Don't follow redirects: the target is read from the headers."""


def ask(endpoint: str, what: str, source: str, headers: Mapping[str, str], timeout_s: float) -> str:
    """Ask the hub about a model or scorer with a HEAD request. Returns its new id if it was renamed, else ''.

    `timeout_s` bounds each network operation, not the whole call.

    Raises:
        ModelUnavailableError, HubUnavailableError: see `judge`.
    """
    host = host_of(endpoint)
    url = f"{endpoint.rstrip('/')}/{source}/resolve/main/{FIRST_FILES[what]}"
    request = urllib.request.Request(url, method="HEAD", headers=dict(headers))  # noqa: S310 - the hub that is configured
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=timeout_s) as response:
            answer = HubAnswer.of(response.status, dict(response.headers.items()))
    except urllib.error.HTTPError as error:
        answer = HubAnswer.of(error.code, dict(error.headers.items()))
        error.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise not_reached(error, host) from error
    return judge(answer, what, source, host)


def host_of(endpoint: str) -> str:
    """The hub's host, with its port where it has one."""
    return urlsplit(endpoint).netloc.rpartition("@")[2] or endpoint


def not_reached(error: BaseException, host: str) -> HubUnavailableError:
    """The error for a hub that gave no answer; the message says how the connection failed."""
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, BaseException) else error
    how = f"{type(cause).__name__}: {cause}".rstrip(": ")
    if isinstance(cause, TimeoutError):
        how = "no answer in time"
    elif isinstance(cause, ssl.SSLError):
        how = f"no secure connection ({how}); see to the clock and the certificates"
    return HubUnavailableError(f"the hub {host} can't be reached: {how}", host)


def failure_of(error: BaseException, what: str, source: str, host: str) -> WorkerError:
    """Turn an exception of a download into a worker error, by its class, status and errno.

    Args:
        error: of huggingface_hub, diffusers, or the HTTP library beneath, of whichever version.
        what: 'model' or 'scorer'.
        source: the id.
        host: of the hub.
    """
    for each in chain_of(error):
        names = {parent.__name__ for parent in type(each).__mro__}
        if isinstance(each, WorkerError):
            return each
        response = getattr(each, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int) and not 200 <= status < 400:
            try:
                judge(HubAnswer.of(status, dict(response.headers.items())), what, source, host)  # type: ignore[union-attr]
            except WorkerError as meant:
                return meant
        if names & _OFFLINE:
            return offline(what, source)
        if (found := environment_of(each)) is not None:
            return found
        if names & _UNREACHED or isinstance(each, (TimeoutError, ConnectionError)):
            return not_reached(each, host)
        if "Consistency check failed" in str(each):  # huggingface_hub's, for a body that was cut
            return HubUnavailableError(f"the hub {host} sent a cut file: {each}", host)
    return ModelUnavailableError(
        f"the {what} {source!r} could not be fetched from the hub {host} ({type(error).__name__}: {error})"
    )


_OFFLINE = frozenset({"OfflineModeIsEnabled"})
_UNREACHED = frozenset(
    {
        # httpx and its successor, requests, urllib3, aiohttp
        *("TransportError", "ConnectTimeout", "ReadTimeout", "ConnectError", "ReadError", "RemoteProtocolError"),
        *("ConnectionError", "Timeout", "ChunkedEncodingError", "ContentDecodingError"),
        *("ProtocolError", "IncompleteRead", "NewConnectionError", "MaxRetryError", "HTTPException"),
        *("DecodingError", "StreamError", "InvalidURL"),
        *("LocalEntryNotFoundError", "FileMetadataError"),
    }
)
"""Exception classes for a missing or incomplete response. The last two are huggingface_hub's, for a hub that it could
not reach or that sent incomplete metadata."""


def offline(what: str, source: str) -> ModelUnavailableError:
    """The error for a missing model when HF_HUB_OFFLINE is set."""
    return ModelUnavailableError(
        f"the {what} {source!r} is not on this machine, and HF_HUB_OFFLINE says that the hub is not to be asked: unset"
        f" it (worker.env), or fetch it beforehand with `hf download {source}`"
    )


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An exception and its chain of causes."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
