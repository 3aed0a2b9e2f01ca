"""The log: its fields, hostile text, and readers that don't read."""

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.telemetry import journal
from boundd.telemetry.logs import ECS_VERSION, LINE_LIMIT_BYTES, JsonLog, json_line
from boundd.text import legible

ROOT = Path(__file__).parents[2]
NOW = Now(boot_s=5.0, unix_s=1_700_000_000.25)
HOSTILE = 'a\nb\r\x1b[31mred\x00"\\\ud800\u2028\x85\x9b end'


def note(message: str = "hello", level: str = "info", **fields: Any) -> Note:
    """A note of an attempt that started."""
    return Note(Action.ATTEMPT_STARTED, message, level, "SD1.5/DDIM/20/tome", "abc.1", "GPU-1", fields)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe, as (reader, writer); both ends are closed at the end.

    First the reader, which ends a thread that a test left stuck in a write: if it lived on, it would write into
    whatever is the next to get the writer's number.
    """
    before = set(threading.enumerate())
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    os.close(writer)


def test_fields_are_those_of_the_interface() -> None:
    """A line holds exactly the documented fields, and the numbers under `boundd.`."""
    assert json.loads(json_line(note(wall_s=1.5), NOW)) == {
        "@timestamp": "2023-11-14T22:13:20.250Z",
        "log.level": "info",
        "message": "hello",
        "ecs.version": ECS_VERSION,
        "event.action": "attempt-started",
        "boundd.cell": "SD1.5/DDIM/20/tome",
        "boundd.attempt": "abc.1",
        "boundd.device": "GPU-1",
        "boundd.wall_s": 1.5,
    }


def test_a_field_that_has_the_prefix_keeps_one() -> None:
    """A note may name its fields in full; and no field can replace the cell's own."""
    document = json.loads(json_line(note(**{"boundd.wall_s": 2.0, "cell": "other"}), NOW))
    assert document["boundd.wall_s"] == 2.0
    assert document["boundd.cell"] == "SD1.5/DDIM/20/tome"


def test_hostile_text_is_one_ascii_line() -> None:
    """Line breaks, terminal codes, NUL and lone surrogates stay inside their string."""
    line = json_line(note(HOSTILE, text=HOSTILE, **{HOSTILE: 1}), NOW)
    assert line.isascii()
    assert re.search(rb"[\x00-\x1f\x7f]", line[:-1]) is None
    assert json.loads(line)["message"] == legible(HOSTILE)


@pytest.mark.parametrize("character", ["x", "\x00", "\U0001f600", "\ud800"])
def test_huge_messages_are_cut(character: str) -> None:
    """However a message is escaped, its line is under 16 KiB, and says how much is missing."""
    line = json_line(note(character * 1_000_000, text=character * 1_000_000), NOW)
    assert len(line) < LINE_LIMIT_BYTES
    assert "more characters" in json.loads(line)["message"]


def test_too_many_fields_are_left_out() -> None:
    """A note with more fields than a line holds keeps what happened to whom, and counts the rest."""
    document = json.loads(json_line(note(**{f"field_{n}": "x" * 300 for n in range(1000)}), NOW))
    assert document["boundd.fields_left_out"] == 1000
    assert document["boundd.cell"] == "SD1.5/DDIM/20/tome"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers()),
)


@given(st.text(), st.dictionaries(st.text(), _VALUES), st.floats())
def test_any_note_is_a_line(message: str, fields: dict[str, Any], unix_s: float) -> None:
    """Whatever is in a note and whatever the clock says, the line is one short ASCII object."""
    found = Note(Action.INTERNAL_ERROR, message, "strange", message, message, message, fields)
    line = json_line(found, Now(0.0, unix_s))
    assert line.isascii()
    assert len(line) < LINE_LIMIT_BYTES
    assert line.count(b"\n") == 1
    assert isinstance(json.loads(line), dict)


