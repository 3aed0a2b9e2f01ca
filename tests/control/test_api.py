"""The API, over a real socket.

To see the tests of who was quicker fail, have `Actions._submit` make its answer of `self.service.state`, before it
submits.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from control_server import CELLS, GPU, LABELS, Running, curl, live_attempt

from boundd.catalogue.outcomes import ErrorKind
from boundd.client import RefusedError
from boundd.client.client import cell_path
from boundd.core.model.devices import Device, DeviceReading
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import (
    AttemptEnded,
    CancelRequested,
    CordonRequested,
    Event,
    ImportRequested,
    Now,
    PauseRequested,
    ResumeRequested,
    RetryRequested,
    UncordonRequested,
)
from boundd.core.model.outcomes import AttemptError, Outcome, Verdict
from boundd.ports import Keep, keep_nothing


def refused(running: Running, path: str, body: Any) -> RefusedError:
    """The error that a POST gets."""
    with pytest.raises(RefusedError) as caught:
        running.client.post(path, body)
    return caught.value


def test_status_is_what_scripts_rely_on(running: Running) -> None:
    """The names and values of `status --json`."""
    status = running.client.get("/v1/status")
    assert set(status) == {"daemon", "devices", "cells", "running", "problems", "eta_s"}
    assert {"version", "pid", "started_at", "paused"} <= set(status["daemon"])
    (device,) = status["devices"]
    assert {"uuid", "index", "name", "total_bytes", "free_bytes", "reserved_bytes", "headroom_bytes"} <= set(device)
    assert (device["state"], device["cells"], device["reserved_bytes"]) == ("ready", [LABELS[1]], 3 * 1024**3)
    assert status["cells"]["total"] == 6
    assert status["cells"]["by_state"]["cancelled"] == 0
    (run,) = status["running"]
    assert (run["label"], run["attempt"], run["device"]) == (LABELS[1], 1, GPU)
    assert (run["elapsed_s"], run["progress"]) == (30.0, 0.15)
    assert status["eta_s"] == 90.0  # one waits 60 s, one has 30 of its 60 s left, one device


def test_status_of_a_query(running: Running) -> None:
    """Counts are of the query's cells, the estimate too."""
    status = running.client.get("/v1/status", {"q": ["model=SDXL"]})
    assert (status["cells"]["total"], status["running"], status["eta_s"]) == (3, [], 0.0)


def test_cells_by_query_and_page(running: Running) -> None:
    """Terms must all match; offset and limit page."""
    names = [cell["label"] for cell in running.client.get("/v1/cells", {"q": ["model=SDXL", "*/tome"]})]
    assert names == [LABELS[5]]
    assert [c["label"] for c in running.client.get("/v1/cells", {"offset": 2, "limit": 2})] == LABELS[2:4]
    with pytest.raises(RefusedError, match="unknown state"):
        running.client.get("/v1/cells", {"q": "state=faild"})


@pytest.mark.parametrize("name", [CELLS[2].label, CELLS[2].key, CELLS[2].digest, CELLS[2].digest[:6]])
def test_a_cell_by_each_of_its_names(running: Running, name: str) -> None:
    """Label, key, digest and its start; with attempts and points."""
    cell = running.client.get(cell_path(name))
    assert (cell["label"], cell["canonical_key"], cell["stale"]) == (LABELS[2], CELLS[2].key, True)
    (attempt,) = cell["history"]
    assert (attempt["outcome"], attempt["points"][0]["score_loss"]) == ("succeeded", 0.004)


def test_a_history_is_bounded(running: Running) -> None:
    """Fifty attempts unless asked for more or fewer; the earlier ones by a number; nonsense is a 400."""
    key, path = CELLS[2].key, cell_path(LABELS[2])
    (ended,) = running.service.store.history[key]
    running.service.store.history[key] = tuple(
        replace(ended, attempt=replace(ended.attempt, number=number)) for number in range(1, 81)
    )

    def numbers(**page: int) -> list[int]:
        return [attempt["number"] for attempt in running.client.get(path, page)["history"]]

    assert numbers() == list(range(31, 81))
    assert numbers(before=31) == list(range(1, 31))
    assert numbers(limit=2, before=10) == [8, 9]
    assert len(numbers(limit=1000)) == 80
    for page in ({"limit": 1001}, {"limit": -1}, {"before": 0}):
        with pytest.raises(RefusedError) as caught:
            running.client.get(path, page)
        assert caught.value.status == 400


def test_curl_takes_a_label_with_its_slashes(running: Running) -> None:
    """curl --unix-socket works, with slashes as they are."""
    answer = curl(running, f"http://localhost/v1/cells/{LABELS[0]}/explain")
    assert json.loads(answer.stdout)["state"] == "pending"
    assert json.loads(curl(running, "http://localhost/v1/devices").stdout)[0]["uuid"] == GPU
    assert curl(running, "http://localhost/metrics").stdout == "boundd_cells 6\n"


