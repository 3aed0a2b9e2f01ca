"""What is no cell's fault: the problem is held against the environment, and its like is held back.

Rules: a failure of the environment (`outcomes.ENVIRONMENT`) opens a problem, or tells that one is there still. Cells
that share what it is about wait; one of them at a time probes whether it has passed, after a pause that doubles with
each probe up to `MAX_PAUSE_S`. It has passed once a probe has got further: it said so, it ended otherwise, or it
outlived by `Rules.quick_s` what it took the others to fail. When the patience (`Rules.patience_s`) is used up, the
cells that wait for it end, and say why. A problem of a device holds back the device, and ends no other's cells.
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
    """Whether an attempt failed for what is no cell's fault."""
    return error is not None and error.kind in ENVIRONMENT


def problem_key(error: AttemptError, needs: Requirement, device: str) -> ProblemKey:
    """Which problem a failure tells of: who would fail alike."""
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
    """How long after this many probes that failed the next one is made."""
    first = max(MIN_PAUSE_S, backoff_s)
    return min(max(first, MAX_PAUSE_S), first * 2.0 ** min(probes, 30))


# Who waits


def problems_of(problems: Problems, needs: Requirement) -> tuple[Problem, ...]:
    """The problems that concern the cells of a queue, in an order of their own."""
    if not problems:
        return ()
    scopes = scopes_of(needs)
    return tuple(problem for key, problem in sorted(problems.items()) if key.scope in scopes)


def blocking_problem(problems: Problems, needs: Requirement, boot_s: float) -> Problem | None:
    """The problem for which none of a queue's cells may start now; None where one may, be it as a probe."""
    found = (p for p in problems_of(problems, needs) if p.probe or p.not_before_boot_s > boot_s)
    return next(found, None)


def as_held_back(problem: Problem, boot_s: float) -> HeldBack:
    """A problem as the reason why something waits."""
    left_s = None if problem.probe else max(0.0, problem.not_before_boot_s - boot_s)
    return HeldBack(problem.key.kind, subject_of(problem), problem.message, left_s)


def subject_of(problem: Problem) -> str:
    """What is to be seen to: as the failure named it, else what those have in common that wait."""
    return problem.subject or problem.key.scope.name


def device_problem(state: State, device: str) -> Problem | None:
    """What is held against a device; None where nothing is."""
    return state.problems.get(ProblemKey(ErrorKind.DEVICE_FAILED, Scope(ScopeKind.DEVICE, device)))


def device_refusal(state: State, device: str, attempts: Sequence[Attempt], boot_s: float) -> HeldBack | None:
    """Why a device that failed takes nothing just now; None where it may. `attempts` are those on it by now."""
    problem = device_problem(state, device)
    if problem is None:
        return None
    # One that was placed in this very plan is the probe.
    begun = next((each.id for each in attempts if each.id not in state.attempts), "")
    if problem.probe or begun or problem.not_before_boot_s > boot_s:
        return as_held_back(replace(problem, probe=problem.probe or begun), boot_s)
    return None


def with_probe(problems: Problems, needs: Requirement, attempt: Attempt) -> Problems:
    """The problems once a cell of this queue has been placed: it is the probe of those that concern it."""
    if not problems:
        return problems
    scopes = scopes_of(needs) | {Scope(ScopeKind.DEVICE, attempt.device)}
    for key, problem in problems.items():
        if key.scope in scopes and not problem.probe:
            problems = problems.set(key, replace(problem, probe=attempt.id))
    return problems


def next_probe_boot_s(state: State, boot_s: float) -> float | None:
    """When the next probe is due, or one has outlived its problem; None where nothing is to be waited for."""
    due: list[float] = []
    for problem in state.problems.values():
        attempt = state.attempts.get(problem.probe)
        due.append(problem.not_before_boot_s if attempt is None else _outlived_boot_s(state, problem, attempt))
    return min((at for at in due if at > boot_s), default=None)


def _outlived_boot_s(state: State, problem: Problem, attempt: Attempt) -> float:
    return attempt.started_boot_s + problem.longest_s + state.rules.quick_s


def count_waiting(state: State, problems: Iterable[Problem]) -> int:
    """How many pending cells of the matrix wait for one of these to pass."""
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
    """The problems after an attempt has ended, and what is to be told of them."""
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
    """The state with a problem that has just shown itself."""
    known, notes = state.problems.get(key), []
    if known is None:
        pause = pause_s(0, state.rules.backoff_s)
        problem = Problem(
            key, error.subject, error.message, now.unix_s, now.boot_s, now.boot_s + pause, longest_s=took_s
        )
        notes.append(
            Note(
                Action.ENVIRONMENT_PROBLEM,
                f"{wording.problem(key.kind, subject_of(problem))}: {error.message}; no cell pays for it. "
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
        # Those that were under way when it began tell nothing new of how long it will last.
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
    """The problem for which a cell waits no longer, because its patience is used up; None where it has some left."""
    key = problem_key(error, state.memo.requirement_of(state.cells[attempt.key]), attempt.device)
    problem = state.problems.get(key)
    spent = problem is not None and problem.waited_s >= state.rules.patience_s
    return problem if spent else None


def removed(state: State, problem: Problem) -> State:
    """The state without a problem that nobody waits for any more."""
    return replace(state, problems=state.problems.delete(problem.key))


def close_probed_by(state: State, attempt: Attempt) -> tuple[State, tuple[Note, ...]]:
    """The state once an attempt has said that it works: what it was the probe of has passed."""
    told: list[Note] = []
    for _, problem in sorted(state.problems.items()):
        if problem.probe == attempt.id:
            state, note = _close(state, problem)
            told.append(note)
    return state, tuple(told)


def close_outlived(state: State, boot_s: float) -> tuple[State, tuple[Note, ...]]:
    """The state without the problems whose probes run for longer than it took the others to fail."""
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
    """The state with every problem's next probe due at once, and without those that concern no cell any more."""
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
    note = Note(Action.ENVIRONMENT_RECOVERED, f"{words}: it has passed, and work goes on", fields=fields)
    return removed(state, problem), note
