"""The host as a resource: memory and cores are reserved for attempts, like device memory.

The arithmetic is the ledger's. On the CPU device, whose memory is the host's, an attempt reserves nothing here. A
cell that needs more than the host can ever give starts when no other attempt runs, because the estimate can be wrong
and the cell would otherwise wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from boundd.core.memory.footprint import EXTRAPOLATED_PERCENT, GIB, SCORER_BYTES, weights_bytes
from boundd.core.memory.headroom import room_bytes
from boundd.core.model.attempts import Attempt
from boundd.core.model.cells import CellPolicy
from boundd.core.model.history import Observations
from boundd.core.model.host import HostReading
from boundd.core.model.reasons import CoresShort, HostMemoryShort, HostRefusal
from boundd.core.model.sources import HostSource, Source
from boundd.core.model.workload import Workload, subject_on

MARGIN_BYTES = GIB
"""Host memory that is never reserved; a tenth of the host's memory if that is less."""
LIBRARIES_BYTES = 2 * GIB
"""Python, torch with the CUDA libraries, and diffusers: a worker's memory before it loads a model."""
WHOLE_HOST_PERCENT = 90


@dataclass(frozen=True, slots=True)
class HostNeed:
    """An attempt's need of host memory and cores; `source` is the source of the bytes."""

    memory_bytes: int
    cores: int
    source: Source


def host_need(policy: CellPolicy, work: Workload, device_name: str, observations: Observations) -> HostNeed:
    """The host memory and cores that an attempt needs.

    The memory comes from the config's rule; else from the largest peak that workers reported for this work, x 1.10;
    else, for the built-in worker, from a prior: libraries, weights (which pass through host memory on their way to
    the device) and scorer. For an unknown script nothing is reserved until an attempt has reported its peak.
    """
    if policy.host_memory_bytes is not None:
        return HostNeed(policy.host_memory_bytes, policy.cores, Source(HostSource.RULE))
    peaks = [o.host_peak_bytes for o in observations.about(subject_on(work, device_name)) if o.host_peak_bytes]
    if peaks:
        size = max(peaks) * EXTRAPOLATED_PERCENT // 100
        return HostNeed(size, policy.cores, Source(HostSource.LEARNED, len(peaks)))
    if not policy.builtin:
        return HostNeed(0, policy.cores, Source(HostSource.UNKNOWN_WORKER))
    size = LIBRARIES_BYTES + weights_bytes(work.architecture, work.dtype) + SCORER_BYTES
    return HostNeed(size, policy.cores, Source(HostSource.MODEL))


@dataclass(slots=True)
class HostLedger:
    """The host's free memory and cores during one scheduling pass."""

    host: HostReading
    room_bytes: int
    busy_cores: int
    held_by: int
    """Number of attempts that hold memory or cores."""

    @classmethod
    def of(cls, host: HostReading, attempts: Iterable[Attempt]) -> HostLedger:
        """The ledger with these attempts."""
        live = tuple(attempts)
        claims = [(attempt.host_memory_bytes, host.observed_bytes.get(attempt.id)) for attempt in live]
        margin = min(MARGIN_BYTES, host.total_bytes // 10)
        room = room_bytes(host.total_bytes, host.free_bytes, claims) - margin
        holders = sum(1 for attempt in live if attempt.host_memory_bytes or attempt.cores)
        return cls(host, room, sum(attempt.cores for attempt in live), holders)

    def add(self, attempt: Attempt) -> None:
        """Add an attempt that has not allocated anything yet."""
        self.room_bytes -= attempt.host_memory_bytes
        self.busy_cores += attempt.cores
        self.held_by += bool(attempt.host_memory_bytes or attempt.cores)

    def refusal(self, need: HostNeed) -> HostRefusal | None:
        """Why the host can't take one more attempt; None if it can."""
        largest = self.host.total_bytes * WHOLE_HOST_PERCENT // 100
        if need.memory_bytes > self.room_bytes and (self.held_by or need.memory_bytes <= largest):
            short_bytes = need.memory_bytes - self.room_bytes
            return HostMemoryShort(short_bytes, need.memory_bytes, self.room_bytes, self.held_by, need.source)
        if need.cores and self.held_by and self.busy_cores + need.cores > self.host.cores:
            return CoresShort(need.cores, self.busy_cores, self.host.cores, self.held_by)
        return None
