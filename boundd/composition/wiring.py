"""What the composition root puts together from a config: how workers are started, how results leave.

Each piece here knows two sides that don't know each other: the config and the launcher, the state and the exports,
the control API and the import of old files.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
from starlette.types import ASGIApp

from boundd import __version__
from boundd.catalogue.libraries import installed_version
from boundd.catalogue.models import pipeline_classes
from boundd.config import Settings, command_for, model_value, scorer_value
from boundd.control.api import ExportText, ImportPreview, create_app
from boundd.control.peers import AccessRules
from boundd.core.memory.headroom import headroom_bytes
from boundd.core.model.attempts import Attempt, attempt_id
from boundd.core.model.cells import Cell
from boundd.core.model.devices import Device
from boundd.core.model.effects import Action, Note
from boundd.core.model.state import Rules, State
from boundd.launch.cgroups import Cgroups
from boundd.ports import Clock, ConfigError, LaunchSpec, Observer, Service, Store
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lease import lease_use
from boundd.results.export import CellTexts, ExportCell, Rendered, render_export
from boundd.results.legacy import match_legacy, parse_legacy
from boundd.results.staleness import VersionOf, is_stale
from boundd.service.daemon import Run
from boundd.telemetry.export_file import (
    ForeignExportError,
    check_may_write,
    clear_drafts,
    digest_of,
    write_export,
    written_by_boundd,
)
from boundd.telemetry.metrics import DeviceNumbers, Metrics, StateView

LEASES_NAME = "leases"
"""The folder of the devices' leases, in the state folder: a RuntimeDirectory is made anew at each restart."""
EXPORT_DIGESTS = "export-digests"
"""The store's fact that tells which files in formats without a mark of ours are ours: digests, newest first."""
DIGESTS_KEPT = 2
VERSIONS_KEPT_S = 10.0
MEDIA_TYPES = {"json": "application/json", "csv": "text/csv"}


def make_run(settings: Settings) -> Run:
    """The matrix, the rules and the way to start a worker."""
    rules = Rules(
        margin_bytes=settings.margin_bytes,
        mix_models=settings.mix_models,
        max_cells=settings.max_cells,
        torch=versions_of(settings)("torch") or "",
        batch_ladder=settings.batch_ladder,
        max_attempts=settings.max_attempts,
        backoff_s=settings.backoff_s,
        quick_s=settings.quick_s,
        disk_reserve_bytes=settings.disk_reserve_bytes,
    )
    from_stdout = settings.worker_result == "stdout"
    summary = f"{settings.config_path}: {len(settings.cells)} cells"
    environ = dict(os.environ)  # once: reading it decodes every variable
    return Run(settings.cells, rules, lambda *parts: launch_spec(settings, environ, *parts), from_stdout, summary)


def check_limits(settings: Settings, groups: Cgroups) -> None:
    """See at start, not cell by cell, that the limits of the config can be kept to here.

    Raises:
        ConfigError: they can't; it says why.
    """
    policies = [policy for _, policy in settings.cells]
    lacking = groups.lacking(
        memory_max_bytes=max((policy.memory_max_bytes for policy in policies), default=0),
        pids_max=max((policy.pids_max for policy in policies), default=0),
    )
    if lacking:
        raise ConfigError([f"worker.memory_max, worker.pids_max: {lacking}: take them out, or see docs/systemd.md"])


def launch_spec(
    settings: Settings, environ: Mapping[str, str], attempt: Attempt, cell: Cell, state: State
) -> LaunchSpec:
    """What the shim needs to run an attempt: its command, its environment, its limits."""
    return LaunchSpec(
        attempt_id=attempt.id,
        argv=command_for(settings, cell, attempt.batch_size, sys.executable),
        env={
            **environ,
            **worker_environment(settings, attempt, cell, state),
            **settings.worker_env,
        },
        cwd=settings.config_folder,
        timeout_s=attempt.timeout_s,
        grace_s=attempt.grace_s,
        memory_max_bytes=state.cells[attempt.key].policy.memory_max_bytes,
        pids_max=state.cells[attempt.key].policy.pids_max,
        device=attempt.device,
        earlier_attempts=tuple(attempt_id(cell, number) for number in range(1, attempt.number)),
    )