def test_explain_of_each_state(running: Running) -> None:
    """What runs says where; what failed says why; an unknown cell is a 404."""
    runs = running.client.get(cell_path(LABELS[1], "/explain"))
    assert " on GPU 0 for " in runs["reason"]
    assert (runs["cause"]["kind"], runs["cause"]["device"]) == ("runs", GPU)
    assert "no result" in running.client.get(cell_path(LABELS[5], "/explain"))["reason"]
    with pytest.raises(RefusedError) as caught:
        running.client.get(cell_path("nothing/such", "/explain"))
    assert (caught.value.status, caught.value.details["type"]) == (404, "not_found")


def test_logs_and_their_ranges(running: Running) -> None:
    """The bytes as they are, a part of them, the end of them, and none."""
    path = cell_path(LABELS[1], "/logs")
    assert b"".join(running.client.stream(path)) == b"first line\n\x1b[31msecond\x1b[0m\n"
    assert b"".join(running.client.stream(path, {"offset": 6, "limit": 4})) == b"line"
    assert b"".join(running.client.stream(path, {"offset": -5})) == b"\x1b[0m\n"
    for parameters, status in (({"attempt": 2}, 404), ({"attempt": "x"}, 400), ({"offset": "9" * 30}, 400)):
        with pytest.raises(RefusedError) as caught:
            list(running.client.stream(path, parameters))
        assert caught.value.status == status
    with pytest.raises(RefusedError, match="0 attempt"):
        list(running.client.stream(cell_path(LABELS[0], "/logs")))


def test_logs_are_followed_until_the_attempt_ends(running: Running) -> None:
    """What is appended comes; the end of the attempt is the end of the answer."""
    path = running.service.launcher.log_path(live_attempt().id)
    got: list[bytes] = []
    reader = threading.Thread(
        target=lambda: got.extend(running.client.stream(cell_path(LABELS[1], "/logs"), {"follow": 1}))
    )
    reader.start()
    with path.open("a") as log:
        log.write("third\n")
    time.sleep(0.5)
    assert b"third" in b"".join(got)
    assert reader.is_alive()
    with path.open("a") as log:
        log.write("last\n")
    error = AttemptError(ErrorKind.NO_RESULT, "none", 0.0)
    running.submit(AttemptEnded(live_attempt().id, Verdict(Outcome.FAILED, None, error)))
    reader.join(5)
    assert not reader.is_alive()
    assert b"".join(got).endswith(b"third\nlast\n")


def test_events_are_server_sent(running: Running) -> None:
    """Each note is an event named by its action."""
    stream = running.client.stream("/v1/events")
    assert next(stream) == b": boundd events\n\n"
    running.client.post("/v1/pause")
    name, data = next(stream).decode().strip().split("\n")
    assert name == "event: run-paused"
    assert json.loads(data.removeprefix("data: "))["action"] == "run-paused"
    stream.close()  # type: ignore[attr-defined]


def test_an_event_of_any_text_is_one_event(running: Running) -> None:
    """A lone surrogate, as a path of any bytes in a system's error has, doesn't end the stream, whose line is one.

    Seen to fail with `ensure_ascii=False` in `streams._event`: UTF-8 refuses it, and nothing comes any more.
    """
    stream = running.client.stream("/v1/events")
    next(stream)
    text = "\udcff one\u2028two\x85three\x1cfour\n\ndata: five"

    async def tell() -> None:
        for listener in running.service.listeners:
            listener.send_nowait((Note(Action.RUN_PAUSED, text), Now(0.0, 0.0)))

    running.call(tell)
    lines = next(stream, b"").decode().splitlines()
    assert len(lines) == 3, lines
    assert (lines[0], lines[2]) == ("event: run-paused", "")
    assert json.loads(lines[1].removeprefix("data: "))["message"] == text
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "affected"),
    [
        ({}, LABELS[3:]),
        ({"selector": "oom"}, [LABELS[3]]),
        ({"selector": "timeout"}, [LABELS[4]]),
        ({"selector": "failed"}, [LABELS[5]]),
        ({"selector": "stale"}, [LABELS[2]]),
        ({"query": ["state=succeeded"]}, [LABELS[2]]),
        ({"query": ["*/tome"]}, [LABELS[5]]),
        ({"query": ["model=SD1.5"], "selector": "oom"}, []),
    ],
)
def test_retry_takes_whom_it_names(running: Running, body: dict[str, Any], affected: list[str]) -> None:
    """A dry run changes nothing and says the same as the real one."""
    dry = running.client.post("/v1/retry", {**body, "dry_run": True})
    assert (dry["affected"], running.service.submitted) == (affected, [])
    assert all("would reserve" in cell["note"] or "waits" in cell["note"] for cell in dry["cells"])
    assert running.client.post("/v1/retry", body)["affected"] == affected
    assert len(running.service.submitted) == bool(affected)


