"""Cells: the points of the matrix, and their canonical keys.

A cell's key is the canonical JSON of all its parameters (sorted names, no spaces). Only the key identifies a cell;
the digest and the label are for people. A shorter key would be ambiguous: the file format that boundd replaces could
not tell SD1.5 from SD2.1.
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
"""Parameter names to JSON values. Each parameter is an axis or a constant of the matrix."""


def canonical_json(value: object) -> str:
    """The canonical JSON of a value: sorted names, no spaces.

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
        """The batch size that the config asks for; None if the matrix has no such parameter."""
        value = self.parameters.get("batch_size")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class CellPolicy:
    """How a cell is run, from the config's rules. It is not part of what the cell measures."""

    exclusive: bool = False
    timeout_s: float = 3600.0
    grace_s: float = 10.0
    footprint_bytes: int | None = None
    lease: bool = True
    """Whether the worker takes the device's lease. A worker that doesn't must run alone, or its timing would be
    wrong."""
    dtype: str = ""
    """The model's data type as the config gives it; empty if the config doesn't."""
    architecture: str = ""
    """The known architecture that the config gives the model; empty if it gives none, and then the model's name is
    used."""
    host_memory_bytes: int | None = None
    """Host memory by a rule of the config; None to let boundd estimate it."""
    program: str = ""
    """The program that is executed, the first argument of the command; empty for the daemon's own interpreter."""
    builtin: bool = False
    """Whether the built-in worker runs the cell. boundd knows how much host memory that worker needs."""
    cores: int = 0
    """Processor cores that the worker keeps busy; 0 if unknown, and then no cores are reserved."""
    memory_max_bytes: int = 0
    """The cgroup limit of host memory; 0 for no limit."""
    pids_max: int = 0
    """The cgroup limit of processes and threads; 0 for no limit."""

    @property
    def must_be_alone(self) -> bool:
        """True if no other attempt may run on the same device."""
        return self.exclusive or not self.lease
