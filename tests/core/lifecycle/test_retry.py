"""Who pays for a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.lifecycle.retry import FREE_LIMIT, decide
from boundd.core.memory.raising import LEVELS
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import AttemptError, MemoryCause, Outcome, Verdict
from boundd.core.model.reasons import RetryRule
from boundd.core.model.state import Rules


def attempt_of(record: CellRecord, **changes: object) -> Attempt:
    """An attempt of the record on a device of its own."""
    plain = Attempt(
        "a.1", record.cell.key, record.cell.label, 1, "GPU-0", 10, 10, record.wanted_batch_size, False, 60, 1, 0, 0
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def failure(kind: ErrorKind, cause: MemoryCause | None = None) -> Verdict:
    """A verdict of this kind."""
    outcome = {ErrorKind.OUT_OF_MEMORY: Outcome.OUT_OF_MEMORY, ErrorKind.LOST: Outcome.LOST}.get(kind, Outcome.FAILED)
    return Verdict(outcome, error=AttemptError(kind, "why", 0.0, cause=cause))


TOO_BIG = failure(ErrorKind.OUT_OF_MEMORY, MemoryCause.TOO_BIG)
TOO_LOW = failure(ErrorKind.OUT_OF_MEMORY, MemoryCause.ESTIMATE_TOO_LOW)
PRESSURE = failure(ErrorKind.OUT_OF_MEMORY, MemoryCause.PRESSURE)


@pytest.fixture
def record(make_cell: Callable[..., Cell]) -> CellRecord:
    """A cell of batch 4 that was never tried."""
    return CellRecord(make_cell(), CellPolicy())


@pytest.mark.parametrize("kind", [ErrorKind.TIMEOUT, ErrorKind.KILLED_BY_SIGNAL, ErrorKind.OTHER])
def test_once_more_with_backoff(record: CellRecord, kind: ErrorKind) -> None:
    """A timeout, a signal and a plain bug are tried once more, later, and then no more."""
    rules = Rules(backoff_s=7.0)
    first = decide(record, attempt_of(record), failure(kind), rules)
    assert first.again
    assert first.delay_s == 7.0
    assert not decide(first.record, attempt_of(record), failure(kind), rules).again


@pytest.mark.parametrize(
    "kind",
    [
        ErrorKind.MODEL_UNAVAILABLE,
        ErrorKind.BAD_DATA,
        ErrorKind.NO_RESULT,
        ErrorKind.MALFORMED_RESULT,
        ErrorKind.NOT_STARTED,
    ],
)
def test_never_again_without_a_person(record: CellRecord, kind: ErrorKind) -> None:
    """What would end the same is not repeated."""
    assert not decide(record, attempt_of(record), failure(kind), Rules()).again


def test_lost_is_free_but_not_for_ever(record: CellRecord) -> None:
    """A lost attempt costs nothing and is repeated at once, ten times."""
    for _ in range(FREE_LIMIT):
        decision = decide(record, attempt_of(record), failure(ErrorKind.LOST), Rules())
        assert decision.again
        assert decision.delay_s == 0
        assert decision.record.charged_failures == 0
        record = decision.record
    assert not decide(record, attempt_of(record), failure(ErrorKind.LOST), Rules()).again


def test_too_big_goes_down_the_ladder(record: CellRecord) -> None:
    """Alone with the whole device: 4, 2, 1, and then it is given up."""
    batches = []
    decision = decide(record, attempt_of(record, whole_device=True), TOO_BIG, Rules())
    while decision.again:
        batches.append(decision.record.wanted_batch_size)
        current = attempt_of(decision.record, whole_device=True)
        decision = decide(decision.record, current, TOO_BIG, Rules())
    assert batches == [2, 1]
    assert (decision.reason.kind, decision.reason.failed_batch_size) == (RetryRule.LADDER_ENDS, 1)


def test_pressure_is_cured_by_being_alone(record: CellRecord) -> None:
    """A neighbour took what was reserved: same batch, alone, free of charge."""
    decision = decide(record, attempt_of(record, had_company=True), PRESSURE, Rules())
    assert decision.again
    assert decision.record.alone
    assert decision.record.wanted_batch_size == 4
    assert decision.record.charged_failures == 0


def test_a_low_estimate_is_raised_once_and_then_it_is_alone(record: CellRecord) -> None:
    """It hit its own cap: same batch, first a larger reservation, then a device to itself; free of charge."""
    cures = ((RetryRule.MORE_MEMORY, 150), (RetryRule.MORE_MEMORY, 200), (RetryRule.OWN_DEVICE, None))
    for level, cure in enumerate(cures, start=1):
        decision = decide(record, attempt_of(record, had_company=True), TOO_LOW, Rules())
        assert decision.again
        assert (decision.record.memory_level, decision.record.wanted_batch_size) == (level, 4)
        assert decision.record.charged_failures == 0
        assert (decision.reason.kind, decision.reason.reserved_percent) == cure
        record = decision.record
    assert record.memory_level > LEVELS


def test_a_rung_does_not_use_up_the_second_try(record: CellRecord) -> None:
    """A cell that went down a rung may still have its one retry of a timeout."""
    down = decide(record, attempt_of(record, whole_device=True), TOO_BIG, Rules())
    assert decide(down.record, attempt_of(down.record), failure(ErrorKind.TIMEOUT), Rules()).again


@pytest.mark.parametrize("batch", [None, 2, 1])
def test_a_plain_bug_is_tried_once_more_whatever_the_batch(record: CellRecord, batch: int | None) -> None:
    """Also where the cell is down the ladder, or a person chose a batch: rungs once bought more tries of a bug."""
    first = decide(replace(record, batch_size=batch), attempt_of(record), failure(ErrorKind.OTHER), Rules())
    assert first.again
    assert not decide(first.record, attempt_of(record), failure(ErrorKind.OTHER), Rules()).again


def test_max_attempts_bounds_all_that_is_paid_for(record: CellRecord) -> None:
    """With max_attempts = 1 nothing is tried again."""
    assert not decide(record, attempt_of(record), failure(ErrorKind.TIMEOUT), Rules(max_attempts=1)).again
