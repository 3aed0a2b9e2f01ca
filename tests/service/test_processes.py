"""Whose processes are on a device, with real pids."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

from boundd.core.model.devices import DeviceReading
from boundd.service.processes import foreign_on, observed_in

GIB = 1024**3
READING = DeviceReading("GPU-a", 0, "GPU", 80 * GIB, 50 * GIB)
OURS = {"1": frozenset({os.getpid()})}
ON = {"GPU-a": frozenset({"1"})}


def test_what_an_attempt_holds() -> None:
    """The sum over its processes; unknown where it isn't listed, or a size isn't told."""
    pids = {"1": frozenset({10, 11}), "2": frozenset({12}), "3": frozenset({13, 14})}
    listed = {10: GIB, 11: 2 * GIB, 13: GIB, 14: None, 99: GIB}
    assert observed_in(listed, ["1", "2", "3", "4"], pids) == {"1": 3 * GIB, "2": None, "3": None, "4": None}


def test_a_strangers_process_is_seen() -> None:
    """A living one that is in no attempt's tree, on a device where one of ours is."""
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        both = replace(READING, process_bytes={os.getpid(): GIB, stranger.pid: None})
        assert foreign_on([both], ON, OURS) == {"GPU-a"}
        assert foreign_on([both], {}, OURS) == frozenset()
        # Its own list is of other pids: in a container, nobody there is known.
        assert foreign_on([replace(both, process_bytes={stranger.pid: GIB})], ON, OURS) == frozenset()
        assert foreign_on([replace(both, backend="cpu")], ON, OURS) == frozenset()
        assert foreign_on([both], ON, {"1": frozenset({os.getpid()}), "2": frozenset({stranger.pid})}) == frozenset()
    finally:
        stranger.kill()
        stranger.wait()
    assert foreign_on([both], ON, OURS) == frozenset()
