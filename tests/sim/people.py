"""People in a simulated run: what they want, one thing after the other, until each has been done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boundd.core.model.events import (
    CancelRequested,
    ConfigLoaded,
    CordonRequested,
    Event,
    PauseRequested,
    ResumeRequested,
    RetryRequested,
    ShutdownRequested,
    UncordonRequested,
)
from boundd.sim.clock import Agenda
from tests.sim.trouble import Deed, Wish

ASK_AGAIN_S = 3.0
CORDON_REASON = "a person wants it"


class People:
    """Does the deeds in order; one that was not done is tried again before any other."""

    def __init__(self, deeds: Sequence[Deed], agenda: Agenda, do: Callable[[Deed], bool]) -> None:
        self.waiting = sorted(deeds, key=lambda deed: deed.at_s)
        self._agenda = agenda
        self._do = do
        if self.waiting:
            agenda.at(self.waiting[0].at_s, self._next)

    def want(self, deeds: Sequence[Deed]) -> None:
        """Want these too, once nothing else is wanted."""
        assert not self.waiting
        self.waiting = list(deeds)
        self._agenda.at(self._agenda.now_s, self._next)

    def _next(self) -> None:
        done = self._do(self.waiting[0])
        if done:
            self.waiting.pop(0)
        if self.waiting:
            self._agenda.at(self.waiting[0].at_s if done else self._agenda.now_s + ASK_AGAIN_S, self._next)


def event_of(deed: Deed, config: ConfigLoaded) -> Event:
    """The event that the API makes of it; `config` is what a reload would read now."""
    match deed.wish:
        case Wish.CANCEL:
            return CancelRequested((deed.subject,))
        case Wish.RETRY:
            return RetryRequested((deed.subject,))
        case Wish.PAUSE:
            return PauseRequested()
        case Wish.RESUME:
            return ResumeRequested()
        case Wish.CORDON:
            return CordonRequested(deed.subject, CORDON_REASON)
        case Wish.UNCORDON:
            return UncordonRequested(deed.subject)
        case Wish.RELOAD:
            return config
        case Wish.STOP | Wish.STOP_ALL:
            return ShutdownRequested(deed.wish is Wish.STOP_ALL)
