"""The answers, as their JSON has them. Sizes are bytes, durations seconds, times UTC as RFC 3339, speed-ups ratios."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

CellStateName = Literal["pending", "running", "succeeded", "failed", "out_of_memory", "timed_out", "cancelled", "lost"]
DeviceStateName = Literal["ready", "cordoned", "unavailable"]
MemoryCauseName = Literal["estimate_too_low", "pressure", "too_big"]


class ErrorBody(TypedDict):
    """What was wrong. Some types of error say more, such as `errors` of a config or `models` of an import.

    `bad_request` is a request that this document doesn't allow; `bad_value` and `bad_query` are ones that it allows and
    that mean nothing to this daemon, such as an axis that the config doesn't have.
    """

    type: str
    message: str


class ErrorReply(TypedDict):
    """Every answer that is not a 2xx."""

    error: ErrorBody


class DaemonInfo(TypedDict):
    """The daemon that answers."""

    version: str
    pid: int
    started_at: str
    paused: bool
    stopping: bool
    store_problem: str


class DeviceInfo(TypedDict):
    """A device, its memory as of the latest reading, and the labels of the cells on it."""

    uuid: str
    index: int
    name: str
    backend: str
    total_bytes: int | None
    free_bytes: int | None
    reserved_bytes: int
    headroom_bytes: int | None
    state: DeviceStateName
    reason: str
    cause: dict[str, Any] | None
    """The reason as data: its `kind` and its numbers (docs/http.md); null where there is none."""
    cells: list[str]


class PlanDevice(TypedDict):
    """A device that is planned for: one of the daemon's, or of a box that somebody asked about."""

    uuid: str
    name: str
    total_bytes: int | None


class PlanAttempt(TypedDict):
    """An attempt that runs or would run. `from_s` and `until_s` are seconds from now; what runs has begun before.

    `duration_source` and `reservation_source` say where the two numbers are from; with `duration_is_prior` nothing
    that was measured stands behind the first.
    """

    digest: str
    label: str
    device: str
    running: bool
    from_s: float
    until_s: float
    starts_at: str
    ends_at: str
    duration_source: str
    duration_is_prior: bool
    reservation_bytes: int
    reservation_source: str


class PlanNever(TypedDict):
    """A cell that would wait for ever on these devices."""

    label: str
    reason: str


class PlanReply(TypedDict):
    """What would run where and when, in the order of the starts, and what that takes for granted.

    `done_s` is from now until the last attempt ends; `priors` counts the attempts whose duration is a prior.
    """

    at: str
    devices: list[PlanDevice]
    attempts: list[PlanAttempt]
    done_s: float
    done_at: str
    priors: int
    never: list[PlanNever]
    assumes: list[str]


class FootprintInfo(TypedDict):
    """What is expected of cells that need the same on devices of one name, and how good such estimates were.

    `estimate_bytes` is null where nobody knows, and such cells run alone. `error_percent` is how far the latest
    estimates, made before an attempt ran, were over its peak (negative: under), newest last.
    """

    subject: str
    device_name: str
    batch_size: int
    pixels: int
    estimate_bytes: int | None
    source: str
    observations: int
    largest_peak_bytes: int | None
    ran_out: int
    error_percent: list[float]


class CellCounts(TypedDict):
    """How many cells stand in each state; every state is named."""

    total: int
    by_state: dict[str, int]


class RunningInfo(TypedDict):
    """A live attempt. `attempt` is its number, `progress` a fraction, or null before the worker has said."""

    label: str
    attempt: int
    attempt_id: str
    device: str
    state: str
    elapsed_s: float
    progress: float | None
    points: int
    batch_size: int | None


class ProblemInfo(TypedDict):
    """Something outside the cells that keeps attempts from running: what is wrong, and how it is cured.

    `cells` is how many wait for it to pass, `scopes` what they share (such as `model: SDXL`); `probing` are the labels
    of the attempts that try whether it has passed, and `next_try_s` is when the next one does, null while one does.
    """

    kind: str
    subject: str
    summary: str
    message: str
    cure: str
    since: str
    failures: int
    cells: int
    scopes: list[str]
    probing: list[str]
    next_try_s: float | None


class StatusReply(TypedDict):
    """Everything at a glance. `eta_s` is null until a cell has succeeded."""

    daemon: DaemonInfo
    devices: list[DeviceInfo]
    cells: CellCounts
    running: list[RunningInfo]
    problems: list[ProblemInfo]
    eta_s: float | None


class ErrorInfo(TypedDict):
    """Why an attempt did not succeed. Where memory ran out, `cause` is why, and `why` the numbers that tell."""

    type: str
    message: str
    at: str
    phase: str | None
    requested_bytes: int | None
    free_bytes: int | None
    cause: MemoryCauseName | None
    """Where memory ran out: why; `why` says how that was told, and `evidence` by which numbers."""
    why: str
    evidence: dict[str, Any] | None


