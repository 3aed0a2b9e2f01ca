"""Text for reasons: the only module that turns reasons into text for people.

Sizes are in GiB with one digit, counts have their noun ("2 attempts"), and a GPU is named by its index. No decision
depends on this text. It is used by the API's views, the forecast and the log lines that the core writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from boundd.catalogue.outcomes import ErrorKind
from boundd.core.model.devices import Device, DeviceReading
from boundd.core.model.memory_evidence import (
    AllThereIs,
    DeviceFull,
    ForeignHeld,
    MemoryEvidence,
    NeighbourOver,
    NobodyElse,
    StoppedByCap,
    StoredText,
)
from boundd.core.model.outcomes import AttemptError, MemoryCause
from boundd.core.model.quarantines import (
    ByOperator,
    CellsDied,
    DriverFault,
    QuarantineCause,
    StuckProcess,
    UnkillableAttempt,
)
from boundd.core.model.reasons import (
    Backoff,
    CoresShort,
    DiskShort,
    EmptiedFor,
    Full,
    HasEnded,
    HeldBack,
    HostMemoryShort,
    MemoryShort,
    NoRoom,
    NotAlone,
    OneAtATime,
    OtherModel,
    PlacementReason,
    PlainRefusal,
    PlainWait,
    Quarantined,
    Refusal,
    Resting,
    RetryReason,
    RetryRule,
    Runs,
    TakenAlone,
    Unreadable,
    Wait,
)
from boundd.core.model.sources import DurationSource, HostSource, MemorySource, Source
from boundd.text import count, size

_SOURCES: Mapping[str, str] = {
    MemorySource.LEARNED: "learned from {attempts}",
    MemorySource.OTHER_BATCHES: "fitted to {batches}, {attempts}",
    MemorySource.OTHER_BATCH: "extrapolated from another batch, {attempts}",
    MemorySource.RULE: "the config's footprint",
    MemorySource.MODEL: "a prior: context + weights + activations + caches",
    MemorySource.DIGITS: "a prior for the built-in digits models",
    MemorySource.UNKNOWN_MODEL: "an unknown model",
    MemorySource.RAN_OUT: "more than it ran out of memory with",
    HostSource.LEARNED: "learned from {attempts}",
    HostSource.RULE: "the config's host_memory",
    HostSource.MODEL: "a prior: libraries + weights + scorer",
    HostSource.UNKNOWN_WORKER: "an unknown worker",
    HostSource.IS_DEVICE: "its device is the host",
    DurationSource.SAME_WORK: "{attempts} of the same work{elsewhere}",
    DurationSource.SAME_METHOD: "scaled from {attempts} of this method{elsewhere}",
    DurationSource.SAME_MODEL: "scaled from {attempts} of other methods{elsewhere}",
    DurationSource.OTHER_MODELS: "a prior, corrected by {attempts} of other models",
    DurationSource.PRIOR: "a prior: steps x samples x the model's size",
}
_PLAIN: Mapping[str, str] = {
    PlainRefusal.AVOIDED: "the cell died quickly on this device and is tried on another one first",
    PlainRefusal.FREE_NOW: "the device is free now: waiting for the next scheduling pass",
    PlainWait.STOPPING: "the daemon is stopping",
    PlainWait.PAUSED: "the run is paused: continue with `boundctl resume`",
    PlainWait.NO_DEVICE: "there is no device",
    PlainWait.REFUSED: "no device can take it now",
    PlainWait.ROOM_BY_NOW: "a device has room now: waiting for the next scheduling pass",
    PlainWait.NOT_PLANNED: "waiting for the next scheduling pass",
}
_RETRIES: Mapping[RetryRule, str] = {
    RetryRule.LOST: "lost: retrying now (uncharged retry {used} of {limit})",
    RetryRule.PRESSURE: "others took its memory: retrying alone on a device (uncharged retry {used} of {limit})",
    RetryRule.MORE_MEMORY: (
        "the estimate was too low: retrying with {percent}% of it reserved (uncharged retry {used} of {limit})"
    ),
    RetryRule.OWN_DEVICE: "the estimate was too low: retrying alone on a device (uncharged retry {used} of {limit})",
    RetryRule.SMALLER_BATCH: "too big even alone on its device: retrying with batch {batch} instead of {failed_batch}",
    RetryRule.ONCE_MORE: "{error}: retrying once in {delay:g} s",
    RetryRule.NOT_ITS_FAULT: "{error}: not the cell's fault, so not charged: retrying once the problem is over",
    RetryRule.PATIENCE_SPENT: (
        "{error}: given up after the patience of {delay:g} s (retry.patience); try again with `boundctl retry`"
    ),
    RetryRule.FREE_SPENT: "given up after {limit} uncharged retries",
    RetryRule.SAME_AGAIN: "{error}: given up, because another attempt would fail the same way",
    RetryRule.TRIED_TWICE: "{error}: given up after one retry",
    RetryRule.MAX_ATTEMPTS: "given up: max_attempts = {limit} reached",
    RetryRule.LADDER_ENDS: "given up: too big even alone on its device, and the batch ladder ends at {failed_batch}",
}


def source(found: Source) -> str:
    """The source of an estimate."""
    return _SOURCES[found.kind].format(
        attempts=count(found.attempts, "attempt"),
        batches=f"{found.batches} other batches",
        elsewhere=" on another device model" if found.elsewhere else "",
    )


def device_name(reading: DeviceReading) -> str:
    """A device's short name."""
    return "the CPU" if reading.backend == "cpu" else f"GPU {reading.index}"


