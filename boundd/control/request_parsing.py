"""Requests in: bodies are capped, timed, strict JSON, and of their model; queries name what there is.

Rules: whatever a client sends is a 4xx at worst. The parser refuses what would only fail later: deep nesting, integers
past 64 bits, NaN, lone surrogates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import anyio
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from boundd.control.errors import ApiError, bad_request, not_found
from boundd.control.models import Request as RequestModel
from boundd.core.model.attempts import CellRecord
from boundd.core.model.devices import Device
from boundd.core.model.queries import Query, find_cell, names_of, parse_query
from boundd.core.model.state import State
from boundd.protocol import strict_json

BODY_LIMIT_BYTES = 64 * 1024
IMPORT_LIMIT_BYTES = 8 * 1024**2
BODY_TIMEOUT_S = 30.0
SHOWN_AMBIGUOUS = 8
TERMS = 256
TERM_CHARACTERS = 4096
"""Of a query, as in a body (`models.Terms`)."""

Model = TypeVar("Model", bound=RequestModel)


async def read_body(request: Request, model: type[Model], limit_bytes: int = BODY_LIMIT_BYTES) -> Model:
    """The body as its model; no body is an empty object.

    Raises:
        ApiError: 413, 408 or 400.
    """
    return model_of(await _read(request, limit_bytes), model)


def model_of(content: bytes, model: type[Model]) -> Model:
    """A body's bytes as its model.

    Raises:
        ApiError: 400.
    """
    try:
        text = content.decode()
        value = strict_json.loads(text) if text.strip() else {}
        return model.model_validate(value)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8 (byte {error.start})") from None
    except strict_json.StrictJsonError as error:
        raise bad_request(f"the body is {error}" if str(error).startswith("not") else f"the body: {error}") from None
    except ValidationError as error:
        raise bad_request(_words(error)) from None


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
        ApiError: 400, it is too long.
    """
    wanted = list(terms)
    if len(wanted) > TERMS or any(len(term) > TERM_CHARACTERS for term in wanted):
        raise bad_request(f"q: at most {TERMS} terms of {TERM_CHARACTERS:,} characters each")
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
    """The one device that a UUID, the start of one, an index or a name names.

    Raises:
        ApiError: 404 for none, 409 for several.
    """
    devices = state.devices_by_index()
    ways = (
        [device for device in devices if device.uuid == text],
        [device for device in devices if str(device.reading.index) == text],
        [device for device in devices if device.reading.name == text],
        [device for device in devices if device.uuid.startswith(text)],
    )
    found = next((way for way in ways if way), [])
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
