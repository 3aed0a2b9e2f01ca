"""What becomes of the cells that the environment failed: tried again for nothing, until the patience is used up."""

from __future__ import annotations

from dataclasses import replace

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.lifecycle.retry import FREE_LIMIT, Decision
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt, CellRecord
from boundd.core.model.effects import Action, Note
from boundd.core.model.outcomes import Verdict
from boundd.core.model.problems import Problem, ScopeKind, scopes_of
from boundd.core.model.reasons import RetryReason, RetryRule
from boundd.core.model.records import SaveCell
from boundd.core.model.state import State
from boundd.core.model.transitions import Trigger, next_cell_state
from boundd.core.scheduler import environment


def retry_uncharged(state: State, record: CellRecord, attempt: Attempt, verdict: Verdict) -> Decision:
    """What follows from an attempt that the environment failed: the cell is put back, and pays nothing.

    The problem that it told of is in the state already. Where the machine ran out of memory, the cell itself may be
    what used it up, so such attempts are bounded like the others that nobody pays for.
    """
    assert verdict.error is not None
    failed = replace(record, error=verdict.error)
    spent = environment.out_of_patience(state, attempt, verdict.error)
    if spent is not None:
        return Decision(failed, again=False, delay_s=0.0, reason=_spent(state, spent))
    if verdict.error.kind is ErrorKind.HOST_MEMORY:
        failed = replace(failed, free_failures=record.free_failures + 1)
        if failed.free_failures > FREE_LIMIT:
            reason = RetryReason(RetryRule.FREE_SPENT, verdict.error.kind, limit=FREE_LIMIT)
            return Decision(failed, again=False, delay_s=0.0, reason=reason)
    reason = RetryReason(RetryRule.NOT_ITS_FAULT, verdict.error.kind)
    return Decision(failed, again=True, delay_s=0.0, reason=reason)


def give_up_waiting_cells(state: State, attempt: Attempt, verdict: Verdict) -> tuple[State, list[SaveCell], list[Note]]:
    """The state once the patience with a problem is used up: the cells that waited for it end with the one that tried.

    A device's problem ends no other's cells: they may run elsewhere.
    """
    error = verdict.error
    if error is None or not environment.is_environment(error) or attempt.end_reason is not None:
        return state, [], []
    problem = environment.out_of_patience(state, attempt, error)
    if problem is None:
        return state, [], []
    saved, notes, cells = [], [], state.cells
    if problem.key.scope.kind is not ScopeKind.DEVICE:
        for needs in [needs for needs in cells.queues if problem.key.scope in scopes_of(needs)]:
            for key in [key for key in cells.queues[needs].entries() if cells.waits_in(needs, key)]:
                record = cells[key]
                ended = replace(record, state=next_cell_state(record.state, Trigger.GIVE_UP_WAITING), error=error)
                cells = cells.set(key, ended)
                saved.append(SaveCell(ended))
                label, words = ended.cell.label, wording.retry(_spent(state, problem))
                notes.append(Note(Action.CELL_GAVE_UP, f"{label}: {words}", "error", cell=label))
            cells = cells.trimmed(needs)
    saved.sort(key=lambda save: cells.places[save.record.cell.key])
    notes.sort(key=lambda note: note.cell or "")
    return environment.removed(replace(state, cells=cells), problem), saved, notes


def _spent(state: State, problem: Problem) -> RetryReason:
    return RetryReason(RetryRule.PATIENCE_SPENT, problem.key.kind, delay_s=state.rules.patience_s)
