"""The shapes of requests and responses: what /openapi.json documents and what is validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Selector = Literal["oom", "timeout", "failed", "stale"]
Terms = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=256)]


class Request(BaseModel):
    """A request's body: an unknown key is an error, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RetryRequest(Request):
    """Run cells again: those of `query`, narrowed to what `selector` names."""

    query: Terms = []
    selector: Selector | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    dry_run: bool = False


class CancelRequest(Request):
    """Cancel the pending and running cells of `query`, which must not be empty (`*` is every cell)."""

    query: Annotated[Terms, Field(min_length=1)]
    dry_run: bool = False


class CordonRequest(Request):
    """Take a device out of service; `device` is a UUID, the start of one, an index or a name."""

    device: Annotated[str, Field(min_length=1, max_length=256)]
    reason: Annotated[str, Field(max_length=1000)] = "cordoned by hand"


class UncordonRequest(Request):
    """Put a device back into service."""

    device: Annotated[str, Field(min_length=1, max_length=256)]


class ImportRequest(Request):
    """The text of an old speedup_bounds.json, and the model that it is of where its keys don't tell."""

    text: str
    model: Annotated[str, Field(max_length=256)] | None = None


class ShutdownRequest(Request):
    """End the daemon; with `end_workers` the workers too, and their cells are put back."""

    end_workers: bool = False


class Empty(Request):
    """Nothing. No body at all does as well."""


class ErrorBody(BaseModel):
    """What was wrong."""

    model_config = ConfigDict(extra="allow")
    type: str
    message: str


class ErrorReply(BaseModel):
    """Every answer that is not a 2xx."""

    error: ErrorBody


class DaemonInfo(BaseModel):
    """The daemon that answers."""

    version: str
    pid: int
    started_at: str
    paused: bool
    stopping: bool
    store_problem: str


class DeviceInfo(BaseModel):
    """A device, its memory as of the latest reading, and the labels of the cells on it."""

    uuid: str
    index: int
    name: str
    backend: str
    total_bytes: int | None
    free_bytes: int | None
    reserved_bytes: int
    headroom_bytes: int | None
    state: Literal["ready", "cordoned", "unavailable"]
    reason: str
    cells: list[str]


class PlanDevice(BaseModel):
    """A device that is planned for: one of the daemon's, or of a box that somebody asked about."""

    uuid: str
    name: str
    total_bytes: int | None


class PlanAttempt(BaseModel):
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


class PlanNever(BaseModel):
    """A cell that would wait for ever on these devices."""

    label: str
    reason: str


class PlanReply(BaseModel):
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


class FootprintInfo(BaseModel):
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


class CellCounts(BaseModel):
    """How many cells stand in each state; every state is named."""

    total: int
    by_state: dict[str, int]


class RunningInfo(BaseModel):
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


class StatusReply(BaseModel):
    """Everything at a glance. `eta_s` is null until a cell has succeeded."""

    daemon: DaemonInfo
    devices: list[DeviceInfo]
    cells: CellCounts
    running: list[RunningInfo]
    eta_s: float | None


class ErrorInfo(BaseModel):
    """Why an attempt did not succeed."""

    type: str
    message: str
    at: str
    phase: str | None
    requested_bytes: int | None
    free_bytes: int | None
    cause: Literal["estimate_too_low", "pressure", "too_big"] | None
    """Where memory ran out: why; `why` says how that was told, with numbers."""
    why: str


class MeasurementInfo(BaseModel):
    """What was measured. Speed-ups are ratios."""

    max_speedup: float | None
    max_speedup_within_tolerance: float | None
    best: dict[str, Any] | None
    isolation: str
    imported_upper_bound: float | None
    details: dict[str, Any]


class CellInfo(BaseModel):
    """A cell. `id` is its digest, which `/v1/cells/{id}` takes, as it takes the label and the key."""

    id: str
    key: dict[str, Any]
    label: str
    state: str
    attempts: int
    batch_size: int | None
    max_speedup: float | None
    max_speedup_within_tolerance: float | None
    isolation: str | None
    stale: bool
    device: str
    duration_s: float | None
    error: ErrorInfo | None


class PolicyInfo(BaseModel):
    """How the config's rules say that the cell is to be run."""

    exclusive: bool
    lease: bool
    timeout_s: float
    grace_s: float
    footprint_bytes: int | None


class PointInfo(BaseModel):
    """A measured point."""

    parameters: dict[str, Any]
    speedup: float
    score_loss: float | None
    isolation: str
    details: dict[str, Any]


class AttemptInfo(BaseModel):
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


class NoRoomInfo(BaseModel):
    """Why a device doesn't take the cell now."""

    device: str
    name: str
    reason: str
    needed_bytes: int | None
    headroom_bytes: int | None
    held_by: list[str]


class ExplainReply(BaseModel):
    """Why a cell is where it is."""

    label: str
    state: str
    reason: str
    devices: list[NoRoomInfo]


class RetryCell(BaseModel):
    """What a retry does to a cell, or would; `note` says what would be reserved where, or why nothing could be yet."""

    label: str
    state: str
    batch_size: int | None
    note: str


class RetryReply(BaseModel):
    """The labels that were affected, or would be."""

    dry_run: bool
    affected: list[str]
    cells: list[RetryCell]


class AffectedReply(BaseModel):
    """The labels that were affected, or would be."""

    dry_run: bool
    affected: list[str]


class PausedReply(BaseModel):
    """Whether new attempts are held back now, and whether that is a change."""

    paused: bool
    changed: bool


class ImportReply(BaseModel):
    """What was imported, what was left because boundd has results of its own, and what no cell answers to."""

    affected: list[str]
    kept: list[str]
    unmatched: list[str]


class ExportEnvelope(BaseModel):
    """An export with what its format couldn't represent."""

    format: str
    media_type: str
    text: str
    warnings: list[str]


class ReloadReply(BaseModel):
    """What the new config changed, for people."""

    changes: str


class ShutdownReply(BaseModel):
    """How many workers are ended, or left for the next daemon."""

    stopping: bool
    end_workers: bool
    live_attempts: int


class WaitReply(BaseModel):
    """Whether no cell of the query is pending or running any more."""

    done: bool
    cells: CellCounts


class HealthReply(BaseModel):
    """`ok`, or why results can't be stored at the moment (with a 503)."""

    ok: bool
    store_problem: str
