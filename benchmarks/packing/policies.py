"""What others do, as planners: each takes cells in the matrix' order and knows only what it says.

They get the core's retries, causes and footprints for nothing, which none of the programs that work like this has; they
don't cap a worker's allocator, because none of those does.
"""

from __future__ import annotations

from benchmarks.packing.starting import Policy, Starting
from boundd.core.memory.footprint import estimate
from boundd.core.model.attempts import CellRecord
from boundd.core.model.devices import Device
from boundd.core.model.events import Now
from boundd.core.model.state import State
from boundd.core.scheduler.planner import Plan


def sequential(state: State, now: Now) -> Plan:
    """One cell at a time on the whole box: a shell loop."""
    starting = Starting(state, now)
    for record in starting.waiting():
        devices = starting.ready()
        if not devices or starting.state.attempts:
            break
        _alone(
            starting, record, max(devices, key=lambda device: (device.reading.free_bytes or 0, -device.reading.index))
        )
    return starting.plan()


def one_a_gpu(state: State, now: Now) -> Plan:
    """One cell on each device: a queue with a slot a GPU."""
    starting = Starting(state, now)
    for record in starting.waiting():
        empty = [device for device in starting.ready() if not starting.on(device)]
        if not empty:
            break
        _alone(starting, record, empty[0])
    return starting.plan()


def free_memory(state: State, now: Now) -> Plan:
    """Wherever the driver says that enough is free just now, the freest first."""
    starting = Starting(state, now)
    for record in starting.waiting():
        found = _shared(starting, record, lambda device: device.reading.free_bytes or 0)
        if found is not None:
            device, size = found
            starting.start(record, device, size)
    return starting.plan()


def sum_of_estimates(state: State, now: Now) -> Plan:
    """Wherever the estimates of what runs leave enough of the total, whatever the driver says is free."""
    starting = Starting(state, now)

    def left(device: Device) -> int:
        return (device.reading.total_bytes or 0) - sum(a.reservation_bytes for a in starting.on(device))

    for record in starting.waiting():
        found = _shared(starting, record, left)
        if found is not None:
            device, size = found
            starting.start(record, device, size)
    return starting.plan()


POLICIES: dict[str, Policy] = {
    "sequential": sequential,
    "one a GPU": one_a_gpu,
    "free memory": free_memory,
    "estimates": sum_of_estimates,
}


def _alone(starting: Starting, record: CellRecord, device: Device) -> None:
    starting.start(record, device, device.reading.total_bytes or 0, exclusive=True, whole_device=True)


def _shared(starting: Starting, record: CellRecord, room: object) -> tuple[Device, int] | None:
    """The device with the most room that holds the estimate; a cell larger than any device waits for an empty one.

    Such a policy knows nothing of cells that must be alone: whoever uses one declares them as large as the device.
    """
    assert callable(room)
    found = []
    for device in starting.ready():
        total = device.reading.total_bytes or 0
        size = estimate(record, device.reading.name, starting.state.observations).size_bytes
        needed = total if size is None or record.policy.must_be_alone else min(size, total)
        if needed == total:
            fits = not starting.on(device)
        else:
            fits = room(device) >= needed and all(a.reservation_bytes < total for a in starting.on(device))
        if fits:
            found.append((-room(device), device.reading.index, device, needed))
    if not found:
        return None
    return min(found, key=lambda entry: entry[:2])[2:]
