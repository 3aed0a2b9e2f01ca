"""The daemon on GPUs: the real pynvml binding on a fake libnvidia-ml.so.1, real workers. No GPU is involved."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

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
        "pid": os.getpid(),
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
        assert worker["cap"] == 10 * GIB - GIB // 2  # less the context, which the allocator doesn't see
        assert Path(str(worker["lease"])).name == worker["device"]
    assert by_device == {"GPU-aaaa": 2, "GPU-bbbb": 2}
    explained = json.loads(box.ctl("explain", "SD1.5/DDIM/20/e", "--json").stdout)
    assert all(device["cause"]["kind"] == "memory_short" for device in explained["devices"])
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


def device(box: Box, uuid: str) -> dict[str, Any]:
    """What `boundctl devices` says of a device."""
    listed: list[dict[str, Any]] = json.loads(box.ctl("devices", "--json").stdout)
    return next(entry for entry in listed if entry["uuid"] == uuid)


@needs_gcc
def test_an_xid_takes_a_device_out_of_service_until_a_person_says_otherwise(box: Box, fake: FakeNvml) -> None:
    """What runs there goes on, nothing new comes; `uncordon` counts although the driver's counters stay as they are."""
    use_nvml(box, '"alone", "b"')
    box.config.write_text(box.config.read_text().replace("[devices]", '[devices]\ninclude = ["GPU-aaaa"]'))
    daemon = box.start()
    box.wait_for(lambda: len(seen(box)) == 1)
    fake.raise_xid(0, 13)
    fake.raise_xid(0, 95)
    box.wait_for(lambda: device(box, "GPU-aaaa")["state"] == "cordoned")
    assert device(box, "GPU-aaaa")["reason"] == "the driver reports XID 95 (uncontained memory error)"
    (box.folder / "go").touch()
    box.wait_for(lambda: any(line.get("event.action") == "attempt-ended" for line in box.log()))
    time.sleep(2.5)
    assert len(seen(box)) == 1
    assert {cell["state"] for cell in box.export().values()} == {"succeeded", "pending"}
    assert box.ctl("uncordon", "GPU-aaaa").returncode == 0
    box.wait_for(lambda: len(seen(box)) == 2)
    time.sleep(2.5)
    assert device(box, "GPU-aaaa")["state"] == "ready"
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(30) == 0


@needs_gcc
def test_instances_of_a_divided_device_take_cells(box: Box, fake: FakeNvml) -> None:
    """Workers are given an instance by its own name, and the whole takes none.

    There are as many wholes as instances: if they counted, the matrix would wait for the wholes' model, and never run.
    """
    for index, name in enumerate(("MIG-1", "MIG-2")):
        fake.devices[index].mig_mode = 1
        fake.add(name, "Fake 24 GiB MIG 3g.12gb", 12, mig_parent=index)
    use_nvml(box, '"a", "b"')
    (box.folder / "go").touch()
    assert box.run()[0] == 0
    assert {worker["device"] for worker in seen(box)} == {"MIG-1", "MIG-2"}


@needs_gcc
@pytest.mark.parametrize("stranger_comes", [True, False])
def test_a_strangers_process_makes_a_scripts_result_contended(box: Box, fake: FakeNvml, stranger_comes: bool) -> None:
    """Somebody's own script attests nothing: boundd does, by the driver's list of processes.

    The control without a stranger is exclusive, and has a bound.
    """
    use_nvml(box, '"alone"')
    daemon = box.start("--until-idle")
    box.wait_for(lambda: len(seen(box)) == 1)
    pid, uuid = seen(box)[0]["pid"], seen(box)[0]["device"]
    assert isinstance(pid, int)
    index = ["GPU-aaaa", "GPU-bbbb"].index(str(uuid))
    fake.allocate(index, pid, GIB, bound=True)
    stranger = subprocess.Popen(["sleep", "100"])
    try:
        if stranger_comes:
            fake.allocate(index, stranger.pid, GIB, bound=True)
            box.wait_for(lambda: any(line.get("event.action") == "foreign-process" for line in box.log()))
        else:
            queries = fake.devices[index].process_queries
            box.wait_for(lambda: fake.devices[index].process_queries > queries)
    finally:
        stranger.kill()
        stranger.wait()
    (box.folder / "go").touch()
    assert daemon.wait(60) == 0
    (cell,) = box.export().values()
    assert cell["isolation"] == ("contended" if stranger_comes else "exclusive")
    assert (cell["upper_bound"] is None) is stranger_comes


