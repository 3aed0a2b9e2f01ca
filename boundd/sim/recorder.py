"""Writes down what really happened: a trace of each attempt whose end was recorded, and the counts."""

from __future__ import annotations

from collections.abc import Sequence

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt
from boundd.core.model.outcomes import ENVIRONMENT, Outcome, Verdict
from boundd.core.model.records import Record, SaveCell, SaveEnd
from boundd.core.model.state import Rules, State
from boundd.sim.machine import Machine
from boundd.sim.trace import AttemptTrace, Counts, MemoryEnd, Outcomes
from boundd.sim.world import World

FITS_PERCENT = 90
"""A batch that takes at most this share of a device's memory less the margin fits there; what is above may be tried
in vain, because some bytes are always the driver's."""
PLAIN = frozenset({ErrorKind.TIMEOUT, ErrorKind.KILLED_BY_SIGNAL, ErrorKind.OTHER})


class Recorder:
    """Hears of every commit."""

    def __init__(self, world: World, rules: Rules, machine: Machine, counts: Counts) -> None:
        self._rules = rules
        self._machine = machine
        self._counts = counts
        self._traces: list[AttemptTrace] = []
        counts.lost_devices += sum(1 for outage in world.faults.outages if outage.kills)
        counts.foreign_arrivals += len(world.faults.foreign)

    def committed(self, records: Sequence[Record]) -> None:
        """Write down the ends among these."""
        saved = [(record.record.cell.key, record.record) for record in records if isinstance(record, SaveCell)]
        cells = dict(reversed(saved))
        """Each as its first record has it: what an end makes of its cell, before the plan may start it again."""
        for record in records:
            if isinstance(record, SaveEnd):
                after = cells.get(record.attempt.key)
                batch, had = after.batch_size if after else None, record.attempt.batch_size
                cut = batch is not None and had is not None and batch < had
                self._ended(record.attempt, record.verdict, cut=cut)

    def _ended(self, attempt: Attempt, verdict: Verdict, *, cut: bool) -> None:
        worker = self._machine.workers.get(attempt.id)
        now_s = self._machine.now_s
        trace = AttemptTrace(
            attempt.id,
            attempt.key,
            attempt.label,
            attempt.number,
            attempt.device,
            worker.started_s if worker else now_s,
            worker.ended_s if worker else now_s,
            attempt.reservation_bytes,
            attempt.cap_bytes,
            attempt.batch_size,
            attempt.exclusive,
            worker.had_company if worker else False,
            worker.peak_bytes if worker else 0,
            verdict.outcome,
            verdict.error.kind if verdict.error else None,
            worker.memory if worker else None,
            needless_cut=cut and fits_alone(self._machine, attempt, self._rules.margin_bytes),
        )
        self._traces.append(trace)
        self._count(trace, cut=cut)

    def _count(self, trace: AttemptTrace, *, cut: bool) -> None:
        counts = self._counts
        counts.attempts += 1
        counts.succeeded += trace.outcome is Outcome.SUCCEEDED
        counts.out_of_memory += trace.outcome is Outcome.OUT_OF_MEMORY
        counts.own_cap += trace.memory is MemoryEnd.OWN_CAP
        counts.neighbour += trace.memory is MemoryEnd.NEIGHBOUR
        counts.foreign += trace.memory is MemoryEnd.FOREIGN
        counts.too_big += trace.memory is MemoryEnd.TOO_BIG
        counts.batch_cuts += cut
        counts.timeouts += trace.error is ErrorKind.TIMEOUT
        counts.plain_failures += trace.error in PLAIN
        counts.environment += trace.error in ENVIRONMENT
        counts.lost += trace.outcome is Outcome.LOST

    def outcomes(self, state: State) -> Outcomes:
        """All that was written down."""
        makespan_s = max((trace.ended_s for trace in self._traces), default=0.0)
        cells = {record.cell.key: record.state for record in state.matrix()}
        waiting = {record.cell.key: _why(state, record.cell.key) for record in state.pending()}
        return Outcomes(tuple(self._traces), cells, makespan_s, self._counts, waiting)


def _why(state: State, key: str) -> str:
    found = state.deferrals.get(key)
    if found is None:
        return "it was not planned"
    return "; ".join([wording.wait(found.wait), *(f"{no.device}: {wording.no_room(no)}" for no in found.devices)])


def fits_alone(machine: Machine, attempt: Attempt, margin_bytes: int) -> bool:
    """Whether the attempt's batch really fits on its device, if nothing else is there."""
    total = machine.devices[attempt.device].spec.total_bytes
    peak = machine.cells[attempt.key].truth.peak_bytes(attempt.batch_size)
    return peak * 100 <= (total - margin_bytes) * FITS_PERCENT