class MeasurementInfo(TypedDict):
    """What was measured. Speed-ups are ratios."""

    max_speedup: float | None
    max_speedup_within_tolerance: float | None
    best: dict[str, Any] | None
    isolation: str
    imported_upper_bound: float | None
    details: dict[str, Any]


class CellInfo(TypedDict):
    """A cell. `id` is its digest, which `/v1/cells/{id}` takes, as it takes the label and the key."""

    id: str
    key: dict[str, Any]
    label: str
    state: CellStateName
    attempts: int
    batch_size: int | None
    max_speedup: float | None
    max_speedup_within_tolerance: float | None
    isolation: str | None
    stale: bool
    device: str
    duration_s: float | None
    error: ErrorInfo | None


class PolicyInfo(TypedDict):
    """How the config's rules say that the cell is to be run."""

    exclusive: bool
    lease: bool
    timeout_s: float
    grace_s: float
    footprint_bytes: int | None


class PointInfo(TypedDict):
    """A measured point."""

    parameters: dict[str, Any]
    speedup: float
    score_loss: float | None
    isolation: str
    details: dict[str, Any]


class AttemptInfo(TypedDict):
    """An attempt; `outcome` is null while it is live."""

    id: str
    number: int
    state: str
    device: str
    reservation_bytes: int
    cap_bytes: int | None
    batch_size: int | None
    exclusive: bool
    started_at: str
    ended_at: str | None
    outcome: str | None
    exit_status: int | None
    signal: int | None
    wall_s: float | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    error: ErrorInfo | None
    measurement: MeasurementInfo | None
    points: list[PointInfo]


class CellDetails(CellInfo):
    """A cell with all that is known of it. The history is its latest attempts, oldest first; `attempts` counts all."""

    canonical_key: str
    in_matrix: bool
    charged_failures: int
    free_failures: int
    memory_level: int
    alone: bool
    policy: PolicyInfo
    measurement: MeasurementInfo | None
    history: list[AttemptInfo]


class NoRoomInfo(TypedDict):
    """Why a device doesn't take the cell now."""

    device: str
    name: str
    index: int | None
    reason: str
    cause: dict[str, Any]
    """The reason as data: its `kind` and its numbers (docs/http.md)."""
    needed_bytes: int | None
    headroom_bytes: int | None
    foreign_bytes: int
    """What processes that are not boundd's hold of the device."""
    held_by: list[str]


class ExplainReply(TypedDict):
    """Why a cell is where it is."""

    label: str
    state: CellStateName
    reason: str
    cause: dict[str, Any]
    """The reason as data: its `kind` and its numbers (docs/http.md)."""
    devices: list[NoRoomInfo]


class RetryCell(TypedDict):
    """What a retry does to a cell, or would; `note` says what would be reserved where, or why nothing could be yet."""

    label: str
    state: CellStateName
    batch_size: int | None
    note: str


class RetryReply(TypedDict):
    """The labels that were affected, or would be."""

    dry_run: bool
    affected: list[str]
    cells: list[RetryCell]


class AffectedReply(TypedDict):
    """The labels that were affected, or would be."""

    dry_run: bool
    affected: list[str]


class PausedReply(TypedDict):
    """Whether new attempts are held back now, and whether that is a change."""

    paused: bool
    changed: bool


class ImportReply(TypedDict):
    """What was imported, what was left because boundd has results of its own, and what no cell answers to."""

    affected: list[str]
    kept: list[str]
    unmatched: list[str]


class ExportEnvelope(TypedDict):
    """An export with what its format couldn't represent."""

    format: str
    media_type: str
    text: str
    warnings: list[str]


class ReloadReply(TypedDict):
    """What the new config changed, for people."""

    changes: str


class ShutdownReply(TypedDict):
    """How many workers are ended, or left for the next daemon."""

    stopping: bool
    end_workers: bool
    live_attempts: int


class WaitReply(TypedDict):
    """Whether no cell of the query is pending or running any more."""

    done: bool
    cells: CellCounts


class HealthReply(TypedDict):
    """`ok`, or why results can't be stored at the moment (with a 503)."""

    ok: bool
    store_problem: str


class EventInfo(TypedDict):
    """What happened: the data of a server-sent event, which is named by its `action` (docs/logs.md lists them)."""

    at: str
    action: str
    level: str
    message: str
    cell: str | None
    attempt: str | None
    device: str | None
    fields: dict[str, Any]


class BackupInfo(TypedDict):
    """A copy of the store: its size, its digest, and how many commits are in it. Its headers say the same."""

    bytes: int
    sha256: str
    commits: int
