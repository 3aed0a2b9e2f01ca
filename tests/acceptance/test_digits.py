"""The main job on real input: the built-in digits models, by the real worker, under the real daemon."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.acceptance.conftest import Box

CONFIG = """
[daemon]
state_dir = "state"
[devices]
backend = "cpu"
[matrix.axes]
model = ["digits-sd15"]
scheduler = ["DDIM"]
method = ["tome", "deepcache"]
steps = [10]
[matrix.constants]
num_samples = 4
batch_size = 4
tolerance = 0.02
grid = "coarse"
budget_s = 0.5
"""
LABELS = ["digits-sd15/DDIM/tome/10", "digits-sd15/DDIM/deepcache/10"]


@pytest.mark.slow
def test_the_main_job_survives_kill_9(box: Box) -> None:
    """Killed in its first cell and started again: each cell ran once, is scored, and has an honest bound."""
    box.config.write_text(CONFIG)
    daemon = box.start("--until-idle")
    box.wait_for(lambda: '"attempt-started"' in (box.folder / "daemon.log").read_text())
    time.sleep(2)
    daemon.kill()
    daemon.wait()
    assert any("boundd.worker" in " ".join(process.cmdline()) for process in box.processes()), "the worker goes on"
    status, output = box.run(timeout_s=280)
    assert status == 0, output
    assert "built-in digits models" in output
    cells = box.export()
    assert list(cells) == LABELS
    for cell in cells.values():
        assert cell["state"] == "succeeded"
        assert cell["attempts"] == 1
        assert cell["max_speedup"] >= cell["max_speedup_within_tolerance"] > 0
        assert cell["best"]["score_loss"] <= 0.02
        if cell["isolation"] == "exclusive":
            assert cell["upper_bound"] == pytest.approx(1.1 * cell["max_speedup_within_tolerance"])
        else:
            assert cell["upper_bound"] is None, "what was timed beside others makes no bound"
    assert box.processes() == []


def test_an_old_file_is_imported_for_the_model_that_is_named(box: Box) -> None:
    """The old key fits SD1.5 and SD2.1: the import asks which, and the export says what it could not represent."""
    box.config.write_text(
        """
[daemon]
state_dir = "state"
export = "new.json"
[devices]
backend = "cpu"
[matrix.axes]
model = ["SD1.5", "SD2.1"]
scheduler = ["DDIM"]
steps = [20]
method = ["tome", "tgate"]
[matrix.constants]
num_samples = 8
batch_size = 4
tolerance = 0.02
[worker]
command = ["sleep", "600"]
result = "stdout"
"""
    )
    old = {
        "('StableDiffusionPipeline', 'DDIMScheduler', '20', 'upbound_speedup', 0.02, ['tome'])": {"max_speedup": 2.2},
        "failed_configs": {
            "StableDiffusionPipeline_DDIMScheduler_20_tgate": {
                "error": "cuda_oom",
                "message": "CUDA out of memory",
                "timestamp": "2025-01-01T00:00:00",
            }
        },
    }
    path = box.folder / "old.json"
    path.write_text(json.dumps(old))
    daemon = box.start()
    # The longest goes first and runs from now on: one of SD2.1's, which makes larger images.
    box.wait_for(lambda: '"attempt-started"' in (box.folder / "daemon.log").read_text())
    assert box.ctl("pause").returncode == 0
    asked = box.ctl("import", str(path))
    assert asked.returncode != 0
    assert "--model" in asked.stderr
    assert box.ctl("import", str(path), "--model", "SD1.5").returncode == 0
    states = {cell["label"]: cell["state"] for cell in json.loads(box.ctl("cells", "--json").stdout)}
    assert states["SD1.5/DDIM/20/tome"] == "succeeded"
    assert states["SD1.5/DDIM/20/tgate"] == "out_of_memory"
    exported = box.ctl("export", "--format", "legacy")
    assert "SD1.5/DDIM/20/tome" in exported.stderr
    assert box.ctl("retry", "--oom", "--dry-run").returncode == 0
    curl = subprocess.run(
        ["curl", "-sf", "--unix-socket", str(box.state_dir / "boundd.sock"), "http://boundd/v1/status"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(curl.stdout)["cells"]["total"] == 4
    assert box.ctl("shutdown", "--end-workers").returncode == 0
    assert daemon.wait(30) == 0
