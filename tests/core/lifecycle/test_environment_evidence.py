"""Whose failure it was, told from numbers and, at the edge, from what libraries print: over wide ranges of both.

Seen to fail: with 429 taken for the model's, with `_FOR_GOOD` not looked at, with ENOENT of a folder taken for the
program's.
"""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.lifecycle.classification import Evidence, ReportedError, classify
from boundd.core.lifecycle.environment_evidence import FOLDER, PROGRAM, kind_of_start, kind_of_status
from boundd.core.model.outcomes import ENVIRONMENT

VARIANTS = int(os.environ.get("BOUNDD_VARIANTS", "600"))
AWAY = ErrorKind.HUB_UNAVAILABLE
GONE = ErrorKind.MODEL_UNAVAILABLE

hosts = st.sampled_from(["huggingface.co", "hub.example", "127.0.0.1:8080", "hf-mirror.com", "[::1]:80"])
models = st.from_regex(r"[A-Za-z0-9][\w.-]{0,20}/[A-Za-z0-9][\w.-]{0,20}", fullmatch=True)
statuses = st.integers(400, 599)


def status_lines(status: int, url: str) -> list[str]:
    """The status as each library writes it."""
    whose = "Server" if status >= 500 else "Client"
    return [
        f"requests.exceptions.HTTPError: {status} {whose} Error: Some Reason for url: {url}",
        f"huggingface_hub.errors.HfHubHTTPError: {status} {whose} Error: Some Reason for url: {url} (Request ID: 1)",
        f"httpx.HTTPStatusError: {whose} error '{status} Some Reason' for url '{url}'",
        f"OSError: There was a specific connection error when loading x: {status} {whose} Error: R for url: {url}",
    ]


def kind_printed(last_line: str) -> ErrorKind:
    """What becomes of a script that printed this at its end."""
    log = f"Traceback (most recent call last):\n  File 'x.py', line 1, in <module>\n{last_line}\n"
    verdict = classify(Evidence(exit_status=1, log_text=log), 0.0)
    assert verdict.error is not None
    return verdict.error.kind


def kind_reported(message: str) -> ErrorKind:
    """What becomes of a worker that calls it `model_unavailable`."""
    error = ReportedError(GONE, message)
    verdict = classify(Evidence(exit_status=4, worker_error=error), 0.0)
    assert verdict.error is not None
    return verdict.error.kind


@settings(max_examples=VARIANTS, deadline=None)
@given(statuses, hosts, models, st.integers(0, 3))
def test_every_status_is_the_hubs_or_the_models(status: int, host: str, model: str, wording: int) -> None:
    """From 500 on, and where it asks to come back later, it is the hub's; else it says something of the model."""
    line = status_lines(status, f"https://{host}/api/models/{model}")[wording]
    away = status >= 500 or status in (408, 425, 429)
    assert (kind_of_status(status) is AWAY) == away
    assert (kind_printed(line) is AWAY) == away
    assert kind_reported(line) is (AWAY if away else GONE)
    verdict = classify(Evidence(exit_status=1, log_text=line), 0.0)
    assert verdict.error is not None
    if away:
        assert verdict.error.subject == host


