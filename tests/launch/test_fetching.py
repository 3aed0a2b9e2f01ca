"""Fetching doesn't count towards a deadline, up to its own: the shim, and real processes.

Seen to fail: without `fetched_s` in the shim's `_deadline_s` the first worker is ended; without the limit the second
is not.
"""

from __future__ import annotations

import sys
import time

import pytest

from boundd.core.lifecycle.classification import Evidence, classify
from boundd.launch.local import LocalLauncher
from boundd.ports import ProcessEnd
from tests.launch.conftest import MakeSpec

pytestmark = pytest.mark.anyio

FETCHES = """
import os, sys, time
marker = os.environ["BOUNDD_FETCHING"]
open(marker, "w").close()
time.sleep(float(sys.argv[1]))
if sys.argv[2:] != ["never"]:
    os.unlink(marker)
time.sleep(0.2)
"""


async def run(launcher: LocalLauncher, make_spec: MakeSpec, *arguments: str, **spec: float) -> ProcessEnd:
    """Start a worker that fetches for so many seconds, and wait for its end."""
    await launcher.launch(make_spec(sys.executable, "-c", FETCHES, *arguments, **spec))
    return await launcher.wait("1")


async def test_fetching_puts_the_deadline_off(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """It takes thrice its timeout to fetch, and is not timed out."""
    end = await run(launcher, make_spec, "3", timeout_s=1.0, fetch_timeout_s=60.0)
    assert (end.exit_status, end.timed_out) == (0, False)
    assert end.fetched_s is not None
    assert 2.5 <= end.fetched_s <= 4.0


async def test_not_for_ever(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """A file that stays is worth no more than the limit, and the message says so."""
    began_s = time.monotonic()
    end = await run(launcher, make_spec, "60", "never", timeout_s=1.0, grace_s=1.0, fetch_timeout_s=2.0)
    assert end.timed_out
    assert end.fetched_s == 2.0
    assert 2.5 <= time.monotonic() - began_s < 20
    evidence = Evidence(timed_out=True, timeout_s=1.0, fetched_s=end.fetched_s)
    error = classify(evidence, 0.0).error
    assert error is not None
    assert "timed out after 1 s beside the 2 s that it fetched its model" in error.message


async def test_what_is_not_allowed_is_not_counted(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    """Without a limit there is nothing to wait for."""
    end = await run(launcher, make_spec, "60", "never", timeout_s=0.5, grace_s=1.0)
    assert (end.timed_out, end.fetched_s) == (True, None)
