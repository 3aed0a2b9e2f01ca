"""The metrics: what is, what has happened, and what nobody knows."""

from prometheus_client.parser import text_string_to_metric_families

from boundd.core.model.attempts import CellState
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.outcomes import Outcome, Verdict
from boundd.telemetry.metrics import DeviceNumbers, Metrics, StateView

NOW = Now(1.0, 1.0)


def samples(content: bytes) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    families = text_string_to_metric_families(content.decode())
    return {(item.name, *item.labels.values()): item.value for family in families for item in family.samples}


def ended(outcome: Outcome, wall_s: float | None) -> Note:
    """The note of an attempt's end. What its fields say is for readers, and counts for nothing."""
    fields = {"boundd.outcome": "misleading", "boundd.wall_s": 1e9}
    return Note(Action.ATTEMPT_ENDED, "", fields=fields, verdict=Verdict(outcome, wall_s=wall_s))


def test_attempts_are_counted_by_outcome() -> None:
    """Each end counts once, with its duration where it is known; an outcome that never came is there as 0."""
    metrics = Metrics("1.2.3")
    metrics.note(ended(Outcome.SUCCEEDED, 20.0), NOW)
    metrics.note(ended(Outcome.SUCCEEDED, 400.0), NOW)
    metrics.note(ended(Outcome.LOST, None), NOW)
    metrics.note(Note(Action.POINT_MEASURED, ""), NOW)
    found = samples(metrics.render(StateView()))
    assert found["boundd_attempts_ended_total", "succeeded"] == 2
    assert found["boundd_attempts_ended_total", "lost"] == 1
    assert found["boundd_attempts_ended_total", "timed_out"] == 0
    assert found["boundd_attempt_duration_seconds_count", "succeeded"] == 2
    assert found["boundd_attempt_duration_seconds_sum", "succeeded"] == 420
    assert ("boundd_attempt_duration_seconds_count", "lost") not in found
    assert found["boundd_points_measured_total",] == 1
    assert found["boundd_events_total", "attempt-ended"] == 3
    assert found["boundd_build_info", "1.2.3"] == 1


def test_state_is_shown_as_it_is() -> None:
    """Cells by state, devices with what could be read, and devices that are gone no more."""
    metrics = Metrics("1")
    gpu = DeviceNumbers("GPU-1", 'A "100"\n\ud800', "ready", 100, 60, 30, 20)
    broken = DeviceNumbers("GPU-2", "B", "unavailable", reserved_bytes=0)
    view = StateView({CellState.PENDING: 3}, (gpu, broken), live_attempts=2, paused=True, log_lines_dropped=5)
    metrics.render(view)
    found = samples(metrics.render(view))
    name = 'A "100"\n\ufffd'
    assert found["boundd_cells", "pending"] == 3
    assert found["boundd_cells", "succeeded"] == 0
    assert found["boundd_device_free_bytes", "GPU-1", name] == 60
    assert found["boundd_device_headroom_bytes", "GPU-1", name] == 20
    assert found["boundd_device_reserved_bytes", "GPU-2", "B"] == 0
    assert ("boundd_device_free_bytes", "GPU-2", "B") not in found
    assert found["boundd_device_state", "GPU-2", "B", "unavailable"] == 1
    assert found["boundd_log_lines_dropped_total",] == 5
    assert found["boundd_live_attempts",] == 2
    assert found["boundd_paused",] == 1
    assert not any("GPU-1" in key for key in samples(metrics.render(StateView())))


def test_two_registries_do_not_meet() -> None:
    """Two daemons in one process (tests) don't share counters."""
    first, second = Metrics("1"), Metrics("2")
    first.note(ended(Outcome.LOST, 1.0), NOW)
    assert samples(second.render(StateView()))["boundd_attempts_ended_total", "lost"] == 0


def test_no_created_series() -> None:
    """They double the counters with times that nobody asks for."""
    metrics = Metrics("1.2.3")
    metrics.note(ended(Outcome.SUCCEEDED, 20.0), NOW)
    assert b"_created" not in metrics.render(StateView())
