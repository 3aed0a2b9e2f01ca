"""Log lines as journal entries: the protocol, and when it is used. The journal itself is in tests/system."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.telemetry import journal
from boundd.telemetry.logs import JsonLog, LogFormat

NOW = Now(0.0, 1_700_000_000.0)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=80)
"""Lone surrogates too, which no encoding takes."""


def parse(data: bytes) -> dict[str, bytes]:
    """An entry, read as https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ says."""
    fields: dict[str, bytes] = {}
    while data:
        name, separator, rest = data.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
            data = rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            key, value = name, rest[8 : 8 + size]
            assert rest[8 + size : 9 + size] == b"\n"
            data = rest[9 + size :]
        assert separator
        assert key.decode() not in fields
        fields[key.decode()] = value
    return fields


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    """A journal's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "socket"))
        made.settimeout(10)
        yield made


@given(
    st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(), st.booleans(), st.none())),
    st.binary().filter(lambda line: b"\n" not in line),
)
def test_every_entry_can_be_read(document: dict[str, object], line: bytes) -> None:
    """Whatever names and values there are: names that journald takes, each once, and the line as it was."""
    fields = parse(journal.datagram(document, line + b"\n"))
    assert fields["MESSAGE"] == line.rstrip(b"\n")
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) for name in fields)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("boundd.cell", "BOUNDD_CELL"),
        ("event.action", "BOUNDD_ACTION"),
        ("_SYSTEMD_UNIT", "SYSTEMD_UNIT"),
        ("...", "BOUNDD_FIELD"),
        ("boundd.9", "BOUNDD_9"),
    ],
)
def test_names(name: str, expected: str) -> None:
    """A leading underscore is what journald itself vouches for."""
    assert journal.field_name(name) == expected


def test_only_where_stderr_is_the_journals(receiver: socket.socket, tmp_path: Path) -> None:
    """JOURNAL_STREAM is inherited by programs whose stderr somebody has redirected since."""
    path = str(tmp_path / "socket")
    reader, writer = os.pipe()
    found = os.fstat(writer)
    ours = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    assert journal.connect({}, writer, path) is None
    assert journal.connect({"JOURNAL_STREAM": "1:2"}, writer, path) is None
    assert journal.connect(ours, reader + 1000, path) is None
    assert journal.connect(ours, writer, str(tmp_path / "nobody")) is None
    connected = journal.connect(ours, writer, path)
    assert connected is not None
    for descriptor in (reader, writer, connected):
        os.close(descriptor)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_note_becomes_an_entry(receiver: socket.socket, tmp_path: Path, log_format: LogFormat) -> None:
    """With its fields beside the message, which is the line of stderr or, for people, the message alone."""
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(str(tmp_path / "socket"))
    log = JsonLog(format=log_format, journal=sender.fileno())
    fields = {"boundd.wall_s": 41.8, "boundd.error_message": "two\nlines"}
    note = Note(Action.ATTEMPT_ENDED, "it\nended", "warning", "SDXL/DDIM", "ab.1", "GPU-1", fields)
    log.note(note, NOW)
    entry = parse(receiver.recv(65536))
    log.close()
    sender.close()
    assert entry["PRIORITY"] == b"4"
    assert entry["BOUNDD_ACTION"] == b"attempt-ended"
    assert (entry["BOUNDD_CELL"], entry["BOUNDD_ATTEMPT"], entry["BOUNDD_DEVICE"]) == (b"SDXL/DDIM", b"ab.1", b"GPU-1")
    assert (entry["BOUNDD_WALL_S"], entry["BOUNDD_ERROR_MESSAGE"]) == (b"41.8", b"two\nlines")
    if log_format == "json":
        line = json.loads(entry["MESSAGE"])
        assert (line["message"], line["boundd.cell"], line["log.level"]) == ("it\nended", "SDXL/DDIM", "warning")
    else:
        assert entry["MESSAGE"] == b"it\\nended"


def test_a_socket_made_anew_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when journald's own socket unit is restarted: what is logged meanwhile waits, and nothing is lost.

    Seen to fail: without `reconnect` every line after the first is dropped.
    """
    path = str(tmp_path / "socket")
    monkeypatch.setattr(journal, "SOCKET", path)
    first = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    first.bind(path)
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(path)
    log = JsonLog(journal=sender.detach())
    log.note(Note(Action.RUN_IDLE, "one"), NOW)
    assert b"one" in first.recv(65536)
    first.close()
    Path(path).unlink()
    log.note(Note(Action.RUN_IDLE, "two"), NOW)
    time.sleep(0.3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(path)
        second.settimeout(10)
        log.note(Note(Action.RUN_IDLE, "three"), NOW)
        assert [parse(second.recv(65536))["MESSAGE"].count(word) for word in (b"two", b"three")] == [1, 1]
    assert log.close()
    assert log.dropped_lines == 0
