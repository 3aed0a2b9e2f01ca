"""What a hub's answers mean, over the ways in which they can be odd: generated, and some of them over a real socket.

Seen to fail: with 429 taken for the model's, with a redirect to where the bytes are taken for a new name, with an
`X-Error-Code` believed of a 503.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
import urllib.error
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from boundd.worker.errors import (
    ERRORS_BY_KIND,
    EXIT_CODES,
    HubUnavailableError,
    ModelUnavailableError,
    WorkerError,
    environment_of,
)
from boundd.worker.hub import HubAnswer, ask, failure_of, judge, renamed_to
from tests.worker.hub_server import Hub, Oddity, serving

VARIANTS = int(os.environ.get("BOUNDD_VARIANTS", "600"))
SOURCE = "acme/tiny"
HOST = "hub.example"
GATED = {"X-Error-Code": "GatedRepo"}

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
ids = st.tuples(names, names).map("/".join)
statuses = st.one_of(st.integers(100, 999), st.sampled_from([200, 302, 307, 308, 401, 403, 404, 429, 503]))
codes = st.sampled_from(["", "GatedRepo", "RepoNotFound", "EntryNotFound", "RevisionNotFound", "Strange", "é\x00"])
texts = st.text(max_size=40)
locations = st.one_of(
    st.just(""),
    texts,
    ids.map(lambda new: f"/{new}/resolve/main/model_index.json"),
    ids.map(lambda new: f"https://{HOST}/api/models/{new}"),
    st.just(f"/api/resolve-cache/models/{SOURCE}/{'1' * 40}/model_index.json"),
    st.just("https://cdn.example/repos/ab/cd?X-Amz-Signature=x"),
)


def verdict(answer: HubAnswer, source: str = SOURCE) -> tuple[str, str]:
    """The kind and the words of what an answer means; `ok` and the new name where it can be fetched."""
    try:
        return "ok", judge(answer, "model", source, HOST)
    except WorkerError as error:
        return error.kind, str(error)


@settings(max_examples=VARIANTS, deadline=None)
@given(
    st.one_of(st.integers(100, 999), st.sampled_from([200, 302, 307, 308, 401, 403, 404, 429, 503])),
    codes,
    texts,
    locations,
)
@example(503, "GatedRepo", "", "")
@example(429, "RepoNotFound", "", "")
@example(403, "", "", "")
def test_every_answer_is_one_of_three_things(status: int, code: str, said: str, location: str) -> None:
    """It can be fetched, it can't be had until somebody does something, or the hub is away for now: never `other`."""
    kind, words = verdict(HubAnswer(status, code, said, location))
    assert kind == "ok" or EXIT_CODES[kind] == 4
    if status >= 500 or status in (408, 425, 429) or status < 200:
        assert kind == "hub_unavailable"
        assert HOST in words
    elif status < 400 or status in (405, 501):
        assert kind == "ok"
    else:
        assert kind == "model_unavailable"
        assert SOURCE in words
        assert str(status) in words
        assert said in words, "the hub's own words are kept"
    if code == "GatedRepo" and 400 <= status < 500 and kind == "model_unavailable":
        assert "gated" in words
        assert "token" in words
        assert f"https://{HOST}/{SOURCE}" in words
    if status == 404 and code in ("", "RepoNotFound"):
        assert "missing" in words


