"""Who is on a device, judged by the driver's lists of its processes: one rule for the daemon and the worker.

The rule: `exclusive` where our own worker was seen in a readable list of every kind of process, and nobody else was.
`contended` where somebody else was seen. Everything else is `unknown`, with the reason: what could not be seen is never
good news.

A list is only worth what its pids mean. In the machine's own pid namespace every pid of a list can be looked up; one
that can't be found has ended. In a container the driver lists either the pids of the machine, which mean nothing there,
or the container's processes alone, which leaves out everybody else. Both are told from being alone by memory: whoever
uses a device holds some of it, so nobody is left out where what is listed holds all that is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from boundd.catalogue.outcomes import Isolation

UNACCOUNTED_BYTES = 64 * 1024**2
"""Device memory in use that no listed process holds says, from this much on, that somebody isn't listed. A CUDA context
alone takes more: 100 to 500 MiB, by device and driver."""
_NAMED = 3
"""So many pids are named in a reason."""


class ProcessOwner(StrEnum):
    """Whose a listed process is."""

    OURS = "ours"
    PARTNER = "partner"
    """It takes the same lease, and does nothing while the device is timed."""
    STRANGER = "stranger"
    ABSENT = "absent"
    """There is no such pid where we are: it has ended, or is of another pid namespace."""


@dataclass(frozen=True, slots=True)
class ProcessLists:
    """What the driver told of a device's processes in one pass.

    `processes` maps the pids of all kinds of list to the bytes that each holds (None: not told). `unreadable` maps a
    kind whose list could not be had ("compute", "graphics", "MPS") to why. `used_bytes` is the device memory in use
    without the driver's own; None where that isn't told.
    """

    processes: Mapping[int, int | None]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class IsolationVerdict:
    """The verdict on a pass, the reasons against `exclusive`, and who was recognised."""

    isolation: Isolation
    reasons: tuple[str, ...] = ()
    strangers: tuple[int, ...] = ()
    seen: bool = False
    """Whether one of our own processes was in the lists."""


def attest_isolation(
    lists: ProcessLists, whose: Callable[[int], ProcessOwner], *, in_host_namespace: bool, own_bytes: int | None = None
) -> IsolationVerdict:
    """What one pass over a device's lists says.

    Args:
        lists: of this device and no other.
        whose: tells of a pid whose it is; asked once for each.
        in_host_namespace: whether this process is in the machine's own pid namespace.
        own_bytes: device memory that this very process is known to hold; None where nobody knows. With it, a process
            that is listed under a pid of another namespace can be recognised as the only one.
    """
    owners = {pid: whose(pid) for pid in sorted(lists.processes)}
    seen = ProcessOwner.OURS in owners.values()
    strangers = tuple(pid for pid, owner in owners.items() if owner is ProcessOwner.STRANGER)
    if strangers and (in_host_namespace or seen):
        return IsolationVerdict(Isolation.CONTENDED, (_who(strangers),), strangers, seen)
    if lists.unreadable:
        reasons = tuple(f"the driver doesn't list {kind} processes: {why}" for kind, why in lists.unreadable.items())
        return IsolationVerdict(Isolation.UNKNOWN, reasons, seen=seen)
    if not owners:
        return IsolationVerdict(Isolation.UNKNOWN, ("the driver lists no process at all, not even this worker's",))
    if in_host_namespace:
        if seen:
            return IsolationVerdict(Isolation.EXCLUSIVE, seen=True)
        return IsolationVerdict(Isolation.UNKNOWN, ("this worker's process is not in the driver's lists",))
    return _in_a_container(lists, owners, own_bytes, seen=seen)


def _in_a_container(
    lists: ProcessLists, owners: Mapping[int, ProcessOwner], own_bytes: int | None, *, seen: bool
) -> IsolationVerdict:
    """The verdict where pids may be those of another namespace, or those of others be left out."""
    unaccounted = _unaccounted(lists)
    if unaccounted:
        return IsolationVerdict(Isolation.UNKNOWN, (unaccounted,), seen=seen)
    if seen:
        absent = tuple(pid for pid, owner in owners.items() if owner is ProcessOwner.ABSENT)
        if not absent:
            return IsolationVerdict(Isolation.EXCLUSIVE, seen=True)
        return IsolationVerdict(
            Isolation.UNKNOWN, (f"{_who(absent)}, in another pid namespace than this container's",), seen=True
        )
    if len(owners) > 1:
        return IsolationVerdict(
            Isolation.UNKNOWN, (f"the driver lists {len(owners)} processes by pids of another pid namespace",)
        )
    (held,) = lists.processes.values()
    if own_bytes is None or held is None or not 0 < own_bytes <= held:
        return IsolationVerdict(
            Isolation.UNKNOWN, ("the driver lists one process by a pid of another pid namespace, maybe not ours",)
        )
    return IsolationVerdict(Isolation.EXCLUSIVE, seen=True)


def _unaccounted(lists: ProcessLists) -> str:
    """Why the listed processes may not be all that there are; empty where they hold all that is in use."""
    sizes = list(lists.processes.values())
    if lists.used_bytes is None or None in sizes:
        return "in a container the driver may leave processes out, and it doesn't tell what each one holds"
    left = lists.used_bytes - sum(size for size in sizes if size is not None)
    if left <= -UNACCOUNTED_BYTES:
        return f"the driver lists {-left / 1024**3:.1f} GiB more than are in use on the device"
    if left < UNACCOUNTED_BYTES:
        return ""
    return f"{left / 1024**3:.1f} GiB of the device are held by nobody that the driver lists in this container"


def _who(pids: tuple[int, ...]) -> str:
    named = ", ".join(map(str, pids[:_NAMED])) + ("" if len(pids) <= _NAMED else f" and {len(pids) - _NAMED} more")
    return f"process {named} is on the device" if len(pids) == 1 else f"processes {named} are on the device"