def worker_environment(settings: Settings, attempt: Attempt, cell: Cell, state: State) -> Mapping[str, str]:
    """The protocol's variables for an attempt. A worker on the CPU sees no GPU at all."""
    device = state.devices.get(attempt.device)
    backend = device.reading.backend if device is not None else "nvml"
    environment = WorkerEnvironment(
        cell=dict(cell.parameters),
        attempt=attempt.id,
        memory_cap_bytes=attempt.cap_bytes,
        batch_size=attempt.batch_size,
        model=model_value(settings, cell),
        scorer=scorer_value(settings),
        visible_devices=attempt.device if backend == "nvml" else "",
    )
    return {**environment.to_environ(), "PYTHONUNBUFFERED": "1"}


def is_timed(settings: Settings, device: str) -> bool:
    """Whether a worker holds the device's lease for timing at this instant."""
    return bool(lease_use(settings.state_dir / LEASES_NAME / device).timing)


def versions_of(settings: Settings) -> VersionOf:
    """Today's versions of a worker's libraries; none are known where workers have an environment of their own."""
    if settings.worker_python or settings.worker_result == "stdout":
        return lambda _library: None
    return Versions()


class Versions:
    """The versions in this environment, looked up again now and then: each look reads a library's metadata from the
    disk, and an upgrade while the daemon runs is to be seen."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}
        self._until_s = -math.inf

    def __call__(self, library: str) -> str | None:
        """The version of a library; None where it isn't installed."""
        now_s = time.monotonic()
        if now_s >= self._until_s:
            self._known.clear()
            self._until_s = now_s + VERSIONS_KEPT_S
        if library not in self._known:
            self._known[library] = installed_version(library)
        return self._known[library]


def pipelines_of(settings: Settings) -> dict[str, str]:
    """Models to the classes of their pipelines: the known ones, and what the config says of others."""
    named = {name: model.pipeline for name, model in settings.models.items() if model.pipeline}
    return {**pipeline_classes(), **named}


