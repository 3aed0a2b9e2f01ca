"""What a cell's memory and duration depend on, read from its parameters and the config.

Rules: a parameter that isn't known to leave memory alone is part of the subject, because two cells that are wrongly
taken for the same teach each other wrong sizes, while two that are wrongly held apart only learn more slowly.
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
"""Of a script of somebody's own, which needs not name them."""

LEAVES_MEMORY_ALONE = frozenset(
    {option.key for option in PARAMETERS.values() if not option.changes_memory} | {"height", "width"}
)
"""Parameters that aren't part of the subject: they change no peak, or (batch, resolution) are numbers of their own."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One attempt's work. `subject` names what else its memory depends on (model, method, dtype and the like)."""

    subject: str
    model: str
    architecture: str
    """What the model's sizes are looked up by: its own name, or that of the architecture that the config gives it."""
    method: str
    dtype: str
    batch_size: int
    pixels: int
    """Of one image."""
    steps: int
    samples: int
    guided: bool
    _hash: int = field(init=False, repr=False, compare=False)
    """Worked out once: it is asked for with each look at a queue."""

    def __post_init__(self) -> None:
        about = (self.subject, self.method, self.batch_size, self.pixels, self.steps, self.samples)
        object.__setattr__(self, "_hash", hash(about))

    def __hash__(self) -> int:
        return self._hash

    @property
    def batch_pixels(self) -> int:
        """Pixels of a whole batch: what peaks are linear in."""
        return self.batch_size * self.pixels


def workload_of(record: CellRecord, batch_size: int | None = None) -> Workload:
    """The work of the cell's next attempt, or of one with another batch."""
    batch = batch_size if batch_size is not None else record.batch_size
    return workload(record.cell, record.policy.dtype, record.policy.architecture, batch)


def workload(cell: Cell, policy_dtype: str, policy_architecture: str, batch_size: int | None) -> Workload:
    """The work of a cell, with what the config says of its model; `batch_size` None: as the cell asks for."""
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
    """The key that observations of the same memory share on devices of one name."""
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
    """Pixels of an image at the size that a model was trained for; of an unknown one, a middling size."""
    return MODELS[architecture].native_side_pixels ** 2 if architecture in MODELS else DEFAULT_PIXELS


def _whole(parameters: Parameters, name: str, otherwise: int) -> int:
    value = parameters.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else otherwise
