"""Problems of the environment: opened by failures, closed by probes; meanwhile the affected cells are held back.

A failure of the environment (`outcomes.ENVIRONMENT`) opens a problem or updates a known one. Cells in the problem's
scope wait. One of them at a time runs as a probe, after a pause that doubles with each failed probe up to
`MAX_PAUSE_S`. The problem is closed when a probe gets past it: it reports progress, it ends in another way, or it
runs for `Rules.quick_s` longer than the others took to fail. When the problem has lasted for `Rules.patience_s`, the
cells that wait for it are given up. A problem of a device holds back the device only, and no cells of other devices
are given up for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from immutables import Map

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model import wording
from boundd.core.model.attempts import Attempt, AttemptState
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.outcomes import AT_START, ENVIRONMENT, AttemptError, Outcome, Verdict
from boundd.core.model.problems import HOST, Problem, ProblemKey, Scope, ScopeKind, scopes_of, work_name
from boundd.core.model.reasons import HeldBack
from boundd.core.model.requirements import Requirement
from boundd.core.model.state import State

MIN_PAUSE_S = 1.0
MAX_PAUSE_S = 600.0
Problems = Map[ProblemKey, Problem]


def is_environment(error: AttemptError | None) -> bool:
    """Whether an attempt failed by a problem of the environment."""
    return error is not None and error.kind in ENVIRONMENT


def problem_key(error: AttemptError, needs: Requirement, device: str) -> ProblemKey:
    """The problem that a failure belongs to: its kind, and the scope of cells that would fail in the same way."""
    kind = error.kind
    if kind is ErrorKind.DEVICE_FAILED:
        return ProblemKey(kind, Scope(ScopeKind.DEVICE, device))
    if kind is ErrorKind.HUB_UNAVAILABLE:
        return ProblemKey(kind, Scope(ScopeKind.MODEL, needs.work.model))
    if error.phase == AT_START:
        narrow = kind in (ErrorKind.INTERPRETER, ErrorKind.FILE_SYSTEM)
        return ProblemKey(kind, Scope(ScopeKind.PROGRAM, needs.policy.program) if narrow else HOST)
    return ProblemKey(kind, Scope(ScopeKind.WORK, work_name(needs)))


def pause_s(probes: int, backoff_s: float) -> float:
    """The pause before the next probe, after `probes` failed ones. Seconds."""
    first = max(MIN_PAUSE_S, backoff_s)
    return min(max(first, MAX_PAUSE_S), first * 2.0 ** min(probes, 30))


# What is held back


def problems_of(problems: Problems, needs: Requirement) -> tuple[Problem, ...]:
    """The problems whose scope includes the cells of a queue, in a fixed order."""
    if not problems:
        return ()
    scopes = scopes_of(needs)
    return tuple(problem for key, problem in sorted(problems.items()) if key.scope in scopes)


def blocking_problem(problems: Problems, needs: Requirement, boot_s: float) -> Problem | None:
    """The problem that prevents all of a queue's cells from starting now; None if one may start, even if only as a
    probe."""
    found = (p for p in problems_of(problems, needs) if p.probe or p.not_before_boot_s > boot_s)
    return next(found, None)


def as_held_back(problem: Problem, boot_s: float) -> HeldBack:
    """A problem as the reason why a cell or device waits."""
    left_s = None if problem.probe else max(0.0, problem.not_before_boot_s - boot_s)
    return HeldBack(problem.key.kind, subject_of(problem), problem.message, left_s)


def subject_of(problem: Problem) -> str:
    """What needs attention: as the failure named it, else the scope's name."""
    return problem.subject or problem.key.scope.name


def device_problem(state: State, device: str) -> Problem | None:
    """The problem of a device; None if it has none."""
    return state.problems.get(ProblemKey(ErrorKind.DEVICE_FAILED, Scope(ScopeKind.DEVICE, device)))


def device_refusal(state: State, device: str, attempts: Sequence[Attempt], boot_s: float) -> HeldBack | None:
    """Why a problem of the device prevents a placement now; None if it doesn't. `attempts`: those on the device,
    including placements of this scheduling pass."""
    problem = device_problem(state, device)
    if problem is None:
        return None
    # An attempt that was placed in this scheduling pass is the probe.
    begun = next((each.id for each in attempts if each.id not in state.attempts), "")
    if problem.probe or begun or problem.not_before_boot_s > boot_s:
        return as_held_back(replace(problem, probe=problem.probe or begun), boot_s)
    return None


def with_probe(problems: Problems, needs: Requirement, attempt: Attempt) -> Problems:
    """The problems after a cell of this queue has been placed: the attempt is the probe of those that concern it."""
    if not problems:
        return problems
    scopes = scopes_of(needs) | {Scope(ScopeKind.DEVICE, attempt.device)}
    for key, problem in problems.items():
        if key.scope in scopes and not problem.probe:
            problems = problems.set(key, replace(problem, probe=attempt.id))
    return problems


def next_probe_boot_s(state: State, boot_s: float) -> float | None:
    """When the next probe is due, or a running one will have outlived its problem; None if there is nothing to wait
    for."""
    due: list[float] = []
    for problem in state.problems.values():
        attempt = state.attempts.get(problem.probe)
        due.append(problem.not_before_boot_s if attempt is None else _outlived_boot_s(state, problem, attempt))
    return min((at for at in due if at > boot_s), default=None)


def _outlived_boot_s(state: State, problem: Problem, attempt: Attempt) -> float:
    return attempt.started_boot_s + problem.longest_s + state.rules.quick_s


