"""ENOSPC, EIO and EINTR at the n-th system call on boundd's files: nothing wedged, nothing lost unsaid.

Scenarios and judgement are in `tests/faults/disk.py`; `diskfault.c` makes the calls fail, in the daemon, its zygote and
its shims. A point that failed is run again by `--only SCENARIO,KIND,NTH,ERROR,LENGTH`. To see it fail:

- `_mend` of boundd/store/sqlite.py made to do nothing: `resurrected` in `refused_commits`, and `wedged` where the file
  was opened for reading alone.
- Without the checkpoint in `migrate._create`, a store is renamed into place without its log: `unclear` (damaged).
- `LaunchError.transient` always False: `lost` (`not_started`) in `attempts_alone`.
- Without `CappedLog._unwritten` in boundd/launch/shim/log.py, the line with the result is lost: `lost` in `shims`.
- `AttemptWatcher.adopt` without its `except OSError`: `unclear` (an internal error) in `adoption`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.campaign import Report, drawn_seed, sizes

pytestmark = pytest.mark.timeout(1200)
ROOT = Path(__file__).parents[2]
SHARES = 2
EXHAUSTIVE = 6000
"""About how many points there are; whoever asks for so many gets each of them once."""
MUST_BE_NONE = ("wedged", "lost", "torn", "resurrected", "orphan", "unclear")


def start(library: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Run points in a process of their own, into which the library is loaded."""
    folder.mkdir()
    control = folder / "control"
    control.write_bytes(bytes(4096))
    environ = {**os.environ, "LD_PRELOAD": str(library), "DISKFAULT_CONTROL": str(control)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.disk", folder, *options],
        env=environ,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The counts, and what was wrong, in words."""
    try:
        stdout, stderr = process.communicate()
    finally:
        # A test that ran out of time leaves neither it nor its daemons behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stdout[-2000:] + stderr[-4000:]
    answer: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return answer


@sizes("points", short=100, long=EXHAUSTIVE)
def test_no_error_of_the_disk_wedges_or_loses(points: int, library: Path, tmp_path: Path, report: Report) -> None:
    """A hundred points drawn over all scenarios; the long size is every one of them, each error at each call."""
    seed = drawn_seed()
    running = [
        start(
            *(library, tmp_path / f"{part}", "--points", str(0 if points >= EXHAUSTIVE else -(-points // SHARES))),
            *("--seed", str(seed + part), "--share", f"{part}/{SHARES}"),
        )
        for part in range(SHARES)
    ]
    counts: Counter[str] = Counter()
    trouble: list[str] = []
    for answer in [answer_of(process) for process in running]:
        counts.update(answer["counts"])
        trouble += answer["trouble"]
    bad = {name: counts[name] for name in MUST_BE_NONE}
    figures = {name: counts[name] for name in ("points", "scenarios", "points_there", "injected", "calls_failed")}
    report(
        "errors of the disk", **figures, wedged=bad["wedged"], silent_loss=sum(bad.values()) - bad["wedged"], seed=seed
    )
    assert not any(bad.values()), f"seed {seed}: {bad}: {trouble}"
    assert counts["scenarios"] >= 20
    # Which calls a daemon makes depends a little on its timing: a point near the end may find none.
    assert counts["injected"] >= 0.9 * counts["points"]


def test_a_refused_commit_is_gone(library: Path, tmp_path: Path) -> None:
    """A commit whose fsync failed is refused, and isn't in the files any more, should the daemon be killed there."""
    answer = answer_of(start(library, tmp_path / "run", "--points", "0", "--only", "refused_commits"))
    syncs = [words for words in answer["trouble"] if "fdatasync" in words or "fsync" in words]
    assert not answer["trouble"], syncs or answer["trouble"]
    assert answer["counts"]["injected"] > 20
