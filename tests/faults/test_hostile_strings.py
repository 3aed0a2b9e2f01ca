"""Strings of a config, a worker and a request that would like to be commands, paths, lines or cursor movements.

A real daemon runs a matrix of them. Seen to fail: a label used as a folder's name is refused by the launcher, and
nothing runs; a worker's command given to a shell makes the canary; `telemetry.text.printable` returning what it is
given puts escapes into the console's log, `cli.text.safe` onto the terminal; unescaped labels of metrics add series.
With `ensure_ascii=False` in the JSON log the lines of five cells are missing from it; with UTF-8 in place of ASCII as
well, they have controls in them, and what some readers take for a line's end. With it in an event's JSON, the stream
has the same; with an event's message beside its JSON, a string makes a line of the stream.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from boundd.client import Client, NoDaemonError, RefusedError
from boundd.client.client import cell_path
from boundd.core.model.matrix import expand
from boundd.text import legible
from tests.faults.hostile import CANARY, STRINGS

PATIENCE_S = 120.0
DEVICE = '\x1b[31m"} 1\nboundd_injected 1 `touch boundd-canary`'
BREAKS = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven\x1deight\x1enine"
"""What Python, JavaScript or Unicode take for a line's end."""
NAMES = [text for text in (*STRINGS, BREAKS) if text.encode("utf-8", "ignore").decode() == text and "\0" not in text]
"""TOML is UTF-8, so that a lone surrogate can't be in a config; a NUL is refused there, as no argument can hold it."""
EXPECTED = {"state", "s", "config.toml", "worker.py", "speedup_bounds.json", "ran", "json.log", "console.log"}
WORKER = """\
import hashlib, json, os, sys
os.makedirs("ran", exist_ok=True)
with open(f"/proc/{os.getppid()}/environ", "rb") as environ:
    above = environ.read()
told = {"argv": sys.argv[1:], "preloaded": b"LD_PRELOAD" in above}
with open(os.path.join("ran", hashlib.sha256(sys.argv[1].encode()).hexdigest()), "w") as file:
    json.dump(told, file)
print(sys.argv[1])
with open(os.environ["BOUNDD_RESULTS"], "a") as results:
    message = sys.argv[1] + "\\x1b[31m\\nsecond line"
    results.write(json.dumps({"type": "error", "error": "other", "message": message}) + "\\n")
sys.exit(1)
"""


def config() -> str:
    """The config; JSON's strings are TOML's."""
    return f"""\
[daemon]
state_dir = "state"
socket = "s"
export_format = "csv"
export = "speedup_bounds.json"
[devices]
backend = "simulated"
[[devices.simulated]]
name = {json.dumps(DEVICE)}
memory = "240GiB"
[matrix.axes]
name = {json.dumps(NAMES)}
[worker]
command = ["{{python}}", "-I", "-S", "worker.py", "{{name}}", "{{label}}", "x{{name}}"]
env = {{ LD_PRELOAD = "/nonexistent/canary.so", HOSTILE = {json.dumps(NAMES[0])} }}
grace = "100ms"
[retry]
max_attempts = 1
[[rule]]
match = {{}}
footprint = "1GiB"
lease = true
"""


