"""Server-sent events as JSON (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boundd.api.answers import EventInfo


def events_of(chunks: Iterable[bytes]) -> Iterator[EventInfo]:
    """The data of each event of a stream, however it is cut into chunks. Comments are left out."""
    rest = b""
    for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            data = [line.removeprefix(b"data:") for line in block.split(b"\n") if line.startswith(b"data:")]
            if data:
                yield json.loads(b"\n".join(data))