def device(reading: DeviceReading) -> str:
    """A device's short name and its model."""
    return f"{device_name(reading)} ({reading.name or reading.uuid})"


# Refusals


def _not_alone(no: NotAlone) -> str:
    if no.by_rule:
        why = "the cell must run alone"
    elif no.estimate_bytes is None:
        why = f"must run alone: {source(no.source)}"
    else:
        expected = f"{size(no.estimate_bytes)} expected ({source(no.source)})"
        why = f"must run alone: {expected}, and starts once {size(no.most_bytes)} are free"
    return f"{why}, and {_run_there(no.attempts)}"


def _memory_short(no: MemoryShort) -> str:
    needs = f"needs {size(no.needed_bytes)} ({source(no.source)})"
    return f"{size(max(0, no.short_bytes))} short: {needs}, headroom {size(max(0, no.headroom_bytes))}"


def _emptied_for(no: EmptiedFor) -> str:
    needs = f"needs {size(no.needed_bytes)} ({source(no.source)})"
    spare = f"other cells may use {size(no.spare_bytes)} of it, or more if they end within {no.wait_s:.0f} s"
    return f"being emptied for {no.label}: {needs}, {spare}"


def _host_memory_short(no: HostMemoryShort) -> str:
    left = f"{size(max(0, no.left_bytes))} left beside {count(no.attempts, 'attempt')}"
    needs = f"needs {size(no.needed_bytes)} ({source(no.source)})"
    return f"{size(no.short_bytes)} of host memory short: {needs}, {left}"


def _cores_short(no: CoresShort) -> str:
    held = (
        f"{count(no.attempts, 'attempt')} {'holds' if no.attempts == 1 else 'hold'} {no.busy} of the host's {no.cores}"
    )
    return f"needs {count(no.needed, 'core')}, and {held}"


def _run_there(attempts: int) -> str:
    return f"{count(attempts, 'attempt')} {'runs' if attempts == 1 else 'run'} on it"


# The environment

_PROBLEMS: Mapping[ErrorKind, tuple[str, str]] = {
    ErrorKind.HUB_UNAVAILABLE: (
        "the hub can't be reached",
        "Check the network, or fetch the model beforehand with `hf download`",
    ),
    ErrorKind.HOST_MEMORY: (
        "the machine is out of memory",
        "Free memory on the machine, or tell boundd what cells take with `host_memory` in a rule",
    ),
    ErrorKind.HOST_LIMITS: (
        "the machine is out of descriptors or processes",
        "Raise LimitNOFILE or TasksMax of the unit (`ulimit -n`, `-u`), or end the processes that hold them",
    ),
    ErrorKind.INTERPRETER: (
        "the worker's program can't be executed",
        "Put the program there, make it executable, or correct `worker.python` or `worker.command`",
    ),
    ErrorKind.PACKAGE: (
        "a package is missing or broken",
        "Install it for the worker's interpreter (`worker.python`)",
    ),
    ErrorKind.FILE_SYSTEM: ("a file system fails", "Check the disk, or mount the share again"),
    ErrorKind.DEVICE_FAILED: (
        "a device fails before it is used",
        "See `boundd doctor` and `nvidia-smi`; `boundctl cordon` takes the device out of service",
    ),
}
"""What is wrong, and how an operator can mend it."""
_OTHER = ("something outside the cells fails", "See the message")


