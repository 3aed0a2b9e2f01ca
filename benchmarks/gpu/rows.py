"""The benchmark's rows with their published speed-ups, as data, and smaller versions of them for a CPU.

Sources of the published figures:
 * DeepCache, SD2.1: diffusers' documentation, "DeepCache", benchmark table (RTX A5000, 512 px, batch 4).
 * DeepCache, SD1.5 and SDXL: DeepCache's README of December 2023, the logs of its own scripts; neither the GPU nor the
   interval of those runs is named, so ours take the interval 3 of its usage examples.
 * T-GATE, SDXL: tgate 1.0.0's README (GTX 1080 Ti); its MACs (149.4 T for 25 guided steps) say that it is 25 steps, its
   example says the parameters.
 * ToMe: tomesd's README (RTX 4090, fp16, 50 PLMS steps, the original attention); its batch is not named. With SDPA: the
   range over 512 and 768 px of diffusers' documentation, "Token merging".
A GPU of today spends a larger share of a small batch in launching kernels than those did, so less than the published
speed-up is expected at batch 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

Parameters: TypeAlias = Mapping[str, int | float]


@dataclass(frozen=True)
class Row:
    """One variant: the methods and their point, and what was published. No methods: the baseline against itself."""

    methods: tuple[str, ...]
    parameters: Parameters
    published: str
    published_on: str

    @property
    def label(self) -> str:
        """For a person."""
        values = " ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{'+'.join(self.methods) or 'baseline again'} {values}".strip()


@dataclass(frozen=True)
class Group:
    """Rows that share one baseline, timed in turn with them."""

    model: str
    scheduler: str
    steps: int
    side_px: int
    batch_size: int
    attention: str
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        """For a person."""
        return (
            f"{self.model}, {self.steps} {self.scheduler} steps, {self.side_px} px, batch {self.batch_size}, "
            f"{self.attention} attention"
        )


@dataclass(frozen=True)
class MemoryTask:
    """The peak memory of a model with each of some methods, over batch sizes."""

    model: str
    side_px: int
    steps: int
    batch_sizes: tuple[int, ...]
    variants: tuple[tuple[tuple[str, ...], Parameters], ...]

    @property
    def label(self) -> str:
        """For a person."""
        return f"{self.model}, {self.side_px} px, {self.steps} steps, batches {', '.join(map(str, self.batch_sizes))}"


Task: TypeAlias = Group | MemoryTask

_A5000, _1080TI, _4090 = "RTX A5000", "GTX 1080 Ti", "RTX 4090"
_TGATE_XL: Final[Parameters] = {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warm_up": 2}
_TGATE_WITH_DEEPCACHE: Final[Parameters] = {"gate_step": 10, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}


def _deepcache(interval: int, branch: int, published: str, on: str) -> Row:
    return Row(("deepcache",), {"cache_interval": interval, "cache_branch_id": branch}, published, on)


def _tome(ratio: float, published: str, on: str) -> Row:
    return Row(("tome",), {"ratio": ratio, "max_downsample": 1}, published, on)


_SD21 = Group(
    *("SD2.1", "DDIM", 50, 512, 4, "sdpa"),
    rows=(
        _deepcache(3, 0, "2.33x", _A5000),
        _deepcache(5, 0, "3.21x", _A5000),
        _deepcache(5, 1, "2.24x", _A5000),
        Row((), {}, "1.00x", "by definition"),
    ),
)
_SDXL_25 = Group(
    *("SDXL", "DPM-Solver++", 25, 1024, 1, "sdpa"),
    rows=(
        Row(("tgate",), _TGATE_XL, "1.68x", _1080TI),
        Row(
            ("deepcache", "tgate"),
            {"cache_interval": 3, "cache_branch_id": 0, **_TGATE_WITH_DEEPCACHE},
            "3.63x",
            _1080TI,
        ),
    ),
)
_TOME_EAGER = Group(
    *("SD1.5", "PNDM", 50, 512, 4, "eager"),
    rows=(_tome(0.3, "1.50x", _4090), _tome(0.5, "1.87x", _4090), _tome(0.6, "2.03x", _4090)),
)
_SD15 = Group(*("SD1.5", "DDIM", 50, 512, 1, "sdpa"), rows=(_deepcache(3, 0, "2.17x", "GPU not named"),))
_SDXL_50 = Group(*("SDXL", "DDIM", 50, 1024, 1, "sdpa"), rows=(_deepcache(3, 0, "2.61x", "GPU not named"),))
_TOME_SDPA = Group(*("SD1.5", "PNDM", 50, 512, 4, "sdpa"), rows=(_tome(0.5, "1.19x to 1.54x", "SDPA, 512 and 768 px"),))


def _memory(model: str, side_px: int, max_downsample: int) -> MemoryTask:
    """Four steps show the peak: every cache is full after two, and the decoder runs once in any case."""
    deepcache = {"cache_interval": 2, "cache_branch_id": 0}
    tgate = {"gate_step": 2, "sp_interval": 2, "fi_interval": 1, "warm_up": 1}
    variants: tuple[tuple[tuple[str, ...], Parameters], ...] = (
        ((), {}),
        (("deepcache",), deepcache),
        (("tgate",), tgate),
        (("tome",), {"ratio": 0.5, "max_downsample": max_downsample}),
        (("deepcache", "tgate"), {**deepcache, **tgate}),
    )
    return MemoryTask(model, side_px, 4, (1, 2, 4, 8), variants)


_MEMORY_SDXL, _MEMORY_SD15 = _memory("SDXL", 1024, 2), _memory("SD1.5", 512, 1)
_MEMORY_SD21 = _memory("SD2.1", 768, 1)

TASKS: Final[tuple[Task, ...]] = (
    *(_SD21, _SDXL_25, _MEMORY_SDXL, _TOME_EAGER, _MEMORY_SD15, _MEMORY_SD21, _SD15, _SDXL_50, _TOME_SDPA),
)
"""The most telling first: what the time does not reach is left out from the end."""

_TINY: Final = {"SD1.5": "digits-sd15", "SD2.1": "digits-sd21", "SDXL": "digits-sdxl"}
_TINY_STEPS, _TINY_PX, _TINY_BATCH = 4, 32, 2


def tiny(task: Task) -> Task:
    """The same task on the digits model of that architecture: seconds on a CPU. Its figures stand for nothing."""
    if isinstance(task, MemoryTask):
        return replace(task, model=_TINY[task.model], side_px=_TINY_PX, batch_sizes=(1, _TINY_BATCH))
    rows = tuple(replace(row, parameters=_shrunk(row.parameters)) for row in task.rows)
    small = replace(task, steps=_TINY_STEPS, side_px=_TINY_PX, batch_size=_TINY_BATCH)
    return replace(small, model=_TINY[task.model], rows=rows)


def _shrunk(parameters: Parameters) -> Parameters:
    """T-GATE's gate as early in few steps as it was in many."""
    return {**parameters, "gate_step": 2} if "gate_step" in parameters else parameters
