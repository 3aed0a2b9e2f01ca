"""A short `make demo-gpus`: the real daemon, workers that really take each other's memory, one that runs out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake NVML is compiled with gcc")
def test_the_demo_packs_and_cures_and_says_that_it_is_simulated(tmp_path: Path) -> None:
    """Seven cells on three devices: everything succeeds, one ran out of memory on the way, and every line with a
    number has the word."""
    config = tmp_path / "gpus.toml"
    text = (ROOT / "examples" / "gpus.toml").read_text()
    text = text.replace('["DDIM", "UniPC"]', '["DDIM"]').replace("[20, 50]", "[20]").replace(', "tome"]', "]")
    config.write_text(text.replace('"gpus_worker.py"', json.dumps(str(ROOT / "examples" / "gpus_worker.py"))))
    command = [sys.executable, "-m", "tests.fake_nvml.demo", "--devices", "3", "--config", str(config)]
    folder = tmp_path / "demo"
    demo = subprocess.run(
        [*command, "--folder", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr + (folder / "log").read_text()[-2000:]
    assert "7 cells: 7 succeeded" in demo.stdout
    assert "out of memory (simulated): simulated-SD1.5/DDIM/20/deepcache+tome: estimate too low" in demo.stdout
    figure = re.compile(r"\d (GiB|bytes)|\d\.\d+x")
    with_numbers = [line for line in demo.stdout.splitlines() if figure.search(line)]
    assert len(with_numbers) > 10
    assert [line for line in with_numbers if "simulated" not in line.casefold()] == []
    cells = json.loads((folder / "simulated-bounds.json").read_text())["cells"]
    assert {cell["label"].split("/")[0] for cell in cells} == {"simulated-SD1.5", "simulated-SD2.1", "simulated-SDXL"}
    assert {cell["attempts"] for cell in cells} == {1, 2}
