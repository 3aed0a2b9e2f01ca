"""The control API, told what it doesn't know itself: exports, metrics, old files, and who may do what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from starlette.types import ASGIApp

from boundd.composition.config import settings_of
from boundd.composition.exporter import Exporter, pipelines_of
from boundd.control.api import ExportText, ImportPreview, create_app
from boundd.control.peers import AccessRules
from boundd.core.memory.headroom import headroom_bytes
from boundd.core.model.devices import Device
from boundd.core.model.state import State
from boundd.core.scheduler.environment import count_waiting
from boundd.ports import Service
from boundd.results.legacy import match_legacy, parse_legacy
from boundd.results.staleness import is_stale
from boundd.telemetry.metrics import DeviceNumbers, Metrics, StateView

MEDIA_TYPES = {"json": "application/json", "csv": "text/csv"}


def control_app(
    service: Service,
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
        match = match_legacy(parse_legacy(text), cells, pipelines_of(settings_of(service.state)), model)
        ambiguous = tuple(f"{entry} fits {', '.join(models)}" for entry, models in match.ambiguous)
        models = tuple(sorted({model for _, fitting in match.ambiguous for model in fitting}))
        return ImportPreview(match.entries, ambiguous, match.unmatched, models)

    return create_app(
        service,
        render_export=export_text,
        render_metrics=lambda: metrics.render(state_view(service.state, dropped_lines(), service.store_problem)),
        import_legacy=preview,
        is_stale=lambda record: is_stale(record, exporter.today(service.state)),
        rules=rules,
    )


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
        problems=Counter(like.kind for like in state.problems),
        held_back=count_waiting(state, state.problems.values()),
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
