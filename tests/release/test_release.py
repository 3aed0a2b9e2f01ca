"""What a release is: a source distribution, the wheel made from it, and that wheel at work outside the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import boundd

pytestmark = pytest.mark.timeout(600)

CHECKOUT = Path(__file__).parents[2]
OWN_SCRIPT = """
import sys, time
print("speedup: 1.25")
print("speedup: 1.50")
"""
CONFIG = """
[daemon]
state_dir = "state"
[devices]
backend = "cpu"
[matrix.axes]
method = ["tome", "tgate"]
[worker]
command = ["{python}", "search.py", "{method}"]
result = "stdout"
"""
DIGITS = """
[daemon]
state_dir = "digits-state"
export = "digits.json"
[devices]
backend = "cpu"
[matrix.axes]
model = ["digits-sd15"]
scheduler = ["DDIM"]
steps = [4]
method = ["tome"]
[matrix.constants]
num_samples = 2
batch_size = 2
grid = "coarse"
budget_s = 0.2
[worker]
python = "%s"
env = { PYTHONPATH = "%s" }
"""


def run(*command: str | Path, cwd: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command that knows nothing of the checkout; fails with what it said."""
    ours = ("PYTHON", "BOUNDD", "VIRTUAL")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environ, check=False, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=CHECKOUT)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from the source distribution, as an installer would make it."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "out", cwd=source)
    (path,) = (folder / "out").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    constraints = CHECKOUT / "constraints.txt"
    done = subprocess.run(
        [folder / "bin/python", "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode and "CI" not in os.environ and ("onnection" in done.stderr or "No matching" in done.stderr):
        pytest.skip(f"the requirements can't be downloaded: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_what_is_in_the_wheel(wheel: Path) -> None:
    """All that it needs at run time, and no tests or tools."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        *("boundd/_migrations/0001_initial.sql", "boundd/_config.toml", "boundd/py.typed"),
        *("boundd/_systemd/boundd.service", "boundd/_systemd/user/boundd.service"),
        *("boundd/_systemd/boundd-devices.service", "boundd/_systemd/examples/weights.conf"),
        *("boundd/_systemd/sysusers.d/boundd.conf", "boundd/_systemd/tmpfiles.d/boundd.conf"),
        "boundd/worker/digits/models/digits-sdxl/unet/diffusion_pytorch_model.safetensors",
        "boundd/worker/digits/models/digits-scorer/model.safetensors",
    ):
        assert needed in names, needed
    # Every migration of the checkout: one that is left out makes a store that the next release refuses.
    for migration in (CHECKOUT / "migrations").glob("*.sql"):
        assert f"boundd/_migrations/{migration.name}" in names
    licences = f"boundd-{boundd.__version__}.dist-info/licenses"
    assert {f"{licences}/LICENSE", f"{licences}/THIRD-PARTY.md"} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"boundd", f"boundd-{boundd.__version__}.dist-info"}
    assert not any("__pycache__" in name or name.endswith((".db", ".log")) for name in names)


def test_the_version_comes_from_one_place(sdist: Path, wheel: Path, programs: Path, tmp_path: Path) -> None:
    """boundd/__init__.py: files, metadata and both commands say the same; the changelog knows it, or what comes."""
    version = boundd.__version__
    assert sdist.name == f"boundd-{version}.tar.gz"
    assert wheel.name.startswith(f"boundd-{version}-")
    for program in ("boundd", "boundctl"):
        assert version in run(programs / program, "--version", cwd=tmp_path).stdout
    changelog = (CHECKOUT / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in changelog or "## [Unreleased]" in changelog


def test_the_wheel_alone_measures_and_shows(programs: Path, tmp_path: Path) -> None:
    """The demo's shape with somebody's own script: to the end, with the table, the export and the report of it."""
    (tmp_path / "search.py").write_text(OWN_SCRIPT)
    (tmp_path / "config.toml").write_text(CONFIG)
    output = run(programs / "boundd", "run", "--until-idle", cwd=tmp_path).stdout
    assert "upper bound" in output.lower()
    cells = json.loads((tmp_path / "speedup_bounds.json").read_text())["cells"]
    assert [(cell["label"], cell["max_speedup"]) for cell in cells] == [("tome", 1.5), ("tgate", 1.5)]
    where = run(programs / "python", "-c", "import boundd; print(boundd.__file__)", cwd=tmp_path).stdout
    assert not Path(where.strip()).is_relative_to(CHECKOUT)


def test_the_wheel_alone_can_be_installed_as_a_service(programs: Path, tmp_path: Path) -> None:
    """The units in it are found, and name its own programs."""
    if shutil.which("systemctl") is None:
        pytest.skip("no systemctl here")
    said = run(programs / "boundd", "install-service", "--dry-run", cwd=tmp_path).stdout
    assert f"ExecStart={programs}/boundd run" in said
    assert "write   /etc/sysusers.d/boundd.conf" in said


def test_the_wheels_own_models_are_measured(programs: Path, tmp_path: Path) -> None:
    """The demo itself, one cell of it: the models of the wheel, in an environment that has the libraries."""
    missing = [library for library in ("torch", "diffusers", "tomesd") if importlib.util.find_spec(library) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    packages = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    (tmp_path / "config.toml").write_text(DIGITS % (sys.executable, packages.stdout.strip()))
    run(programs / "boundd", "run", "--until-idle", cwd=tmp_path, timeout_s=500)
    (cell,) = json.loads((tmp_path / "digits.json").read_text())["cells"]
    assert cell["state"] == "succeeded"
    assert cell["max_speedup"] > 0
