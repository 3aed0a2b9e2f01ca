"""Who else is on a GPU, for somebody's own script: the daemon attests it from outside, by a fake driver's lists."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Box
from tests.fake_nvml import GIB, GRAPHICS, MPS, FakeNvml, build

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake NVML is compiled with gcc")

CELL = "SD1.5/DDIM/20/tome"
NOT_SUPPORTED = 3
ROOT = str(Path(__file__).parents[2])
SCRIPT = f"""
sys.path.insert(0, {ROOT!r})
from tests.fake_nvml.memory import DeviceMemory
memory = DeviceMemory()
memory.allocate(2 * 2**30)
open("runs", "w").close()
while not os.path.exists("go"):
    time.sleep(0.05)
print("speedup: 1.50")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled fake."""
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def fake(box: Box, library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """One fake GPU, for every daemon that the box starts."""
    driver = FakeNvml(box.folder / "nvml.state", library)
    driver.add("GPU-aaaa", "Fake 24 GiB", 24)
    for name in ("LD_LIBRARY_PATH", "FAKE_NVML_STATE"):
        monkeypatch.setenv(name, driver.environ[name])
    return driver


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of a living process that is not boundd's."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def write(box: Box, extra: str = "", hiding: str = "") -> None:
    """A config whose worker takes memory of its GPU and waits for a file."""
    box.write(SCRIPT.replace("memory.allocate", hiding + "memory.allocate"), extra=extra)
    box.config.write_text(box.config.read_text().replace('backend = "cpu"', 'backend = "nvml"'))


def device(box: Box) -> dict[str, Any]:
    """What `boundctl devices` says of the GPU; nothing while no daemon answers."""
    said = box.ctl("devices", "--json").stdout
    found: dict[str, Any] = json.loads(said)[0] if said else {}
    return found


def measured(box: Box, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The cell's export, after a run in which something happened once the worker had its memory."""
    daemon = box.start("--until-idle")
    box.wait_for(lambda: (box.folder / "runs").exists())
    box.wait_for(lambda: (device(box).get("free_bytes") or 24 * GIB) < 22 * GIB)
    meanwhile()
    (box.folder / "go").touch()
    assert daemon.wait(60) == 0
    return box.export()[CELL]


def reasons(cell: dict[str, Any]) -> list[str]:
    """Why a cell's isolation is what it is."""
    found: list[str] = cell["details"].get("isolation_reasons", [])
    return found


def test_alone_and_seen_is_exclusive(box: Box, fake: FakeNvml) -> None:
    """The worker was in the lists, nobody else was, from before its start to after its end."""
    write(box)
    cell = measured(box)
    assert (cell["isolation"], reasons(cell)) == ("exclusive", [])
    assert cell["upper_bound"] == pytest.approx(1.65)


@pytest.mark.parametrize("kind", [GRAPHICS, MPS])
def test_a_neighbour_of_any_kind_is_company(box: Box, fake: FakeNvml, stranger: int, kind: int) -> None:
    """Who draws on the device, or computes through MPS, is in another list."""
    fake.allocate(0, stranger, GIB)
    fake.process(0, stranger).kinds = kind
    write(box)
    cell = measured(box)
    assert (cell["isolation"], cell["upper_bound"]) == ("contended", None)


def test_a_neighbour_that_comes_at_the_end_is_company(box: Box, fake: FakeNvml, stranger: int) -> None:
    """The last look is after the worker's end."""
    write(box)
    cell = measured(box, lambda: fake.allocate(0, stranger, 32 * 2**20))
    assert (cell["isolation"], cell["upper_bound"]) == ("contended", None)


HIDING = """
import ctypes, mmap
from tests.fake_nvml import FakeState
with open(os.environ["FAKE_NVML_STATE"], "r+b") as file:
    state = FakeState.from_buffer(mmap.mmap(file.fileno(), 0))
for process in state.devices[0].processes:
    if process.pid == os.getpid():
        process.FIELD = VALUE
"""
"""What a worker does to its own entry in the lists."""


@pytest.mark.parametrize(
    ("fault", "hiding", "why"),
    [
        ({"graphics_error": 999}, "", "doesn't list graphics processes"),
        ({"mps_error": 4}, "", "doesn't list MPS processes"),
        ({"process_error": NOT_SUPPORTED}, "", "doesn't list compute processes"),
        ({}, HIDING.replace("FIELD", "hidden").replace("VALUE", "1"), "none of its processes was seen"),
        ({}, HIDING.replace("FIELD", "shown_pid").replace("VALUE", "4000000"), "none of its processes was seen"),
    ],
    ids=["graphics", "MPS", "compute", "nobody is listed", "pids of another namespace"],
)
def test_what_was_not_seen_is_unknown(box: Box, fake: FakeNvml, fault: dict[str, int], hiding: str, why: str) -> None:
    """With the reason, and without a bound."""
    for name, value in fault.items():
        setattr(fake.devices[0], name, value)
    write(box, hiding=hiding)
    cell = measured(box)
    assert (cell["isolation"], cell["upper_bound"]) == ("unknown", None)
    assert why in reasons(cell)[0]


def test_a_daemon_that_was_away_attests_nothing(box: Box, fake: FakeNvml) -> None:
    """Nobody watched the device while no daemon ran."""
    write(box)
    first = box.start()
    box.wait_for(lambda: (box.folder / "runs").exists())
    first.terminate()
    assert first.wait(30) == 0
    cell = measured(box)
    assert (cell["isolation"], cell["upper_bound"]) == ("unknown", None)
    assert reasons(cell) == ["no daemon watched its device all the while it ran"]


def test_a_gpu_that_a_stranger_has_to_itself_is_not_tried(box: Box, fake: FakeNvml, stranger: int) -> None:
    """In exclusive compute mode: it is shown with whose it is, burns no attempt, and is used once it is free."""
    fake.devices[0].compute_mode = 3
    fake.allocate(0, stranger, GIB)
    write(box)
    daemon = box.start("--until-idle")
    box.wait_for(lambda: device(box).get("state") == "unavailable")
    reason = device(box)["reason"]
    assert reason.startswith(f"in use by pid {stranger} (sleep)"), reason
    os.kill(stranger, 0)
    fake.release(0, stranger)
    box.wait_for(lambda: (box.folder / "runs").exists())
    (box.folder / "go").touch()
    assert daemon.wait(60) == 0
    assert box.export()[CELL]["attempts"] == 1


def test_unknown_makes_a_bound_where_the_config_accepts_it(box: Box, fake: FakeNvml) -> None:
    """And the table and the export say what it is."""
    fake.devices[0].graphics_error = 999
    write(box)
    box.config.write_text(box.config.read_text().replace("[devices]", "[devices]\naccept_unknown = true"))
    cell = measured(box)
    assert (cell["isolation"], cell["upper_bound"]) == ("unknown", pytest.approx(1.65))
    assert "1.65x (unknown)" in box.run()[1]
