"""The OpenAPI document, made from the table of routes."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from boundd import __version__
from boundd.control import models
from boundd.control.idempotency import HEADER, KEPT_S, KEY_CHARACTERS
from boundd.control.routes import ROUTES, Doc

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
    """The document: every route, with its parameters, its request and its answers."""
    used: set[type[BaseModel]] = {models.ErrorReply, models.ExportEnvelope}
    for doc in ROUTES:
        used |= {model for model in (doc.reply, doc.body) if model is not None and not isinstance(model, str)}
    ordered = sorted(used, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for doc in ROUTES:
        paths.setdefault(doc.path, {})[doc.method.lower()] = _operation(doc)
    return {
        "openapi": "3.1.0",
        "info": {"title": "boundd", "version": __version__, "description": "The daemon's API on its unix socket."},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(doc: Doc) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
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
            "200": {"description": "Done.", "content": _content(doc.reply, many=doc.many)},
            **{
                str(status): {"description": ERROR_TEXTS[status], "content": _refusal(doc, status)}
                for status in sorted({*doc.errors, *COMMON, *(POSTED if doc.body is not None else ())})
            },
        },
    }
    if doc.body is not None:
        schema = {"type": "string", "minLength": 1, "maxLength": KEY_CHARACTERS, "pattern": "^[ -~]*$"}
        about = f"The same request with the same key is done once, and answered alike for {KEPT_S / 3600:g} hours."
        parameters.append({"name": HEADER, "in": "header", "description": about, "schema": schema})
        required = any(field.is_required() for field in doc.body.model_fields.values())
        operation["requestBody"] = {"required": required, "content": _content(doc.body)}
    return operation


def _refusal(doc: Doc, status: int) -> dict[str, Any]:
    if doc.reply is not models.HealthReply or status != 503:
        return _content(models.ErrorReply)
    either = [{"$ref": f"#/components/schemas/{name}"} for name in ("HealthReply", "ErrorReply")]
    return {"application/json": {"schema": {"anyOf": either}}}


def _content(reply: type[BaseModel] | str, *, many: bool = False) -> dict[str, Any]:
    if isinstance(reply, str):
        return {reply: {"schema": {} if reply == "application/json" else {"type": "string"}}}
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{reply.__name__}"}
    return {"application/json": {"schema": {"type": "array", "items": schema} if many else schema}}
