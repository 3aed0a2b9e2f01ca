"""Signals to a daemon that is at its end already.

To see it fail, leave out the `finally` of `boundd.composition.run._signals`.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from boundd.client.transport import why_not
from tests.faults.daemons import PATIENCE_S, Box, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_end_kills_nobody(number: signal.Signals, tmp_path: Path) -> None:
    """It says that it has stopped, closes the store, and ends with 0, whatever it is told meanwhile."""
    box = Box(tmp_path, numbers=1, kinds=("quick",))
    daemon = box.start()
    try:
        wait_for(lambda: not why_not(str(box.socket)), "a daemon that answers")
        daemon.send_signal(signal.SIGTERM)
        wait_for(lambda: "daemon-stopped" in box.told(), "its end", pause_s=0.0)
        while daemon.poll() is None:
            daemon.send_signal(number)
        assert daemon.wait(PATIENCE_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
        box.clear()