def problem(kind: ErrorKind, subject: str) -> str:
    """What the environment's problem is, and with what."""
    return _PROBLEMS.get(kind, _OTHER)[0] + (f" ({subject})" if subject else "")


def cure(kind: ErrorKind) -> str:
    """How an operator can mend the problem, in a sentence."""
    return f"{_PROBLEMS.get(kind, _OTHER)[1]}; boundd then continues by itself."


def held_back(found: HeldBack) -> str:
    """What a cell waits for, for how long, and how to mend it."""
    when = "one attempt probes whether it is over" if found.left_s is None else f"tried again in {found.left_s:.0f} s"
    return f"held back: {problem(found.error, found.subject)}: {found.message}; {when}. {cure(found.error)}"


_REFUSALS: Mapping[type, Callable[[Any], str]] = {
    PlainRefusal: _PLAIN.__getitem__,
    Quarantined: lambda no: f"cordoned: {quarantine(no.quarantine.cause)}",
    Unreadable: lambda no: f"unavailable: {no.why}",
    OtherModel: lambda no: f"another device model ({no.name}); the matrix runs on {no.wanted} (mix_models = false)",
    TakenAlone: lambda no: f"{no.label} runs on it alone",
    Full: lambda no: f"{_run_there(no.attempts)}, and its limit is {no.limit}",
    Resting: lambda no: f"{no.deaths} cells died quickly on it: it takes no cell for {no.left_s:.0f} s",
    OneAtATime: lambda no: f"{no.deaths} cells died quickly on it: it takes one at a time until one is seen to run",
    NotAlone: _not_alone,
    MemoryShort: _memory_short,
    EmptiedFor: _emptied_for,
    HeldBack: held_back,
    HostMemoryShort: _host_memory_short,
    CoresShort: _cores_short,
}


def refusal(found: Refusal) -> str:
    """Why a device or the host doesn't take a cell."""
    return _REFUSALS[type(found)](found)


def no_room(no: NoRoom) -> str:
    """Why a device doesn't take a cell, and how much of it foreign processes hold."""
    foreign = f"; {size(no.foreign_bytes)} held by foreign processes" if no.foreign_bytes else ""
    return refusal(no.refusal) + foreign


def idle(found: OtherModel) -> str:
    """Why a working device takes no cells of this matrix."""
    return (
        f"idle: the matrix runs on {found.wanted}, whose results can't be compared with this one's (mix_models = false)"
    )


# Waits


def disk_short(short: DiskShort) -> str:
    """Why nothing is started while the disk is nearly full, and what to do."""
    return (
        f"the disk of the state folder is nearly full: {size(short.free_bytes)} free, and nothing is started below "
        f"{size(short.reserve_bytes)} (daemon.disk_reserve): free some space, and boundd continues by itself"
    )


_WAITS: Mapping[type, Callable[[Any], str]] = {
    PlainWait: _PLAIN.__getitem__,
    DiskShort: disk_short,
    HeldBack: held_back,
    Backoff: lambda wait: f"backoff: {wait.left_s:.0f} s left",
}


def wait(found: Wait) -> str:
    """Why a cell waits."""
    return _WAITS[type(found)](found)


def runs(found: Runs, on: Device | None) -> str:
    """Where an attempt runs."""
    where = found.device if on is None else device_name(on.reading)
    killed = f"; it can't be killed: {stuck_processes(found.unkillable)}" if found.unkillable else ""
    held = f"{size(found.reservation_bytes)} reserved"
    return f"attempt {found.attempt} {found.state} on {where} for {found.elapsed_s:.0f} s, {held}{killed}"


def has_ended(found: HasEnded) -> str:
    """How a cell ended."""
    why = f": {found.error}: {found.message}" if found.error is not None else ""
    return f"{found.state} after {count(found.attempts, 'attempt')}{why}"


def placement_reason(found: PlacementReason) -> str:
    """Why a device was chosen."""
    beside = f"beside {found.beside}" if found.beside else "on an empty device"
    return f"{'alone' if found.alone else beside}, as the best fit ({source(found.source)})"


