"""Devices on which cells die quickly: who is to blame, and what such a device is still given.

Rules: a cell that dies within a minute (`Rules.quick_s`) of a plain failure may be broken, or its device may be. It
goes to another device next. If it runs there, the device is to blame, and three such cells take it out of service; if
it dies there too, the cell is. Until that is known, a device on which two have died gets them one at a time, with
suspect_refusal between, because a device on which cells die quickly is always free, and would draw every cell there is.
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
"""So many cells, since one succeeded there; a single one is no more than a worse rank."""
FIRST_REST = 0.5
"""The first rest, in times of `Rules.quick_s`: 30 seconds, where that is a minute."""
REST_GROWTH = 4.0
"""Longer by this with each further cell that died there, up to `LONGEST_REST`."""
LONGEST_REST = 10.0
"""In times of `Rules.quick_s`: 10 minutes, where that is one."""
MAY_BE_THE_DEVICE = frozenset({ErrorKind.KILLED_BY_SIGNAL, ErrorKind.OTHER})
"""Failures that a device can cause. A missing model or a bad result are the cell's own."""


def quick_deaths_on(state: State, device: str) -> tuple[QuickDeath, ...]:
    """What is held against a device."""
    return tuple(death for death in state.quick_deaths if death.device == device)


def is_quick_failure(attempt: Attempt, verdict: Verdict, quick_s: float) -> bool:
    """Whether an end speaks against the device."""
    if verdict.error is None or attempt.end_reason is not None or verdict.error.kind not in MAY_BE_THE_DEVICE:
        return False
    return verdict.wall_s is not None and verdict.wall_s < quick_s


def suspect_refusal(
    state: State, device: str, attempts: Sequence[Attempt], boot_s: float
) -> Resting | OneAtATime | None:
    """Why a suspected device takes nothing just now; None where it may."""
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
    """Seconds since boot at which a resting device may be tried again; None where no device rests."""
    ends = (_rest_ends(state, device) for device in {death.device for death in state.quick_deaths})
    return min((end for end in ends if end is not None and end > boot_s), default=None)


def _rest_ends(state: State, device: str) -> float | None:
    """When the rest after the last death ends; None where nothing is to be suspected."""
    found = quick_deaths_on(state, device)
    if len(found) < SUSPECT_FROM or not _has_others(state, device):
        return None
    rest_s = state.rules.quick_s * min(LONGEST_REST, FIRST_REST * REST_GROWTH ** (len(found) - SUSPECT_FROM))
    return max(death.at_boot_s for death in found) + rest_s


def _has_others(state: State, device: str) -> bool:
    """Where there is no other device, cells can't be seen to run elsewhere, and resting helps nobody."""
    return any(other.uuid != device and other.state is DeviceState.READY for other in state.devices.values())


def record_end(state: State, attempt: Attempt, verdict: Verdict, boot_s: float) -> State:
    """The strikes after an attempt has ended."""
    deaths = state.quick_deaths
    if is_quick_failure(attempt, verdict, state.rules.quick_s):
        if any(death.key == attempt.key and death.device != attempt.device for death in deaths):
            # It died on two devices: it is the cell.
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
    """Cells that outlived `Rules.quick_s` on another device than the one on which they died: that one is to blame."""
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
    """Devices that have killed too many cells to be given more, by UUID."""
    found: dict[str, CellsDied] = {}
    for uuid in sorted({death.device for death in state.quick_deaths}):
        against = [death for death in quick_deaths_on(state, uuid) if death.elsewhere]
        if len(against) >= QUARANTINE_FROM and uuid in state.devices and state.quarantine_of(uuid) is None:
            labels = tuple(state.cells[death.key].cell.label for death in against)
            found[uuid] = CellsDied(labels, state.rules.quick_s)
    return found