def test_file_gets_every_line_too(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """The file gets JSON whatever stderr gets, and what was in it before stays."""
    file = tmp_path / "exploration.log"
    file.write_text("before\n")
    log = JsonLog(format="console", file=file, stream=pipe[1])
    log.note(note(HOSTILE), NOW)
    assert log.close()
    first, second = file.read_text().splitlines()
    assert first == "before"
    assert json.loads(second)["event.action"] == "attempt-started"
    shown = os.read(pipe[0], 65536)
    assert shown.count(b"\n") == 1
    assert b"\x1b" not in shown
    assert b"cell=SD1.5/DDIM/20/tome" in shown


@pytest.mark.parametrize("how", ["renamed", "removed", "copied and cut"])
def test_a_rotated_file_is_written_anew(tmp_path: Path, how: str) -> None:
    """Whatever logrotate does with it, the next line is in a file of the configured name; at once where it is asked to.

    Seen to fail: without a `renew` all lines go to the renamed file.
    """
    file, old = tmp_path / "exploration.log", tmp_path / "exploration.log.1"
    log = JsonLog(file=file, only_file=True)
    log.note(note("one"), NOW)
    wait_until(lambda: "one" in file.read_text())
    if how == "copied and cut":
        old.write_bytes(file.read_bytes())
        os.truncate(file, 0)
    else:
        file.rename(old) if how == "renamed" else file.unlink()
    log.look()
    log.note(note("two"), NOW)
    wait_until(lambda: file.exists() and "two" in file.read_text())
    assert how == "removed" or "two" not in old.read_text()
    (tmp_path / "moved").mkdir()
    file.rename(tmp_path / "moved" / file.name)
    log.note(note("three"), NOW)
    time.sleep(1.1)
    log.note(note("four"), NOW)
    wait_until(lambda: file.exists() and "four" in file.read_text())
    assert log.close()
    assert log.dropped_lines == 0


def wait_until(condition: Callable[[], bool]) -> None:
    """For ten seconds at most."""
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_no_reader_makes_something_else_of_a_control() -> None:
    """NUL ends a text for rsyslog, ESC and CR make an array of it in journald's JSON: they are spelt out, as text."""
    text = "a\x00b \x1b[31mred\x1b[0m 10%\r20%\x07\x9b\x85 end\ttab\nline"
    for value in (
        json.loads(json_line(note(text), NOW))["message"],
        json.loads(json_line(note(a=text), NOW))["boundd.a"],
    ):
        assert value == "a\\x00b \\x1b[31mred\\x1b[0m 10%\\r20%\\x07\\x9b\\x85 end\ttab\nline"
    entry = journal.datagram({"boundd.a": text, "boundd.long": "\x1b" * 5000}, b"line\n")
    assert not set(entry) & {0x1B, 0x0D, 0x07}
    assert max(map(len, entry.split(b"\n"))) < journal.FIELD_LIMIT_BYTES


def test_level_filters(pipe: tuple[int, int]) -> None:
    """What is less urgent than the level is not written; a level that isn't one is refused."""
    log = JsonLog(level="warning", stream=pipe[1])
    log.note(note("quiet"), NOW)
    log.note(note("loud", "error"), NOW)
    log.set_level("debug")
    log.note(note("whisper", "debug"), NOW)
    log.close()
    assert [json.loads(line)["message"] for line in os.read(pipe[0], 65536).splitlines()] == ["loud", "whisper"]
    with pytest.raises(ValueError, match="debug, info"):
        JsonLog(level="loud", stream=pipe[1])


@pytest.mark.parametrize("blocking", [True, False])
def test_a_stuck_reader_never_blocks(pipe: tuple[int, int], blocking: bool) -> None:
    """With a full pipe nobody reads, notes return at once; what was dropped is counted and said when it can be."""
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, blocking)
    log = JsonLog(stream=writer, capacity=100)
    started_s = time.monotonic()
    for number in range(1_000):
        log.note(note(f"line {number} " + "x" * 500), NOW)
    assert time.monotonic() - started_s < 2.0
    dropped = log.dropped_lines
    assert dropped > 800
    started_s = time.monotonic()
    assert not log.close(0.2)
    assert time.monotonic() - started_s < 1.5
    if not blocking:
        return  # close has told its thread to give up
    documents = [json.loads(line) for line in _drain(reader)]
    reports = [item for item in documents if item["event.action"] == "logs-dropped"]
    assert sum(item["boundd.dropped_lines"] for item in reports) == dropped
    assert len(documents) - len(reports) == 1_000 - dropped


def _drain(reader: int) -> list[bytes]:
    os.set_blocking(reader, False)
    content, quiet_since_s = b"", time.monotonic()
    while time.monotonic() - quiet_since_s < 0.5:
        try:
            content += os.read(reader, 65536)
            quiet_since_s = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    return content.splitlines()


def test_a_stuck_stderr_does_not_keep_lines_from_the_file(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """Each sink has its own queue and thread."""
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    log = JsonLog(stream=pipe[1], file=tmp_path / "log")
    for _ in range(200):
        log.note(note("x" * 200), NOW)
    log.close(0.5)
    assert len((tmp_path / "log").read_text().splitlines()) == 200
    _drain(pipe[0])


def test_a_reader_that_is_gone_is_no_error() -> None:
    """Lines for a closed pipe are counted as dropped."""
    reader, writer = os.pipe()
    os.close(reader)
    log = JsonLog(stream=writer)
    log.note(note(), NOW)
    assert not log.close()
    assert log.dropped_lines == 1
    log.note(note(), NOW)
    os.close(writer)


def test_a_full_disk_is_said_when_there_is_room_again(tmp_path: Path) -> None:
    """A file that takes nothing (/dev/full) costs lines, counted, and nothing else."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    log = JsonLog(stream=descriptor, file=tmp_path / "log")
    log.note(note(), NOW)
    assert not log.close()
    assert log.dropped_lines == 1
    assert (tmp_path / "log").read_text()
    os.close(descriptor)


def test_docs_list_every_action_and_field() -> None:
    """docs/logs.md explains the closed list of actions, no more and no less, and every field."""
    text = (ROOT / "docs/logs.md").read_text()
    documented = re.findall(r"^\| `([a-z-]+)` \|", text.split("## Actions")[1], re.MULTILINE)
    assert documented == [action.value for action in Action]
    for name in json.loads(json_line(note(), NOW)):
        assert f"`{name}`" in text
