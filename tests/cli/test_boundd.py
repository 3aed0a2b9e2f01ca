"""The command `boundd`: its options, check-config and doctor, with nothing behind them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boundd.cli.boundd import RunOptions, make_cli
from boundd.core.model.devices import DeviceReading
from boundd.ports import DeviceError

GPU = DeviceReading("GPU-1", 0, "Some \x1b[31mGPU", 24 * 1024**3, 20 * 1024**3, driver="570.1")
CONFIG = """
[daemon]
state_dir = "state"
[matrix.axes]
model = ["digits-sd15", "SD1.5"]
method = ["deepcache"]
[matrix.constants]
scheduler = "DDIM"
steps = 20
num_samples = 4
batch_size = 4
[models."SD1.5"]
source = "./nowhere"
"""


def boundd(*arguments: str, readings: Any = (GPU,), code: int = 0) -> tuple[int, str, list[RunOptions]]:
    """The exit code, the output, and what `run` was asked for."""
    asked: list[RunOptions] = []

    def run(options: RunOptions) -> int:
        asked.append(options)
        return code

    def probe(*_settings: Any) -> list[DeviceReading]:
        if isinstance(readings, Exception):
            raise readings
        return list(readings)

    result = CliRunner().invoke(make_cli(run, probe), list(arguments))
    return result.exit_code, result.output, asked


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config that is fine."""
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_run_passes_its_options_and_its_exit_code(config: Path) -> None:
    """Whatever `run` returns is the exit code."""
    code, _, asked = boundd("run", "--config", str(config), "--until-idle", "--log-format", "json", code=3)
    assert (code, asked) == (3, [RunOptions(config, True, "json")])
    assert boundd("run", "--log-format", "xml")[0] == 2
    assert boundd("run", "--gpus", "0, GPU-8a,")[2][0].gpus == ("0", "GPU-8a")


def test_check_config(config: Path) -> None:
    """A summary and 0, or every error with its key path and 2."""
    code, output, _ = boundd("check-config", str(config))
    assert code == 0, output
    assert "2" in output.split("cells:")[1].splitlines()[0]
    for name in ("state/boundd.sock", "speedup_bounds.json"):
        assert str(config.parent / name) in output
    assert "may change things" in output.split("access:")[1].splitlines()[0]
    config.write_text(CONFIG + '\n[control]\ngroup = "nobody-has-this"\n')
    code, output, _ = boundd("check-config", str(config))
    assert (code, "there is no group" in output) == (2, True)
    config.write_text(CONFIG + '\n[control]\nothers = "read"\n')
    assert "others may read" in boundd("check-config", str(config))[1]
    config.write_text(CONFIG + '\n[retry]\nmax_attemps = 2\nbatch_ladder = "x"\n')
    code, output, _ = boundd("check-config", str(config))
    assert code == 2
    assert "retry.max_attemps" in output
    assert "retry.batch_ladder" in output
    assert boundd("check-config", str(config.parent / "none.toml"))[0] == 2


def test_doctor(config: Path) -> None:
    """Devices, driver, libraries, weights, disk and leases; and what a device is called can't colour the terminal."""
    code, output, _ = boundd("doctor", "--config", str(config), "--json")
    found = json.loads(output)
    assert (code, found["driver"], found["devices"][0]["uuid"]) == (0, "570.1", "GPU-1")
    assert found["libraries"]["anyio"]
    assert found["models"]["digits-sd15"] == "built in"
    assert found["models"]["SD1.5"].startswith("missing")
    assert found["lease_folder"] == str(config.parent / "state/leases")
    assert found["disk_free_bytes"] > 0
    shown = boundd("doctor", "--config", str(config))[1]
    assert "\x1b" not in shown
    assert "Some \\x1b[31mGPU" in shown


def test_doctor_says_what_would_not_work(config: Path) -> None:
    """6 where no device can be used, 2 for a config with errors."""
    code, output, _ = boundd("doctor", "--config", str(config), readings=DeviceError("no driver answers"))
    assert (code, "no driver answers" in output) == (6, True)
    lost = DeviceReading("GPU-1", 0, "GPU", unavailable="fell off the bus")
    code, output, _ = boundd("doctor", "--config", str(config), readings=(lost,))
    assert (code, "fell off the bus" in output) == (6, True)
    config.write_text("[matrix]\n")
    assert boundd("doctor", "--config", str(config))[0] == 2


def test_doctor_does_not_import_torch() -> None:
    """Versions come from the packages' metadata."""
    code = "import sys, boundd.cli.boundd, boundd.cli.doctor; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["run", "check-config", "doctor"])
def test_every_help_has_an_example(name: str) -> None:
    """And names the command in it."""
    assert f"boundd {name}" in boundd(name, "--help")[1].split("Example:")[1]


OWN_SCRIPT = """
[daemon]
state_dir = "state"
[matrix.axes]
n = [1]
[worker]
command = ["python", "search.py"]
result = "stdout"
"""
PATTERN = "pattern = 'final speedup: (\\S+)'\n"


def test_check_config_tries_what_a_script_prints(tmp_path: Path) -> None:
    """From the config or from a file; a sample that nothing is read from, or something wrong, is exit 2."""
    path, sample = tmp_path / "config.toml", tmp_path / "sample"
    path.write_text(OWN_SCRIPT + PATTERN)
    assert "no sample to try the pattern on" in boundd("check-config", str(path))[1]
    sample.write_bytes(b"theoretical max speedup: 8.00\nfinal \x1b[1mspeedup: 2.31\x1b[0m\nfinal speedup: 1.5\n")
    code, output, _ = boundd("check-config", str(path), "--sample", str(sample))
    assert code == 0
    assert "result: 2.31x, from line 2 of the sample: final speedup: 2.31; 1 other lines have one" in output
    sample.write_text("speedup: 2.31")
    code, output, _ = boundd("check-config", str(path), "--sample", str(sample))
    assert (code, "nothing is read from the sample" in output) == (2, True)
    path.write_text(OWN_SCRIPT + PATTERN + 'sample = "final speedup: 2.31"\n')
    assert "result: 2.31x, from line 1" in boundd("check-config", str(path))[1]
    path.write_text(OWN_SCRIPT + 'sample = "speedup: 2,31"\n')
    code, output, _ = boundd("check-config", str(path))
    assert (code, "worker.sample: nothing is read from it" in output) == (2, True)
    for pattern, words in (("(", "not a regular expression"), ("x", "0 groups"), ("(?P<a>x)", "the group 'a'")):
        path.write_text(OWN_SCRIPT + f"pattern = '{pattern}'\n")
        code, output, _ = boundd("check-config", str(path))
        assert (code, f"worker.pattern: {words}" in output or words in output) == (2, True)
    path.write_text(OWN_SCRIPT.replace("stdout", "protocol") + PATTERN)
    assert 'used with result = "stdout" alone' in boundd("check-config", str(path))[1]