def test_retry_with_another_batch(running: Running) -> None:
    """The batch is in the event and in the answer."""
    answer = running.client.post("/v1/retry", {"selector": "oom", "batch_size": 2})
    assert answer["cells"][0]["batch_size"] == 2
    assert running.service.submitted == [RetryRequested((CELLS[3].key,), 2)]
    for bad in (0, -1, 2**70, 1.5, True, "2"):
        assert refused(running, "/v1/retry", {"batch_size": bad}).status == 400


def test_cancel_takes_what_is_pending_or_running(running: Running) -> None:
    """And nothing else; an empty query is refused rather than taken for all."""
    assert running.client.post("/v1/cancel", {"query": ["*"]})["affected"] == LABELS[:2]
    assert running.service.submitted == [CancelRequested((CELLS[0].key, CELLS[1].key))]
    assert refused(running, "/v1/cancel", {"query": []}).status == 400
    assert refused(running, "/v1/cancel", {}).status == 400


def before(running: Running, monkeypatch: pytest.MonkeyPatch, *first: Event) -> None:
    """Have these events come first whenever one is submitted, as they may between a request and its event."""
    submit = running.service.submit

    async def submit_both(event: Event, keep: Keep = keep_nothing) -> None:
        for each in first:
            await submit(each)
        await submit(event, keep)

    monkeypatch.setattr(running.service, "submit", submit_both)


