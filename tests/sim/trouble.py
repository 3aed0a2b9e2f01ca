"""What goes wrong with a simulated daemon and its store, and what people do meanwhile. None of it lasts for ever."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from boundd.sim.world import Faults, Window


class Wish(StrEnum):
    """What a person does."""

    CANCEL = "cancel"
    RETRY = "retry"
    PAUSE = "pause"
    RESUME = "resume"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    RELOAD = "reload"
    STOP = "stop"
    """SIGTERM: the workers go on; the daemon is started again after a while."""
    STOP_ALL = "stop_all"
    """SIGINT: the workers end, their cells are put back; the daemon is started again after a while."""


@dataclass(frozen=True, slots=True)
class Deed:
    """Something a person does at an instant. `subject` is a cell's key or a device's UUID, where there is one."""

    at_s: float
    wish: Wish
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Trouble(Faults):
    """What goes wrong in a run, with the machine and with the daemon."""

    store_busy: tuple[Window, ...] = ()
    """No commit succeeds: a full disk."""
    store_tight: tuple[Window, ...] = ()
    """No commit of an intent succeeds, others do: a disk on which little is left."""
    crash_points: frozenset[int] = frozenset()
    """Which of the instants between any two effects, counted over the whole run from 0, kill the daemon."""
    down_s: float = 5.0
    """How long it takes until a daemon that died is started again."""
    deeds: tuple[Deed, ...] = ()
    late_cells: int = 0
    """So many of the world's last cells are not in the config until the first reload is asked for."""
