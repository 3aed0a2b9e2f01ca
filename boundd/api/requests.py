"""The bodies of requests. The daemon refuses a key that isn't here, and converts nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, MaxLen, MinLen

from boundd.api.constants import (
    BATCH_SIZE_LIMIT,
    CORDON_REASON,
    NAME_CHARACTERS,
    QUERY_TERM_CHARACTERS,
    QUERY_TERMS,
    REASON_CHARACTERS,
)

Selector = Literal["oom", "timeout", "failed", "stale"]
Term = Annotated[str, MinLen(1), MaxLen(QUERY_TERM_CHARACTERS)]
Terms = Annotated[list[Term], MaxLen(QUERY_TERMS)]
Name = Annotated[str, MinLen(1), MaxLen(NAME_CHARACTERS)]


@dataclass(frozen=True)
class Request:
    """A request's body."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}
    """How pydantic, which this module doesn't import, is to validate it."""


@dataclass(frozen=True)
class RetryRequest(Request):
    """Run cells again: those of `query`, narrowed to what `selector` names."""

    query: Terms = field(default_factory=list)
    selector: Selector | None = None
    batch_size: Annotated[int, Ge(1), Le(BATCH_SIZE_LIMIT)] | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class CancelRequest(Request):
    """Cancel the pending and running cells of `query`, which must not be empty (`*` is every cell)."""

    query: Annotated[Terms, MinLen(1)]
    dry_run: bool = False


@dataclass(frozen=True)
class CordonRequest(Request):
    """Take a device out of service; `device` is a UUID, the start of one, an index or a name."""

    device: Name
    reason: Annotated[str, MaxLen(REASON_CHARACTERS)] = CORDON_REASON


@dataclass(frozen=True)
class UncordonRequest(Request):
    """Put a device back into service."""

    device: Name


@dataclass(frozen=True)
class ImportRequest(Request):
    """The text of an old speedup_bounds.json, and the model that it is of where its keys don't tell."""

    text: str
    model: Name | None = None


@dataclass(frozen=True)
class ShutdownRequest(Request):
    """End the daemon; with `end_workers` the workers too, and their cells are put back."""

    end_workers: bool = False


@dataclass(frozen=True)
class Empty(Request):
    """Nothing. No body at all does as well."""
