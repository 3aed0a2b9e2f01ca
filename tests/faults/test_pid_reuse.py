"""Campaign: an attempt dies with its shim, a stranger gets the pid of one of them, and a launcher adopts.

In a pid namespace of its own, where `ns_last_pid` says which pid is the next. The stranger leads a session, as a worker
does, and belongs to nobody. The record is as it was; or says the stranger's own start time, as it would of one that
started within the same clock tick; or that and another boot. In some rounds a child of the attempt lives on, with the
lock, and must be found and killed. The launcher ends, waits, looks; the stranger must be alive, and nobody waited for.

BOUNDD_CAMPAIGN_SEED=N draws the same points again.

Seen to fail: with `holds` in boundd/launch/processes.py that always says None, the strangers with an equal start are
waited for, or killed; with a `leftovers` there that doesn't ask for the worker's environment, those who lead the
worker's session are killed; without the `processes.kill(found)` of boundd/launch/local.py, what was left keeps its
attempt alive.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import campaign

ROOT = Path(__file__).parents[2]
UNSHARE = shutil.which("unshare")


@pytest.mark.skipif(UNSHARE is None or os.geteuid() != 0, reason="a pid namespace is for root, with unshare")
@campaign.sizes("rounds", short=20, long=1000)
def test_a_stranger_with_the_same_pid_is_left_alone(rounds: int, tmp_path: Path, report: campaign.Report) -> None:
    """Neither signalled nor waited for, whatever else it has in common with the dead."""
    seed = campaign.drawn_seed()
    command = [sys.executable, "-m", "tests.faults.pid_reuse", str(tmp_path), str(rounds), str(seed)]
    ran = subprocess.run(
        [str(UNSHARE), "--pid", "--fork", "--mount-proc", "--kill-child", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = json.loads(ran.stdout)
    counts = {"wrong_kills": 0, "never_ended": 0, **said["counts"]}
    report("pid reuse", rounds=rounds, seed=seed, **counts)
    assert not said["failed"]
    assert counts["reused"] == rounds