def test_what_ended_just_before_was_not_cancelled(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is made of the state that the event was applied to, and kept with it for whoever asks again."""
    error = AttemptError(ErrorKind.NO_RESULT, "none", 0.0)
    before(running, monkeypatch, AttemptEnded(live_attempt().id, Verdict(Outcome.FAILED, error=error)))
    assert running.client.post("/v1/cancel", {"query": ["*"], "dry_run": True})["affected"] == LABELS[:2]
    assert running.client.post("/v1/cancel", {"query": ["*"]})["affected"] == [LABELS[0]]
    assert [cell["state"] for cell in running.client.get("/v1/cells")][:2] == ["cancelled", "failed"]


@pytest.mark.parametrize(
    ("path", "body", "first", "affected"),
    [
        ("/v1/retry", {"selector": "oom"}, RetryRequested((CELLS[3].key,)), []),
        ("/v1/retry", {"query": ["model=SDXL"]}, RetryRequested((CELLS[3].key,)), LABELS[4:]),
        ("/v1/import", {"text": "{}"}, CancelRequested((CELLS[0].key,)), []),
        ("/v1/cancel", {"query": [LABELS[0]]}, CancelRequested((CELLS[0].key,)), []),
    ],
)
def test_another_person_was_quicker(
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    first: Event,
    affected: list[str],
) -> None:
    """Whom another request took is not said to be affected by this one."""
    before(running, monkeypatch, first)
    assert running.client.post(path, body)["affected"] == affected


def test_a_pause_that_came_second_changed_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor did a resume, or an uncordon."""
    running.client.post("/v1/cordon", {"device": "0"})
    before(running, monkeypatch, PauseRequested(), UncordonRequested(GPU))
    assert running.client.post("/v1/pause") == {"paused": True, "changed": False}
    monkeypatch.undo()
    running.client.post("/v1/cordon", {"device": "0"})
    before(running, monkeypatch, ResumeRequested(), UncordonRequested(GPU))
    assert running.client.post("/v1/uncordon", {"device": "0"})["affected"] == []
    monkeypatch.undo()
    running.client.post("/v1/pause")
    before(running, monkeypatch, ResumeRequested())
    assert running.client.post("/v1/resume") == {"paused": False, "changed": False}


def test_pause_and_resume(running: Running) -> None:
    """Twice is once."""
    assert running.client.post("/v1/pause") == {"paused": True, "changed": True}
    assert running.client.post("/v1/pause") == {"paused": True, "changed": False}
    assert running.client.get("/v1/status")["daemon"]["paused"] is True
    assert running.client.post("/v1/resume") == {"paused": False, "changed": True}


@pytest.mark.parametrize("name", [GPU, "0", "Simulated 24 GiB", "GPU-1"])
def test_cordon_by_each_name_of_a_device(running: Running, name: str) -> None:
    """UUID, index, name and the UUID's start."""
    assert running.client.post("/v1/cordon", {"device": name, "reason": "hot"})["affected"] == [GPU]
    assert running.service.submitted == [CordonRequested(GPU, "hot")]
    assert running.client.get("/v1/devices")[0]["reason"] == "hot"
    assert running.client.post("/v1/uncordon", {"device": name})["affected"] == [GPU]
    assert running.client.post("/v1/uncordon", {"device": name})["affected"] == []
    assert refused(running, "/v1/cordon", {"device": "GPU-2"}).status == 404


def test_an_index_means_the_whole_of_a_divided_device(running: Running) -> None:
    """Its instances share the index, and go with it; each has a name of its own."""
    state = running.service.state
    part = DeviceReading("MIG-1", 0, "Simulated 24 GiB MIG 1g.5gb", 5, 5, parent=GPU, slot=0)
    running.service.state = replace(state, devices=state.devices.set("MIG-1", Device(part)))
    assert running.client.post("/v1/cordon", {"device": "0", "reason": "hot"})["affected"] == [GPU, "MIG-1"]
    assert running.client.post("/v1/uncordon", {"device": "0:0"})["affected"] == ["MIG-1"]
    assert running.client.post("/v1/uncordon", {"device": "0"})["affected"] == [GPU]


def test_import(running: Running) -> None:
    """Pending cells take the old figure, others keep theirs, and an ambiguous file asks for its model."""
    answer = running.client.post("/v1/import", {"text": "{}"})
    assert answer == {"affected": [LABELS[0]], "kept": [LABELS[2]], "unmatched": ["something else"]}
    assert isinstance(running.service.submitted[0], ImportRequested)
    error = refused(running, "/v1/import", {"text": "ambiguous"})
    assert (error.status, error.details["models"]) == (409, ["SD1.5", "SD2.1"])
    assert running.client.post("/v1/import", {"text": "ambiguous", "model": "SD1.5"})["kept"]
    assert refused(running, "/v1/import", {"text": "bad"}).status == 400


def test_reload_and_shutdown(running: Running) -> None:
    """What changed, every error of a bad config, and the request to end."""
    assert running.client.post("/v1/reload") == {"changes": "2 cells more"}
    running.service.config_errors = ("matrix.axes: none", "retry.x: unknown")
    assert refused(running, "/v1/reload", None).details["errors"] == ["matrix.axes: none", "retry.x: unknown"]
    answer = running.client.post("/v1/shutdown", {"end_workers": True})
    assert (answer["live_attempts"], running.service.stops) == (1, [True])


def test_export_and_what_it_could_not_represent(running: Running) -> None:
    """The text itself, or an envelope with the warnings."""
    assert running.client.get("/v1/export") == {"format": "boundd/1"}
    assert "Boundd-Warnings: 1" in curl(running, "-i", "http://localhost/v1/export?format=legacy").stdout.title()
    envelope = running.client.get("/v1/export", {"format": "legacy", "envelope": 1})
    assert (envelope["text"], len(envelope["warnings"])) == ('{"old": 1}\n', 1)
    with pytest.raises(RefusedError, match="one of json, legacy"):
        running.client.get("/v1/export", {"format": "xml"})


def test_wait(running: Running) -> None:
    """At once where all have ended, after its time where not, and when the last one does."""
    assert running.client.get("/v1/wait", {"q": "model=SDXL", "timeout": 20})["done"] is True
    assert running.client.get("/v1/wait", {"timeout": 0.2})["done"] is False
    assert running.client.get("/v1/wait", {"timeout": 0})["done"] is False
    timer = threading.Timer(0.3, running.client.post, ("/v1/cancel", {"query": [LABELS[0]]}))
    timer.start()
    began = time.monotonic()
    assert running.client.get("/v1/wait", {"q": LABELS[0], "timeout": 20})["done"] is True
    assert time.monotonic() - began < 5
    timer.join()
    for parameters in ({"q": "nothing*"}, {"timeout": "nan"}, {"timeout": "1e9"}, {"q": "state=running"}):
        with pytest.raises(RefusedError):
            running.client.get("/v1/wait", parameters)


def test_health_and_a_store_that_is_busy(running: Running) -> None:
    """503 from both, with the reason."""
    assert running.client.get("/healthz")["ok"] is True
    running.service.store_problem = "the disk is full"
    assert '"ok":false' in curl(running, "http://localhost/healthz").stdout
    assert curl(running, "-o", "/dev/null", "-w", "%{http_code}", "http://localhost/healthz").stdout == "503"
    running.service.busy = True
    assert refused(running, "/v1/pause", None).status == 503


def test_other_methods_and_paths(running: Running) -> None:
    """405 and 404, as JSON errors."""
    answer = json.loads(curl(running, "-X", "DELETE", "http://localhost/v1/status").stdout)
    assert answer["error"]["type"] == "method_not_allowed"
    for path in ("/v2", "/v1/status/", "//v1/status"):
        assert json.loads(curl(running, f"http://localhost{path}").stdout)["error"]["type"] == "not_found"
