"""`make bench-gpu`: it runs with nothing beside torch's libraries, keeps to its time, and yields priors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import bench as bench_module
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.priors import MIB, line_through, priors_of, report
from benchmarks.gpu.rows import TASKS, Group, MemoryTask, tiny
from boundd.worker.methods import load_method

ROOT = Path(__file__).parents[2]

# What boundd's daemon and tools depend on, and its worker's own extras: none of it may be needed.
BLOCKED = (
    *("click", "rich", "pydantic", "structlog", "anyio", "immutables", "prometheus_client", "psutil"),
    *("pynvml", "starlette", "uvicorn", "matplotlib", "sklearn", "hypothesis", "open_clip", "xformers", "torchvision"),
)
RUNNER = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # None: importing it fails, as if it weren't there
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a whole tiny run writes, in a process that has none of boundd's dependencies."""
    out = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, ",".join(BLOCKED), "--tiny", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = (out / "gpu-cpu-tiny-models.txt").read_text(encoding="utf-8")
    assert text == done.stdout
    return json.loads((out / "gpu-cpu-tiny-models.json").read_text(encoding="utf-8")) | {"text": text}


@pytest.mark.slow
def test_a_tiny_run_measures_everything_and_says_what_it_is(document: Any) -> None:
    """Every row and every batch, without a single dependency of the daemon's; and nobody can take it for a GPU."""
    assert document["is_tiny"]
    assert "TINY" in document["text"].splitlines()[2]
    assert document["left_out"] == []
    assert len(document["rows"]) == sum(len(task.rows) for task in TASKS if isinstance(task, Group))
    assert all(row["rounds"] == 2 and row["speedup"] > 0 for row in document["rows"])
    metered = {(record["model"], record["batch_size"], "+".join(record["methods"])) for record in document["memory"]}
    assert len(metered) == 3 * 2 * 5
    assert all(record["peak_allocated_bytes"] > record["weights_bytes"] for record in document["memory"])
    assert document["versions"]["torch"] == torch.__version__
    assert "deepcache cache_interval=5 cache_branch_id=0" in document["text"]
    assert "3.21x (RTX A5000)" in document["text"]


@pytest.mark.slow
def test_priors_come_out_of_a_run(document: Any) -> None:
    """As code that can be pasted, one a model, and no peak is above its prior."""
    text = report(document)
    for model in ("digits-sd15", "digits-sd21", "digits-sdxl"):
        assert f'"{model}": Prior(' in text
    assert "TINY" in text


def test_without_a_gpu_it_says_what_can_be_tried(tmp_path: Path) -> None:
    """Rather than measure a CPU for an hour."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 6
    assert "--tiny" in done.stderr
    assert not list(tmp_path.iterdir())


def run_with(clock: Any, tasks: Any = TASKS[:3]) -> Bench:
    """A tiny run in this process, by a clock of the test's."""
    torch.set_num_threads(1)
    bench = Bench("cpu", "float32", ends_s=100.0, say=lambda _: None, rounds=3, clock=clock)
    for task in tasks:
        bench.run(tiny(task))
    return bench


def test_what_the_time_does_not_reach_is_listed() -> None:
    """A group with two rounds done is kept, with as many as it had; one with fewer, and all after it, are left out."""
    calls = [0]

    class Slow(Bench):
        def _timed(self, call: Any) -> float:  # noqa: ARG002 - nothing is run, only counted
            calls[0] += 1
            return 1.0

    torch.set_num_threads(1)
    group = tiny(TASKS[0])
    assert isinstance(group, Group)
    in_a_round = 1 + len(group.rows)
    # The warm-ups, two rounds and a bit; then the time is up.
    bench = Slow("cpu", "float32", float(in_a_round * 3 + 2), lambda _: None, rounds=5, clock=lambda: float(calls[0]))
    bench.run(group)
    bench.run(tiny(TASKS[1]))
    assert [row["rounds"] for row in bench.rows] == [2] * len(group.rows)
    assert bench.left_out == [tiny(TASKS[1]).label]


def test_memory_that_runs_out_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is marked, the others of its group are measured, and the next group too."""
    original = bench_module.combine

    def starving(names: Any) -> Any:
        if "tgate" in names and "deepcache" in names:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB. 2.00 GiB is free.")
        return original(names)

    monkeypatch.setattr(bench_module, "combine", starving)
    bench = run_with(lambda: 0.0, [TASKS[1], TASKS[2]])
    assert ["out_of_memory" in row for row in bench.rows] == [True, False]
    starved = [record for record in bench.memory if "out_of_memory" in record]
    assert {record["batch_size"] for record in starved} == {1, 2}
    assert bench.left_out == []


def test_every_row_is_a_point_its_method_takes() -> None:
    """Parameters by the methods' own names, true sizes, and the most that a published row asks for."""
    for task in TASKS:
        variants = [(row.methods, row.parameters) for row in task.rows] if isinstance(task, Group) else task.variants
        for methods, parameters in variants:
            names = {name for method in methods for name in load_method(method).parameter_names}
            assert set(parameters) == names
    sizes = {task.model: task.side_px for task in TASKS if isinstance(task, MemoryTask)}
    assert sizes == {"SD1.5": 512, "SD2.1": 768, "SDXL": 1024}


RECORDS = st.lists(
    st.builds(
        lambda model, batch, beyond: {
            "model": model, "methods": [], "batch_size": batch, "weights_bytes": 10**9,
            "peak_reserved_bytes": 10**9 + beyond, "peak_allocated_bytes": 10**9 + beyond // 2,
        },
        st.sampled_from(["SD1.5", "SDXL"]), st.integers(1, 8), st.integers(0, 10**11),
    ), min_size=1,
)  # fmt: skip


@given(RECORDS)
def test_no_peak_is_above_its_prior(records: list[dict[str, Any]]) -> None:
    """And none is more than a MiB an image too large."""
    priors = priors_of(records)
    for record in records:
        prior = priors[record["model"]]
        assert prior.weights_bytes + prior.activations_bytes * record["batch_size"] >= record["peak_reserved_bytes"]
    for model, prior in priors.items():
        own = [record for record in records if record["model"] == model]
        needed = max((r["peak_reserved_bytes"] - r["weights_bytes"]) / r["batch_size"] for r in own)
        assert prior.activations_bytes < needed + MIB + 1


@given(st.integers(-(10**9), 10**9), st.integers(-(10**6), 10**6))
def test_a_straight_line_is_found_again(intercept: int, slope: int) -> None:
    """Exactly, from the batches that are measured."""
    found = line_through([(batch, intercept + slope * batch) for batch in (1, 2, 4, 8)])
    assert found == pytest.approx((intercept, slope), abs=1e-3, rel=1e-9)