def count_waiting(state: State, problems: Iterable[Problem]) -> int:
    """Number of the matrix's pending cells that wait for one of these problems."""
    scopes = {problem.key.scope for problem in problems}
    if not scopes:
        return 0
    waits: dict[Requirement, bool] = {}
    count = 0
    for record in state.pending():
        needs = state.memo.requirement_of(record)
        if needs not in waits:
            waits[needs] = not scopes.isdisjoint(scopes_of(needs))
        count += waits[needs]
    return count


# What opens and closes a problem


def after_end(state: State, attempt: Attempt, verdict: Verdict, now: Now) -> tuple[State, tuple[Note, ...]]:
    """Open, update and close problems after an attempt has ended; returns the new state and the notes."""
    told: list[Note] = []
    failed = None
    if attempt.end_reason is None and verdict.error is not None and is_environment(verdict.error):
        failed = problem_key(verdict.error, state.memo.requirement_of(state.cells[attempt.key]), attempt.device)
    further = attempt.end_reason is None and verdict.outcome not in (Outcome.LOST, Outcome.CANCELLED)
    for key, problem in sorted(state.problems.items()):
        if problem.probe != attempt.id or key == failed:
            continue
        if further:
            state, note = _close(state, problem)
            told.append(note)
        else:
            state = replace(state, problems=state.problems.set(key, replace(problem, probe="")))
    if failed is not None:
        assert verdict.error is not None
        state, notes = _open_or_update(state, failed, attempt, verdict.error, verdict.wall_s or 0.0, now)
        told += notes
    return state, tuple(told)


def _open_or_update(
    state: State, key: ProblemKey, attempt: Attempt, error: AttemptError, took_s: float, now: Now
) -> tuple[State, list[Note]]:
    """Open a problem, or update a known one, after a failure."""
    known, notes = state.problems.get(key), []
    if known is None:
        pause = pause_s(0, state.rules.backoff_s)
        problem = Problem(
            key, error.subject, error.message, now.unix_s, now.boot_s, now.boot_s + pause, longest_s=took_s
        )
        notes.append(
            Note(
                Action.ENVIRONMENT_PROBLEM,
                f"{wording.problem(key.kind, subject_of(problem))}: {error.message}; not charged to any cell. "
                f"{wording.cure(key.kind)}",
                "error",
                cell=attempt.label,
                attempt=attempt.id,
                device=attempt.device if key.scope.kind is ScopeKind.DEVICE else None,
                fields={"boundd.error_kind": key.kind, "boundd.pause_s": pause},
            )
        )
    else:
        is_probe = known.probe == attempt.id
        probes = known.probes + is_probe
        # Attempts that were already running when it began say nothing about how long it will last.
        pause = pause_s(probes if is_probe else 0, state.rules.backoff_s)
        problem = replace(
            known,
            subject=error.subject or known.subject,
            message=error.message,
            last_boot_s=now.boot_s,
            not_before_boot_s=max(known.not_before_boot_s, now.boot_s + pause),
            failures=known.failures + 1,
            probes=probes,
            waited_s=known.waited_s + max(0.0, now.boot_s - known.last_boot_s),
            longest_s=max(known.longest_s, took_s),
            probe="" if is_probe else known.probe,
        )
    return replace(state, problems=state.problems.set(key, problem)), notes


def out_of_patience(state: State, attempt: Attempt, error: AttemptError) -> Problem | None:
    """The problem of a failed attempt, if it has lasted for longer than `Rules.patience_s`."""
    key = problem_key(error, state.memo.requirement_of(state.cells[attempt.key]), attempt.device)
    problem = state.problems.get(key)
    spent = problem is not None and problem.waited_s >= state.rules.patience_s
    return problem if spent else None


def removed(state: State, problem: Problem) -> State:
    """The state without a problem."""
    return replace(state, problems=state.problems.delete(problem.key))


def close_probed_by(state: State, attempt: Attempt) -> tuple[State, tuple[Note, ...]]:
    """Close the problems that an attempt is the probe of, because it has reported progress."""
    told: list[Note] = []
    for _, problem in sorted(state.problems.items()):
        if problem.probe == attempt.id:
            state, note = _close(state, problem)
            told.append(note)
    return state, tuple(told)


def close_outlived(state: State, boot_s: float) -> tuple[State, tuple[Note, ...]]:
    """Close the problems whose probes have run for longer than the other attempts took to fail."""
    told: list[Note] = []
    for _, problem in sorted(state.problems.items()):
        attempt = state.attempts.get(problem.probe)
        if attempt is None or attempt.state is not AttemptState.RUNNING:
            continue
        if boot_s >= _outlived_boot_s(state, problem, attempt):
            state, note = _close(state, problem)
            told.append(note)
    return state, tuple(told)


def probe_all_again(state: State) -> State:
    """Make the next probe of every problem due at once, and drop the problems that concern no cell any more."""
    if not state.problems:
        return state
    live = (state.memo.requirement_of(state.cells[attempt.key]) for attempt in state.attempts.values())
    scopes = {scope for needs in (*state.cells.queues, *live) for scope in scopes_of(needs)}
    kept = {
        key: replace(problem, not_before_boot_s=0.0, probes=0)
        for key, problem in state.problems.items()
        if key.scope.kind is ScopeKind.DEVICE or key.scope in scopes
    }
    return replace(state, problems=Map(kept))


def _close(state: State, problem: Problem) -> tuple[State, Note]:
    fields = {"boundd.error_kind": problem.key.kind, "boundd.failures": problem.failures}
    words = wording.problem(problem.key.kind, subject_of(problem))
    note = Note(Action.ENVIRONMENT_RECOVERED, f"{words}: the problem is over", fields=fields)
    return removed(state, problem), note
