"""The daemon on GPUs: the real pynvml binding on a fake libnvidia-ml.so.1, real workers. No GPU is involved."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.acceptance.conftest import Box
from tests.fake_nvml import GIB, FakeNvml, build

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake NVML is compiled with gcc")

SCRIPT = """
with open("seen", "a") as file:
    file.write(json.dumps({
        "cell": arguments.pipe + "/" + arguments.search_targets,
        "device": os.environ["CUDA_VISIBLE_DEVICES"],
        "order": os.environ["CUDA_DEVICE_ORDER"],
        "cap": int(os.environ["BOUNDD_MEMORY_CAP_BYTES"]),
        "lease": os.environ["BOUNDD_LEASE"],
    }) + "\\n")
while not os.path.exists("go"):
    time.sleep(0.05)
print("speedup: 1.50")
"""
RULES = """
[[rule]]
match = {}
lease = true
footprint = "10GiB"
[[rule]]
match = { method = "alone" }
exclusive = true
"""


@pytest.fixture
def fake(box: Box, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """Two fake GPUs of 24 GiB for every daemon that the box starts."""
    driver = FakeNvml(box.folder / "nvml.state", build(box.folder / "lib"))
    driver.add("GPU-aaaa", "Fake 24 GiB", 24)
    driver.add("GPU-bbbb", "Fake 24 GiB", 24)
    for name in ("LD_LIBRARY_PATH", "FAKE_NVML_STATE"):
        monkeypatch.setenv(name, driver.environ[name])
    return driver


def seen(box: Box) -> list[dict[str, object]]:
    """What the workers found in their environments."""
    path = box.folder / "seen"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def use_nvml(box: Box, methods: str) -> None:
    """A matrix of these methods on the fake GPUs, with rules."""
    box.write(SCRIPT, extra=RULES, axes=f"method = [{methods}]")
    box.config.write_text(box.config.read_text().replace('backend = "cpu"', 'backend = "nvml"'))


@needs_gcc
def test_cells_are_packed_by_memory(box: Box, fake: FakeNvml) -> None:
    """Two cells of 10 GiB a device, by UUID, with a cap; `explain` says how many bytes the fifth is short."""
    use_nvml(box, '"a", "b", "c", "d", "e"')
    daemon = box.start("--until-idle")
    box.wait_for(lambda: len(seen(box)) == 4)
    by_device: dict[object, int] = {}
    for worker in seen(box):
        by_device[worker["device"]] = by_device.get(worker["device"], 0) + 1
        assert worker["order"] == "PCI_BUS_ID"
        assert worker["cap"] == 10 * GIB
        assert Path(str(worker["lease"])).name == worker["device"]
    assert by_device == {"GPU-aaaa": 2, "GPU-bbbb": 2}
    explained = json.loads(box.ctl("explain", "SD1.5/DDIM/20/e", "--json").stdout)
    assert all("bytes short" in device["reason"] for device in explained["devices"])
    devices = json.loads(box.ctl("devices", "--json").stdout)
    assert [device["reserved_bytes"] for device in devices] == [20 * GIB, 20 * GIB]
    (box.folder / "go").touch()
    assert daemon.wait(60) == 0
    assert len(seen(box)) == 5


@needs_gcc
def test_an_exclusive_cell_has_a_device_to_itself(box: Box, fake: FakeNvml) -> None:
    """It takes one device whole; the others share the other one."""
    use_nvml(box, '"alone", "a", "b"')
    daemon = box.start("--until-idle")
    box.wait_for(lambda: len(seen(box)) == 3)
    device_of = {str(worker["cell"]).split("/")[1]: worker["device"] for worker in seen(box)}
    assert device_of["a"] == device_of["b"] != device_of["alone"]
    (box.folder / "go").touch()
    assert daemon.wait(60) == 0


@needs_gcc
def test_a_lost_device_stops_nothing_else(box: Box, fake: FakeNvml) -> None:
    """It is unavailable with the reason, takes no cells, and the run ends on the other one."""
    fake.devices[0].memory_error = 15  # NVML_ERROR_GPU_IS_LOST
    use_nvml(box, '"a", "b", "c"')
    (box.folder / "go").touch()
    daemon = box.start()
    box.wait_for(lambda: '"run-idle"' in (box.folder / "daemon.log").read_text())
    assert {worker["device"] for worker in seen(box)} == {"GPU-bbbb"}
    (lost, ready) = json.loads(box.ctl("devices", "--json").stdout)
    assert (lost["state"], lost["free_bytes"], ready["state"]) == ("unavailable", None, "ready")
    assert "lost" in lost["reason"].lower()
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(30) == 0


@needs_gcc
def test_a_broken_driver_is_no_reason_to_measure_on_the_cpu(box: Box, fake: FakeNvml) -> None:
    """Exit 6."""
    fake.header.init_error = 999
    use_nvml(box, '"a"')
    box.config.write_text(box.config.read_text().replace('"nvml"', '"auto"'))
    assert box.run()[0] == 6
    assert seen(box) == []
