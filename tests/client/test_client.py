"""The client in Python, over a real socket: every operation, typed and by name, and what is raised.

Seen to fail: an operation without a method, or one whose parameters have other names
(`test_every_operation_has_a_method`); `quote` left out of `cell_path`; a stream cut in the middle of an event taken for
two (`events_of` on single chunks).
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from control_server import CELLS, GPU, LABELS, Running
from hypothesis import given
from hypothesis import strategies as st

from boundd.api.operations import OPERATIONS, Operation
from boundd.client import Client, ClientError, LostAnswerError, NoDaemonError, NotFoundError, RefusedError
from boundd.client.server_sent import events_of
from boundd.core.model.events import CancelRequested, CordonRequested, RetryRequested, UncordonRequested
from tests.faults.daemons import Box, wait_for

FOR_MONITORS = {"metrics", "openapi", "healthz"}
"""Operations that aren't for Python: `Client.get` reaches them."""
OTHER_NAMES = {"timeout": "timeout_s", "q": "query", "envelope": None}
"""Parameters that the client calls otherwise, or sets by itself."""


FOR_PYTHON = [each for each in OPERATIONS if each.name not in FOR_MONITORS]


@pytest.mark.parametrize("operation", FOR_PYTHON, ids=lambda each: each.name)
def test_every_operation_has_a_method(operation: Operation) -> None:
    """Of its name, with its parameters or its body's keys."""
    names = [parameter.name for parameter in operation.parameters]
    names += [each.name for each in dataclasses.fields(operation.body)] if operation.body is not None else []
    names += ["cell"] if "{id}" in operation.path else []
    expected = {OTHER_NAMES.get(name, name) for name in names} - {None}
    taken = set(inspect.signature(getattr(Client, operation.name)).parameters) - {"self"}
    assert taken == expected | ({"write"} if operation.name == "backup" else set())


def test_looking(running: Running) -> None:
    """What there is, by each method."""
    client = running.client
    assert client.status("model=SDXL")["cells"]["total"] == 3
    assert [cell["label"] for cell in client.cells(offset=2, limit=2)] == LABELS[2:4]
    assert client.show(CELLS[2].key)["history"][0]["points"][0]["score_loss"] == 0.004
    assert client.show(LABELS[2], limit=0)["history"] == []
    assert client.explain(LABELS[1])["devices"] == []
    assert b"".join(client.logs(LABELS[1], offset=6, limit=4)) == b"line"
    assert client.devices()[0]["uuid"] == GPU
    assert client.footprints()[0]["observations"] == 0
    assert len(client.plan("4x24GiB")["devices"]) == 4
    assert client.export("legacy")["warnings"]
    assert client.export()["format"] == "json"


def test_changing(running: Running) -> None:
    """What can be done, by each method."""
    client = running.client
    assert client.retry(selector="oom", batch_size=2, dry_run=True)["affected"] == [LABELS[3]]
    assert running.service.submitted == []
    assert client.retry("*/deepcache", "model=SDXL", batch_size=2)["affected"] == [LABELS[3]]
    assert client.cancel(LABELS[0])["affected"] == [LABELS[0]]
    assert (client.pause()["changed"], client.resume()["changed"]) == (True, True)
    assert client.cordon("0")["affected"] == client.uncordon("0")["affected"] == [GPU]
    assert client.import_("{}")["unmatched"] == ["something else"]
    assert client.reload()["changes"] == "2 cells more"
    assert client.shutdown(end_workers=True)["stopping"]
    wanted = [RetryRequested((CELLS[3].key,), 2), CancelRequested((CELLS[0].key,))]
    assert running.service.submitted[:2] == wanted
    assert CordonRequested(GPU, "cordoned by hand") in running.service.submitted
    assert UncordonRequested(GPU) in running.service.submitted


def test_waiting(running: Running) -> None:
    """Until it is so, or not so long."""
    assert running.client.wait("model=SDXL")["done"]
    assert not running.client.wait(timeout_s=0.1)["done"]
    timer = threading.Timer(0.3, running.client.cancel, (LABELS[0],))
    timer.start()
    assert running.client.wait(LABELS[0], timeout_s=20)["done"]
    timer.join()


