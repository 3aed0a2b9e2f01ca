"""What a worker's end means: the one place that turns evidence into a verdict.

Rules: what the worker itself reported comes before what its output looks like; of an output, the last exception
counts, because a warning of little memory can precede a quite different error; SIGKILL is never taken for the device's
memory, since it is the host that kills so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.environment_evidence import (
    environment_failure_in,
    hub_failure_in,
    kind_of_start,
    missing_module_in,
)
from boundd.core.model.outcomes import AT_START, AttemptError, Measurement, Outcome, Verdict
from boundd.protocol.out_of_memory import last_exception, out_of_memory_text
from boundd.protocol.script_output import ScriptResults, without_terminal_codes
from boundd.text import legible

MESSAGE_LIMIT = 1000
SIGKILL = 9
_MAY_BE_ENVIRONMENT = frozenset({ErrorKind.OTHER, ErrorKind.MODEL_UNAVAILABLE})
SHELL_SIGNAL_BASE = 128

MODEL_UNAVAILABLE = re.compile(
    r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError|LocalEntryNotFoundError"
    r"|GatedRepoError|We couldn't connect to|Error no file named .* found in directory|Cannot load model"
)


@dataclass(frozen=True, slots=True)
class ReportedError:
    """The error line that a worker wrote on purpose."""

    kind: ErrorKind
    message: str
    phase: str | None = None
    requested_bytes: int | None = None
    free_bytes: int | None = None
    subject: str = ""
    """Of the environment's failures: what is to be seen to."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of how an attempt ended. `log_text` is its output, or the head and tail of a long one."""

    exit_status: int | None = None
    signal: int | None = None
    timed_out: bool = False
    ended_on_request: bool = False
    start_error: str = ""
    start_errno: int | None = None
    """The system's error number for it; None where there is none, and then it is the command's fault."""
    start_about: str = ""
    """What that is about: the program to be executed, the folder to run in, or something else."""
    start_subject: str = ""
    """Its path, where it has one."""
    lost: str = ""
    wall_s: float | None = None
    timeout_s: float = 0.0
    lease_waited_s: float | None = None
    """How long it waited for its device's lease, beside its timeout."""
    fetched_s: float | None = None
    """How long it fetched what it needs, beside its timeout."""
    host_memory_own: bool = False
    """It was the attempt's own limit of host memory that was used up."""
    host_memory: str = ""
    """Why the kernel ended some of it for want of the host's memory; empty where it didn't, or nobody knows."""
    measurement: Measurement | None = None
    worker_error: ReportedError | None = None
    malformed: str = ""
    log_text: str = ""
    from_stdout: bool = False
    """The result is the largest `speedup: X` of the output."""
    printed: ScriptResults | None = None
    """The results of the whole output, where `log_text` isn't all of it."""
    tolerance: float | None = None
    """The score loss that the cell allows; None where it says nothing of it."""
    ran_alone: bool = False
    """No other attempt was on the device: what boundd can attest for a worker that doesn't attest it itself."""
    foreign_seen: bool = False
    """A process that is not boundd's was on the device, which boundd attests likewise."""
    unattested: str = ""
    """Why nobody can say that no such process was there; empty where that was seen."""
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    host_peak_bytes: int | None = None


def classify(evidence: Evidence, at_unix_s: float) -> Verdict:
    """The verdict on an attempt; `at_unix_s` is when it ended, UTC."""
    measurement = _success(evidence)
    if measurement is not None:
        return _verdict(evidence, Outcome.SUCCEEDED, measurement=measurement)
    outcome, error = _failure(evidence, at_unix_s)
    return _verdict(evidence, outcome, error=error)


def asks_for_output(evidence: Evidence) -> bool:
    """Whether the verdict depends on what was printed: a result that the worker wrote speaks for itself."""
    return evidence.from_stdout or _success(evidence) is None