@needs_gcc
def test_process_lists_are_read_when_something_has_changed(box: Box, fake: FakeNvml) -> None:
    """Not every second: a cell runs and another one waits, nothing changes, and no list is asked for."""
    use_nvml(box, '"alone", "b"')
    box.config.write_text(box.config.read_text().replace("[devices]", '[devices]\ninclude = ["GPU-aaaa"]'))
    daemon = box.start("--until-idle")
    box.wait_for(lambda: len(seen(box)) == 1)

    def asked_in_three_seconds() -> int:
        before = fake.devices[0].process_queries
        time.sleep(3)
        return fake.devices[0].process_queries - before

    box.wait_for(lambda: asked_in_three_seconds() == 0)
    before = fake.devices[0].process_queries
    pid = seen(box)[0]["pid"]
    assert isinstance(pid, int)
    fake.allocate(0, pid, 2 * GIB, bound=True)
    box.wait_for(lambda: fake.devices[0].process_queries > before)
    (box.folder / "go").touch()
    assert daemon.wait(60) == 0


@needs_gcc
def test_a_driver_that_hangs_and_comes_back_stops_nothing(box: Box, fake: FakeNvml) -> None:
    """While it hangs on one GPU the daemon answers, says why nothing new starts there, and what runs ends well; another
    GPU may go on meanwhile. Then all goes on."""
    use_nvml(box, '"alone", "b", "c", "d"')
    daemon = box.start("--until-idle")
    box.wait_for(lambda: len(seen(box)) == 3)
    fake.devices[0].hang = 1
    box.wait_for(lambda: device(box, "GPU-aaaa")["state"] == "unavailable")
    assert "did not answer within 2.0 s" in device(box, "GPU-aaaa")["reason"]
    before = [worker["cell"] for worker in seen(box)]
    (box.folder / "go").touch()
    box.wait_for(lambda: len([1 for line in box.log() if line.get("event.action") == "attempt-ended"]) >= 3)
    assert {worker["device"] for worker in seen(box) if worker["cell"] not in before} <= {"GPU-bbbb"}
    fake.devices[0].hang = 0
    assert daemon.wait(60) == 0
    assert len(seen(box)) == 4


@needs_gcc
def test_a_broken_driver_is_no_reason_to_measure_on_the_cpu(box: Box, fake: FakeNvml) -> None:
    """Exit 6."""
    fake.header.init_error = 999
    use_nvml(box, '"a"')
    box.config.write_text(box.config.read_text().replace('"nvml"', '"auto"'))
    assert box.run()[0] == 6
    assert seen(box) == []


@needs_gcc
def test_the_daemons_cuda_visible_devices_bounds_what_it_uses(
    box: Box, fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second GPU alone, by its index; a third that the config names and that isn't there stops nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    use_nvml(box, '"a", "b"')
    box.config.write_text(
        box.config.read_text()
        .replace("[devices]", '[devices]\ninclude = ["0", "1", "GPU-dead"]')
        .replace('command = ["{python}"', 'command = ["env", "GPU_INDEX={device_index}", "{python}"')
    )
    search = box.folder / "search.py"
    search.write_text(search.read_text().replace('"pid": os.getpid()', '"index": os.environ["GPU_INDEX"]'))
    (box.folder / "go").touch()
    daemon = box.start("--until-idle", "--gpus", "0,1,GPU-dead")
    assert daemon.wait(60) == 0
    assert {(worker["device"], worker["index"]) for worker in seen(box)} == {("GPU-bbbb", "1")}
    log = (box.folder / "daemon.log").read_text()
    assert "can't be used: it is asked for by name, and there is no such device" in log
    assert box.start("--until-idle", "--gpus", "0").wait(60) == 6
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert box.start("--until-idle").wait(60) == 6
