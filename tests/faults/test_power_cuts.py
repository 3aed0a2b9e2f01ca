"""Power cuts: what was acknowledged is there afterwards, and nothing is there by half.

A real store, real shims, exports, the state's lock, and in every fifth cut the daemon itself, on an ext4 that is shut
down at a random instant without its journal being flushed (`tests/faults/power.py`). Seen to fail:

- `synchronous = NORMAL` in `boundd.store.queries.PRAGMAS` is the control below, and loses commits at nearly every cut.
- Without `sync_written` in `Shim.run`, outcomes that say 0 stand beside results that are gone: `results_lost`.
- Without the fsync of the file in `write_outcome`, all outcomes are empty: `outcomes_torn`; without that of the folder,
  `outcomes_lost` 3 in 20 cuts.
- Without the fsync of the file in `telemetry.export_file._write_whole`, every export is empty: `exports_torn`; without
  `_sync_folder` in `write_export`, `exports_lost` 5 in 20 cuts.

BOUNDD_CAMPAIGN_SEED=N cuts after the same waits again; what is under way then is the machine's to say.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.campaign import Report, drawn_seed, sizes

ROOT = Path(__file__).parents[2]
NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
MUST_BE_NONE = (
    *("commits_lost", "stores_refused", "exports_torn", "exports_lost", "outcomes_torn", "outcomes_lost"),
    *("results_lost", "ends_lost", "runs_unfinished"),
)


@pytest.fixture
def disk_folder(tmp_path: Path) -> Path:
    """A folder for the disk's file, where there can be one."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    missing = [tool for tool in ("unshare", "mkfs.ext4", "mount", "losetup") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: util-linux, mount, e2fsprogs)")
    (tmp_path / "try").mkdir()
    (tmp_path / "try.img").write_bytes(bytes(1 << 20))
    script = f"mkfs.ext4 -q -F {tmp_path}/try.img && mount -o loop {tmp_path}/try.img {tmp_path}/try"
    found = subprocess.run([*NAMESPACES, "sh", "-c", script], capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {found.stderr.strip()[-200:]}")
    return tmp_path


def cut(folder: Path, cuts: int, seed: int, *options: str) -> dict[str, Any]:
    """Run the cuts in namespaces of their own; the counts, and what was wrong, in words."""
    program = (sys.executable, "-m", "tests.faults.power", folder, "--cuts", str(cuts), "--seed", str(seed), *options)
    found = subprocess.run([*NAMESPACES, *program], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, f"seed {seed}: {found.stdout[-2000:]}{found.stderr[-4000:]}"
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer


@sizes("cuts", short=20, long=1000)
def test_what_was_acknowledged_survives_a_power_cut(disk_folder: Path, cuts: int, report: Report) -> None:
    """No acknowledged commit, end or export is lost; no outcome, result or export is there by half."""
    seed = drawn_seed()
    answer = cut(disk_folder, cuts, seed)
    counts = answer["counts"]
    done = {name: counts.pop(name, 0) for name in ("cuts", "daemon_cuts", "commits", "outcomes", "exports", "ends")}
    bad = {name: counts.get(name, 0) for name in MUST_BE_NONE}
    report("power cuts", **done, acknowledged_but_lost=sum(bad.values()), seed=seed)
    assert not any(bad.values()), f"seed {seed}: {bad}: {answer['trouble']}"
    assert done["cuts"] == cuts
    assert done["daemon_cuts"] == -(-cuts // 5)


@sizes("cuts", short=20, long=100)
def test_synchronous_normal_is_caught(disk_folder: Path, cuts: int, report: Report) -> None:
    """The control: a store that doesn't sync each commit loses some, and the campaign sees it."""
    seed = drawn_seed()
    counts = cut(disk_folder, cuts, seed, "--synchronous", "NORMAL", "--store-alone")["counts"]
    lost = counts.get("commits_lost", 0)
    report("power cuts with synchronous=NORMAL", cuts=cuts, commits=counts["commits"], lost_and_caught=lost, seed=seed)
    assert counts.get("stores_refused", 0) == 0
    assert lost > 0, f"seed {seed}: nothing was lost, so the cuts cut nothing"
