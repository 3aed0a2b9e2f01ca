"""Quick deaths: whether the cell or its device is at fault, and what a suspected device still takes.

A cell that fails within a minute of its start (`Rules.quick_s`) may be broken, or its device may be. Its next
attempt goes to another device. If it runs there, the first device is at fault, and after `QUARANTINE_FROM` such
cells it is quarantined. If the cell dies there too, the cell is at fault. Until that is known, a device with at
least `SUSPECT_FROM` quick deaths takes one cell at a time, with rests in between, because a device on which cells
die quickly is always free and would draw every cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import Attempt
from boundd.core.model.devices import DeviceState, QuickDeath
from boundd.core.model.outcomes import Outcome, Verdict
from boundd.core.model.quarantines import CellsDied
from boundd.core.model.reasons import OneAtATime, Resting
from boundd.core.model.state import State

QUARANTINE_FROM = 3
SUSPECT_FROM = 2
"""Quick deaths since the last success that make a device suspect. A single one only lowers its rank."""
FIRST_REST = 0.5
"""The first rest, as a multiple of `Rules.quick_s`: 30 seconds by default."""
REST_GROWTH = 4.0
"""Each further death multiplies the rest by this, up to `LONGEST_REST`."""
LONGEST_REST = 10.0
"""As a multiple of `Rules.quick_s`: 10 minutes by default."""
MAY_BE_THE_DEVICE = frozenset({ErrorKind.KILLED_BY_SIGNAL, ErrorKind.OTHER})
"""Failures that a device can cause. A missing model or a bad result is the cell's own fault."""


def quick_deaths_on(state: State, device: str) -> tuple[QuickDeath, ...]:
    """The quick deaths on a device."""
    return tuple(death for death in state.quick_deaths if death.device == device)


def is_quick_failure(attempt: Attempt, verdict: Verdict, quick_s: float) -> bool:
    """Whether an attempt ended in a quick death."""
    if verdict.error is None or attempt.end_reason is not None or verdict.error.kind not in MAY_BE_THE_DEVICE:
        return False
    return verdict.wall_s is not None and verdict.wall_s < quick_s


def suspect_refusal(
    state: State, device: str, attempts: Sequence[Attempt], boot_s: float
) -> Resting | OneAtATime | None:
    """Why a suspect device takes no cell now; None if it may."""
    until_s = _rest_ends(state, device)
    if until_s is None:
        return None
    deaths = len(quick_deaths_on(state, device))
    if until_s > boot_s:
        return Resting(deaths, until_s - boot_s)
    if any(boot_s - attempt.started_boot_s < state.rules.quick_s for attempt in attempts):
        return OneAtATime(deaths)
    return None


def next_rest_end(state: State, boot_s: float) -> float | None:
    """When the first resting device may take a cell again, in seconds since boot; None if no device rests."""
    ends = (_rest_ends(state, device) for device in {death.device for death in state.quick_deaths})
    return min((end for end in ends if end is not None and end > boot_s), default=None)


def _rest_ends(state: State, device: str) -> float | None:
    """When the rest after the last death ends; None if the device is not suspect."""
    found = quick_deaths_on(state, device)
    if len(found) < SUSPECT_FROM or not _has_others(state, device):
        return None
    rest_s = state.rules.quick_s * min(LONGEST_REST, FIRST_REST * REST_GROWTH ** (len(found) - SUSPECT_FROM))
    return max(death.at_boot_s for death in found) + rest_s


def _has_others(state: State, device: str) -> bool:
    """Whether there is another ready device. Without one, no cell can be seen to run elsewhere, and resting is
    pointless."""
    return any(other.uuid != device and other.state is DeviceState.READY for other in state.devices.values())


def record_end(state: State, attempt: Attempt, verdict: Verdict, boot_s: float) -> State:
    """Update the quick deaths after an attempt has ended."""
    deaths = state.quick_deaths
    if is_quick_failure(attempt, verdict, state.rules.quick_s):
        if any(death.key == attempt.key and death.device != attempt.device for death in deaths):
            # It died on two devices, so the cell is at fault.
            return replace(state, quick_deaths=tuple(s for s in deaths if s.key != attempt.key))
        others = tuple(s for s in deaths if (s.device, s.key) != (attempt.device, attempt.key))
        return replace(state, quick_deaths=(*others, QuickDeath(attempt.device, attempt.key, boot_s)))
    if verdict.outcome is Outcome.SUCCEEDED:
        kept = (s for s in deaths if s.device != attempt.device)
        return replace(
            state, quick_deaths=tuple(replace(s, elsewhere=s.elsewhere or s.key == attempt.key) for s in kept)
        )
    return state


def mark_survivors(state: State, boot_s: float) -> State:
    """Mark the quick deaths of cells that now run on another device for longer than `Rules.quick_s`: their first
    device was at fault."""
    if not state.quick_deaths:
        return state
    running = {
        (attempt.key, attempt.device)
        for attempt in state.attempts.values()
        if boot_s - attempt.started_boot_s > state.rules.quick_s
    }
    deaths = tuple(
        replace(s, elsewhere=s.elsewhere or any(key == s.key and on != s.device for key, on in running))
        for s in state.quick_deaths
    )
    return state if deaths == state.quick_deaths else replace(state, quick_deaths=deaths)


def devices_to_quarantine(state: State) -> dict[str, CellsDied]:
    """The devices to quarantine for quick deaths, by UUID."""
    found: dict[str, CellsDied] = {}
    for uuid in sorted({death.device for death in state.quick_deaths}):
        against = [death for death in quick_deaths_on(state, uuid) if death.elsewhere]
        if len(against) >= QUARANTINE_FROM and uuid in state.devices and state.quarantine_of(uuid) is None:
            labels = tuple(state.cells[death.key].cell.label for death in against)
            found[uuid] = CellsDied(labels, state.rules.quick_s)
    return found
