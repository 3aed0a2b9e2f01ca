"""A reading of one host's memory and cores. A host is called a node; each device is on one node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

THIS_NODE = ""
"""The name of the machine that the daemon is on."""


@dataclass(frozen=True, slots=True)
class HostReading:
    """The host at one instant. `observed_bytes`: attempt id to the resident memory of its processes."""

    total_bytes: int
    free_bytes: int
    """What the kernel calls available."""
    cores: int
    observed_bytes: Mapping[str, int] = field(default_factory=dict)
