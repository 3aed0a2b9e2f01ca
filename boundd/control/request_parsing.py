"""Requests in: bodies are capped, timed, strict JSON, and of their type; queries name what there is.

Rules: whatever a client sends is a 4xx at worst. The parser refuses what would only fail later: deep nesting, integers
past 64 bits, NaN, lone surrogates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

import anyio
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request

from boundd.api.constants import BODY_LIMIT_BYTES, QUERY_TERM_CHARACTERS, QUERY_TERMS
from boundd.api.requests import Request as Body
from boundd.control.errors import ApiError, bad_request, not_found
from boundd.core.model.attempts import CellRecord
from boundd.core.model.device_names import devices_named, without_instances
from boundd.core.model.devices import Device
from boundd.core.model.queries import Query, find_cell, names_of, parse_query
from boundd.core.model.state import State
from boundd.protocol import strict_json
from boundd.protocol.strict_json import Json

BODY_TIMEOUT_S = 30.0
SHOWN_AMBIGUOUS = 8

BodyType = TypeVar("BodyType", bound=Body)


async def read_body(request: Request, shape: type[BodyType], limit_bytes: int = BODY_LIMIT_BYTES) -> BodyType:
    """The body as its type; no body is an empty object.

    Raises:
        ApiError: 413, 408 or 400.
    """
    return body_of(await _read(request, limit_bytes), shape)


def body_of(content: bytes, shape: type[BodyType]) -> BodyType:
    """A body's bytes as its type.

    Raises:
        ApiError: 400.
    """
    try:
        text = content.decode()
        value = strict_json.loads(text) if text.strip() else {}
        if isinstance(value, dict):
            # To JSON Schema, and so to our clients, 2.0 is an integer.
            value = {name: _integral(each) for name, each in value.items()}
        body: BodyType = _adapter(shape).validate_json(json.dumps(value))  # type: ignore[arg-type]  # classes are hashable
        return body
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8 (byte {error.start})") from None
    except strict_json.StrictJsonError as error:
        raise bad_request(f"the body: {error}") from None
    except ValidationError as error:
        raise bad_request(_words(error)) from None


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _integral(value: Json) -> Json:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _words(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'the body'}: {detail['msg']}"
        for detail in error.errors(include_url=False, include_input=False, include_context=False)
    )


async def _read(request: Request, limit_bytes: int) -> bytes:
    too_large = ApiError(413, "too_large", f"the body has over {limit_bytes:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    content = bytearray()
    try:
        with anyio.fail_after(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limit_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "timeout", f"the body did not come within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise bad_request("the client went away before the body's end") from None
    return bytes(content)


def query_of(state: State, terms: Iterable[str]) -> Query:
    """The query that the terms make, with names that the cells have.

    Raises:
        QueryError: it can't match anything.
        ApiError: 400, it is too long, or a term is empty.
    """
    wanted = list(terms)
    if len(wanted) > QUERY_TERMS or not all(1 <= len(term) <= QUERY_TERM_CHARACTERS for term in wanted):
        raise bad_request(
            f"a query has at most {QUERY_TERMS} terms of 1 to {QUERY_TERM_CHARACTERS:,} characters: NAME=VALUE, or a "
            "glob over labels; leave it out for every cell"
        )
    return parse_query(wanted, names_of(state.matrix()) if wanted else None)


def cell_of(state: State, text: str) -> CellRecord:
    """The one cell that a key, a label or the start of a digest names.

    Raises:
        ApiError: 404 for none, 409 for several.
    """
    found = find_cell(state.matrix(), text) or find_cell(state.cells.values(), text)
    if not found:
        raise not_found(f"no cell is called {text!r}; `boundctl cells` lists them")
    if len(found) > 1:
        names = ", ".join(f"{record.cell.digest} ({record.cell.label})" for record in found[:SHOWN_AMBIGUOUS])
        raise ApiError(409, "ambiguous", f"{text!r} names {len(found)} cells: {names}")
    return found[0]


def device_of(state: State, text: str) -> Device:
    """The one device that a UUID, the start of one, an index or a name names; a whole rather than its MIG instances.

    Raises:
        ApiError: 404 for none, 409 for several.
    """
    devices = state.devices_by_index()
    meant = {reading.uuid for reading in without_instances(devices_named([device.reading for device in devices], text))}
    found = [device for device in devices if device.uuid in meant]
    found = found or [device for device in devices if device.uuid.startswith(text)]
    known = ", ".join(f"{device.reading.index} = {device.uuid}" for device in devices) or "none"
    if not found:
        raise not_found(f"no device is called {text!r}; there are: {known}")
    if len(found) > 1:
        raise ApiError(409, "ambiguous", f"{text!r} names {len(found)} devices; there are: {known}")
    return found[0]


def number_of(request: Request, name: str, default: float, least: float, most: float) -> float:
    """A number in the query string.

    Raises:
        ApiError: 400 where it isn't one, or is out of bounds.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        raise bad_request(f"{name}: {text!r} is not a number") from None
    if not least <= value <= most:
        raise bad_request(f"{name}: {text} is not within {least:g} and {most:g}")
    return value


def integer_of(request: Request, name: str, least: int, most: int) -> int | None:
    """An integer in the query string; None where there is none.

    Raises:
        ApiError: 400 where it isn't one, or is out of bounds.
    """
    text = request.query_params.get(name)
    if text is None:
        return None
    if len(text) > 20 or not text.lstrip("-").isdecimal() or not text.isascii() or text.count("-") > 1:
        raise bad_request(f"{name}: {text[:40]!r} is not an integer")
    if not least <= int(text) <= most:
        raise bad_request(f"{name}: {text} is not within {least} and {most}")
    return int(text)


def flag_of(request: Request, name: str) -> bool:
    """A flag in the query string: 1, true or yes; 0, false, no or absent.

    Raises:
        ApiError: 400 for anything else.
    """
    text = request.query_params.get(name, "0").casefold()
    if text not in ("1", "true", "yes", "0", "false", "no"):
        raise bad_request(f"{name}: say 1 or 0")
    return text in ("1", "true", "yes")