def test_events(running: Running) -> None:
    """Each as a dictionary, as it happens."""
    seen: list[str] = []

    def listen() -> None:
        for event in running.client.events():
            seen.append(event["action"])
            if len(seen) == 2:
                return

    listener = threading.Thread(target=listen)
    listener.start()
    wait_for(lambda: bool(running.service.listeners), "a listener")
    running.client.pause()
    running.client.resume()
    listener.join(20)
    assert seen == ["run-paused", "run-resumed"]


@given(st.lists(st.integers(1, 7), max_size=60))
def test_events_come_whole_however_a_stream_is_cut(cuts: list[int]) -> None:
    """A chunk may end anywhere, and comments are no events."""
    stream = b': hello\n\nevent: a\ndata: {"n": 1}\n\n: still here\n\nevent: b\ndata: {"n": 2}\n\n'
    chunks, rest = [], stream
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert [event["n"] for event in events_of([*chunks, rest])] == [1, 2]  # type: ignore[typeddict-item]


def test_what_is_raised(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there, no such thing, no."""
    with pytest.raises(NotFoundError, match="no cell is called") as missing:
        running.client.show("nothing/such")
    assert missing.value.status == 404
    with pytest.raises(RefusedError) as refused:
        running.client.cancel()
    assert (refused.value.status, refused.value.details["type"]) == (400, "bad_request")
    with pytest.raises(RefusedError, match="unknown state"):
        running.client.cells("state=faild")
    with pytest.raises(NoDaemonError, match=str(tmp_path / "nobody")):
        Client(tmp_path / "nobody").status()
    for name, value in {"BOUNDD_SOCKET": "", "BOUNDD_CONFIG": "", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoDaemonError, match=r"/run/boundd/boundd\.sock"):
        Client()
    monkeypatch.setenv("BOUNDD_SOCKET", str(running.socket))
    assert Client().status()["cells"]["total"] == 6
    assert issubclass(LostAnswerError, NoDaemonError)
    assert issubclass(NoDaemonError, ClientError)


EXAMPLE = re.findall(r"```python\n(.*?)```", Path("docs/client.md").read_text(), re.DOTALL)


def test_the_documented_example_is_typed(tmp_path: Path) -> None:
    """`mypy --strict` takes it, and finds a key that there isn't."""
    (example,) = EXAMPLE
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(example)
    bad.write_text(example.replace("['total']", "['totl']"))
    options = ["--strict", "--config-file", "pyproject.toml", "--cache-dir", str(tmp_path / "cache")]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(good), str(bad)], capture_output=True, text=True, check=False
    )
    assert "good.py" not in checked.stdout, checked.stdout
    assert 'has no key "totl"' in checked.stdout, checked.stdout + checked.stderr


def test_the_documented_example_runs_against_a_daemon(tmp_path: Path) -> None:
    """A whole daemon, its store and its workers; and a backup of it, and its end."""
    (example,) = EXAMPLE
    box = Box(tmp_path, numbers=1, kinds=("quick",))
    daemon = box.start()
    try:
        client = Client(box.socket)

        def answers() -> bool:
            try:
                return bool(client.status()["daemon"]["pid"])
            except NoDaemonError:
                return False

        wait_for(answers, "a daemon that answers")
        assert client.wait(timeout_s=60)["cells"]["by_state"]["succeeded"] == 1
        script = example.replace("Client()", f"Client({str(box.socket)!r})").replace("model=SDXL", "kind=quick")
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "1 cells, 1 of them succeeded" in ran.stdout, ran.stdout + ran.stderr
        assert ran.returncode == 0, ran.stderr
        copy = io.BytesIO()
        told = client.backup(copy.write)
        assert copy.getvalue().startswith(b"SQLite format 3\0")
        assert (told["bytes"], told["commits"] > 0) == (len(copy.getvalue()), True)
        assert client.shutdown(end_workers=True)["stopping"]
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
        box.clear()
