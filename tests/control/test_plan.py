"""The plan ahead, over a real socket: the state of the daemon, the core's planner, a virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from control_server import CELLS, GPU, LABELS, Running

from boundd.client import RefusedError
from boundd.core.model.attempts import CellState
from boundd.core.model.quarantines import ByOperator, Quarantine, device_subject
from boundd.core.model.workload import workload_of
from boundd.core.scheduler.durations import duration_of

GIB = 1024**3


def test_what_runs_and_what_waits(running: Running) -> None:
    """The running attempt keeps its place and its start; the pending cell has a time; the end is the latest end."""
    plan = running.client.get("/v1/plan")
    by_label = {each["label"]: each for each in plan["attempts"]}
    assert set(by_label) == set(LABELS[:2])
    live, waiting = by_label[LABELS[1]], by_label[LABELS[0]]
    assert (live["running"], live["from_s"], live["device"]) == (True, -30.0, GPU)
    assert live["until_s"] == pytest.approx(170.0)  # 30 s for 3 of 20
    assert (waiting["running"], waiting["device"]) == (False, GPU)
    assert waiting["from_s"] >= 0
    assert plan["done_s"] == max(each["until_s"] for each in plan["attempts"])
    assert (plan["at"], live["starts_at"]) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:12:50.000Z")


def test_priors_are_said_as_such(running: Running) -> None:
    """Nothing has run: each duration is a prior, and the assumptions say so. What was measured is not one any more."""
    before = running.client.get("/v1/plan")
    assert before["priors"] == 2
    assert any("2 of 2 durations are priors" in said for said in before["assumes"])
    state = running.service.state
    work = workload_of(state.cells[CELLS[0].key])
    learned = state.durations.add(duration_of(work, "Simulated 24 GiB", 1234.0))
    running.service.state = replace(state, durations=learned)
    plan = running.client.get("/v1/plan")
    waiting = next(each for each in plan["attempts"] if each["label"] == LABELS[0])
    assert (waiting["duration_is_prior"], waiting["until_s"] - waiting["from_s"]) == (False, pytest.approx(1234.0))
    assert "1 attempt of the same work" in waiting["duration_source"]


def test_a_box_one_does_not_have(running: Running) -> None:
    """The same cells from the start on other devices, which go by the name of those that there are."""
    plan = running.client.get("/v1/plan", {"devices": ["2x24GiB", "80GiB"]})
    assert [device["total_bytes"] // GIB for device in plan["devices"]] == [24, 24, 80]
    assert {device["name"] for device in plan["devices"]} == {"Simulated 24 GiB"}
    assert [each["running"] for each in plan["attempts"]] == [False, False]
    assert all(each["from_s"] == 0 for each in plan["attempts"]), "both fit at once"
    assert any("these devices are empty" in said for said in plan["assumes"])


def test_nothing_is_started_by_it(running: Running) -> None:
    """The daemon's state is as it was."""
    before = running.service.state
    running.client.get("/v1/plan")
    assert running.service.state is before
    assert running.service.submitted == []


def test_a_cordoned_device_and_a_pause_are_named(running: Running) -> None:
    """What stands in the way is an assumption that a person can check."""
    state = running.service.state
    held = Quarantine(device_subject(GPU), ByOperator("it smells"))
    device = replace(state.devices[GPU], quarantine=held)
    running.service.state = replace(
        state, paused=True, devices=state.devices.set(GPU, device), quarantines={held.subject: held}
    )
    plan = running.client.get("/v1/plan")
    assert any("it smells" in said for said in plan["assumes"])
    assert "the pause is over now" in plan["assumes"]
    assert [never["label"] for never in plan["never"]] == [LABELS[0]]


@pytest.mark.parametrize("text", ["", "4x", "0x24GiB", "24", "x24GiB", "2000x24GiB", "4x0GiB", "9999x24GiB"])
def test_devices_that_are_none(running: Running, text: str) -> None:
    """400, with what was wrong."""
    with pytest.raises(RefusedError, match="devices: ") as caught:
        running.client.get("/v1/plan", {"devices": [text]})
    assert caught.value.status == 400


def test_a_matrix_that_is_too_large(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused rather than planned for minutes."""
    monkeypatch.setattr("boundd.control.plans.MOST_CELLS", 5)
    with pytest.raises(RefusedError, match="6 cells, and 5 are planned at most"):
        running.client.get("/v1/plan")


def test_nothing_left_to_do(running: Running) -> None:
    """No attempts, and the end is now."""
    state = running.service.state
    cells = state.cells
    for cell in CELLS[:2]:
        cells = cells.set(cell.key, replace(cells[cell.key], state=CellState.CANCELLED))
    running.service.state = replace(state, cells=cells, attempts=type(state.attempts)())
    plan = running.client.get("/v1/plan")
    assert (plan["attempts"], plan["done_s"], plan["never"]) == ([], 0.0, [])