@settings(max_examples=VARIANTS // 2, deadline=None)
@given(
    ids, ids, st.sampled_from(["/{}/resolve/main/x.json", "/api/models/{}", "https://h/api/models/{}/revision/main"])
)
def test_a_rename_names_the_new_id(old: str, new: str, form: str) -> None:
    """And the same id in another place is none."""
    found = renamed_to(form.format(new), old)
    assert found == ("" if new.lower() == old.lower() else new)
    assert renamed_to(form.format(old), old) == ""


@settings(max_examples=VARIANTS // 2, deadline=None)
@given(texts)
@example("https://[/api/models/a/b")
@example("/api/models/../..")
def test_any_location_is_survived(location: str) -> None:
    """Whatever it says, what is made of it could be an id."""
    found = renamed_to(location, SOURCE)
    assert found == "" or found.count("/") == 1
    assert "\n" not in found


@settings(max_examples=VARIANTS // 2, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["X-Error-Code", "x-error-message", "LOCATION", "ETag", "X"]), texts, max_size=5)
)
def test_any_headers_are_survived(headers: dict[str, str]) -> None:
    """Names in any case, values of any length; words go on one line."""
    answer = HubAnswer.of(404, headers)
    assert "\n" not in answer.error_message
    assert len(answer.error_message) <= 300
    verdict(answer)


def named(name: str, *bases: type[BaseException], **attributes: Any) -> BaseException:
    """An exception of a library that may not be installed here, known by its class's name."""
    error = type(name, bases or (Exception,), {})("words")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


def response(status: int, **headers: str) -> Any:
    """What such an exception holds."""
    return SimpleNamespace(status_code=status, headers=headers)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (named("HfHubHTTPError", OSError, response=response(503)), "hub_unavailable"),
        (named("HfHubHTTPError", OSError, response=response(429)), "hub_unavailable"),
        (
            named("GatedRepoError", OSError, response=response(403, **{"X-Error-Code": "GatedRepo"})),
            "model_unavailable",
        ),
        (named("RepositoryNotFoundError", OSError, response=response(404)), "model_unavailable"),
        (named("HfHubHTTPError", OSError, response=None), "model_unavailable"),
        (named("ConnectTimeout"), "hub_unavailable"),
        (named("RemoteProtocolError"), "hub_unavailable"),
        (named("ChunkedEncodingError", OSError), "hub_unavailable"),
        (named("OfflineModeIsEnabled", ConnectionError), "model_unavailable"),
        (named("LocalEntryNotFoundError", FileNotFoundError), "hub_unavailable"),
        (TimeoutError("timed out"), "hub_unavailable"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "hub_unavailable"),
        (OSError("Consistency check failed: file should be of size 9 but has size 3 (x)."), "hub_unavailable"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "file_system"),
        (OSError(errno.EMFILE, "Too many open files"), "host_limits"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host_memory"),
        (ModuleNotFoundError("No module named 'x'", name="x.y"), "package"),
        (ValueError("Unrecognized model"), "model_unavailable"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_download_raises(error: BaseException, kind: str, wrapped: bool) -> None:
    """By class, status and number, also beneath what another library has made of it."""
    raised: BaseException = error
    if wrapped:
        raised = OSError("Can't load the model")
        raised.__cause__ = error
    found = failure_of(raised, "model", SOURCE, HOST)
    assert found.kind == kind
    assert ERRORS_BY_KIND[kind] is type(found)


def test_each_failure_has_a_line_with_its_subject() -> None:
    """What is to be seen to goes to the daemon beside the words."""
    error = environment_of(ModuleNotFoundError("No module named 'tgate.x'", name="tgate.x"))
    assert error is not None
    line = error.line("import")
    assert (line.error, line.extra) == ("package", {"subject": "tgate"})
    assert environment_of(FileNotFoundError(errno.ENOENT, "x")) is None


ODDITIES = {
    "gated": (Oddity(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept its terms"}), "model_unavailable"),
    "gated 401": (Oddity(401, {"X-Error-Code": "GatedRepo"}), "model_unavailable"),
    "private": (Oddity(401), "model_unavailable"),
    "missing": (Oddity(404, {"X-Error-Code": "RepoNotFound"}), "model_unavailable"),
    "no such file": (Oddity(404, {"X-Error-Code": "EntryNotFound"}), "model_unavailable"),
    "disabled": (Oddity(451), "model_unavailable"),
    "too many": (Oddity(429, {"Retry-After": "60"}), "hub_unavailable"),
    "gateway": (Oddity(504), "hub_unavailable"),
    "overloaded": (Oddity(503), "hub_unavailable"),
    "no HEAD": (Oddity(405), "ok"),
    "late": (Oddity(200, delay_s=0.2), "ok"),
    "to its bytes": (Oddity(302, {"Location": "https://cdn.example/x"}), "ok"),
    "renamed": (Oddity(307, {"Location": "/new/name/resolve/main/model_index.json"}), "ok new/name"),
    "renamed for good": (Oddity(308, {"Location": "/new/name/resolve/main/model_index.json"}), "ok new/name"),
    "no location": (Oddity(307), "ok"),
    "never": (Oddity(hang=True), "hub_unavailable"),
    "garbage": (Oddity(garbage=b"220 mail.example ESMTP\r\n"), "hub_unavailable"),
    "nothing": (Oddity(garbage=b"\r\n"), "hub_unavailable"),
    "odd status": (Oddity(garbage=b"HTTP/1.1 abc Hm\r\n\r\n"), "hub_unavailable"),
    "long headers": (Oddity(garbage=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "hub_unavailable"),
}


@pytest.mark.parametrize("how", ODDITIES)
def test_a_hub_that_is_odd(how: str) -> None:
    """Over a real socket, with a second's patience."""
    odd, expected = ODDITIES[how]
    with serving(Hub(odd=odd)) as hub:
        try:
            found = f"ok {ask(hub.url, 'model', SOURCE, {}, 1.0)}".strip()
        except WorkerError as error:
            found = error.kind
            named_in = str(error)
        else:
            named_in = SOURCE
    assert found == expected
    assert SOURCE in named_in or hub.url.removeprefix("http://") in named_in


def test_a_hub_that_is_not_there() -> None:
    """Nobody listens; and a name that nobody knows, as the resolver says it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(HubUnavailableError, match=f"127.0.0.1:{port} can't be reached: ConnectionRefusedError"):
        ask(f"http://127.0.0.1:{port}", "model", SOURCE, {}, 1.0)
    for cause in (socket.gaierror(-3, "no name"), ssl.SSLError("bad"), http.client.RemoteDisconnected("gone")):
        found = failure_of(urllib.error.URLError(cause), "model", SOURCE, HOST)
        assert isinstance(found, HubUnavailableError | ModelUnavailableError)
