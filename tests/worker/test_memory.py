"""Peaks by phase, on the real counters of this process and on ones that a test moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from boundd.worker.memory import MemoryLog, Peak, RssMeter

MIB = 1 << 20


class Counter:
    """A device whose peak a test sets."""

    measure = "test"

    def __init__(self) -> None:
        self.now_bytes = 0
        self.peak_bytes = 0

    def use(self, size_bytes: int) -> None:
        """Take so much, for a moment."""
        self.peak_bytes = max(self.peak_bytes, size_bytes)

    def reset(self) -> None:
        """Forget the peak."""
        self.peak_bytes = self.now_bytes

    def read(self) -> Peak:
        """The peak, reserved a little more than allocated."""
        return Peak(self.peak_bytes, self.peak_bytes + 1, None)


def test_each_phase_has_its_own_peak() -> None:
    """A phase that comes again keeps its largest; the whole is the largest of all."""
    counter = Counter()
    log = MemoryLog(counter)
    log.enter("load")
    counter.use(10)
    log.enter("baseline")
    counter.use(30)
    log.during("score", lambda: counter.use(50))
    counter.use(20)
    log.enter("points")
    line = log.line()
    assert (line.peak_allocated_bytes, line.peak_reserved_bytes) == (50, 51)
    phases = line.extra["phases"]
    assert isinstance(phases, dict)
    assert {name: phase["peak_allocated_bytes"] for name, phase in phases.items()} == {
        "load": 10,
        "baseline": 30,
        "score": 50,
        "points": 0,
    }


def test_a_phase_that_fails_ends_all_the_same() -> None:
    """What ran out of memory says how far it came."""
    counter = Counter()
    log = MemoryLog(counter)

    def starve() -> None:
        counter.use(99)
        raise MemoryError

    with pytest.raises(MemoryError):
        log.during("point", starve)
    assert log.peak("point") == Peak(99, 100)
    assert log.peak("elsewhere") is None


def test_the_resident_peak_is_really_reset() -> None:
    """100 MiB that come and go in one phase are not in the next: Linux forgets the peak when it is asked to."""
    log = MemoryLog(RssMeter())
    log.during("before", lambda: None)
    log.during("large", lambda: bytearray(100 * MIB).count(1))
    log.during("after", lambda: None)
    before, large, after = (log.peak(name) for name in ("before", "large", "after"))
    assert before is not None
    assert large is not None
    assert after is not None
    assert large.allocated_bytes >= before.allocated_bytes + 90 * MIB
    assert after.allocated_bytes <= before.allocated_bytes + 30 * MIB
    # Resetting VmHWM resets getrusage's figure too: what the whole cell took of the host must not be lost with it.
    assert log.line().extra["host_peak_bytes"] >= large.allocated_bytes  # type: ignore[operator]


def test_where_proc_says_nothing_the_peak_is_the_process(tmp_path: Path) -> None:
    """getrusage always knows."""
    meter = RssMeter(tmp_path / "nowhere")
    meter.reset()
    assert meter.read().allocated_bytes > MIB