def _success(evidence: Evidence) -> Measurement | None:
    measurement = stdout_measurement(evidence) if evidence.from_stdout else evidence.measurement
    ended_well = evidence.exit_status == 0 and not (evidence.timed_out or evidence.lost or evidence.start_error)
    return measurement if ended_well and not evidence.malformed and evidence.worker_error is None else None


def _printed(evidence: Evidence) -> ScriptResults:
    return evidence.printed if evidence.printed is not None else ScriptResults.of(evidence.log_text)


def stdout_measurement(evidence: Evidence) -> Measurement | None:
    """The largest speed-up in an output; None where there is none, or a result in it is malformed."""
    found = _printed(evidence)
    if found.largest is None or found.malformed:
        return None
    isolation, reasons = _isolation(evidence)
    details: dict[str, Any] = {"points": found.count, "read_from": "stdout", "isolation_attested_by": "boundd"}
    if reasons:
        details["isolation_reasons"] = reasons
    if found.line is not None:
        details |= {"line": found.line.number, "line_text": found.line.text, "other_lines": found.count - 1}
    if not found.scored or evidence.tolerance is None:
        # Without a tolerance a score loss says nothing about the bound: it stands in the line, and that is all.
        return Measurement(found.largest, None, None, isolation, details=details)
    within = found.fastest_within(evidence.tolerance)
    fastest, loss = max((pair for pair in found.scored if pair[0] == within), default=max(found.scored))
    best = {"parameters": {}, "speedup": fastest, "score_loss": loss}
    return Measurement(found.largest, within, best, isolation, details=details)


def _isolation(evidence: Evidence) -> tuple[Isolation, list[str]]:
    """What boundd attests for a worker that doesn't, and why it isn't `exclusive`."""
    if evidence.foreign_seen:
        return Isolation.CONTENDED, ["a process that is not boundd's was on the device"]
    if not evidence.ran_alone:
        return Isolation.UNKNOWN, ["another attempt was on the device"]
    if evidence.unattested:
        return Isolation.UNKNOWN, [evidence.unattested]
    return Isolation.EXCLUSIVE, []


def _verdict(
    evidence: Evidence, outcome: Outcome, *, measurement: Measurement | None = None, error: AttemptError | None = None
) -> Verdict:
    return Verdict(
        outcome,
        measurement,
        error,
        evidence.exit_status,
        evidence.signal,
        evidence.wall_s,
        evidence.peak_allocated_bytes,
        evidence.peak_reserved_bytes,
        evidence.host_peak_bytes,
    )


def _failure(evidence: Evidence, at_unix_s: float) -> tuple[Outcome, AttemptError]:
    def error(outcome: Outcome, kind: ErrorKind, message: str) -> tuple[Outcome, AttemptError]:
        return outcome, AttemptError(kind, legible(message)[:MESSAGE_LIMIT], at_unix_s)

    if evidence.start_error:
        kind = kind_of_start(evidence.start_errno, evidence.start_about)
        message = f"the worker could not be started: {legible(evidence.start_error)}"[:MESSAGE_LIMIT]
        return Outcome.REJECTED, AttemptError(kind, message, at_unix_s, AT_START, subject=evidence.start_subject)
    if evidence.lost:
        return error(Outcome.LOST, ErrorKind.LOST, evidence.lost)
    if evidence.timed_out:
        waited_s = evidence.lease_waited_s or 0.0
        beside = f" beside the {waited_s:.0f} s that it waited for the device's lease" if waited_s >= 1 else ""
        fetched_s = evidence.fetched_s or 0.0
        beside += f" beside the {fetched_s:.0f} s that it fetched its model" if fetched_s >= 1 else ""
        message = f"timed out after {evidence.timeout_s:g} s{beside}; {_last_words(evidence.log_text)}"
        return error(Outcome.TIMED_OUT, ErrorKind.TIMEOUT, message)
    if evidence.ended_on_request:
        return error(Outcome.CANCELLED, ErrorKind.CANCELLED, "ended on request")
    if evidence.worker_error is not None:
        return _reported(evidence.worker_error, at_unix_s)
    if evidence.host_memory:
        # Not out_of_memory: no smaller batch and no other device would cure it.
        message = f"{evidence.host_memory}; {_last_words(evidence.log_text)}"
        kind = ErrorKind.KILLED_BY_SIGNAL if evidence.host_memory_own else ErrorKind.HOST_MEMORY
        return error(Outcome.FAILED, kind, message)
    if evidence.malformed:
        return error(Outcome.FAILED, ErrorKind.MALFORMED_RESULT, evidence.malformed)
    if evidence.exit_status == 0:
        return error(Outcome.FAILED, *_no_result(evidence))
    outcome, kind, message = _from_output(evidence)
    told = None
    if kind in _MAY_BE_ENVIRONMENT:
        told = environment_failure_in(last_exception(evidence.log_text)) or missing_module_in(evidence.log_text)
    if told is not None:
        return outcome, AttemptError(told.kind, legible(message)[:MESSAGE_LIMIT], at_unix_s, subject=told.subject)
    return error(outcome, kind, message)


