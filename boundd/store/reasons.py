"""Reasons to JSON and back: a `kind` and its numbers, as `boundd.core.model` declares them."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, TypeAdapter

from boundd.core.model.memory_evidence import MemoryEvidence
from boundd.core.model.quarantines import QuarantineCause
from boundd.core.model.reasons import as_data

_CAUSE: TypeAdapter[QuarantineCause] = TypeAdapter(Annotated[QuarantineCause, Field(discriminator="kind")])
_EVIDENCE: TypeAdapter[MemoryEvidence] = TypeAdapter(Annotated[MemoryEvidence, Field(discriminator="kind")])


def dump(reason: object) -> str:
    """A reason as JSON. A lone surrogate in text of a worker's becomes '?'.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(as_data(reason), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()


def cause_of(text: str) -> QuarantineCause:
    """The cause of a quarantine.

    Raises:
        ValueError: it is none that this version knows.
    """
    return _CAUSE.validate_json(text)


def evidence_of(text: str) -> MemoryEvidence:
    """How it was told why memory ran out.

    Raises:
        ValueError: it is none that this version knows.
    """
    return _EVIDENCE.validate_json(text)
