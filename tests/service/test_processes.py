"""Whose processes are on a device, with real pids, and with generated lists."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundd.core.model.devices import DeviceReading
from boundd.service.processes import DeviceProcesses, check_lists, observed_in

GIB = 1024**3
READING = DeviceReading("GPU-a", 0, "GPU", 80 * GIB, 50 * GIB, reserved_bytes=GIB)
ON = {"GPU-a": frozenset({"1"})}
OURS = {"1": frozenset({10}), "2": frozenset({20})}
STRANGER, DEAD, HOLDER = 30, 40, 4_000_000


def look(reading: DeviceReading, *, in_host_namespace: bool = True, empty: bool = False) -> DeviceProcesses:
    """What is seen where 40 has ended and every other pid lives."""
    return check_lists(
        [reading], {} if empty else ON, OURS, in_host_namespace=in_host_namespace, lives=lambda pid: pid != DEAD
    )


def test_what_an_attempt_holds() -> None:
    """The sum over its processes; unknown where it isn't listed, or a size isn't told."""
    pids = {"1": frozenset({10, 11}), "2": frozenset({12}), "3": frozenset({13, 14})}
    listed = {10: GIB, 11: 2 * GIB, 13: GIB, 14: None, 99: GIB}
    assert observed_in(listed, ["1", "2", "3", "4"], pids) == {"1": 3 * GIB, "2": None, "3": None, "4": None}


def test_a_strangers_process_is_seen() -> None:
    """A living one that is in no attempt's tree, whether or not ours is there yet; with real processes."""
    stranger = subprocess.Popen(["sleep", "60"])
    ours = {"1": frozenset({os.getpid()})}
    both = replace(READING, process_bytes={os.getpid(): GIB, stranger.pid: None})
    try:
        assert check_lists([both], ON, ours, in_host_namespace=True).foreign == {"GPU-a"}
        before = replace(READING, process_bytes={stranger.pid: GIB})
        assert check_lists([before], ON, ours, in_host_namespace=True).foreign == {"GPU-a"}
    finally:
        stranger.kill()
        stranger.wait()
    assert check_lists([both], ON, ours, in_host_namespace=True) == DeviceProcesses(
        frozenset({"GPU-a"}), witnessed=frozenset({"1"})
    )


def test_an_attempt_of_another_device_is_a_stranger() -> None:
    """It was sent elsewhere, and disturbs here as anybody does."""
    assert look(replace(READING, process_bytes={10: GIB, 20: GIB})).foreign == {"GPU-a"}


def test_only_gpus_whose_lists_were_asked_for_say_anything() -> None:
    """Other backends, failed readings and lists that were not read say nothing, for or against."""
    for reading in (
        READING,
        replace(READING, process_bytes={10: GIB}, backend="cpu"),
        replace(READING, process_bytes={10: GIB, STRANGER: 1}, backend="simulated"),
        replace(READING, total_bytes=None, free_bytes=None, unavailable="lost"),
    ):
        assert look(reading) == DeviceProcesses()


@pytest.mark.parametrize("kind", ["compute", "graphics", "MPS"])
def test_a_refused_list_attests_nothing(kind: str) -> None:
    """Whoever is in it was not seen."""
    listed = None if kind == "compute" else {10: GIB}
    seen = look(replace(READING, process_bytes=listed, unreadable={kind: "no"}))
    assert seen.unattested == {"GPU-a": f"the driver doesn't list {kind} processes: no"}
    assert not seen.listed


def test_a_worker_that_has_not_come_yet_speaks_against_nothing() -> None:
    """It loads its model before it takes the device; what counts is that it is seen at some time."""
    assert look(replace(READING, process_bytes={})) == DeviceProcesses(frozenset({"GPU-a"}))