# Quarantine


def stuck(process: StuckProcess) -> str:
    """A process that can't be killed."""
    where = f" in {process.waits_in}" if process.waits_in else ""
    at = datetime.fromtimestamp(process.since_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"pid {process.pid} ({process.name}) is in state {process.state}{where} and has survived SIGKILL since {at}"


def stuck_processes(processes: tuple[StuckProcess, ...]) -> str:
    """Processes that can't be killed."""
    return ", ".join(map(stuck, processes))


def _unkillable(cause: UnkillableAttempt) -> str:
    who = f"attempt {cause.attempt_id} ({cause.label}) can't be killed: {stuck_processes(cause.processes)}"
    return f"{who}; the device is back in service when it has ended"


_QUARANTINES: Mapping[type, Callable[[Any], str]] = {
    ByOperator: lambda cause: cause.reason,
    CellsDied: lambda cause: (
        f"{count(len(cause.labels), 'cell')} died here within {cause.within_s:g} s and ran on other devices: "
        + ", ".join(cause.labels)
    ),
    DriverFault: lambda cause: f"the driver reports {cause.fault}",
    UnkillableAttempt: _unkillable,
}


def quarantine(cause: QuarantineCause) -> str:
    """Why a subject is quarantined."""
    return _QUARANTINES[type(cause)](cause)


def out_of_service(found: Device) -> str:
    """Why a device is not ready; empty where it is."""
    return quarantine(found.quarantine.cause) if found.quarantine is not None else found.reading.unavailable


# Out of memory


def _stopped_by_cap(found: StoppedByCap) -> str:
    requested, free, held = found.requested_bytes, found.free_bytes, found.held_bytes or 0
    if requested is not None and free is not None:
        why = f"it asked for {size(requested)} while {size(free)} were free on the device: "
        why += f"its cap of {size(found.cap_bytes)} stopped it"
    elif requested is not None:
        why = f"it held {size(held)} and asked for {size(requested)} more, with a cap of {size(found.cap_bytes)}"
    else:
        why = f"it held {size(held)} of its cap of {size(found.cap_bytes)}"
    return why + (", and that was the whole device" if found.whole_device else "")


_EVIDENCE: Mapping[type, Callable[[Any], str]] = {
    StoppedByCap: _stopped_by_cap,
    NeighbourOver: lambda found: (
        f"{found.label} held {size(found.held_bytes)}, {size(found.over_bytes)} more than was reserved for it"
    ),
    ForeignHeld: lambda found: (
        f"foreign processes hold {size(found.foreign_bytes)} of the device, which leaves "
        f"{size(found.left_bytes)} of the {size(found.reservation_bytes)} that were reserved"
    ),
    DeviceFull: lambda found: (
        f"it asked for {size(found.requested_bytes)} with {size(found.free_bytes)} free on the device, within the "
        f"{size(found.reservation_bytes)} that were reserved for it"
    ),
    AllThereIs: lambda found: f"it was alone with {size(found.reservation_bytes)}, the whole device",
    NobodyElse: lambda found: (
        f"{size(found.reservation_bytes)} were reserved, and no other process was seen to take more than its share"
    ),
    StoredText: lambda found: found.text,
}


def evidence(found: MemoryEvidence | None) -> str:
    """The evidence for why memory ran out; empty if there is none."""
    return "" if found is None else _EVIDENCE[type(found)](found)


def memory_cause(cause: MemoryCause) -> str:
    """The cause of running out of memory, in two or three words."""
    return cause.replace("_", " ")


def out_of_memory(error: AttemptError | None) -> str:
    """Why an attempt ran out of memory; empty if it didn't."""
    if error is None or error.cause is None:
        return ""
    return f"its memory ran out, {memory_cause(error.cause)}: {evidence(error.evidence)}"


# What follows from a failure


def retry(found: RetryReason) -> str:
    """What follows from a failed attempt, and why."""
    failed = "no batch size" if found.failed_batch_size is None else f"batch {found.failed_batch_size}"
    return _RETRIES[found.kind].format(
        error=found.error,
        used=found.used,
        limit=found.limit,
        delay=found.delay_s or 0.0,
        percent=found.reserved_percent,
        batch=found.batch_size,
        failed_batch=failed,
    )
