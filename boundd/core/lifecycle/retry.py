"""Who pays for a failure, and what is changed before the next attempt.

| failure                              | cure                                   | who pays                      |
| ------------------------------------ | -------------------------------------- | ----------------------------- |
| lost                                 | again at once                          | nobody, `FREE_LIMIT` times    |
| out of memory by pressure            | alone on its device                    | nobody, `FREE_LIMIT` times    |
| out of memory, estimate too low      | x 1.5, then x 2, then alone            | nobody, `FREE_LIMIT` times    |
| out of memory, too big               | the next smaller batch of the ladder   | a rung                        |
| timeout, killed by a signal, other   | once more, after a backoff             | the cell                      |
| model, data, result, not started     | none until a person says `retry`       | the cell                      |

`max_attempts` bounds everything that a cell pays for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.memory.footprint import WHOLE_DEVICE_PERCENT
from boundd.core.memory.raising import LEVELS, RAISED_PERCENT
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.outcomes import MemoryCause, Verdict
from boundd.core.model.reasons import RetryReason, RetryRule
from boundd.core.model.records import SaveCell
from boundd.core.model.state import Rules, State
from boundd.core.model.workload import subject_on

FREE_LIMIT = 10
"""Free attempts are bounded too, so that a cell that kills its machine ends."""
ONCE_MORE = frozenset({ErrorKind.TIMEOUT, ErrorKind.KILLED_BY_SIGNAL, ErrorKind.OTHER})


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the cell: its record with the costs and cures applied, whether it goes on, and why."""

    record: CellRecord
    again: bool
    delay_s: float
    reason: RetryReason


def decide(record: CellRecord, attempt: Attempt, verdict: Verdict, rules: Rules) -> Decision:
    """What follows from an attempt that did not succeed and that nobody asked to end.

    Where memory ran out, the verdict's error says the cause (`memory.diagnosis`).
    """
    assert verdict.error is not None
    kind = verdict.error.kind
    failed = replace(record, error=verdict.error)
    if kind is ErrorKind.LOST:
        return _free(failed, RetryReason(RetryRule.LOST, kind))
    if kind is ErrorKind.OUT_OF_MEMORY:
        return _out_of_memory(failed, attempt, verdict.error.cause, rules)
    charged = replace(failed, charged_failures=record.charged_failures + 1, plain_failures=record.plain_failures + 1)
    if kind not in ONCE_MORE:
        return _given_up(charged, RetryReason(RetryRule.SAME_AGAIN, kind))
    if charged.plain_failures > 1:
        return _given_up(charged, RetryReason(RetryRule.TRIED_TWICE, kind))
    return _charged(charged, rules, RetryReason(RetryRule.ONCE_MORE, kind, delay_s=rules.backoff_s))


def batch_to_retry(state: State, record: CellRecord) -> int | None:
    """The batch that a person's retry begins with: the largest, from the one asked for down to the last one tried,
    that no device of the size there is now has been seen to be too small for.
    """
    asked, last = record.cell.batch_size, record.batch_size
    if asked is None or last is None or last >= asked:
        return last
    rungs = [batch for batch in state.rules.batch_ladder if last < batch < asked]
    return next((batch for batch in (asked, *rungs) if not _seen_too_big(state, record, batch)), last)


def lower_batch_of_siblings(state: State, attempt: Attempt) -> tuple[State, list[SaveCell]]:
    """The waiting cells of the same work, with the next smaller batch, once one has shown that no device holds it.

    They differ in what leaves memory alone, such as steps and scheduler: each of them would fail in the same way, alone
    on a device. Nothing is charged to them.
    """
    work = state.memo.workload_of(state.cells[attempt.key], attempt.batch_size)
    totals = {device.uuid: device.reading.total_bytes or 0 for device in state.devices.values()}
    smaller = [batch for batch in state.rules.batch_ladder if batch < work.batch_size]
    if not smaller or attempt.batch_size is None or totals.get(attempt.device, 0) < max(totals.values(), default=0):
        return state, []
    cells, saved = state.cells, []
    for needs in [n for n in cells.queues if (n.work.subject, n.work.pixels) == (work.subject, work.pixels)]:
        if needs.work.batch_size != work.batch_size:
            continue
        for key in [key for key in cells.queues[needs].entries() if cells.waits_in(needs, key)]:
            cut = replace(cells[key], batch_size=max(smaller), memory_level=LEVELS + 1)
            cells = cells.set(key, cut)
            saved.append(SaveCell(cut))
        # What is left of the queue would rank as the one that its cells are in now, and a map's order decide.
        cells = cells.trimmed(needs)
    saved.sort(key=lambda save: cells.places[save.record.cell.key])  # the queues' own order is no order
    return replace(state, cells=cells), saved