def test_in_a_container_memory_must_account_for_everybody() -> None:
    """29 GiB are in use besides the driver's own."""
    assert look(replace(READING, process_bytes={10: 29 * GIB}), in_host_namespace=False).unattested == {}
    why = "28.0 GiB of the device are held by nobody that the driver lists in this container"
    assert look(replace(READING, process_bytes={10: GIB}), in_host_namespace=False).unattested == {"GPU-a": why}
    unsaid = replace(READING, process_bytes={10: 29 * GIB}, reserved_bytes=None)
    assert look(unsaid, in_host_namespace=False).unattested
    machines = look(replace(READING, process_bytes={4711: 29 * GIB}), in_host_namespace=False)
    assert not machines.witnessed, "the machine's pids: nobody knows which is ours"
    assert not machines.foreign


def test_who_has_a_device_that_takes_one_process() -> None:
    """The stranger's pid, with its program's name where the kernel tells it; not of one that has ended."""
    alone = replace(READING, process_bytes={HOLDER: GIB}, max_cells=1)
    assert look(alone, empty=True).holders == {"GPU-a": "pid 4000000"}
    here = replace(alone, process_bytes={os.getpid(): GIB})
    assert look(here, empty=True).holders["GPU-a"].startswith(f"pid {os.getpid()} (")
    assert not look(replace(alone, process_bytes={DEAD: GIB}), empty=True).holders
    assert look(replace(alone, process_bytes={DEAD: GIB}), empty=True, in_host_namespace=False).holders, (
        "of the machine"
    )
    assert not look(replace(alone, max_cells=None), empty=True).holders
    assert not look(alone).holders, "an attempt of ours is there"


READINGS = st.builds(
    replace,
    st.just(READING),
    process_bytes=st.one_of(
        st.none(),
        st.dictionaries(
            st.sampled_from([10, 20, STRANGER, DEAD]), st.one_of(st.none(), st.integers(GIB // 8, 29 * GIB)), max_size=4
        ),
    ),
    unreadable=st.dictionaries(st.sampled_from(["compute", "graphics", "MPS"]), st.just("no"), max_size=2),
    reserved_bytes=st.sampled_from([None, GIB]),
    max_cells=st.sampled_from([None, 1]),
    backend=st.sampled_from(["nvml", "nvml", "nvml", "cpu"]),
)


def attested_only_by_what_was_seen(reading: DeviceReading, in_host_namespace: bool, empty: bool) -> None:
    """What must hold of every pass: nobody is attested beside a stranger, or where a list is missing."""
    seen = look(reading, in_host_namespace=in_host_namespace, empty=empty)
    listed = reading.process_bytes or {}
    attested = seen.witnessed and not seen.foreign and not seen.unattested and seen.listed
    if attested:
        assert 10 in listed
        assert STRANGER not in listed
        assert 20 not in listed
        assert not reading.unreadable
        if not in_host_namespace:
            assert DEAD not in listed
            assert None not in listed.values()
            assert sum(size or 0 for size in listed.values()) > 29 * GIB - GIB // 8
    elif in_host_namespace and not empty and reading.backend == "nvml" and not reading.unreadable:
        assert not (10 in listed and not {20, STRANGER} & set(listed)), "it was alone, and that was seen"
    if seen.holders:
        assert (reading.max_cells, empty) == (1, True)


@settings(max_examples=1000, deadline=None)
@given(READINGS, st.booleans(), st.booleans())
def test_attested_only_by_what_was_seen(reading: DeviceReading, in_host_namespace: bool, empty: bool) -> None:
    """1,000 passes."""
    attested_only_by_what_was_seen(reading, in_host_namespace, empty)


@pytest.mark.campaign
@pytest.mark.timeout(0)
@settings(max_examples=20_000, deadline=None)
@given(READINGS, st.booleans(), st.booleans())
def test_attested_only_by_what_was_seen_at_length(reading: DeviceReading, in_host_namespace: bool, empty: bool) -> None:
    """20,000 of them."""
    attested_only_by_what_was_seen(reading, in_host_namespace, empty)