def _no_result(evidence: Evidence) -> tuple[ErrorKind, str]:
    """What a worker that exited 0 left in the place of a result."""
    if not evidence.from_stdout:
        return ErrorKind.NO_RESULT, "the worker exited 0, but it wrote no result line"
    found = _printed(evidence)
    if found.malformed:
        cure = "print it as `speedup: 2.31`, or say with [worker] pattern where the result is"
        return ErrorKind.MALFORMED_RESULT, f"{found.malformed}; {cure}"
    near = f"; nearest to one is {found.unread}" if found.unread else ""
    return ErrorKind.NO_RESULT, f"the worker exited 0, but its output has no `speedup: X`{near}"


def _reported(reported: ReportedError, at_unix_s: float) -> tuple[Outcome, AttemptError]:
    outcome = Outcome.OUT_OF_MEMORY if reported.kind is ErrorKind.OUT_OF_MEMORY else Outcome.FAILED
    # A worker that knows no other kind says in words that it was the hub and not the model.
    told = hub_failure_in(reported.message) if reported.kind is ErrorKind.MODEL_UNAVAILABLE else None
    return outcome, AttemptError(
        reported.kind if told is None else told.kind,
        legible(reported.message)[:MESSAGE_LIMIT],
        at_unix_s,
        None if reported.phase is None else legible(reported.phase),
        reported.requested_bytes,
        reported.free_bytes,
        subject=reported.subject if told is None else reported.subject or told.subject,
    )


def _from_output(evidence: Evidence) -> tuple[Outcome, ErrorKind, str]:
    signal = evidence.signal
    if signal is None and evidence.exit_status is not None and evidence.exit_status > SHELL_SIGNAL_BASE:
        signal = evidence.exit_status - SHELL_SIGNAL_BASE
    if signal == SIGKILL:
        return (
            Outcome.FAILED,
            ErrorKind.KILLED_BY_SIGNAL,
            "killed by SIGKILL: the host ran out of memory, or somebody did",
        )
    words, said = last_exception(evidence.log_text)[:MESSAGE_LIMIT], _last_words(evidence.log_text)
    if why := out_of_memory_text(evidence.log_text):
        return Outcome.OUT_OF_MEMORY, ErrorKind.OUT_OF_MEMORY, why
    if signal is not None:
        return (
            Outcome.FAILED,
            ErrorKind.KILLED_BY_SIGNAL,
            f"killed by signal {signal}; {_last_words(evidence.log_text)}",
        )
    if MODEL_UNAVAILABLE.search(words):
        return Outcome.FAILED, ErrorKind.MODEL_UNAVAILABLE, words
    message = f"exit status {evidence.exit_status}; {words or said}"
    return Outcome.FAILED, ErrorKind.OTHER, message


def _last_words(log_text: str) -> str:
    lines = [line.strip() for line in without_terminal_codes(log_text).splitlines() if line.strip()]
    return f"its last line was: {lines[-1][:200]}" if lines else "it printed nothing"
