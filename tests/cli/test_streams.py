"""Streams that are closed, or that nobody reads any more, cost a command nothing.

Seen to fail: without `spare_standard` a run into `| head` ends with 1, without `open_closed` one with closed streams
writes its messages into whatever file took their numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
[daemon]
state_dir = "state"
[devices]
backend = "cpu"
[matrix.axes]
n = [1]
[worker]
command = ["echo", "speedup: 1.5"]
result = "stdout"
"""
RUN = f"{sys.executable} -m boundd run --config config.toml --until-idle"


def shell(line: str, folder: Path) -> int:
    """The exit code of what a shell runs in a folder."""
    script = f"set -o pipefail; {line}"
    return subprocess.run(["bash", "-c", script], cwd=folder, check=False, timeout=120).returncode


@pytest.mark.parametrize("how", ["</dev/null 2>&1 | true", "<&- >&- 2>&-", "<&- 2>/dev/null >&-"])
def test_a_run_goes_on_to_its_end(tmp_path: Path, how: str) -> None:
    """And its exit code is that of its cells, whatever became of its streams."""
    (tmp_path / "config.toml").write_text(CONFIG)
    assert shell(f"{RUN} {how}", tmp_path) == 0
    (cell,) = json.loads((tmp_path / "speedup_bounds.json").read_text())["cells"]
    assert cell["max_speedup"] == 1.5
    assert os.read(os.open(tmp_path / "state" / "boundd.db", os.O_RDONLY), 15) == b"SQLite format 3"


def test_boundctl_into_a_closed_pipe(tmp_path: Path) -> None:
    """No reader is no error: 1 would say that nothing was found."""
    boundctl = f"{sys.executable} -m boundd.cli.boundctl"
    assert shell(f"{boundctl} --help | true", tmp_path) == 0
    assert shell(f"{boundctl} --help <&- >&- 2>&-", tmp_path) == 0
    assert shell(f"{boundctl} status --socket none <&- >&- 2>&-", tmp_path) == 3
