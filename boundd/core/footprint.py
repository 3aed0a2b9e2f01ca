"""Footprints: how much device memory a cell will take at its peak, before and after boundd has seen it run.

Rules: the context and the allocator's cache are included; arithmetic is in integers of bytes; what an attempt reported
beats the config's `footprint`, which beats the table below; a model that nobody knows runs alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from boundd.core.attempts import CellRecord
from boundd.core.cells import Parameters

MIB = 1024**2
GIB = 1024**3

CONTEXT_BYTES = GIB // 2
"""CUDA context with lazy loading, about 300 MB, and what the libraries take beside it."""
LEARNED_SLACK_PERCENT = 110
LEARNED_SLACK_BYTES = 256 * MIB
"""From the first observation: the largest peak x 1.10 + 256 MiB."""
LEVEL_PERCENT = 150
"""Each time the estimate was too low, the next reservation is half as much again."""


@dataclass(frozen=True, slots=True)
class Prior:
    """A model's memory before it was seen: bytes of weights, and peak activations in bytes an image, guided."""

    weights_bytes: int
    activations_bytes: int


# fp16. Weights: parameter counts of the pipelines (SD1.5 1.99 GiB, SD2.1 2.40, SDXL 6.46). Activations an image at the
# native size: the VAE's decode, 1,536 MiB a megapixel, sets the peak (traced, exactly linear in batch x pixels); SDXL's
# VAE runs in fp32, twice that. The digits models' are host memory on the CPU, torch itself included.
PRIORS = {
    "SD1.5": Prior(int(1.99 * GIB), 400 * MIB),
    "SD2.1": Prior(int(2.40 * GIB), 910 * MIB),
    "SDXL": Prior(int(6.46 * GIB), 3072 * MIB),
    "digits-sd15": Prior(GIB, 8 * MIB),
    "digits-sd21": Prior(GIB, 8 * MIB),
    "digits-sdxl": Prior(GIB, 8 * MIB),
}
PRIOR_SLACK_PERCENT = 125

FOOTPRINT_PARAMETERS = ("model", "method", "dtype", "resolution")
"""What a peak depends on, beside the batch and the device; the steps and the scheduler do not change it."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One attempt's memory: its peak, or, where it ran out (`censored`), what the peak was at least."""

    subject: str
    """The footprint's key: model, method, dtype, resolution and device name."""
    batch_size: int
    peak_bytes: int
    censored: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """How many bytes to reserve and where the number is from. None: nobody knows, so the cell runs alone."""

    size_bytes: int | None
    source: str


def subject(parameters: Parameters, device_name: str) -> str:
    """The key that observations of the same memory need share."""
    parts = [f"{name}={parameters[name]}" for name in FOOTPRINT_PARAMETERS if name in parameters]
    return ";".join([*parts, f"device={device_name}"])


def estimate(record: CellRecord, device_name: str, observations: Iterable[Observation]) -> Estimate:
    """The bytes to reserve for the cell's next attempt on a device of this name."""
    base = _base(record, device_name, observations)
    if base.size_bytes is None or record.memory_level == 0:
        return base
    raised = base.size_bytes
    for _ in range(record.memory_level):
        raised = raised * LEVEL_PERCENT // 100
    return Estimate(raised, f"{base.source}, raised {record.memory_level} time(s) after running out of memory")


def _base(record: CellRecord, device_name: str, observations: Iterable[Observation]) -> Estimate:
    batch = record.wanted_batch_size or 1
    about = subject(record.cell.parameters, device_name)
    peaks = [o.peak_bytes for o in observations if o.subject == about and o.batch_size == batch and not o.censored]
    if peaks:
        return Estimate(
            max(peaks) * LEARNED_SLACK_PERCENT // 100 + LEARNED_SLACK_BYTES,
            f"learned from {len(peaks)} attempt(s)",
        )
    if record.policy.footprint_bytes is not None:
        return Estimate(record.policy.footprint_bytes, "the config's footprint")
    prior = PRIORS.get(str(record.cell.parameters.get("model")))
    if prior is None:
        return Estimate(None, "an unknown model")
    size = CONTEXT_BYTES + prior.weights_bytes + prior.activations_bytes * batch
    return Estimate(size * PRIOR_SLACK_PERCENT // 100, "a prior: weights + activations + context")