def _seen_too_big(state: State, record: CellRecord, batch_size: int) -> bool:
    """Whether that batch, or less work, has run out of as much memory as any device has to give."""
    work = state.memo.workload_of(record, batch_size)
    readings = [device.reading for device in state.devices.values() if device.reading.total_bytes]
    most = max((reading.total_bytes or 0 for reading in readings), default=0) - state.rules.margin_bytes
    seen = (o for name in {r.name for r in readings} for o in state.observations.about(subject_on(work, name)))
    return any(
        o.censored and o.batch_pixels <= work.batch_pixels and o.peak_bytes >= most * WHOLE_DEVICE_PERCENT // 100
        for o in seen
    )


def _given_up(record: CellRecord, reason: RetryReason) -> Decision:
    return Decision(record, again=False, delay_s=0.0, reason=reason)


def _free(record: CellRecord, reason: RetryReason) -> Decision:
    used = record.free_failures + 1
    counted = replace(record, free_failures=used)
    if used > FREE_LIMIT:
        return _given_up(counted, RetryReason(RetryRule.FREE_SPENT, reason.error, limit=FREE_LIMIT))
    return Decision(counted, again=True, delay_s=0.0, reason=replace(reason, used=used, limit=FREE_LIMIT))


def _charged(record: CellRecord, rules: Rules, reason: RetryReason) -> Decision:
    if record.charged_failures >= rules.max_attempts:
        return _given_up(record, RetryReason(RetryRule.MAX_ATTEMPTS, reason.error, limit=rules.max_attempts))
    return Decision(record, again=True, delay_s=reason.delay_s or 0.0, reason=reason)


def _out_of_memory(record: CellRecord, attempt: Attempt, cause: MemoryCause | None, rules: Rules) -> Decision:
    if cause is MemoryCause.TOO_BIG:
        return _next_rung(record, attempt, rules)
    if cause is MemoryCause.PRESSURE:
        return _free(replace(record, alone=True), RetryReason(RetryRule.PRESSURE, ErrorKind.OUT_OF_MEMORY))
    level = record.memory_level + 1
    reason = RetryReason(RetryRule.OWN_DEVICE, ErrorKind.OUT_OF_MEMORY)
    if level <= LEVELS:
        percent = RAISED_PERCENT[level - 1]
        reason = RetryReason(RetryRule.MORE_MEMORY, ErrorKind.OUT_OF_MEMORY, reserved_percent=percent)
    return _free(replace(record, memory_level=level), reason)


def _next_rung(record: CellRecord, attempt: Attempt, rules: Rules) -> Decision:
    had = attempt.batch_size
    smaller = [batch for batch in rules.batch_ladder if had is not None and batch < had]
    # The smaller batch is alone too, until attempts at it have shown what it takes.
    charged = replace(record, charged_failures=record.charged_failures + 1, memory_level=LEVELS + 1)
    if not smaller:
        return _given_up(charged, RetryReason(RetryRule.LADDER_ENDS, ErrorKind.OUT_OF_MEMORY, failed_batch_size=had))
    batch = max(smaller)
    reason = RetryReason(RetryRule.SMALLER_BATCH, ErrorKind.OUT_OF_MEMORY, batch_size=batch, failed_batch_size=had)
    return _charged(replace(charged, batch_size=batch), rules, reason)
