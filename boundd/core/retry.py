"""Who pays for a failure, and what is changed before the next attempt.

| failure                              | cure                                   | who pays                      |
| ------------------------------------ | -------------------------------------- | ----------------------------- |
| lost                                 | again at once                          | nobody, `FREE_LIMIT` times    |
| out of memory by pressure            | alone on its device                    | nobody, `FREE_LIMIT` times    |
| out of memory, estimate too low      | a larger reservation                   | nobody, `LEVELS` times        |
| out of memory, too big               | the next smaller batch of the ladder   | a rung                        |
| timeout, killed by a signal, other   | once more, after a backoff             | the cell                      |
| model, data, result, not started     | none until a person says `retry`       | the cell                      |

`max_attempts` bounds everything that a cell pays for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from boundd.core.attempts import Attempt, CellRecord
from boundd.core.outcomes import ErrorKind, Verdict
from boundd.core.state import Rules

FREE_LIMIT = 10
"""Free attempts are bounded too, so that a cell that kills its machine ends."""
LEVELS = 3
"""After 1.5, 2.25 and 3.4 times the estimate, a cell gets a device to itself."""
ONCE_MORE = frozenset({ErrorKind.TIMEOUT, ErrorKind.KILLED_BY_SIGNAL, ErrorKind.OTHER})


class MemoryCause(StrEnum):
    """Why an attempt ran out of memory."""

    ESTIMATE_TOO_LOW = "estimate_too_low"
    PRESSURE = "pressure"
    TOO_BIG = "too_big"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the cell: its record with the costs and cures applied, whether it goes on, and why."""

    record: CellRecord
    again: bool
    delay_s: float
    why: str


def memory_cause(attempt: Attempt, verdict: Verdict) -> MemoryCause:
    """Why the attempt ran out of memory, from its own record, its cap and its company."""
    error = verdict.error
    requested = error.requested_bytes if error else None
    free = error.free_bytes if error else None
    device_had_room = requested is not None and free is not None and free >= requested
    if attempt.whole_device:
        return MemoryCause.TOO_BIG
    if device_had_room and attempt.cap_bytes is not None:
        return MemoryCause.ESTIMATE_TOO_LOW
    if attempt.had_company:
        return MemoryCause.PRESSURE
    return MemoryCause.ESTIMATE_TOO_LOW


def decide(record: CellRecord, attempt: Attempt, verdict: Verdict, rules: Rules) -> Decision:
    """What follows from an attempt that did not succeed and that nobody asked to end."""
    assert verdict.error is not None
    kind = verdict.error.kind
    failed = replace(record, error=verdict.error)
    if kind is ErrorKind.LOST:
        return _free(failed, "it was lost: again at once")
    if kind is ErrorKind.OUT_OF_MEMORY:
        return _out_of_memory(failed, attempt, verdict, rules)
    charged = replace(failed, charged_failures=record.charged_failures + 1)
    if kind not in ONCE_MORE:
        return Decision(charged, again=False, delay_s=0.0, why=f"{kind}: another attempt would end the same")
    plain_failures = charged.charged_failures - _rungs_taken(record, rules)
    if plain_failures > 1:
        return Decision(charged, again=False, delay_s=0.0, why=f"{kind}: it was tried once more already")
    return _charged(charged, rules, rules.backoff_s, f"{kind}: once more in {rules.backoff_s:g} s")


def _free(record: CellRecord, why: str) -> Decision:
    used = record.free_failures + 1
    spent = used > FREE_LIMIT
    return Decision(
        replace(record, free_failures=used),
        again=not spent,
        delay_s=0.0,
        why=f"{why} ({used} of {FREE_LIMIT} free attempts used)"
        if not spent
        else f"{FREE_LIMIT} free attempts used up",
    )


def _charged(record: CellRecord, rules: Rules, delay_s: float, why: str) -> Decision:
    if record.charged_failures >= rules.max_attempts:
        return Decision(record, again=False, delay_s=0.0, why=f"max_attempts = {rules.max_attempts} reached")
    return Decision(record, again=True, delay_s=delay_s, why=why)


def _out_of_memory(record: CellRecord, attempt: Attempt, verdict: Verdict, rules: Rules) -> Decision:
    cause = memory_cause(attempt, verdict)
    if cause is MemoryCause.PRESSURE:
        return _free(replace(record, alone=True), "a neighbour took its memory: again, alone on its device")
    if cause is MemoryCause.ESTIMATE_TOO_LOW:
        if record.memory_level < LEVELS:
            level = record.memory_level + 1
            return _free(
                replace(record, memory_level=level), f"the estimate was too low: a reservation of level {level}"
            )
        return _free(replace(record, alone=True), "the estimate was too low at every level: a device to itself")
    return _next_rung(record, attempt, rules)


def _next_rung(record: CellRecord, attempt: Attempt, rules: Rules) -> Decision:
    smaller = [batch for batch in rules.batch_ladder if attempt.batch_size is not None and batch < attempt.batch_size]
    charged = replace(record, charged_failures=record.charged_failures + 1, alone=True)
    if not smaller:
        had = "no batch size" if attempt.batch_size is None else f"batch {attempt.batch_size}"
        return Decision(
            charged, again=False, delay_s=0.0, why=f"too big alone on its device, and the ladder ends at {had}"
        )
    batch = max(smaller)
    why = f"too big alone on its device: batch {batch} instead of {attempt.batch_size}"
    return _charged(replace(charged, batch_size=batch, memory_level=0), rules, 0.0, why)


def _rungs_taken(record: CellRecord, rules: Rules) -> int:
    asked, now = record.cell.batch_size, record.batch_size
    if asked is None or now is None:
        return 0
    return sum(1 for batch in rules.batch_ladder if now <= batch < asked)