class Box:
    """A folder with the config, and a daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = Client(folder / "s")
        (folder / "config.toml").write_text(config(), encoding="utf-8")
        (folder / "worker.py").write_text(WORKER)

    @contextlib.contextmanager
    def daemon(self, log_format: str) -> Iterator[None]:
        """A daemon, until the end of the block."""
        log = self.folder / f"{log_format}.log"
        command = [sys.executable, "-m", "boundd", "run", "--config", "config.toml", "--log-format", log_format]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            self.wait_for(lambda: process.poll() is not None or self.is_done())
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until it holds; a failure shows what was logged."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            logs = {path.name: path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log")}
            assert time.monotonic() < deadline_s, logs
            time.sleep(0.1)

    def is_done(self) -> bool:
        """Whether every cell has failed, as each does."""
        with contextlib.suppress(NoDaemonError):
            return self.client.get("/v1/status")["cells"]["by_state"]["failed"] == len(NAMES)
        return False

    def on_a_terminal(self, *arguments: str) -> str:
        """What a command writes to a terminal."""
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "boundd.cli.boundctl", *arguments, "--socket", str(self.folder / "s")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower)
        os.close(follower)
        written = b""
        with contextlib.suppress(OSError):  # EIO: the other end has closed
            while data := os.read(leader, 65536):
                written += data
        os.close(leader)
        process.wait(PATIENCE_S)
        return written.decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """One run of the matrix for all tests here, with the daemon still there."""
    box = Box(tmp_path_factory.mktemp("hostile"))
    with box.daemon("json"):
        yield box


def test_a_worker_gets_each_string_as_it_is(box: Box) -> None:
    """As one argument each, without a shell, whatever is in them; the shim has none of the worker's environment."""
    ran = [json.loads(path.read_text()) for path in (box.folder / "ran").iterdir()]
    labels = {cell.parameters["name"]: cell.label for cell in expand({"name": NAMES}, {})}
    assert {tuple(each["argv"]) for each in ran} == {(name, labels[name], f"x{name}") for name in NAMES}
    assert not any(each["preloaded"] for each in ran)


def test_nothing_is_made_where_it_should_not_be(box: Box) -> None:
    """No canary; nothing beside the state folder; within it, names that boundd made up."""
    assert not list(box.folder.rglob(CANARY))
    assert {path.name for path in box.folder.iterdir()} <= EXPECTED
    for attempt in (box.folder / "state/attempts").iterdir():
        assert attempt.name == "zygote" or re.fullmatch(r"[0-9a-f]{12}\.\d+|[a-z.]+", attempt.name), attempt
    assert [path.name for path in (box.folder / "state/leases").iterdir()] == ["SIM-0"]


def test_the_json_log_has_a_line_a_note(box: Box) -> None:
    """ASCII, each line JSON, one of the end of each attempt, and none that a string made."""
    log = box.folder / "json.log"
    box.wait_for(lambda: b'"run-idle"' in log.read_bytes())
    content = log.read_bytes()
    assert not re.findall(rb"[^\x20-\x7e\n]", content)
    lines = [json.loads(line) for line in content.splitlines()]
    ended = [line["boundd.cell"] for line in lines if line["event.action"] == "attempt-ended"]
    # Long ones are cut in the log.
    labels = [legible(cell.label) for cell in expand({"name": NAMES}, {})]
    assert sorted(label[:100] for label in ended) == sorted(label[:100] for label in labels)
    assert not {"injected", "internal-error", "library-message"} & {line["event.action"] for line in lines}


def test_boundctl_on_a_terminal(box: Box) -> None:
    """Nothing that a terminal acts upon, from labels, messages, devices, logs and exports."""
    cell = box.client.get("/v1/cells")[NAMES.index("\x1b[31mred\x1b[0m")]
    with contextlib.suppress(RefusedError):
        box.client.post("/v1/cordon", {"device": "0", "reason": "\x1b[2Jreason\nX"})
    commands = (
        *(("status",), ("cells",), ("devices",), ("devices", "--footprints"), ("plan",), ("export", "--format", "csv")),
        *(("export",), ("show", cell["id"]), ("explain", cell["id"]), ("logs", cell["id"]), ("show", "\x1b[31mno")),
        *(("retry", "--failed", "--dry-run"), ("cells", "\x1b[31m=x"), ("wait", "x\x1b[2J"), ("cells", "--json")),
    )
    for command in commands:
        written = box.on_a_terminal(*command)
        assert written, command
        bad = [char for char in written if not char.isprintable() and char not in "\r\n\t"]
        assert not bad, (command, bad[:5])
    box.client.post("/v1/uncordon", {"device": "0"})


