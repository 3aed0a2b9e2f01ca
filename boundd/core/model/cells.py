"""Cells: the points of the matrix, and their canonical keys.

Rules: a cell is known by all its parameters, written as canonical JSON (sorted names, no spaces), because any
shorter key loses something: the file that boundd replaces could not tell SD1.5 from SD2.1. The digest and the label
are for people; only the key is identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DIGEST_CHARACTERS = 12

Parameters = Mapping[str, Any]
"""Names to JSON values, an axis or a constant each."""


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted names, no spaces, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the matrix: its canonical key, a short hash of it, a label for people, and its parameters."""

    key: str
    digest: str
    label: str
    parameters: Parameters = field(compare=False, hash=False)

    @classmethod
    def of(cls, parameters: Parameters, axes: Sequence[str]) -> Cell:
        """The cell with these parameters, labelled by the values of `axes`, in their order."""
        key = canonical_json(dict(parameters))
        digest = hashlib.sha256(key.encode()).hexdigest()[:DIGEST_CHARACTERS]
        label = "/".join(str(parameters[axis]) for axis in axes)
        return cls(key, digest, label, MappingProxyType(dict(parameters)))

    @property
    def batch_size(self) -> int | None:
        """The batch that was asked for, or None where the matrix has no such parameter."""
        value = self.parameters.get("batch_size")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class CellPolicy:
    """What the config's rules say about how a cell is to be run. Not part of what it measures."""

    exclusive: bool = False
    timeout_s: float = 3600.0
    grace_s: float = 10.0
    footprint_bytes: int | None = None
    lease: bool = True
    """Whether its worker takes the device's lease; one that doesn't must be alone to be timed honestly."""
    dtype: str = ""
    """What the config says that its model computes in; empty where it says nothing."""
    architecture: str = ""
    """The name of the known architecture that its model has; its model's own where the config doesn't say."""
    host_memory_bytes: int | None = None
    """What a rule says that it takes of the host; None where boundd is to know by itself."""
    program: str = ""
    """What is executed: the first argument of its command; empty for the daemon's own interpreter."""
    builtin: bool = False
    """Whether the built-in worker runs it, of which boundd knows what it takes of the host."""
    cores: int = 0
    """Processor cores that it keeps busy; 0 where nobody knows, and none are counted."""
    memory_max_bytes: int = 0
    """What the kernel lets it have of the host's memory; 0 for no limit."""
    pids_max: int = 0
    """How many processes and threads the kernel lets it have; 0 for no limit."""

    @property
    def must_be_alone(self) -> bool:
        """True where no other attempt may be on the same device."""
        return self.exclusive or not self.lease
