"""The table of operations: the one list that the daemon serves and /openapi.json documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from boundd.api import answers, requests
from boundd.api.constants import (
    BODY_LIMIT_BYTES,
    EXPORT_FORMATS,
    HISTORY_DEFAULT,
    HISTORY_LIMIT,
    IMPORT_LIMIT_BYTES,
    LARGEST,
    QUERY_TERM_CHARACTERS,
    QUERY_TERMS,
    WAIT_DEFAULT_S,
    WAIT_LIMIT_S,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the query string. `schema` is its JSON schema."""

    name: str
    about: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of the API: where it is, what it takes and what it answers."""

    method: str
    path: str
    name: str
    about: str
    reply: Any = None
    """The type of the JSON that it answers; None where the answer is text or bytes, or JSON of no fixed shape."""
    body: type[requests.Request] | None = None
    parameters: tuple[Parameter, ...] = ()
    media_types: tuple[str, ...] = ("application/json",)
    many: bool = False
    """True where the answer is a list of `reply`."""
    errors: tuple[int, ...] = ()
    body_limit_bytes: int = BODY_LIMIT_BYTES


QUERY = Parameter(
    "q",
    "A term of a query, repeatable; a cell must match all. `state=failed`, `model=SDXL`, or a glob over labels.",
    {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": QUERY_TERM_CHARACTERS},
        "maxItems": QUERY_TERMS,
    },
)
NATURAL = {"type": "integer", "minimum": 0, "maximum": LARGEST}
ANY_INTEGER = {"type": "integer", "minimum": -LARGEST, "maximum": LARGEST}
POSITIVE = {"type": "integer", "minimum": 1, "maximum": LARGEST}
FLAG = {"type": "boolean", "default": False}
WAIT_S = {"type": "number", "minimum": 0, "maximum": WAIT_LIMIT_S, "default": WAIT_DEFAULT_S}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/v1/status",
        "status",
        "Daemon, devices, counts, running attempts and an estimate of the end.",
        answers.StatusReply,
        parameters=(QUERY,),
        errors=(400,),
    ),
    Operation(
        "GET",
        "/v1/cells",
        "cells",
        "The cells of the query, in the matrix' order.",
        answers.CellInfo,
        many=True,
        parameters=(
            QUERY,
            Parameter("offset", "Leave out so many.", NATURAL),
            Parameter("limit", "At most so many.", NATURAL),
        ),
        errors=(400,),
    ),
    Operation(
        "GET",
        "/v1/cells/{id}/explain",
        "explain",
        "Why the cell is where it is, with numbers for each device.",
        answers.ExplainReply,
        errors=(404, 409),
    ),
    Operation(
        "GET",
        "/v1/cells/{id}/logs",
        "logs",
        "What an attempt's worker printed, as bytes.",
        media_types=("text/plain",),
        parameters=(
            Parameter("attempt", "The attempt's number; the latest where left out.", POSITIVE),
            Parameter("offset", "The first byte; a negative one counts from the end.", ANY_INTEGER),
            Parameter("limit", "At most so many bytes.", NATURAL),
            Parameter("follow", "Go on as the log grows, until the attempt has ended.", FLAG),
        ),
        errors=(400, 404, 409, 429),
    ),
    Operation(
        "GET",
        "/v1/cells/{id}",
        "show",
        "A cell with its latest attempts, their verdicts and the points they measured. The id"
        " is a digest's first characters, a label or the canonical key, percent-encoded.",
        answers.CellDetails,
        parameters=(
            Parameter(
                "limit",
                f"At most so many attempts; {HISTORY_DEFAULT} where left out.",
                {**NATURAL, "maximum": HISTORY_LIMIT},
            ),
            Parameter("before", "Only attempts with a lower number.", POSITIVE),
        ),
        errors=(400, 404, 409),
    ),
    Operation("GET", "/v1/devices", "devices", "The devices, by index.", answers.DeviceInfo, many=True),
    Operation(
        "GET",
        "/v1/plan",
        "plan",
        "What would run where, when, and when all would be done, with what that takes for granted.",
        answers.PlanReply,
        parameters=(
            Parameter(
                "devices",
                "Of a box that isn't there, in place of the daemon's: `4x24GiB`, repeatable.",
                {"type": "array", "items": {"type": "string", "minLength": 1}},
            ),
        ),
        errors=(400,),
    ),
    Operation(
        "GET",
        "/v1/footprints",
        "footprints",
        "The memory that cells are expected to take, by what it depends on, with how far such estimates were off.",
        answers.FootprintInfo,
        many=True,
    ),
    Operation(
        "GET",
        "/v1/events",
        "events",
        "What happens from now on, as server-sent events named by their action.",
        media_types=("text/event-stream",),
        errors=(429,),
    ),
    Operation(
        "GET",
        "/v1/export",
        "export",
        "The results in a format. The header Boundd-Warnings counts what the format"
        " could not represent; with `envelope` the answer is an ExportEnvelope that names it.",
        media_types=("application/json", "text/csv"),
        parameters=(
            Parameter("format", "The format.", {"type": "string", "enum": list(EXPORT_FORMATS), "default": "json"}),
            Parameter("envelope", "Answer with text and warnings as JSON.", FLAG),
        ),
        errors=(400,),
    ),
    Operation(
        "GET",
        "/v1/backup",
        "backup",
        "A whole copy of the store, made while it is in use and checked: a SQLite database. The headers Boundd-Sha256"
        " and Boundd-Commits tell its SHA-256 and how many commits are in it. One at a time.",
        media_types=("application/vnd.sqlite3",),
        errors=(500, 503),
    ),
    Operation(
        "GET",
        "/v1/wait",
        "wait",
        "Answers once no cell of the query is pending or running, or after `timeout`.",
        answers.WaitReply,
        parameters=(
            QUERY,
            Parameter("timeout", "Seconds.", WAIT_S),
        ),
        errors=(400, 404, 429),
    ),
    Operation(
        "POST",
        "/v1/retry",
        "retry",
        "Run cells again that have ended; those that succeeded only where the selector"
        " is stale or the query says state=succeeded.",
        answers.RetryReply,
        requests.RetryRequest,
        errors=(400, 503),
    ),
    Operation(
        "POST",
        "/v1/cancel",
        "cancel",
        "Cancel the pending and running cells of the query.",
        answers.AffectedReply,
        requests.CancelRequest,
        errors=(400, 503),
    ),
    Operation(
        "POST",
        "/v1/pause",
        "pause",
        "Start nothing new; what runs goes on.",
        answers.PausedReply,
        requests.Empty,
        errors=(503,),
    ),
    Operation(
        "POST", "/v1/resume", "resume", "Start new attempts again.", answers.PausedReply, requests.Empty, errors=(503,)
    ),
    Operation(
        "POST",
        "/v1/cordon",
        "cordon",
        "Take a device out of service; what runs there goes on.",
        answers.AffectedReply,
        requests.CordonRequest,
        errors=(400, 404, 409, 503),
    ),
    Operation(
        "POST",
        "/v1/uncordon",
        "uncordon",
        "Put a device back into service.",
        answers.AffectedReply,
        requests.UncordonRequest,
        errors=(400, 404, 409, 503),
    ),
    Operation(
        "POST",
        "/v1/import",
        "import_",
        "Take over an old speedup_bounds.json. 409 with the models where its keys don't tell which is meant.",
        answers.ImportReply,
        requests.ImportRequest,
        body_limit_bytes=IMPORT_LIMIT_BYTES,
        errors=(400, 409, 413, 503),
    ),
    Operation(
        "POST",
        "/v1/reload",
        "reload",
        "Read the config anew, all or nothing.",
        answers.ReloadReply,
        requests.Empty,
        errors=(400, 503),
    ),
    Operation(
        "POST",
        "/v1/shutdown",
        "shutdown",
        "End the daemon.",
        answers.ShutdownReply,
        requests.ShutdownRequest,
        errors=(400,),
    ),
    Operation("GET", "/metrics", "metrics", "Prometheus' text format.", media_types=("text/plain",)),
    Operation("GET", "/openapi.json", "openapi", "This document."),
    Operation(
        "GET",
        "/healthz",
        "healthz",
        "200 where all is well, 503 while results can't be stored.",
        answers.HealthReply,
        errors=(503,),
    ),
)
