"""The table of routes: the one list that the app serves and /openapi.json documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from boundd.control import models

Q = ("q", "A term of a query, repeatable; a cell must match all. `state=failed`, `model=SDXL`, or a glob over labels.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the query string. `schema` is its JSON schema."""

    name: str
    about: str
    schema: Any


@dataclass(frozen=True, slots=True)
class Doc:
    """A route: where, what it takes and what it answers. A reply that is no JSON model is a media type."""

    method: str
    path: str
    name: str
    about: str
    reply: type[BaseModel] | str
    body: type[models.Request] | None = None
    parameters: tuple[Parameter, ...] = ()
    many: bool = False
    """True where the answer is a list of `reply`."""
    errors: tuple[int, ...] = ()


QUERY = Parameter(*Q, {"type": "array", "items": {"type": "string"}})
FORMATS = ("json", "legacy", "search-params", "csv")
HISTORY_DEFAULT, HISTORY_LIMIT = 50, 1000
"""Attempts in an answer about a cell: one that was retried for months must not cost the daemon ever more memory."""
NATURAL = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean", "default": False}

ROUTES: tuple[Doc, ...] = (
    Doc(
        "GET",
        "/v1/status",
        "status",
        "Daemon, devices, counts, running attempts and an estimate of the end.",
        models.StatusReply,
        parameters=(QUERY,),
        errors=(400,),
    ),
    Doc(
        "GET",
        "/v1/cells",
        "cells",
        "The cells of the query, in the matrix' order.",
        models.CellInfo,
        many=True,
        parameters=(
            QUERY,
            Parameter("offset", "Leave out so many.", NATURAL),
            Parameter("limit", "At most so many.", NATURAL),
        ),
        errors=(400,),
    ),
    Doc(
        "GET",
        "/v1/cells/{id}/explain",
        "explain",
        "Why the cell is where it is, with numbers for each device.",
        models.ExplainReply,
        errors=(404, 409),
    ),
    Doc(
        "GET",
        "/v1/cells/{id}/logs",
        "logs",
        "What an attempt's worker printed, as bytes.",
        "text/plain",
        parameters=(
            Parameter("attempt", "The attempt's number; the latest where left out.", {"type": "integer", "minimum": 1}),
            Parameter("offset", "The first byte; a negative one counts from the end.", {"type": "integer"}),
            Parameter("limit", "At most so many bytes.", NATURAL),
            Parameter("follow", "Go on as the log grows, until the attempt has ended.", FLAG),
        ),
        errors=(400, 404, 409, 429),
    ),
    Doc(
        "GET",
        "/v1/cells/{id}",
        "cell",
        "A cell with its latest attempts, their verdicts and the points they measured. The id"
        " is a digest's first characters, a label or the canonical key, percent-encoded.",
        models.CellDetails,
        parameters=(
            Parameter(
                "limit",
                f"At most so many attempts; {HISTORY_DEFAULT} where left out.",
                {**NATURAL, "maximum": HISTORY_LIMIT},
            ),
            Parameter("before", "Only attempts with a lower number.", {"type": "integer", "minimum": 1}),
        ),
        errors=(400, 404, 409),
    ),
    Doc("GET", "/v1/devices", "devices", "The devices, by index.", models.DeviceInfo, many=True),
    Doc(
        "GET",
        "/v1/plan",
        "plan",
        "What would run where, when, and when all would be done, with what that takes for granted.",
        models.PlanReply,
        parameters=(
            Parameter(
                "devices",
                "Of a box that isn't there, in place of the daemon's: `4x24GiB`, repeatable.",
                {"type": "array", "items": {"type": "string"}},
            ),
        ),
        errors=(400,),
    ),
    Doc(
        "GET",
        "/v1/footprints",
        "footprints",
        "The memory that cells are expected to take, by what it depends on, with how far such estimates were off.",
        models.FootprintInfo,
        many=True,
    ),
    Doc(
        "GET",
        "/v1/events",
        "events",
        "What happens from now on, as server-sent events named by their action.",
        "text/event-stream",
        errors=(429,),
    ),
    Doc(
        "GET",
        "/v1/export",
        "export",
        "The results in a format. The header Boundd-Warnings counts what the format"
        " could not represent; with `envelope` the answer is an ExportEnvelope that names it.",
        "application/json",
        parameters=(
            Parameter("format", "The format.", {"type": "string", "enum": list(FORMATS), "default": "json"}),
            Parameter("envelope", "Answer with text and warnings as JSON.", FLAG),
        ),
        errors=(400,),
    ),
    Doc(
        "GET",
        "/v1/backup",
        "backup",
        "A whole copy of the store, made while it is in use and checked: a SQLite database. The headers Boundd-Sha256"
        " and Boundd-Commits tell its SHA-256 and how many commits are in it. One at a time.",
        "application/vnd.sqlite3",
        errors=(500, 503),
    ),
    Doc(
        "GET",
        "/v1/wait",
        "wait",
        "Answers once no cell of the query is pending or running, or after `timeout`.",
        models.WaitReply,
        parameters=(
            QUERY,
            Parameter("timeout", "Seconds.", {"type": "number", "minimum": 0, "maximum": 300, "default": 30}),
        ),
        errors=(400, 404, 429),
    ),
    Doc(
        "POST",
        "/v1/retry",
        "retry",
        "Run cells again that have ended; those that succeeded only where the selector"
        " is stale or the query says state=succeeded.",
        models.RetryReply,
        models.RetryRequest,
        errors=(400, 503),
    ),
    Doc(
        "POST",
        "/v1/cancel",
        "cancel",
        "Cancel the pending and running cells of the query.",
        models.AffectedReply,
        models.CancelRequest,
        errors=(400, 503),
    ),
    Doc(
        "POST",
        "/v1/pause",
        "pause",
        "Start nothing new; what runs goes on.",
        models.PausedReply,
        models.Empty,
        errors=(503,),
    ),
    Doc("POST", "/v1/resume", "resume", "Start new attempts again.", models.PausedReply, models.Empty, errors=(503,)),
    Doc(
        "POST",
        "/v1/cordon",
        "cordon",
        "Take a device out of service; what runs there goes on.",
        models.AffectedReply,
        models.CordonRequest,
        errors=(400, 404, 409, 503),
    ),
    Doc(
        "POST",
        "/v1/uncordon",
        "uncordon",
        "Put a device back into service.",
        models.AffectedReply,
        models.UncordonRequest,
        errors=(400, 404, 409, 503),
    ),
    Doc(
        "POST",
        "/v1/import",
        "import_",
        "Take over an old speedup_bounds.json. 409 with the models where its keys don't tell which is meant.",
        models.ImportReply,
        models.ImportRequest,
        errors=(400, 409, 413, 503),
    ),
    Doc(
        "POST",
        "/v1/reload",
        "reload",
        "Read the config anew, all or nothing.",
        models.ReloadReply,
        models.Empty,
        errors=(400, 503),
    ),
    Doc(
        "POST",
        "/v1/shutdown",
        "shutdown",
        "End the daemon.",
        models.ShutdownReply,
        models.ShutdownRequest,
        errors=(400,),
    ),
    Doc("GET", "/metrics", "metrics", "Prometheus' text format.", "text/plain"),
    Doc("GET", "/openapi.json", "openapi", "This document.", "application/json"),
    Doc(
        "GET",
        "/healthz",
        "healthz",
        "200 where all is well, 503 while results can't be stored.",
        models.HealthReply,
        errors=(503,),
    ),
)
