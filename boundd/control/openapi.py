"""The OpenAPI document, made from the table of operations."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from boundd import __version__
from boundd.api import answers
from boundd.api.constants import KEY_CHARACTERS, KEY_HEADER
from boundd.api.operations import OPERATIONS, Operation
from boundd.control.idempotency import KEPT_S

ERROR_TEXTS = {
    400: "The request is wrong; the message says how.",
    403: "Whoever asks may not; the message says who may.",
    404: "There is no such thing.",
    408: "The request did not come to its end in time.",
    409: "It fits several things, which the message names; or it was done before, and its answer is not kept.",
    413: "The body is too large.",
    414: "Path and query are too long.",
    422: "The idempotency key came before, with another request.",
    429: "Too many answers that go on are open.",
    431: "The head is too large, or has too many headers.",
    500: "The store is damaged; the message says what to do.",
    503: "There is no room for another connection; or nothing can be stored at the moment, so it did not happen.",
}
COMMON = (400, 403, 408, 414, 431, 503)
"""What any request may be answered with."""
POSTED = (409, 413, 422)
"""What any request with a body may be."""


@cache
def openapi_json() -> bytes:
    """The document as JSON; making it takes long enough to be felt, and it is always the same."""
    return json.dumps(openapi()).encode()


def openapi() -> dict[str, Any]:
    """The document: every operation, with its parameters, its request and its answers."""
    used: set[Any] = {answers.ErrorReply, answers.ExportEnvelope, answers.EventInfo}
    for each in OPERATIONS:
        used |= {each.reply, each.body} - {None}
    ordered = sorted(used, key=lambda shape: shape.__name__)
    _, schemas = TypeAdapter.json_schemas(
        [(shape, "validation", TypeAdapter(shape)) for shape in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {"title": "boundd", "version": __version__, "description": "The daemon's API on its unix socket."},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(doc: Operation) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", doc.path)
    ]
    parameters += [
        {"name": each.name, "in": "query", "description": each.about, "schema": each.schema} for each in doc.parameters
    ]
    operation: dict[str, Any] = {
        "operationId": doc.name.rstrip("_"),
        "summary": doc.about,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", "content": _content(doc)},
            **{
                str(status): {"description": ERROR_TEXTS[status], "content": _json(_refusal(doc, status))}
                for status in sorted({*doc.errors, *COMMON, *(POSTED if doc.body is not None else ())})
            },
        },
    }
    if doc.body is not None:
        schema = {"type": "string", "minLength": 1, "maxLength": KEY_CHARACTERS, "pattern": "^[ -~]*$"}
        about = f"The same request with the same key is done once, and answered alike for {KEPT_S / 3600:g} hours."
        parameters.append({"name": KEY_HEADER, "in": "header", "description": about, "schema": schema})
        # No body at all is an empty object.
        required = bool(TypeAdapter(doc.body).json_schema().get("required"))
        operation["requestBody"] = {"required": required, "content": _json(_reference(doc.body))}
    return operation


def _refusal(doc: Operation, status: int) -> dict[str, Any]:
    if doc.reply is not answers.HealthReply or status != 503:
        return _reference(answers.ErrorReply)
    return {"anyOf": [_reference(answers.HealthReply), _reference(answers.ErrorReply)]}


def _content(doc: Operation) -> dict[str, Any]:
    """What a 200 holds, by media type."""
    if doc.reply is None:
        return {kind: {"schema": {} if kind == "application/json" else {"type": "string"}} for kind in doc.media_types}
    schema = _reference(doc.reply)
    return _json({"type": "array", "items": schema} if doc.many else schema)


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(shape: type) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}
