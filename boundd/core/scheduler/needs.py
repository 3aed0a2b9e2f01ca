"""Needs: how much device memory and host a cell needs on one kind of device, and whether it must run alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from boundd.catalogue.backends import BACKENDS
from boundd.core.memory.footprint import CONTEXT_BYTES, WHOLE_DEVICE_PERCENT, Estimate, estimate_of
from boundd.core.memory.raising import LEVELS
from boundd.core.model.devices import DeviceReading
from boundd.core.model.history import Observation, Observations
from boundd.core.model.memo import Memo
from boundd.core.model.requirements import Requirement
from boundd.core.model.sources import HostSource, Source
from boundd.core.model.state import Rules, State
from boundd.core.model.workload import subject_on
from boundd.core.scheduler.host import HostNeed, host_need

MIN_RESERVATION_BYTES = 2 * CONTEXT_BYTES
"""The smallest reservation. With less, the CUDA context would leave the allocator no room."""
ON_THE_HOST = HostNeed(0, 0, Source(HostSource.IS_DEVICE))


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """What makes devices equivalent for placement."""

    name: str
    total_bytes: int
    single: bool
    """Whether it takes one attempt at a time."""
    backend: str
    node: str


class _DeviceKinds(dict[tuple[str, int, bool, str, str], DeviceKind]):
    """Each kind once, by its fields, so that comparing two kinds is one pointer comparison."""


KINDS_KEPT = 1024


def device_kind(reading: DeviceReading, memo: Memo) -> DeviceKind:
    """The kind of a device."""
    kinds = memo.table(_DeviceKinds)
    fields = (reading.name, reading.total_bytes or 0, reading.max_cells == 1, reading.backend, reading.node)
    kind = kinds.get(fields)
    if kind is None:
        if len(kinds) >= KINDS_KEPT:
            kinds.clear()
        kind = kinds[fields] = DeviceKind(*fields)
    return kind


@dataclass(frozen=True, slots=True)
class Need:
    """A cell's need on devices of one kind."""

    expected: Estimate
    needed_bytes: int
    alone: bool
    host: HostNeed


class _Known(NamedTuple):
    """A cached need, with the values that it was computed from."""

    need: Need
    rules: Rules
    observations: Observations
    """All observations at the time of the last lookup."""
    seen: tuple[Observation, ...]
    """The observations that the need depends on."""
    variation_permille: int | None
    """The variation of peaks, the only value that depends on other observations."""


class KnownNeeds(dict[tuple[Requirement, DeviceKind], _Known]):
    """Cached needs by requirement and device kind. Most stay the same from one scheduling pass to the next."""


NEEDS_KEPT = 65_536


def must_be_alone(needs: Requirement) -> bool:
    """Whether such cells must run alone on any device: by rule, because the worker doesn't use the lease, or after
    running out of memory beside others."""
    return needs.policy.must_be_alone or needs.alone


def whole_device_bytes(kind: DeviceKind, rules: Rules) -> int:
    """Above this size, a need counts as the whole device and the cell runs alone."""
    return max(0, kind.total_bytes - rules.margin_bytes) * WHOLE_DEVICE_PERCENT // 100


def need_of(state: State, known: KnownNeeds, needs: Requirement, kind: DeviceKind) -> Need:
    """The need of these cells on a kind of device; `known` is the run's cache (`state.memo`)."""
    rules, observations = state.rules, state.observations
    before = known.get((needs, kind))
    # All of these are immutable, so the same object has the same value.
    if before is not None and before.observations is observations and before.rules is rules:
        return before.need
    seen = observations.about(subject_on(needs.work, kind.name))
    varies = observations.variation_permille
    if before is not None and before.seen is seen and before.rules is rules and before.variation_permille == varies:
        need = before.need
    else:
        need = _worked_out(state, needs, kind)
    if len(known) >= NEEDS_KEPT:
        known.clear()
    known[needs, kind] = _Known(need, rules, observations, seen, varies)
    return need


def _worked_out(state: State, needs: Requirement, kind: DeviceKind) -> Need:
    policy, work = needs.policy, needs.work
    expected = estimate_of(work, policy.footprint_bytes, kind.name, state.observations, state.rules.torch)
    largest = whole_device_bytes(kind, state.rules)
    size = expected.size_bytes
    raised = needs.memory_level > LEVELS and not expected.learned
    alone = must_be_alone(needs) or raised or size is None or size >= largest
    is_host = BACKENDS[kind.backend].is_host
    host = ON_THE_HOST if is_host else host_need(policy, work, kind.name, state.observations)
    # A cell without an estimate runs alone and gets the whole device.
    least = 1 if is_host else min(MIN_RESERVATION_BYTES, largest)
    return Need(expected, least if size is None else max(least, min(size, largest)), alone, host)
