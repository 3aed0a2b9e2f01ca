"""The state machines of cells and attempts, as one transition table each.

States change only by these tables. A transition that isn't in them is a bug of boundd's: it raises, and nothing
changes.
"""

from __future__ import annotations

from enum import StrEnum

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.attempts import AttemptState, CellState
from boundd.core.model.outcomes import Outcome


class IllegalTransitionError(AssertionError):
    """A bug of boundd's: the table has no such transition."""


class Trigger(StrEnum):
    """What makes a cell change its state."""

    PLACE = "place"
    SUCCEED = "succeed"
    TRY_AGAIN = "try-again"
    GIVE_UP_FAILED = "give-up-failed"
    GIVE_UP_OUT_OF_MEMORY = "give-up-out-of-memory"
    GIVE_UP_TIMED_OUT = "give-up-timed-out"
    GIVE_UP_LOST = "give-up-lost"
    GIVE_UP_WAITING = "give-up-waiting"
    CANCEL = "cancel"
    RETRY = "retry"
    IMPORT_SUCCESS = "import-success"
    IMPORT_FAILED = "import-failed"
    IMPORT_OUT_OF_MEMORY = "import-out-of-memory"
    IMPORT_TIMED_OUT = "import-timed-out"


class AttemptTrigger(StrEnum):
    """What makes an attempt change its state."""

    STARTED = "started"
    END_ASKED = "end-asked"
    ENDED = "ended"


ENDED_CELL_STATES = (
    CellState.SUCCEEDED,
    CellState.FAILED,
    CellState.OUT_OF_MEMORY,
    CellState.TIMED_OUT,
    CellState.CANCELLED,
    CellState.LOST,
)

CELL_TRANSITIONS: dict[tuple[CellState, Trigger], CellState] = {
    (CellState.PENDING, Trigger.PLACE): CellState.RUNNING,
    (CellState.PENDING, Trigger.CANCEL): CellState.CANCELLED,
    (CellState.PENDING, Trigger.GIVE_UP_WAITING): CellState.FAILED,
    (CellState.PENDING, Trigger.IMPORT_SUCCESS): CellState.SUCCEEDED,
    (CellState.PENDING, Trigger.IMPORT_FAILED): CellState.FAILED,
    (CellState.PENDING, Trigger.IMPORT_OUT_OF_MEMORY): CellState.OUT_OF_MEMORY,
    (CellState.PENDING, Trigger.IMPORT_TIMED_OUT): CellState.TIMED_OUT,
    (CellState.RUNNING, Trigger.SUCCEED): CellState.SUCCEEDED,
    (CellState.RUNNING, Trigger.TRY_AGAIN): CellState.PENDING,
    (CellState.RUNNING, Trigger.GIVE_UP_FAILED): CellState.FAILED,
    (CellState.RUNNING, Trigger.GIVE_UP_OUT_OF_MEMORY): CellState.OUT_OF_MEMORY,
    (CellState.RUNNING, Trigger.GIVE_UP_TIMED_OUT): CellState.TIMED_OUT,
    (CellState.RUNNING, Trigger.GIVE_UP_LOST): CellState.LOST,
    (CellState.RUNNING, Trigger.CANCEL): CellState.CANCELLED,
    **{(state, Trigger.RETRY): CellState.PENDING for state in ENDED_CELL_STATES},
}

ATTEMPT_TRANSITIONS: dict[tuple[AttemptState, AttemptTrigger], AttemptState] = {
    (AttemptState.STARTING, AttemptTrigger.STARTED): AttemptState.RUNNING,
    (AttemptState.STARTING, AttemptTrigger.END_ASKED): AttemptState.ENDING,
    (AttemptState.STARTING, AttemptTrigger.ENDED): AttemptState.ENDED,
    (AttemptState.RUNNING, AttemptTrigger.END_ASKED): AttemptState.ENDING,
    (AttemptState.RUNNING, AttemptTrigger.ENDED): AttemptState.ENDED,
    (AttemptState.ENDING, AttemptTrigger.STARTED): AttemptState.ENDING,
    (AttemptState.ENDING, AttemptTrigger.END_ASKED): AttemptState.ENDING,
    (AttemptState.ENDING, AttemptTrigger.ENDED): AttemptState.ENDED,
    # A daemon that adopts an attempt reports it as started again.
    (AttemptState.RUNNING, AttemptTrigger.STARTED): AttemptState.RUNNING,
}

MEANINGS: dict[Trigger | AttemptTrigger, str] = {
    Trigger.PLACE: "the planner has found room: an attempt is begun",
    Trigger.SUCCEED: "the attempt ended with a result",
    Trigger.TRY_AGAIN: "the attempt ended without one, and another may do better, or the daemon was told to end it",
    Trigger.GIVE_UP_FAILED: "it failed, and another attempt would end the same, or there were enough",
    Trigger.GIVE_UP_OUT_OF_MEMORY: "it ran out of memory, and nothing is left to try",
    Trigger.GIVE_UP_TIMED_OUT: "it timed out, once too often",
    Trigger.GIVE_UP_LOST: "it was lost, once too often",
    Trigger.GIVE_UP_WAITING: "it waited for what the environment lacks until the patience was used up",
    Trigger.CANCEL: "a person cancelled it; a running one is cancelled once nothing of it is alive",
    Trigger.RETRY: "a person said `retry`",
    Trigger.IMPORT_SUCCESS: "an old file had a result for it",
    Trigger.IMPORT_FAILED: "an old file had a failure for it",
    Trigger.IMPORT_OUT_OF_MEMORY: "an old file said that it ran out of memory",
    Trigger.IMPORT_TIMED_OUT: "an old file said that it timed out",
    AttemptTrigger.STARTED: "its worker runs; an adopted one is told to run again",
    AttemptTrigger.END_ASKED: "it was cancelled, or the daemon is to end with its workers",
    AttemptTrigger.ENDED: "nothing of it is alive any more",
}
"""What each trigger means, for the drawing in docs/lifecycle.md."""

GIVE_UP: dict[Outcome, Trigger] = {
    Outcome.FAILED: Trigger.GIVE_UP_FAILED,
    Outcome.REJECTED: Trigger.GIVE_UP_FAILED,
    Outcome.OUT_OF_MEMORY: Trigger.GIVE_UP_OUT_OF_MEMORY,
    Outcome.TIMED_OUT: Trigger.GIVE_UP_TIMED_OUT,
    Outcome.LOST: Trigger.GIVE_UP_LOST,
    Outcome.CANCELLED: Trigger.CANCEL,
}

IMPORT_ERROR: dict[ErrorKind, Trigger] = {
    ErrorKind.OUT_OF_MEMORY: Trigger.IMPORT_OUT_OF_MEMORY,
    ErrorKind.TIMEOUT: Trigger.IMPORT_TIMED_OUT,
}


def next_cell_state(state: CellState, trigger: Trigger) -> CellState:
    """The cell's state after the trigger.

    Raises:
        IllegalTransitionError: the table has no such transition.
    """
    try:
        return CELL_TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransitionError(f"a cell that is {state} can't {trigger}") from None


def next_attempt_state(state: AttemptState, trigger: AttemptTrigger) -> AttemptState:
    """The attempt's state after the trigger.

    Raises:
        IllegalTransitionError: the table has no such transition.
    """
    try:
        return ATTEMPT_TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransitionError(f"an attempt that is {state} can't be {trigger}") from None
