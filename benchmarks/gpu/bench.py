"""Runs the tasks, one after the other, until the time is up: builds the pipelines, times and meters their calls."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.rows import Group, MemoryTask, Parameters, Row, Task
from boundd.catalogue.schedulers import resolve_scheduler
from boundd.worker.architectures import ARCHITECTURES, build_pipeline
from boundd.worker.attention import set_attention
from boundd.worker.digits import model_folder
from boundd.worker.digits.libraries import diffusers
from boundd.worker.errors import Shortage, shortage_of
from boundd.worker.methods import combine
from boundd.worker.pipelines import build_scheduler

GUIDANCE_SCALE = 7.5
SEED = 42
MIN_ROUNDS = 2
PROMPT = "a photograph of an astronaut riding a horse"

Record = dict[str, Any]
Say = Callable[[str], None]


class OutOfTimeError(Exception):
    """The budget is spent."""


@dataclass
class Bench:
    """One run.

    Attributes:
        device: torch's name of it.
        dtype: 'float16'…
        ends_s: on `clock`, when to stop.
        say: takes each line of text as it comes.
        rounds: how often the baseline and each row are timed.
    """

    device: str
    dtype: str
    ends_s: float
    say: Say
    rounds: int = 5
    clock: Callable[[], float] = field(default=time.monotonic)
    rows: list[Record] = field(default_factory=list)
    memory: list[Record] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _pipe: Any = None
    _built: tuple[str, str] | None = None

    @property
    def is_cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.startswith("cuda")

    def run(self, task: Task) -> None:
        """Measure a task; what there was no time for is listed, and what there was no memory for is marked."""
        self.say(f"\n{task.label}")
        try:
            self._check_time()
            if isinstance(task, MemoryTask):
                self._measure_memory(task)
            else:
                self._time_group(task)
        except OutOfTimeError:
            self.left_out.append(task.label)
            self.say("  left out: the time is up")
        except Exception as error:
            if (shortage := shortage_of(error)) is None:
                raise
            self.left_out.append(f"{task.label}: out of memory")
            self.say(f"  out of memory: {shortage.message.splitlines()[0]}")
            self._drop_pipeline()

    def _time_group(self, group: Group) -> None:
        """Every round runs the baseline and each row once, in an order of its own; a row's speed-up is the median over
        the rounds of baseline / row."""
        pipe = self._pipeline(group.model, group.attention)
        pipe.scheduler = build_scheduler(pipe.scheduler.config, resolve_scheduler(group.scheduler))
        self._call(group, None)  # the warm-up; where it does not fit, nothing of the group does
        fitting = [row for row in group.rows if self._fits(group, row)]
        variants = [None, *fitting]
        times_s: list[list[float]] = [[] for _ in variants]
        order = random.Random(SEED)
        try:
            for _ in range(self.rounds):
                for index in order.sample(range(len(variants)), len(variants)):
                    self._check_time()
                    times_s[index].append(self._call(group, variants[index]))
        except OutOfTimeError:
            if min(map(len, times_s)) < MIN_ROUNDS:
                raise
        for row, row_s in zip(fitting, times_s[1:], strict=True):
            self._record(group, row, times_s[0], row_s)

    def _record(self, group: Group, row: Row, baseline_s: list[float], row_s: list[float]) -> None:
        ratios = [before / after for before, after in zip(baseline_s, row_s, strict=False)]
        record = self._row_of(group, row) | {
            "speedup": statistics.median(ratios),
            "speedup_lowest": min(ratios),
            "speedup_highest": max(ratios),
            "rounds": len(ratios),
            "baseline_s": statistics.median(baseline_s),
            "accelerated_s": statistics.median(row_s),
        }
        self.rows.append(record)
        self.say(
            f"  {row.label:<74} {record['speedup']:5.2f}x ({min(ratios):.2f} to {max(ratios):.2f})   published "
            f"{row.published} ({row.published_on})   {record['baseline_s']:.2f} s to {record['accelerated_s']:.2f} s"
        )

    @staticmethod
    def _row_of(group: Group, row: Row) -> Record:
        described = {name: value for name, value in vars(group).items() if name != "rows"}
        point = {"methods": list(row.methods), "parameters": dict(row.parameters)}
        return described | point | {"published": row.published, "published_on": row.published_on}

    def _fits(self, group: Group, row: Row) -> bool:
        """Warm a row up; False, and a mark among the rows, where memory ran out."""
        self._check_time()
        try:
            self._call(group, row)
            return True
        except Exception as error:
            if (shortage := shortage_of(error)) is None:
                raise
        if self.is_cuda:
            torch.cuda.empty_cache()
        self.say(f"  {row.label:<74} out of memory{_sizes(shortage)}")
        self.rows.append(self._row_of(group, row) | {"out_of_memory": shortage.message})
        return False

    def _call(self, group: Group, row: Row | None) -> float:
        """Seconds of one whole call, from prompts to decoded images."""
        methods = row.methods if row else ()
        parameters = row.parameters if row else {}
        return self._generate(methods, parameters, group.batch_size, group.steps, group.side_px)

    def _generate(
        self, methods: tuple[str, ...], parameters: Parameters, batch_size: int, steps: int, side_px: int
    ) -> float:
        pipe = self._pipe
        options: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": GUIDANCE_SCALE,
            "height": side_px,
            "width": side_px,
            "output_type": "pt",
            "generator": [torch.Generator(self.device).manual_seed(SEED + index) for index in range(batch_size)],
        }
        prompts = [PROMPT] * batch_size
        with torch.inference_mode():
            if not methods:
                return self._timed(lambda: pipe(prompts, **options))
            with combine(methods).applied(pipe, parameters, pipe) as call:
                return self._timed(lambda: call(prompts, **options))

    def _timed(self, call: Callable[[], Any]) -> float:
        if not self.is_cuda:
            started_s = time.perf_counter()
            call()
            return time.perf_counter() - started_s
        make_event: Any = torch.cuda.Event  # not typed in every version
        start, end = (make_event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        elapsed_ms: float = start.elapsed_time(end)
        return elapsed_ms / 1000

    def _measure_memory(self, task: MemoryTask) -> None:
        pipe = self._pipeline(task.model, "sdpa")
        pipe.scheduler = build_scheduler(pipe.scheduler.config, resolve_scheduler("DDIM"))
        weights_bytes = _weights_bytes(pipe)
        for batch_size in task.batch_sizes:
            for methods, parameters in task.variants:
                self._check_time()
                gc.collect()
                self._reset_peak()
                record: Record = {
                    "model": task.model,
                    "methods": list(methods),
                    "batch_size": batch_size,
                    "side_px": task.side_px,
                    "dtype": self.dtype,
                    "weights_bytes": weights_bytes,
                }
                try:
                    self._generate(methods, parameters, batch_size, task.steps, task.side_px)
                    record |= self._peak()
                except Exception as error:
                    if (shortage := shortage_of(error)) is None:
                        raise
                    record["out_of_memory"] = shortage.message
                self.memory.append(record)
                self.say(memory_line(record))

    def _reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: proc_pid_clear_refs(5)

    def _peak(self) -> Record:
        """The allocator's peaks, and what is taken of the device beyond its cache: the context, and other processes.

        On a CPU the peak of the resident set stands for both.
        """
        if not self.is_cuda:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
            return {"peak_allocated_bytes": peak, "peak_reserved_bytes": peak, "beside_allocator_bytes": None}
        free, total = torch.cuda.mem_get_info()
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "beside_allocator_bytes": total - free - torch.cuda.memory_reserved(),
        }

    def _pipeline(self, model: str, attention: str) -> Any:
        """The pipeline, built unless it is the one at hand; there is never more than one."""
        if self._built != (model, attention):
            self._drop_pipeline()
            started_s = self.clock()
            if model in ARCHITECTURES:
                self._pipe = build_pipeline(ARCHITECTURES[model], self.device, self.dtype, SEED)
            else:
                self._pipe = diffusers.DiffusionPipeline.from_pretrained(model_folder(model)).to(self.device)
            self._pipe.set_progress_bar_config(disable=True)
            set_attention(self._pipe, attention)
            self._built = (model, attention)
            self.say(f"  (built in {self.clock() - started_s:.1f} s)")
        return self._pipe

    def _drop_pipeline(self) -> None:
        self._pipe, self._built = None, None
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _check_time(self) -> None:
        if self.clock() >= self.ends_s:
            raise OutOfTimeError


def memory_line(record: Record) -> str:
    """A memory record for a person."""
    name = "+".join(record["methods"]) or "baseline"
    if "out_of_memory" in record:
        return f"  {name:<16} batch {record['batch_size']}  out of memory"
    allocated, reserved = (record[f"peak_{kind}_bytes"] / 1024**3 for kind in ("allocated", "reserved"))
    return f"  {name:<16} batch {record['batch_size']}  {allocated:6.2f} GiB allocated  {reserved:6.2f} GiB reserved"


def _sizes(shortage: Shortage) -> str:
    if shortage.requested_bytes is None or shortage.free_bytes is None:
        return ""
    return f": {shortage.requested_bytes:,} bytes asked for, {shortage.free_bytes:,} free"


def _weights_bytes(pipe: Any) -> int:
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(parameter.numel() * parameter.element_size() for module in modules for parameter in module.parameters())
