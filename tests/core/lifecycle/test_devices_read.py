"""What readings and people do to devices: MIG instances and their whole, placeholders, and what is seen of attempts."""

from __future__ import annotations

from dataclasses import replace

from boundd.core.lifecycle.step import step
from boundd.core.model.attempts import Attempt
from boundd.core.model.cells import Cell
from boundd.core.model.devices import DeviceReading, DeviceState
from boundd.core.model.effects import Commit
from boundd.core.model.events import CordonRequested, DevicesRead, Event, Now, UncordonRequested
from boundd.core.model.quarantines import ByOperator, Quarantine, device_subject
from boundd.core.model.records import SaveQuarantine
from boundd.core.model.state import State

NOW = Now(1.0, 1.0)
WHOLE = DeviceReading("GPU-a", 0, "A100", max_cells=0, unavailable="it is in MIG mode")
PART = DeviceReading("MIG-1", 0, "A100 MIG 3g.40gb", 40, 40, parent="GPU-a", slot=0)
OTHER = DeviceReading("GPU-b", 1, "A100", 80, 80)


def after(state: State, *events: Event) -> State:
    """The state after events."""
    for event in events:
        state, _ = step(state, event, NOW)
    return state


def held(uuid: str) -> Quarantine:
    """A device that a person took out of service."""
    return Quarantine(device_subject(uuid), ByOperator("hot"), NOW.unix_s)


def cordoned(state: State) -> list[str]:
    """Who is out of service by somebody's word."""
    return [device.uuid for device in state.devices_by_index() if device.state is DeviceState.CORDONED]


def test_a_whole_is_cordoned_with_its_instances() -> None:
    """Those are what takes cells; each is kept over a restart, and comes back with the whole or alone."""
    state = after(State(), DevicesRead((WHOLE, PART, OTHER)))
    out, effects = step(state, CordonRequested("GPU-a", "hot"), NOW)
    assert cordoned(out) == ["GPU-a", "MIG-1"]
    (commit,) = [effect for effect in effects if isinstance(effect, Commit)]
    assert commit.records == (SaveQuarantine(held("GPU-a")), SaveQuarantine(held("MIG-1")))
    assert cordoned(after(out, UncordonRequested("MIG-1"))) == ["GPU-a"]
    back, effects = step(out, UncordonRequested("GPU-a"), NOW)
    assert (cordoned(back), dict(back.quarantines)) == ([], {})
    assert cordoned(after(state, CordonRequested("MIG-1", "odd"))) == ["MIG-1"]


def test_an_instance_made_of_a_cordoned_whole_is_cordoned() -> None:
    """A device that is out of service is divided anew: its new parts are out too; what a person put back stays."""
    state = after(State(), DevicesRead((WHOLE, PART)), CordonRequested("GPU-a", "hot"), UncordonRequested("MIG-1"))
    new = replace(PART, uuid="MIG-2", slot=1)
    read, effects = step(state, DevicesRead((WHOLE, PART, new)), NOW)
    assert cordoned(read) == ["GPU-a", "MIG-2"]
    assert any(isinstance(effect, Commit) and SaveQuarantine(held("MIG-2")) in effect.records for effect in effects)


def test_a_placeholder_goes_once_its_device_tells_its_uuid() -> None:
    """Any other device that is missed stays known, and is unavailable."""
    unknown = DeviceReading("UNKNOWN-0", 0, "unknown NVIDIA device", unavailable="lost")
    missing = DeviceReading("MISSING-7", 7, "7", unavailable="not there")
    state = after(State(), DevicesRead((unknown, OTHER, missing)), DevicesRead((replace(OTHER, uuid="GPU-c"),)))
    assert [device.uuid for device in state.devices_by_index()] == ["GPU-b", "GPU-c"]
    assert state.devices["GPU-b"].reading.unavailable == "no longer reported"


def test_what_was_seen_of_an_attempt_is_kept() -> None:
    """Once in the lists is enough, and the first reason against it stays."""
    cell = Cell.of({"model": "SD1.5"}, ("model",))
    attempt = Attempt("1", cell.key, "a", 1, "GPU-b", 1, None, None, False, 60.0, 1.0, 0.0, 0.0)
    state = after(State(), DevicesRead((OTHER,)))
    state = replace(state, attempts=state.attempts.set("1", attempt))
    seen = after(state, DevicesRead((OTHER,), witnessed=frozenset({"1"})), DevicesRead((OTHER,)))
    assert (seen.attempts["1"].witnessed, seen.attempts["1"].unattested) == (True, "")
    out = after(seen, DevicesRead((OTHER,), unattested={"GPU-b": "no list"}))
    out = after(out, DevicesRead((OTHER,), unattested={"GPU-b": "another"}), DevicesRead((OTHER,)))
    assert (out.attempts["1"].witnessed, out.attempts["1"].unattested) == (True, "no list")
    elsewhere = after(seen, DevicesRead((OTHER,), unattested={"GPU-x": "no list"}, witnessed=frozenset({"2"})))
    assert elsewhere.attempts == seen.attempts