@settings(max_examples=VARIANTS // 2, deadline=None)
@given(
    st.sampled_from(
        [
            "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='{host}', port=443): Max retries exceeded",
            "requests.exceptions.ReadTimeout: HTTPSConnectionPool(host='{host}', port=443): Read timed out. (x)",
            "httpx.ConnectError: [Errno -2] Name or service not known",
            "httpx.ReadTimeout: The read operation timed out",
            "httpx.RemoteProtocolError: peer closed connection without sending complete message body",
            "requests.exceptions.ChunkedEncodingError: ('Connection broken: IncompleteRead(3 bytes read)', None)",
            "ConnectionRefusedError: [Errno 111] Connection refused",
            "ConnectionResetError: [Errno 104] Connection reset by peer",
            "OSError: [Errno 113] No route to host",
            "socket.gaierror: [Errno -3] Temporary failure in name resolution",
            "OSError: We couldn't connect to 'https://{host}' to load the files, and couldn't find them in the cached",
            "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while looking for the file",
        ]
    ),
    hosts,
    st.text(alphabet=st.characters(codec="ascii", exclude_characters="\n\r"), max_size=40),
)
def test_what_was_not_reached_is_the_environments(line: str, host: str, more: str) -> None:
    """Whatever else stands in its line: no connection, no name, no answer, half an answer."""
    if "offline" in more.lower():
        return
    assert kind_printed(line.format(host=host) + " " + more) is AWAY


@pytest.mark.parametrize(
    "line",
    [
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. Cannot access gated repo for url https://x/y",
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url: https://x/y",
        "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.",
        "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://x/y: offline mode is enabled.",
        "OSError: We couldn't connect to 'https://x' to load the files: offline mode is enabled (HF_HUB_OFFLINE=1)",
    ],
)
def test_what_the_hub_says_for_good_is_the_models(line: str) -> None:
    """Gated, missing and switched off by a person: waiting doesn't help."""
    assert kind_printed(line) is not AWAY
    assert kind_reported(line) is GONE


@settings(max_examples=VARIANTS, deadline=None)
@given(st.sampled_from(sorted(errno.errorcode)), st.sampled_from([PROGRAM, FOLDER, "launcher", ""]))
@example(errno.ENOENT, FOLDER)
@example(errno.EAGAIN, "launcher")
@example(errno.E2BIG, PROGRAM)
def test_an_error_number_of_a_start(number: int, about: str) -> None:
    """It is the environment's or the command's, never anything else, and a folder is not the program."""
    kind = kind_of_start(number, about)
    assert kind in {*ENVIRONMENT, ErrorKind.NOT_STARTED} - {AWAY, ErrorKind.PACKAGE, ErrorKind.DEVICE_FAILED}
    if kind is ErrorKind.INTERPRETER:
        assert about == PROGRAM
    expected = {
        (errno.ENOENT, PROGRAM): ErrorKind.INTERPRETER,
        (errno.ENOEXEC, PROGRAM): ErrorKind.INTERPRETER,
        (errno.EACCES, PROGRAM): ErrorKind.INTERPRETER,
        (errno.ENOENT, FOLDER): ErrorKind.FILE_SYSTEM,
        (errno.E2BIG, PROGRAM): ErrorKind.NOT_STARTED,
    }
    assert kind is expected.get((number, about), kind)
    by_number = {
        errno.EMFILE: ErrorKind.HOST_LIMITS,
        errno.EAGAIN: ErrorKind.HOST_LIMITS,
        errno.ENOMEM: ErrorKind.HOST_MEMORY,
        errno.EIO: ErrorKind.FILE_SYSTEM,
        errno.ESTALE: ErrorKind.FILE_SYSTEM,
    }
    assert kind is by_number.get(number, kind)


@pytest.mark.parametrize(
    ("line", "kind", "subject"),
    [
        ("ModuleNotFoundError: No module named 'torch'", ErrorKind.PACKAGE, "torch"),
        ("ModuleNotFoundError: No module named 'diffusers.utils.x'", ErrorKind.PACKAGE, "diffusers"),
        ("ImportError: cannot import name 'a' from 'tgate' (/x/tgate.py)", ErrorKind.PACKAGE, "tgate"),
        (
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
            ErrorKind.PACKAGE,
            "libcudart.so.12",
        ),
        ("/usr/bin/python3.11: No module named boundd", ErrorKind.PACKAGE, "boundd"),
        (
            "/opt/python: Error while finding module specification for 'boundd.worker' (ModuleNotFoundError: x)",
            ErrorKind.PACKAGE,
            "boundd",
        ),
        ("OSError: [Errno 24] Too many open files: '/x'", ErrorKind.HOST_LIMITS, ""),
        ("OSError: [Errno 28] No space left on device: '/x'", ErrorKind.FILE_SYSTEM, ""),
        ("OSError: [Errno 5] Input/output error", ErrorKind.FILE_SYSTEM, ""),
        ("OSError: [Errno 12] Cannot allocate memory", ErrorKind.HOST_MEMORY, ""),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'x'", ErrorKind.OTHER, ""),
        ("PermissionError: [Errno 13] Permission denied: 'x'", ErrorKind.OTHER, ""),
        ("ValueError: connection of the blocks is 503", ErrorKind.OTHER, ""),
        ("RuntimeError: a model of 504 layers: Server Errors are not expected", ErrorKind.OTHER, ""),
    ],
)
def test_other_words_of_python(line: str, kind: ErrorKind, subject: str) -> None:
    """A missing package and the machine's limits; what may be the script's own fault stays its own."""
    verdict = classify(Evidence(exit_status=1, log_text=f"Traceback\n{line}\n"), 0.0)
    assert verdict.error is not None
    assert (verdict.error.kind, verdict.error.subject) == (kind, subject)


def test_over_its_own_limit_is_the_cells() -> None:
    """`memory_max` is the cell's own; the machine's memory isn't."""
    for own, kind in ((True, ErrorKind.KILLED_BY_SIGNAL), (False, ErrorKind.HOST_MEMORY)):
        verdict = classify(Evidence(signal=9, host_memory="words", host_memory_own=own), 0.0)
        assert verdict.error is not None
        assert verdict.error.kind is kind
