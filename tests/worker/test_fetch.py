"""Fetching over a real hub on loopback: once for all who need it, in bounded time, each failure told as what it is.

Seen to fail: without the lock each of the four asks; without `_failure_in` they ask in turn; without the stall the
last one waits for as long as the hub does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.hub_server import Hub, Oddity, serving

SOURCE = "acme/clip"
SCRIPT = """
import json, sys, time
from pathlib import Path
from boundd.worker.errors import WorkerError
from boundd.worker.fetch import Fetcher, Wanted
from huggingface_hub import try_to_load_from_cache
source, marker, timeout_s, stall_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
told = []
fetcher = Fetcher(timeout_s, marker, told.append, stall_s=stall_s)
try:
    renamed = fetcher.ensure(
        Wanted("scorer", source), lambda: isinstance(try_to_load_from_cache(source, "model.safetensors"), str)
    )
    answer = {"renamed": renamed}
except WorkerError as error:
    answer = {"kind": error.kind, "message": str(error), "subject": error.subject}
print(json.dumps({**answer, "marked": marker.exists(), "told": told}))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What a scorer's repository holds, and some more."""
    folder = tmp_path / "repository"
    (folder / "more").mkdir(parents=True)
    for name, size in (
        ("config.json", 10),
        ("model.safetensors", 300_000),
        ("pytorch_model.bin", 10),
        ("flax.msgpack", 9),
    ):
        (folder / name).write_bytes(b"{}" + b" " * size)
    (folder / "more" / "model.safetensors").write_bytes(b"x" * 10)
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[Hub]:
    """A hub that has it."""
    with serving(Hub({SOURCE: repository})) as found:
        yield found


def start(
    hub: Hub, folder: Path, *, timeout_s: float = 60.0, stall_s: float = 60.0, number: int = 0
) -> subprocess.Popen[str]:
    """A process that wants it."""
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_ETAG_TIMEOUT": "1"}
    environ |= {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_DISABLE_XET": "1"}
    environ.pop("HF_HUB_OFFLINE", None)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, SOURCE, str(folder / f"fetching{number}"), str(timeout_s), str(stall_s)],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> dict[str, object]:
    """What it says at its end."""
    said, _ = process.communicate(timeout=120)
    answer: dict[str, object] = json.loads(said.splitlines()[-1])
    return answer


def test_four_who_need_it_fetch_it_once(hub: Hub, tmp_path: Path) -> None:
    """The rest waits; nothing is asked for again; what isn't needed isn't fetched; the file for the shim is gone."""
    answers = [end(each) for each in [start(hub, tmp_path, number=n) for n in range(4)]]
    assert [(each["renamed"], each["marked"]) for each in answers] == [("", False)] * 4
    assert hub.asked == {f"{SOURCE}/config.json": 1, f"{SOURCE}/model.safetensors": 1}
    assert end(start(hub, tmp_path))["renamed"] == ""
    assert hub.asked.total() == 2


def test_who_waits_takes_the_failure(hub: Hub, tmp_path: Path) -> None:
    """A hub that never answers is asked by one; the others have the same answer a moment later."""
    hub.odd = Oddity(hang=True)
    began_s = time.monotonic()
    processes = [start(hub, tmp_path, number=n) for n in range(3)]
    marks = set()
    while any(each.poll() is None for each in processes):
        marks |= {path.name for path in tmp_path.glob("fetching*")}
        time.sleep(0.1)
    answers = [end(each) for each in processes]
    assert {each["kind"] for each in answers} == {"hub_unavailable"}
    assert {each["subject"] for each in answers} == {hub.url.removeprefix("http://")}
    assert marks == {"fetching0", "fetching1", "fetching2"}, "the deadline of those that wait stands still too"
    assert time.monotonic() - began_s < 45, "three tries of a second each, once"
    hub.odd = None
    assert end(start(hub, tmp_path))["renamed"] == "", "a failure of before is nobody's"


@pytest.mark.parametrize(
    ("odd", "kind", "words"),
    [
        (
            Oddity(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}),
            "model_unavailable",
            "gated",
        ),
        (Oddity(404, {"X-Error-Code": "RepoNotFound"}), "model_unavailable", "missing"),
        (Oddity(307, {"Location": "/new/clip/resolve/main/config.json"}), "model_unavailable", "renamed to 'new/clip'"),
        (Oddity(502), "hub_unavailable", "502"),
    ],
)
def test_what_the_hub_says_is_told(hub: Hub, tmp_path: Path, odd: Oddity, kind: str, words: str) -> None:
    """Gated, missing, renamed for ever, away."""
    hub.odd = odd
    answer = end(start(hub, tmp_path))
    assert answer["kind"] == kind
    assert words in str(answer["message"])
    assert not answer["marked"]


def test_a_cut_file_is_the_hubs(hub: Hub, tmp_path: Path) -> None:
    """A body that ends too soon is no model; it is fetched once it comes whole."""
    hub.cut_files = True
    assert end(start(hub, tmp_path, timeout_s=30.0, stall_s=5.0))["kind"] == "hub_unavailable"
    hub.cut_files = False
    assert end(start(hub, tmp_path))["renamed"] == ""


def test_the_time_is_bounded(hub: Hub, tmp_path: Path) -> None:
    """Whatever the hub does, and also for whoever waits for another's fetch."""
    hub.odd = Oddity(hang=True)
    first = start(hub, tmp_path, number=1)
    answer = end(start(hub, tmp_path, timeout_s=2.0))
    assert answer["kind"] == "hub_unavailable"
    assert "within 2 s (worker.fetch_timeout)" in str(answer["message"])
    end(first)


def test_not_asked_where_nobody_is_to(hub: Hub, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is a person's word: it is told as that, and nothing is tried."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, SOURCE, str(tmp_path / "m"), "60", "60"],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(process.stdout)
    assert answer["kind"] == "model_unavailable"
    assert "HF_HUB_OFFLINE" in answer["message"]
    assert hub.asked.total() == 0
