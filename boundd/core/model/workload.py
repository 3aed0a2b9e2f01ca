"""Workloads: what a cell's memory and duration depend on, from its parameters and the config.

A parameter belongs to the workload's subject unless it is known not to change memory. Two different workloads that
are taken for the same would teach each other wrong sizes; two equal ones that are kept apart only learn more slowly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from boundd.catalogue.models import MODELS
from boundd.catalogue.options import PARAMETERS
from boundd.core.model.attempts import CellRecord
from boundd.core.model.cells import Cell, Parameters, canonical_json

DEFAULT_PIXELS = 512 * 512
DEFAULT_STEPS = 50
DEFAULT_SAMPLES = 32
"""The default for a custom script, which needn't have the parameter."""

LEAVES_MEMORY_ALONE = frozenset(
    {option.key for option in PARAMETERS.values() if not option.changes_memory} | {"height", "width"}
)
"""Parameters that are not part of the subject: they don't change the peak, or they are numbers of their own (batch
size, resolution)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One attempt's work. `subject` identifies everything else that its memory depends on (model, method, dtype and
    so on)."""

    subject: str
    model: str
    architecture: str
    """The known architecture whose sizes apply: the one that the config gives, else the model's own name."""
    method: str
    dtype: str
    batch_size: int
    pixels: int
    """Pixels of one image."""
    steps: int
    samples: int
    guided: bool
    _hash: int = field(init=False, repr=False, compare=False)
    """Computed once: queues are looked up by it."""

    def __post_init__(self) -> None:
        about = (self.subject, self.method, self.batch_size, self.pixels, self.steps, self.samples)
        object.__setattr__(self, "_hash", hash(about))

    def __hash__(self) -> int:
        return self._hash

    @property
    def batch_pixels(self) -> int:
        """Pixels of a whole batch. Peak memory is linear in this number."""
        return self.batch_size * self.pixels


def workload_of(record: CellRecord, batch_size: int | None = None) -> Workload:
    """The workload of the cell's next attempt, or of one with another batch size."""
    batch = batch_size if batch_size is not None else record.batch_size
    return workload(record.cell, record.policy.dtype, record.policy.architecture, batch)


def workload(cell: Cell, policy_dtype: str, policy_architecture: str, batch_size: int | None) -> Workload:
    """The workload of a cell, given the config's dtype and architecture. `batch_size` None: the cell's own."""
    batch_size = batch_size if batch_size is not None else cell.batch_size
    parameters = cell.parameters
    dtype = str(parameters.get("dtype", policy_dtype))
    architecture = policy_architecture or str(parameters.get("model", ""))
    guidance = parameters.get("guidance_scale")
    return Workload(
        subject=_subject(parameters, dtype),
        model=str(parameters.get("model", "")),
        architecture=architecture,
        method=str(parameters.get("method", "")),
        dtype=dtype,
        batch_size=batch_size or 1,
        pixels=_pixels(parameters, architecture),
        steps=_whole(parameters, "steps", DEFAULT_STEPS),
        samples=_whole(parameters, "num_samples", DEFAULT_SAMPLES),
        guided=not isinstance(guidance, int | float) or guidance > 1,
    )


def subject_on(workload: Workload, device_name: str) -> str:
    """The key under which observations of the same memory are stored, for devices of one name."""
    return f"{workload.subject};device={device_name}"


def _subject(parameters: Parameters, dtype: str) -> str:
    parts = {name: value for name, value in parameters.items() if name not in LEAVES_MEMORY_ALONE}
    parts["dtype"] = dtype
    return ";".join(
        f"{name}={value if isinstance(value, str) else canonical_json(value)}" for name, value in sorted(parts.items())
    )


def _pixels(parameters: Parameters, architecture: str) -> int:
    height, width = _whole(parameters, "height", 0), _whole(parameters, "width", 0)
    resolution = _whole(parameters, "resolution", 0)
    return height * width or resolution * resolution or native_pixels(architecture)


def native_pixels(architecture: str) -> int:
    """Pixels of an image at the model's native resolution; 512 x 512 for an unknown model."""
    return MODELS[architecture].native_side_pixels ** 2 if architecture in MODELS else DEFAULT_PIXELS


def _whole(parameters: Parameters, name: str, otherwise: int) -> int:
    value = parameters.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else otherwise
