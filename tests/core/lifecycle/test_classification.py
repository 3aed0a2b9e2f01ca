"""What a worker's end means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.lifecycle.classification import Evidence, ReportedError, asks_for_output, classify
from boundd.core.model.outcomes import Measurement, Outcome
from boundd.protocol.script_output import ScriptResults

MEASURED = Measurement(2.0, 1.5, None, Isolation.EXCLUSIVE)

OUT_OF_MEMORY_TEXTS = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 31.74 GiB",
    "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB",
    "torch.cuda.OutOfMemoryError: CUDA out of memory.",
    "RuntimeError: CUDA error: out of memory",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cudaErrorMemoryAllocation",
    "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB",
    "MemoryError",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
]


@pytest.mark.parametrize("text", OUT_OF_MEMORY_TEXTS)
def test_every_form_of_out_of_memory_is_one(text: str) -> None:
    """Whatever the library and its age call it."""
    log = f"Traceback (most recent call last):\n  File 'x.py', line 1\n{text}\n"
    verdict = classify(Evidence(exit_status=1, log_text=log), 5.0)
    assert verdict.outcome is Outcome.OUT_OF_MEMORY
    assert verdict.error is not None
    assert verdict.error.kind is ErrorKind.OUT_OF_MEMORY
    assert verdict.error.at_unix_s == 5.0


def test_the_last_exception_counts() -> None:
    """A warning of little memory that precedes a plain bug is not an out-of-memory failure."""
    log = "UserWarning: CUDA out of memory, trying a smaller workspace\nTraceback:\nKeyError: 'steps'\n"
    verdict = classify(Evidence(exit_status=1, log_text=log), 0.0)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.error is not None
    assert verdict.error.kind is ErrorKind.OTHER
    assert "KeyError: 'steps'" in verdict.error.message


def test_a_wrapper_speaks_for_what_failed_inside() -> None:
    """A script that runs another reports CalledProcessError; what it wraps is the reason."""
    log = "torch.OutOfMemoryError: CUDA out of memory.\nsubprocess.CalledProcessError: Command 'x' returned 1\n"
    assert classify(Evidence(exit_status=1, log_text=log), 0.0).outcome is Outcome.OUT_OF_MEMORY


def test_sigkill_is_not_the_devices_memory() -> None:
    """SIGKILL and exit 137 are the host's doing, even below an out-of-memory message."""
    for evidence in (
        Evidence(signal=9, log_text=OUT_OF_MEMORY_TEXTS[0]),
        Evidence(exit_status=137, log_text=OUT_OF_MEMORY_TEXTS[0]),
    ):
        verdict = classify(evidence, 0.0)
        assert verdict.error is not None
        assert verdict.error.kind is ErrorKind.KILLED_BY_SIGNAL


def test_success_needs_status_and_result() -> None:
    """Exit 0 without a result is none; a result without exit 0 is none either."""
    assert classify(Evidence(exit_status=0, measurement=MEASURED), 0.0).outcome is Outcome.SUCCEEDED
    no_result = classify(Evidence(exit_status=0), 0.0)
    assert no_result.error is not None
    assert no_result.error.kind is ErrorKind.NO_RESULT
    assert classify(Evidence(exit_status=1, measurement=MEASURED), 0.0).outcome is Outcome.FAILED


