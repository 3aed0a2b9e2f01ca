"""Numbers and names that both sides use. Imported by every call of `boundctl`, so that it imports next to nothing."""

from __future__ import annotations

from typing import Literal, get_args

ExportFormat = Literal["json", "legacy", "search-params", "csv"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
"""The formats of an export; the first is the default."""

HISTORY_DEFAULT = 50
HISTORY_LIMIT = 1000
"""Attempts in an answer about a cell: one that was retried for months must not cost the daemon ever more memory."""

QUERY_TERMS = 256
QUERY_TERM_CHARACTERS = 4096
NAME_CHARACTERS = 256
"""Of a device's or a model's name in a request."""
REASON_CHARACTERS = 1000
BATCH_SIZE_LIMIT = 1_000_000
LARGEST = 2**62
"""Of an offset, a limit or a number of an attempt: what SQLite and every JSON reader hold."""

WAIT_DEFAULT_S = 30.0
WAIT_LIMIT_S = 300.0
"""How long /v1/wait waits before it answers that it is not over."""

BODY_LIMIT_BYTES = 64 * 1024
IMPORT_LIMIT_BYTES = 8 * 1024**2
"""Of a request's body; the second of an import's."""

CORDON_REASON = "cordoned by hand"
"""Why a device is cordoned, where nobody says why."""

KEY_HEADER = "Idempotency-Key"
KEY_CHARACTERS = 255
REPLAYED_HEADER = "Idempotency-Replayed"
"""The header of an answer that was given before."""
SHA256_HEADER = "Boundd-Sha256"
COMMITS_HEADER = "Boundd-Commits"
WARNINGS_HEADER = "Boundd-Warnings"
