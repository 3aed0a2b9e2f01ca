"""When process lists are read, and that what is known in between never makes room that isn't there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.core.memory.headroom import room_bytes
from boundd.core.memory.process_listing import MISMATCH_BYTES, ProcessListing, carried_forward, must_list_processes
from boundd.core.model.devices import DeviceReading

GIB = 1024**3
READING = DeviceReading("GPU-a", 0, "GPU", 80 * GIB, 50 * GIB)
ONE = frozenset({"1"})
SEEN = ProcessListing(50 * GIB, {"1": 10 * GIB})


@pytest.mark.parametrize(
    ("reading", "attempts", "last", "expected"),
    [
        (READING, frozenset(), None, False),
        (READING, ONE, None, True),
        (READING, ONE, SEEN, False),
        (READING, frozenset({"1", "2"}), SEEN, True),
        (READING, frozenset({"2"}), SEEN, True),
        (READING, frozenset(), SEEN, False),
        (replace(READING, free_bytes=50 * GIB - MISMATCH_BYTES), ONE, SEEN, False),
        (replace(READING, free_bytes=50 * GIB - MISMATCH_BYTES - 1), ONE, SEEN, True),
        (replace(READING, free_bytes=50 * GIB + MISMATCH_BYTES + 1), ONE, SEEN, True),
        (replace(READING, free_bytes=None, total_bytes=None, unavailable="lost"), ONE, None, False),
    ],
    ids=["nobody", "placed", "the same", "joined", "exchanged", "left", "a little", "taken", "given back", "lost"],
)
def test_lists_are_read_at_placement_exit_and_mismatch(
    reading: DeviceReading, attempts: frozenset[str], last: ProcessListing | None, expected: bool
) -> None:
    """And at no other time."""
    listed = {} if last is None else {"GPU-a": last}
    assert must_list_processes([reading], {"GPU-a": attempts}, listed) is expected
    assert must_list_processes([], {"GPU-a": attempts}, listed) is False


@given(
    foreign=st.integers(0, 20),
    reserved=st.integers(1, 20),
    before=st.integers(0, 20),
    after=st.integers(0, 20),
    foreign_after=st.integers(0, 20),
)
def test_an_old_list_never_makes_room(foreign: int, reserved: int, before: int, after: int, foreign_after: int) -> None:
    """Whatever the attempt and the others have taken or given back since: going by the old list, the ledger finds no
    more room than what a new one would, or than there was, but for the little that isn't looked at.

    With the free memory of now and the attempt's bytes of then, what it gave back would be counted twice.
    """
    total = 80 * GIB
    then = ProcessListing((80 - foreign - before) * GIB, {"1": before * GIB})
    now = replace(READING, free_bytes=(80 - foreign_after - after) * GIB)
    reading, observed = carried_forward(now, ONE, then)
    assert reading.free_bytes is not None
    room = room_bytes(total, reading.free_bytes, [(reserved * GIB, observed["1"])])
    as_it_is = room_bytes(total, (80 - foreign_after - after) * GIB, [(reserved * GIB, after * GIB)])
    as_it_was = room_bytes(total, then.free_bytes, [(reserved * GIB, before * GIB)])
    assert room <= max(as_it_is, as_it_was) + MISMATCH_BYTES


def test_what_has_left_gives_back_what_it_held() -> None:
    """An attempt that ended while somebody times leaves its memory for the next one at once."""
    last = ProcessListing(50 * GIB, {"1": 10 * GIB, "2": 5 * GIB})
    reading, observed = carried_forward(replace(READING, free_bytes=55 * GIB), ONE, last)
    assert (reading.free_bytes, observed) == (55 * GIB, {"1": 10 * GIB})
    reading, _ = carried_forward(replace(READING, free_bytes=70 * GIB), ONE, last)
    assert reading.free_bytes == 55 * GIB + MISMATCH_BYTES


def test_without_a_list_nothing_is_known() -> None:
    """The reading stays as it is, and what is held is unknown."""
    assert carried_forward(READING, ONE, None) == (READING, {})