def test_a_malformed_line_is_quoted() -> None:
    """The message says what was malformed."""
    verdict = classify(Evidence(exit_status=0, measurement=MEASURED, malformed="line 3: '{oops'"), 0.0)
    assert verdict.error is not None
    assert verdict.error.kind is ErrorKind.MALFORMED_RESULT
    assert "oops" in verdict.error.message


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (Evidence(timed_out=True, signal=9, timeout_s=60), ErrorKind.TIMEOUT),
        (Evidence(lost="its shim is gone"), ErrorKind.LOST),
        (Evidence(start_error="no such file: python9"), ErrorKind.NOT_STARTED),
        (Evidence(ended_on_request=True, signal=15), ErrorKind.CANCELLED),
        (Evidence(signal=11), ErrorKind.KILLED_BY_SIGNAL),
        (Evidence(exit_status=1, log_text="OSError: x is not a local folder and is not a valid model identifier"),
         ErrorKind.MODEL_UNAVAILABLE),
        (Evidence(exit_status=4, worker_error=ReportedError(ErrorKind.MODEL_UNAVAILABLE, "looked in /m")),
         ErrorKind.MODEL_UNAVAILABLE),
        (Evidence(exit_status=5, worker_error=ReportedError(ErrorKind.BAD_DATA, "NaN")), ErrorKind.BAD_DATA),
        (Evidence(exit_status=2, log_text="usage: x"), ErrorKind.OTHER),
    ],
)  # fmt: skip
def test_each_kind_of_failure(evidence: Evidence, kind: ErrorKind) -> None:
    """Each is told from the others, with a message."""
    verdict = classify(evidence, 0.0)
    assert verdict.error is not None
    assert verdict.error.kind is kind
    assert verdict.error.message
    assert verdict.measurement is None


@pytest.mark.parametrize("from_stdout", [False, True])
@pytest.mark.parametrize("measurement", [None, MEASURED])
@pytest.mark.parametrize("status", [0, 1, None])
@pytest.mark.parametrize("ill", [{}, {"timed_out": True}, {"lost": "gone"}, {"malformed": "line 1"}])
def test_output_that_is_not_asked_for_changes_nothing(
    from_stdout: bool, measurement: Measurement | None, status: int | None, ill: dict[str, Any]
) -> None:
    """Only a result that the worker wrote itself needs no look at what was printed, and that one doesn't."""
    evidence = Evidence(exit_status=status, measurement=measurement, from_stdout=from_stdout, **ill)
    good = status == 0 and measurement is not None and not ill and not from_stdout
    assert asks_for_output(evidence) is not good
    if good:
        for said in (*OUT_OF_MEMORY_TEXTS, "speedup: 3.0"):
            assert classify(replace(evidence, log_text=said, printed=ScriptResults.of(said)), 0.0) == classify(
                evidence, 0.0
            )


def test_stdout_takes_the_largest_speedup() -> None:
    """Somebody's own script: the largest figure, and isolation only where boundd saw to it."""
    log = "speedup: 1.20\nspeedup: 2.31\nspeedup: 0.90\n"
    alone = classify(Evidence(exit_status=0, log_text=log, from_stdout=True, ran_alone=True), 0.0)
    assert alone.measurement is not None
    assert alone.measurement.max_speedup == 2.31
    assert alone.measurement.max_speedup_within_tolerance is None
    assert alone.measurement.isolation is Isolation.EXCLUSIVE
    beside = classify(Evidence(exit_status=0, log_text=log, from_stdout=True), 0.0)
    assert beside.measurement is not None
    assert beside.measurement.isolation is Isolation.UNKNOWN
    none = classify(Evidence(exit_status=0, log_text="speed up 2", from_stdout=True), 0.0)
    assert none.error is not None
    assert none.error.kind is ErrorKind.NO_RESULT


def test_the_hosts_memory_is_not_the_devices() -> None:
    """No smaller batch would have helped: `failed`, in words that say whose memory it was.

    A result counts all the same, and so does what the worker itself reported.
    """
    host = "the host ran out of memory, not the device, and the kernel ended 1 of its processes"
    verdict = classify(Evidence(signal=9, host_memory=host, log_text="step 3 of 20\n"), 0.0)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.error is not None
    assert verdict.error.kind is ErrorKind.HOST_MEMORY
    assert host in verdict.error.message
    assert "step 3 of 20" in verdict.error.message
    loader = classify(Evidence(exit_status=1, host_memory=host, log_text="RuntimeError: a loader was killed\n"), 0.0)
    assert loader.error is not None
    assert host in loader.error.message
    assert classify(Evidence(exit_status=0, host_memory=host, measurement=MEASURED), 0.0).outcome is Outcome.SUCCEEDED
    reported = ReportedError(ErrorKind.OUT_OF_MEMORY, "CUDA out of memory")
    told = classify(Evidence(exit_status=1, host_memory=host, worker_error=reported), 0.0)
    assert told.outcome is Outcome.OUT_OF_MEMORY


