"""The worker as a process: options, output, exit codes, results file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from boundd.protocol.lines import Error, LineSplitter, Memory, Point, Result, name_of, parse_line

ROOT = Path(__file__).parents[2]
SPEEDUP = re.compile(r"speedup: (\d+\.\d+)")
QUICK = (
    "--steps",
    "5",
    "--num_samples",
    "2",
    "--batch_size",
    "1",
    "--grid",
    "coarse",
    "--repeats",
    "2",
    "--max-repeats",
    "2",
)

STARVED = """
import re, resource
from pathlib import Path
from boundd.worker import cli, search

run_baseline = search.run_baseline

def in_little_memory(*arguments):
    used_bytes = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    limit_bytes = used_bytes + (512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    return run_baseline(*arguments)

search.run_baseline = in_little_memory
cli.main(prog_name="worker")
"""
"""The worker, with little address space left once the model is loaded."""


def worker(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m boundd.worker`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BOUNDD_")}
    return subprocess.run(
        [sys.executable, "-m", "boundd.worker", *arguments],
        cwd=ROOT,
        env=clean | {"HF_HUB_OFFLINE": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )


def lines_of(path: Path) -> list[Any]:
    """The lines of a results file, all of them well-formed and ended."""
    splitter = LineSplitter()
    lines = [parse_line(line) for line in splitter.feed(path.read_bytes())]
    assert splitter.rest == b""
    return lines


def lines_of_torn(path: Path) -> list[Any]:
    """The whole lines of a results file whose writer was killed."""
    return [parse_line(line) for line in LineSplitter().feed(path.read_bytes())]


def test_the_old_command_line_runs(tmp_path: Path) -> None:
    """The old options with class names: speed-ups on stdout and nothing else, lines in the file, exit 0."""
    results = tmp_path / "results.jsonl"
    done = worker(
        *("--pipe", "digits-sd21", "--sched", "UniPCMultistepScheduler", "--search_targets", "tgate", *QUICK),
        "--scorer=",
        BOUNDD_RESULTS=str(results),
        BOUNDD_LEASE=str(tmp_path / "lease"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = [SPEEDUP.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(printed)
    lines = lines_of(results)
    points = [line for line in lines if isinstance(line, Point)]
    last = {name_of(point.parameters): point for point in points}.values()
    assert [f"{point.speedup:.2f}" for point in last] == [match[1] for match in printed if match]
    assert isinstance(lines[-1], Result)


def test_the_daemons_way_needs_no_options(tmp_path: Path) -> None:
    """Everything from the environment: the cell, the model's entry, the scorer, the batch of the attempt."""
    results = tmp_path / "results.jsonl"
    cell = {
        "model": "mine",
        "scheduler": "DDIM",
        "steps": 5,
        "method": "tome",
        "num_samples": 2,
        "batch_size": 4,
        "grid": "coarse",
        "repeats": 2,
        "note": "for somebody else",
    }
    source = ROOT / "boundd" / "worker" / "digits" / "models" / "digits-sd15"
    done = worker(
        BOUNDD_CELL=json.dumps(cell),
        BOUNDD_MODEL=json.dumps({"source": str(source), "weights": "pretrained", "dtype": "float32"}),
        BOUNDD_SCORER=json.dumps({"source": ""}),
        BOUNDD_BATCH_SIZE="2",
        BOUNDD_ATTEMPT="7",
        BOUNDD_MEMORY_CAP_BYTES=str(1 << 33),
        BOUNDD_RESULTS=str(results),
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    result = lines_of(results)[-1]
    assert isinstance(result, Result)
    assert result.max_speedup_within_tolerance is None
    assert result.extra["batch_size"] == 2
    assert result.extra["model"] == "mine"


def test_json_is_the_only_output() -> None:
    """--json prints one document, with the points, the memory and the result."""
    done = worker("--pipe", "digits-sd15", "--sched", "ddim", "--search-targets", "tome", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["points"]) == 5
    assert document["result"]["max_speedup"] == max(point["speedup"] for point in document["points"])
    assert document["memory"]["peak_reserved_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--pipe: is needed"),
        (("--pipe", "digits-sd15", "--sched", "DIMM"), "did you mean DDIM"),
        (("--no-such-option",), "No such option"),
        (("--pipe", "digits-sd15", "--weights", "random"), "digits-sd15 is no architecture"),
    ],
)
def test_wrong_usage_is_exit_2_and_quick(arguments: tuple[str, ...], reason: str) -> None:
    """It is said before anything heavy is imported."""
    started = time.monotonic()
    done = worker(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert time.monotonic() - started < 2


def test_wrong_usage_by_the_daemon_leaves_a_line(tmp_path: Path) -> None:
    """An error line says why, so that it does not look like a crash; and a bad variable is named."""
    results = tmp_path / "results.jsonl"
    done = worker(BOUNDD_CELL='{"model": "digits-sd15", "scheduler": "DIMM"}', BOUNDD_RESULTS=str(results))
    assert done.returncode == 2
    (line,) = lines_of(results)
    assert isinstance(line, Error)
    assert (line.error, line.phase) == ("bad_data", "usage")
    assert "did you mean DDIM" in line.message
    bad = worker(BOUNDD_CELL="{")
    assert bad.returncode == 2
    assert "BOUNDD_CELL" in bad.stderr


def test_a_model_that_is_not_there_is_exit_4(tmp_path: Path) -> None:
    """The line and stderr say what was looked for and how to give it."""
    results = tmp_path / "results.jsonl"
    done = worker(
        *("--pipe", "SD1.5", "--sched", "DDIM", "--search_targets", "tome", *QUICK),
        BOUNDD_RESULTS=str(results),
        HF_HOME=str(tmp_path),
    )
    assert done.returncode == 4
    line = lines_of(results)[-1]
    assert isinstance(line, Error)
    assert (line.error, line.phase) == ("model_unavailable", "fetch")
    assert 'models."SD1.5"' in line.message
    assert "model_unavailable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misfit_is_exit_5(tmp_path: Path) -> None:
    """Bad data has its own code, so that nobody retries it."""
    done = worker("--pipe", "digits-sd15", "--sched", "Heun", "--search_targets", "deepcache", *QUICK)
    assert done.returncode == 5
    assert "bad_data (load)" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory_is_exit_3(tmp_path: Path) -> None:
    """Images far too big for the memory there is: a real allocation fails, and its size is in the line."""
    results = tmp_path / "results.jsonl"
    arguments = ("--pipe", "digits-sd15", "--sched", "DDIM", "--search_targets", "tome", *QUICK)
    done = subprocess.run(
        [sys.executable, "-c", STARVED, *arguments, "--resolution", "8192"],
        cwd=ROOT,
        env=os.environ | {"BOUNDD_RESULTS": str(results)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 3, done.stderr
    memory, line = lines_of(results)[-2:]
    assert isinstance(memory, Memory), "how much was not enough is worth knowing"
    assert isinstance(line, Error)
    assert (line.error, line.phase) == ("out_of_memory", "baseline")
    assert line.requested_bytes
    assert line.requested_bytes > 512 << 20


def test_a_killed_worker_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 in the middle of the points: the next attempt reads back what was measured, and measures the rest."""
    results, rest = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    arguments = ("--pipe", "digits-sd15", "--sched", "DDIM", "--search_targets", "tome", "--exhaustive", *QUICK)
    process = subprocess.Popen(
        [sys.executable, "-m", "boundd.worker", *arguments],
        cwd=ROOT,
        env=os.environ | {"BOUNDD_RESULTS": str(results), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and (not results.exists() or results.read_text().count('"point"') < 2):
        time.sleep(0.02)
    process.kill()
    process.wait()
    killed = [line for line in lines_of_torn(results) if isinstance(line, Point)]
    assert 2 <= len(killed) < 5, "it was killed in the middle"
    done = worker(*arguments, BOUNDD_RESULTS=str(rest), BOUNDD_EARLIER_RESULTS=json.dumps([str(results)]))
    assert done.returncode == 0, done.stderr
    lines = lines_of(rest)
    points = [line for line in lines if isinstance(line, Point)]
    assert lines[-1].extra["points_read_back"] == len(killed)
    assert points[: len(killed)] == killed
    assert len(points) == 5


def test_help_is_light_and_whole() -> None:
    """It answers without loading the heavy libraries, and names every option, an example and the exit codes."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "boundd.worker", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "boundd.worker.settings" in imported
    assert not imported & {"torch", "diffusers", "transformers", "numpy", "matplotlib"}
    for word in ("--search_targets", "--search-targets", "--budget-s", "Example:", "Exit codes:", "deepcache", "UniPC"):
        assert word in done.stdout


def test_the_example_script_is_somebodys_own() -> None:
    """It takes the old options, says what it is, and prints speed-ups that it measured."""
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "examples" / "traversal_search.py"), "--num_samples", "4"),
            *("--search_targets", "deepcache", "tome", "--batch_size", "4", "--pipe", "SD1.5"),
            *("--sched", "DDIM", "--steps", "20"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no diffusion model" in done.stdout
    speedups = [float(found) for found in SPEEDUP.findall(done.stdout)]
    assert len(speedups) == 3
    assert max(speedups) > 1.2


def test_on_a_terminal_there_is_a_table() -> None:
    """A person sees the bound, its interval and the best point; scripts still read speed-ups on stdout."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "boundd.worker", "--pipe", "digits-sd15", "--sched", "DDIM"),
            *("--search_targets", "deepcache", *QUICK),
        ],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal whose other end is closed reads as an error
        while chunk := os.read(ours, 65536):
            shown += chunk
    printed, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, shown
    assert len(SPEEDUP.findall(printed.decode())) == 3  # the identity, and the intervals below five steps
    text = shown.decode()
    for word in ("digits-sd15/DDIMScheduler/5/deepcache", "cache_interval=2", "95% interval", "at any loss"):
        assert word in text