def test_check_config_on_a_terminal(box: Box, tmp_path: Path) -> None:
    """Also its errors, which quote what is wrong."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('"\\u001b[31mkey" = 1\n[daemon]\n"\\u001b]0;x\\u0007" = 2\nexport_format = "\\u001b[2J"\n')
    for path in (wrong, box.folder / "config.toml"):
        done = subprocess.run(
            [sys.executable, "-m", "boundd", "check-config", str(path)], capture_output=True, check=False
        )
        text = (done.stdout + done.stderr).decode()
        assert text
        assert all(char.isprintable() or char == "\n" for char in text), text


def test_events_can_not_be_injected(box: Box) -> None:
    """Each event is one event, whatever reason a person gave."""
    stream = box.client.stream("/v1/events")
    received = next(stream)
    reasons = [
        text for text in (*STRINGS, BREAKS) if len(text) <= 1000 and text.encode("utf-8", "ignore").decode() == text
    ]
    for reason in reasons:
        box.client.post("/v1/cordon", {"device": "0", "reason": reason})
    while received.count(b"event: device-cordoned") < len(reasons):
        received += next(stream)
    assert not re.findall(rb"[^\x20-\x7e\n]", received)
    blocks = [block for block in received.decode("ascii").split("\n\n") if block and not block.startswith(":")]
    for block in blocks:
        assert block.count("\n") == 1, block
        event, data = block.split("\n")
        assert event.startswith("event: "), block
        assert json.loads(data.removeprefix("data: "))["action"] == event.removeprefix("event: ")
    assert not any(block.startswith("event: injected") for block in blocks)
    box.client.post("/v1/uncordon", {"device": "0"})


def test_metrics_can_not_be_injected(box: Box) -> None:
    """A device's name is a label's value and no more."""
    text = b"".join(box.client.stream("/metrics")).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert "boundd_injected" not in families
    assert families["boundd_device_total_bytes"].samples[0].labels["name"] == DEVICE


def test_exports_have_a_row_a_cell(box: Box) -> None:
    """CSV and JSON read back what went in; cells that begin with '=' stay as they are (docs/export.md says why)."""
    answer = box.client.get("/v1/export", {"format": "csv", "envelope": 1})
    rows = list(csv.DictReader(io.StringIO(answer["text"], newline="")))
    labels = [cell["label"] for cell in box.client.get("/v1/cells")]
    assert [row["label"] for row in rows] == labels
    document = json.loads(box.client.get("/v1/export", {"envelope": 1})["text"])
    assert [cell["key"]["name"] for cell in document["cells"]] == NAMES


def test_requests_name_cells_and_nothing_else(box: Box) -> None:
    """Each string as a cell, a term, a device, an import: found where it is one, else a 4xx."""
    statuses: list[tuple[int, str]] = []
    for text in STRINGS:
        raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
        for ask in (
            lambda raw=raw: box.client.get(cell_path(raw.encode("utf-8", "surrogateescape").decode("latin-1"))),
            lambda text=text: box.client.post("/v1/retry", {"query": [text], "dry_run": True}),
            lambda text=text: box.client.post("/v1/uncordon", {"device": text}),
            lambda text=text: box.client.post("/v1/import", {"text": text, "model": text[:200]}),
        ):
            try:
                ask()
            except RefusedError as error:
                statuses.append((error.status, text))
    assert statuses
    assert not [each for each in statuses if not 400 <= each[0] < 500]


def test_the_console_log_on_a_terminal(tmp_path: Path) -> None:
    """The log for people holds nothing that a terminal acts upon either."""
    box = Box(tmp_path)
    with box.daemon("console"):
        pass
    content = (tmp_path / "console.log").read_bytes()
    assert not re.search(rb"[^\x20-\x7e\n]", content)
    assert all(re.match(rb"\d{4}-\d\d-\d\dT", line) for line in content.splitlines())


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """`boundd run --until-idle`: what it draws is its own, what it quotes is spelt out."""
    Box(tmp_path)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "boundd", "run", "--config", "config.toml", "--until-idle", "--log-format", "json"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(follower)
    written = b""
    with contextlib.suppress(OSError):
        while select.select([leader], [], [], PATIENCE_S)[0] and (data := os.read(leader, 65536)):
            written += data
    os.close(leader)
    assert process.wait(PATIENCE_S) == 3
    # The bar moves the cursor; nothing of it sets a title, clears the screen or colours text red.
    for escape in (b"\x1b]0;title", b"\x1b[2J", b"\x1b[31mred", b"\x9b31m"):
        assert escape not in written
    assert b"\\x1b[31mred" in written