def test_a_stranger_on_the_device_makes_a_scripts_result_contended() -> None:
    """Whether or not it ran alone among boundd's own; a worker that attests for itself is believed."""
    seen = Evidence(exit_status=0, log_text="speedup: 2.31", from_stdout=True, ran_alone=True, foreign_seen=True)
    verdict = classify(seen, 0.0)
    assert verdict.measurement is not None
    assert verdict.measurement.isolation is Isolation.CONTENDED
    attested = classify(Evidence(exit_status=0, measurement=MEASURED, foreign_seen=True), 0.0)
    assert attested.measurement == MEASURED


def test_a_timeout_says_what_was_spent_waiting() -> None:
    """The wait for the lease came on top of the timeout, and the message says so where there was one."""
    waited = classify(Evidence(timed_out=True, timeout_s=60.0, lease_waited_s=12.3), 0.0)
    assert waited.error is not None
    assert "timed out after 60 s beside the 12 s that it waited for the device's lease" in waited.error.message
    for waited_s in (None, 0.0, 0.4):
        plain = classify(Evidence(timed_out=True, timeout_s=60.0, lease_waited_s=waited_s), 0.0)
        assert plain.error is not None
        assert "lease" not in plain.error.message


def test_a_script_is_told_what_it_printed_wrongly() -> None:
    """A malformed number is quoted with the cure, also beside a good one; so is what is nearest to a result."""
    log = "speedup: 1.20\nspeedup: nan\n"
    verdict = classify(Evidence(exit_status=0, log_text=log, from_stdout=True), 0.0)
    assert verdict.error is not None
    assert verdict.error.kind is ErrorKind.MALFORMED_RESULT
    assert "line 2 of its log" in verdict.error.message
    assert "'speedup: nan'" in verdict.error.message
    assert "[worker] pattern" in verdict.error.message
    near = classify(Evidence(exit_status=0, log_text="speedup: soon", from_stdout=True), 0.0)
    assert near.error is not None
    assert near.error.kind is ErrorKind.NO_RESULT
    assert "nearest to one is line 1 of its log: 'speedup: soon'" in near.error.message


def test_a_script_says_which_line_its_result_is_from() -> None:
    """Its number, its text, and how many others there are; and what lies within the cell's tolerance."""
    log = "speedup: 3.0, score_loss: 0.3\nspeedup: 2.0, score_loss: 0.01\n"
    evidence = Evidence(exit_status=0, log_text=log, from_stdout=True)
    measured = classify(evidence, 0.0).measurement
    assert measured is not None
    told = {name: measured.details[name] for name in ("line", "line_text", "other_lines")}
    assert told == {"line": 1, "line_text": "speedup: 3.0, score_loss: 0.3", "other_lines": 1}
    assert (measured.max_speedup, measured.max_speedup_within_tolerance, measured.best) == (3.0, None, None)
    scored = classify(replace(evidence, tolerance=0.02), 0.0).measurement
    assert scored is not None
    assert (scored.max_speedup, scored.max_speedup_within_tolerance) == (3.0, 2.0)
    assert scored.best == {"parameters": {}, "speedup": 2.0, "score_loss": 0.01}
    none = classify(replace(evidence, tolerance=0.001), 0.0).measurement
    assert none is not None
    assert none.max_speedup_within_tolerance is None
    assert none.best is not None, "it was scored, so its fastest makes no bound"
