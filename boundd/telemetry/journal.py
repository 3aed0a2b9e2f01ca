"""Log lines as entries of systemd's journal, so that `journalctl BOUNDD_CELL=…` finds them.

The format is journald's own: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. MESSAGE holds the line as it would be on
stderr; what can be asked for stands beside it in fields of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any

from boundd.text import legible, shortened

SOCKET = "/run/systemd/journal/socket"
PRIORITIES: Mapping[str, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3)."""
IDENTIFIER = "boundd"
NAME_LIMIT = 64
FIELD_LIMIT_BYTES = 4096
"""`journalctl -o json` shows null for a longer field, and an array of numbers for one that holds ESC or CR."""
_OF_THE_LINE = (errno.EMSGSIZE, errno.ENOBUFS)
"""These say nothing of the connection."""
RENAMED = {"event.action": "BOUNDD_ACTION"}
NOT_FIELDS = ("@timestamp", "log.level", "message", "ecs.version")
"""The journal has a time and a priority of its own; the others are in the line."""


def connect(environ: Mapping[str, str], stderr: int, path: str = SOCKET) -> int | None:
    """A descriptor to write datagrams to, where `stderr` is the journal's; None where it is anything else."""
    try:
        found = os.fstat(stderr)
    except OSError:
        return None
    # The variable is inherited even where stderr was redirected since: systemd.exec(5).
    if environ.get("JOURNAL_STREAM") != f"{found.st_dev}:{found.st_ino}":
        return None
    return _connected(path)


def reconnect(descriptor: int, error: OSError | None, path: str = "") -> int | None:  # noqa: ARG001 - a Sink's Renew
    """Another connection where a line could not be sent: the journal's socket may have been made anew."""
    return None if error is None or error.errno in _OF_THE_LINE else _connected(path or SOCKET)


def _connected(path: str) -> int | None:
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with contextlib.suppress(OSError):
        journal.connect(path)
        return journal.detach()
    journal.close()
    return None


def datagram(document: Mapping[str, Any], line: bytes) -> bytes:
    """An entry: the line without its end as MESSAGE, and the document's fields under names that the journal takes."""
    fields = {
        "MESSAGE": line.rstrip(b"\n"),
        "PRIORITY": str(PRIORITIES.get(document.get("log.level", ""), PRIORITIES["info"])).encode(),
        "SYSLOG_IDENTIFIER": IDENTIFIER.encode(),
    }
    for name, value in document.items():
        if name not in NOT_FIELDS and value is not None:
            fields.setdefault(field_name(name), _text(value).encode(errors="replace"))
    return b"".join(_assignment(name, value) for name, value in fields.items())


def field_name(name: str) -> str:
    """A field's name as journald takes it: capitals, digits and underscores, none of them first."""
    name = RENAMED.get(name, name)
    return re.sub(r"[^A-Z0-9_]", "_", name.upper())[:NAME_LIMIT].lstrip("_0123456789") or "BOUNDD_FIELD"


def _text(value: Any) -> str:
    text = legible(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text.encode(errors="replace")) <= FIELD_LIMIT_BYTES else shortened(text, FIELD_LIMIT_BYTES // 5)


def _assignment(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
