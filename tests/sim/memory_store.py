"""What survives the daemon: the records of every commit that succeeded, as `boundd.store` keeps them.

A cell's policy is the config's and its backoff is the daemon's, so neither survives; nor do readings, deferrals and
progress that no record carried. A test compares this with the real SQLite store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from boundd.core.lifecycle.loop import restored
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.cells import CellPolicy
from boundd.core.model.outcomes import Verdict
from boundd.core.model.quarantines import Quarantine, Subject
from boundd.core.model.records import (
    LiftQuarantine,
    Record,
    SaveAnswer,
    SaveAttempt,
    SaveCell,
    SaveDuration,
    SaveEnd,
    SaveObservation,
    SavePaused,
    SavePoint,
    SaveQuarantine,
)
from boundd.core.model.state import Rules, State
from boundd.sim.trace import Violation


@dataclass(slots=True)
class Kept:
    """The store of a simulated run."""

    cells: dict[str, CellRecord] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    """Every attempt that was ever begun, as it was saved last."""
    ends: dict[str, Verdict] = field(default_factory=dict)
    points: set[tuple[str, int]] = field(default_factory=set)
    quarantines: dict[Subject, Quarantine] = field(default_factory=dict)
    paused: bool = False
    learned: list[SaveObservation | SaveDuration] = field(default_factory=list)
    answers: set[str] = field(default_factory=set)
    """The keys of the requests that were answered."""

    _numbered: dict[tuple[str, int], str] = field(default_factory=dict)

    def commit(self, records: Iterable[Record]) -> None:
        """Keep the records.

        Raises:
            Violation: the real store would refuse one: a second end, or an attempt number given twice.
        """
        for record in records:
            match record:
                case SaveCell(cell):
                    self.cells[cell.cell.key] = cell
                case SaveAttempt(attempt):
                    self._save(attempt)
                case SaveEnd(attempt, verdict, _):
                    if attempt.id in self.ends:
                        raise Violation("one-result", f"{attempt.label}: a second end for attempt {attempt.number}")
                    self._save(attempt)
                    self.ends[attempt.id] = verdict
                case SavePoint(attempt_id, index, _):
                    self.points.add((attempt_id, index))
                case SaveQuarantine(quarantine):
                    self.quarantines[quarantine.subject] = quarantine
                case LiftQuarantine(subject):
                    self.quarantines.pop(subject, None)
                case SavePaused(paused):
                    self.paused = paused
                case SaveObservation() | SaveDuration():
                    self.learned.append(record)
                case SaveAnswer():
                    self.answers.add(record.key)

    def _save(self, attempt: Attempt) -> None:
        if self._numbered.setdefault((attempt.key, attempt.number), attempt.id) != attempt.id:
            raise Violation("one-result", f"{attempt.label}: number {attempt.number} is given to two attempts")
        self.attempts[attempt.id] = attempt

    def take_up(self, state: State) -> None:
        """Keep all of a state."""
        self.cells.update(state.cells.items())
        self.attempts.update(state.attempts.items())
        self.quarantines.update(state.quarantines)
        self.paused = state.paused
        self.learned += [SaveObservation(seen) for seen in state.observations]
        self.learned += [SaveDuration(seen) for seen in state.durations]

    def live(self) -> list[Attempt]:
        """The attempts without an end."""
        return [attempt for attempt in self.attempts.values() if attempt.id not in self.ends]

    def restored(self, rules: Rules, settings: object = None) -> State:
        """The state that a daemon begins with, before it has read the config's matrix or any device."""
        return restored(
            rules,
            settings,
            cells=[bare_cell(record) for record in self.cells.values()],
            attempts=self.live(),
            observations=[each.observation for each in self.learned if isinstance(each, SaveObservation)],
            durations=[each.duration for each in self.learned if isinstance(each, SaveDuration)],
            quarantines=self.quarantines.values(),
            paused=self.paused,
        )


def bare_cell(record: CellRecord) -> CellRecord:
    """The record without what is not kept: the policy is the config's, the rest this daemon's."""
    return replace(record, policy=CellPolicy(), not_before_boot_s=0.0, avoid="")