class Exporter:
    """Keeps the export file current, and renders exports for people."""

    def __init__(self, settings: Settings, store: Store, observer: Observer, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._observer = observer
        self._clock = clock
        self._one_at_a_time = anyio.Lock()
        self._texts = CellTexts(settings.safety_factor)
        self._written_digest = ""
        self._failure = ""
        self._version_of = versions_of(settings)

    def render(self, state: State, export_format: str, texts: CellTexts | None = None) -> Rendered:
        """The matrix as of this state, in a format; `texts` are those of the export before, where there was one."""
        pipelines = pipelines_of(self._settings)
        cells = [
            ExportCell.of(record, pipelines, stale=is_stale(record, self._version_of)) for record in state.matrix()
        ]
        return render_export(
            export_format,  # type: ignore[arg-type]
            cells,
            safety_factor=self._settings.safety_factor,
            now_unix_s=self._clock.now().unix_s,
            version=__version__,
            texts=texts,
        )

    async def check_may_write(self) -> None:
        """See at start, not after hours, that the export would overwrite nobody's file.

        What can't be read now is no reason not to start: it is looked at again, and told, when the export is written.

        Raises:
            ForeignExportError: it would.
        """
        if self._settings.export is not None:
            may = written_by_boundd(await self._digests())
            with contextlib.suppress(OSError):
                clear_drafts(self._settings.export)
                check_may_write(self._settings.export, may)

    async def write(self, state: State) -> bool:
        """Bring the export file up to date. A failure is told once and doesn't stop the run; False, to try again."""
        if self._settings.export is None:
            return True
        # The last export of a run can meet one that is still being written.
        async with self._one_at_a_time:
            return await self._write(self._settings.export, state)

    async def _write(self, path: Path, state: State) -> bool:
        try:
            # In a thread: the state is a value, and a large matrix must not hold up the daemon's loop.
            rendered = await anyio.to_thread.run_sync(self.render, state, self._settings.export_format, self._texts)
            digests = [digest_of(rendered.text), *await self._digests()]
            if self._settings.export_format != "json":
                # Before the file: a crash in between leaves a file that is known to be ours.
                await self._store.remember(EXPORT_DIGESTS, json.dumps(list(dict.fromkeys(digests))[:DIGESTS_KEPT]))
            may = written_by_boundd([*digests, self._written_digest])
            if await anyio.to_thread.run_sync(write_export, path, rendered.text, may):
                self._written_digest = digests[0]
                self._tell(Action.EXPORT_WRITTEN, f"{path} is up to date", "debug")
            self._failure = ""
        except Exception as error:
            if str(error) != self._failure:
                self._failure = str(error)
                message = f"{path} could not be written, and that is tried again: {error}"
                self._tell(Action.EXPORT_FAILED, message, "error")
            # Somebody else's file in its place doesn't pass by itself.
            return isinstance(error, ForeignExportError)
        return True

    async def _digests(self) -> list[str]:
        known = await self._store.recall(EXPORT_DIGESTS)
        return list(json.loads(known)) if known else []

    def _tell(self, action: Action, message: str, level: str) -> None:
        self._observer.note(Note(action, message, level), self._clock.now())


def disk_free_bytes(folder: Path) -> int | None:
    """What this user may still write where the folder is; None where that can't be told."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def state_view(state: State, dropped_lines: int, store_problem: str = "") -> StateView:
    """The state as the metrics want it: plain numbers."""
    return StateView(
        cells_by_state=state.count_by_state(),
        devices=tuple(_device_numbers(state, device) for device in state.devices_by_index()),
        live_attempts=len(state.attempts),
        paused=state.paused,
        log_lines_dropped=dropped_lines,
        store_problem=bool(store_problem),
        disk_free_bytes=state.disk_free_bytes,
    )


def _device_numbers(state: State, device: Device) -> DeviceNumbers:
    attempts = state.attempts_on(device.uuid)
    reading = device.reading
    return DeviceNumbers(
        uuid=device.uuid,
        name=reading.name,
        state=device.state,
        total_bytes=reading.total_bytes,
        free_bytes=reading.free_bytes,
        reserved_bytes=sum(attempt.reservation_bytes for attempt in attempts),
        headroom_bytes=None
        if reading.total_bytes is None
        else max(0, headroom_bytes(device, attempts, state.rules.margin_bytes)),
    )


def control_app(
    service: Service,
    settings: Settings,
    exporter: Exporter,
    metrics: Metrics,
    dropped_lines: Callable[[], int],
    rules: AccessRules,
) -> ASGIApp:
    """The HTTP API, told how to export, to count, to read old files, and who may do what."""

    def export_text(export_format: str) -> ExportText:
        rendered = exporter.render(service.state, export_format)
        warnings = tuple(f"{left.label}: {left.reason}" for left in rendered.left_out)
        return ExportText(rendered.text, warnings, MEDIA_TYPES.get(export_format, "application/json"))

    def preview(text: str, model: str | None) -> ImportPreview:
        cells = [record.cell for record in service.state.matrix()]
        match = match_legacy(parse_legacy(text), cells, pipelines_of(settings), model)
        ambiguous = tuple(f"{entry} fits {', '.join(models)}" for entry, models in match.ambiguous)
        models = tuple(sorted({model for _, fitting in match.ambiguous for model in fitting}))
        return ImportPreview(match.entries, ambiguous, match.unmatched, models)

    version_of = versions_of(settings)
    return create_app(
        service,
        render_export=export_text,
        render_metrics=lambda: metrics.render(state_view(service.state, dropped_lines(), service.store_problem)),
        import_legacy=preview,
        is_stale=lambda record: is_stale(record, version_of),
        rules=rules,
    )
