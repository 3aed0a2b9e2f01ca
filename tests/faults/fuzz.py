"""Requests to fuzz the daemon's API with: by its own OpenAPI document, and by bytes that are hardly HTTP.

Everything is drawn from a `random.Random`, so that a seed gives the same requests again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.faults.hostile import BODIES, STRINGS

HEAD_END = b"\r\n\r\n"
NEVER_VALID = ("/v1/shutdown",)
"""Not asked for as it would be done: the daemon is to be there at the end."""
QUICK_S = 0.02


@dataclass(frozen=True, slots=True)
class Attack:
    """Bytes to send, and how. `operation` is (method, path of the document) where it is of a documented route."""

    kind: str
    content: bytes
    operation: tuple[str, str] | None = None
    half_close: bool = False
    """Whether the client says that it will send no more."""
    reads: bool = True
    """Whether it waits for an answer."""
    answers: int | None = 1
    """How many answers must come; None where it may be closed without one."""


def attacks(seed: int, document: Mapping[str, Any], known: Mapping[str, list[str]]) -> Iterator[Attack]:
    """Without end. `known` has strings that mean something to the daemon: labels, devices, names, selectors."""
    draw = random.Random(seed)
    operations = [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    while True:
        if draw.random() < 0.6:
            yield _documented(draw, document, draw.choice(operations), known)
        else:
            yield draw.choice(RAW)(draw)


def _documented(
    draw: random.Random, document: Mapping[str, Any], chosen: tuple[str, str, Any], known: Mapping[str, list[str]]
) -> Attack:
    method, path, operation = chosen
    target, pairs = path, []
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            target = target.replace(f"{{{parameter['name']}}}", _quoted(draw, _text(draw, known["cells"])))
        elif parameter["in"] == "query" and (draw.random() < 0.5 or parameter["name"] == "timeout"):
            pairs += [
                f"{parameter['name']}={_quoted(draw, _value(draw, parameter, known))}"
                for _ in range(draw.choice((1, 1, 1, 2, 5)))
            ]
    if draw.random() < 0.1:
        pairs.append(f"{_quoted(draw, draw.choice(STRINGS))}={_quoted(draw, draw.choice(STRINGS))}")
    if pairs:
        target += "?" + "&".join(pairs)
    headers = [("Host", "x"), ("Connection", draw.choice(("close", "close", "keep-alive")))]
    body = b""
    if "requestBody" in operation:
        body = _body(draw, document, path, operation, known)
        headers.append(
            ("Content-Type", draw.choice(("application/json", "text/plain", "multipart/form-data; boundary=x")))
        )
        if draw.random() < 0.5:
            headers.append(("Idempotency-Key", draw.choice(("k1", "k2", "x" * 300, f"k{draw.random()}"))))
    elif draw.random() < 0.05:
        body = draw.choice(BODIES)[:1_000]
    shown = (
        method if draw.random() < 0.95 else draw.choice(("PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "G@T"))
    )
    content = _request(draw, shown, target, headers, body)
    documented = (method, path) if shown == method else None
    return Attack("documented", content, documented, half_close=draw.random() < 0.1)


def _request(draw: random.Random, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    head = "\r\n".join(lines)
    if not body:
        return f"{head}\r\nContent-Length: 0".encode() + HEAD_END
    if draw.random() < 0.2:
        return f"{head}\r\nTransfer-Encoding: chunked".encode() + HEAD_END + _chunked(draw, body)
    return f"{head}\r\nContent-Length: {len(body)}".encode() + HEAD_END + body


def _chunked(draw: random.Random, body: bytes) -> bytes:
    out, size = b"", draw.choice((1, 7, 1000, 10_000)) if len(body) < 5_000 else 10_000
    for start in range(0, len(body), size):
        chunk = body[start : start + size]
        extension = draw.choice((b"", b"", b";a=b", b";" + b"x" * 100))
        out += b"%x" % len(chunk) + extension + b"\r\n" + chunk + b"\r\n"
    return out + draw.choice((b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n"))


def _quoted(draw: random.Random, text: str) -> str:
    raw = text.encode("utf-8", "surrogatepass")
    return quote(raw, safe=draw.choice(("", "/")))


def _text(draw: random.Random, known: list[str]) -> str:
    return draw.choice(known) if known and draw.random() < 0.5 else draw.choice(STRINGS)


def _value(draw: random.Random, parameter: Mapping[str, Any], known: Mapping[str, list[str]]) -> str:
    if parameter["name"] == "timeout":
        return draw.choice(("0", str(QUICK_S), "-1", "301", "nan", "inf", "x", "1e999"))
    if draw.random() < 0.3:
        return draw.choice(STRINGS)
    schema = parameter["schema"]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return draw.choice(("0", "1", "2", "-1", "-5", "9" * 19, "9" * 30, "1.5", "\u0661", "0x10", "1_000"))
    if kind == "boolean":
        return draw.choice(("0", "1", "true", "no", "maybe"))
    if "enum" in schema:
        return draw.choice(schema["enum"])
    return draw.choice(known.get(parameter["name"], known["q"]))


def _body(
    draw: random.Random, document: Mapping[str, Any], path: str, operation: Any, known: Mapping[str, list[str]]
) -> bytes:
    if draw.random() < 0.3:
        body = draw.choice(BODIES)
        return b"{" if path in NEVER_VALID and not body.strip() else body
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    value = _instance(draw, document, schema, known)
    if path in NEVER_VALID and not isinstance(value, dict):
        value = {}
    if isinstance(value, dict) and (path in NEVER_VALID or draw.random() < 0.2):
        value[draw.choice(STRINGS) or "x"] = draw.choice(STRINGS)
    # Escaped, lone surrogates can be sent at all.
    return json.dumps(value).encode()


def _instance(draw: random.Random, document: Mapping[str, Any], schema: Any, known: Mapping[str, list[str]]) -> Any:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if draw.random() < 0.05:
        return draw.choice((None, 1, -1, 1.5, "x", [], {}, True, 2**63))
    if "anyOf" in schema:
        return _instance(draw, document, draw.choice(schema["anyOf"]), known)
    if "enum" in schema:
        return draw.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            needed = schema.get("required", ())
            return {
                name: _instance(draw, document, field, known)
                for name, field in schema.get("properties", {}).items()
                if name in needed or draw.random() < 0.7
            } or {}
        case "array":
            return [_instance(draw, document, schema["items"], known) for _ in range(draw.choice((0, 1, 1, 2, 40)))]
        case "integer":
            return draw.choice((1, 2, 4, 0, -1, 10**6, 10**7, 2**62))
        case "number":
            return draw.choice((0, 0.5, 1e300))
        case "boolean":
            return draw.random() < 0.5
        case "string":
            return _text(draw, known["body"])
    return None


GET = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/retry HTTP/1.1\r\nHost: x\r\n"


def _truncated(draw: random.Random) -> Attack:
    whole = draw.choice((GET, POST + b"Content-Length: 20\r\n\r\n" + b'{"dry_run": true}   '))
    return Attack("truncated", whole[: draw.randrange(1, len(whole))], half_close=draw.random() < 0.5, reads=False)


def _told(draw: random.Random) -> Attack:
    whole = POST + b"Content-Length: 20\r\n\r\n" + b'{"dry_run": true}   '
    return Attack("half closed", whole[: draw.randrange(1, len(whole))], half_close=True)


def _binary(draw: random.Random) -> Attack:
    return Attack("binary", draw.randbytes(draw.choice((1, 10, 1_000, 20_000))), half_close=True, answers=None)


def _mutated(draw: random.Random) -> Attack:
    whole = bytearray(draw.choice((GET, POST + b'Content-Length: 17\r\n\r\n{"dry_run": true}')))
    for _ in range(draw.choice((1, 1, 3, 10))):
        whole[draw.randrange(len(whole))] = draw.randrange(256)
    return Attack("mutated", bytes(whole), half_close=True, answers=None)


def _chunks(draw: random.Random) -> Attack:
    bad = draw.choice(
        (
            b"zz\r\nabc\r\n0\r\n\r\n",
            b"ffffffffffffffffffff\r\n",
            b"-1\r\n\r\n",
            b"5\r\nab",
            b"3\r\nabcdef\r\n0\r\n\r\n",
            b"0" * 30_000 + b"\r\n\r\n",
            b"1;" + b"x" * 70_000,
            b"1\r\n{\r\n" * 3_000,
            b"1\r\n{\r\n" + b"0\r\n" + b"a: b\r\n" * 3_000 + b"\r\n",
        )
    )
    return Attack("chunks", POST + b"Transfer-Encoding: chunked\r\n\r\n" + bad, half_close=True)


def _heads(draw: random.Random) -> Attack:
    head = draw.choice(
        (
            b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000,
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 2_000 + b"\r\n",
            b"GET /v1/cells?" + b"&" * 30_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/cells?q=" + b"%2a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
            b"GET http://else.where/v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET //etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/cells/..%2f..%2fetc/logs HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n\r\n",
            b"GET /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
            b"GET /v1/status HTTP/1.1\nHost: x\n\n",
            b"\r\n\r\n\r\nGET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET /v1/status HTTP/1.0\r\n\r\n",
        )
    )
    return Attack("heads", head, half_close=True)


def _expecting(draw: random.Random) -> Attack:
    body = b'{"dry_run": true}'
    head = POST + b"Expect: %s\r\nContent-Length: %d\r\n\r\n" % (draw.choice((b"100-continue", b"200-ok")), len(body))
    return Attack("expecting", head + body, half_close=True)


def _pipelined(draw: random.Random) -> Attack:
    count = draw.choice((2, 5, 20))
    one = draw.choice(
        (GET, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", POST + b'Content-Length: 17\r\n\r\n{"dry_run": true}')
    )
    return Attack("pipelined", one * count, half_close=True, answers=count)


def _pipelined_rubbish(draw: random.Random) -> Attack:
    return Attack("pipelined rubbish", GET + draw.randbytes(50) + b"\r\n\r\n" + GET, half_close=True, answers=None)


def _deserted(draw: random.Random) -> Attack:
    target = draw.choice((b"/v1/status", b"/v1/events", b"/v1/wait?timeout=300", b"/openapi.json", b"/v1/export"))
    return Attack("deserted", b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n", reads=False)


RAW = (
    *(_truncated, _told, _binary, _mutated, _chunks, _heads, _expecting),
    *(_pipelined, _pipelined_rubbish, _deserted),
)
