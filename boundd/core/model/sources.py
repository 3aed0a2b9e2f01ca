"""Where an expected number is from: attempts that ran, the config, or a prior.

The values of the three enums differ from each other: outside readers see them as the `kind` of a source.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MemorySource(StrEnum):
    """Where an expected peak of device memory is from."""

    LEARNED = "learned"
    """Attempts at this very work."""
    OTHER_BATCHES = "other_batches"
    """A line fitted to other batches and sizes of it."""
    OTHER_BATCH = "other_batch"
    """Carried over from a single other batch or size of it."""
    RULE = "config_footprint"
    """The config's `footprint`."""
    MODEL = "model_prior"
    """What is known of the model: context, weights, activations and caches."""
    DIGITS = "digits_prior"
    """A built-in digits model."""
    UNKNOWN_MODEL = "unknown_model"
    """Nobody knows."""
    RAN_OUT = "ran_out"
    """More than what attempts ran out of memory with."""


class HostSource(StrEnum):
    """Where an expected need of host memory is from."""

    LEARNED = "host_learned"
    RULE = "config_host_memory"
    MODEL = "host_prior"
    """Libraries, weights and scorer."""
    UNKNOWN_WORKER = "unknown_worker"
    """A script that boundd doesn't know: nothing is reserved until it has said what it takes."""
    IS_DEVICE = "host_is_device"
    """The device's memory is the host's, and counted there."""


class DurationSource(StrEnum):
    """Where an expected duration is from."""

    SAME_WORK = "same_work"
    SAME_METHOD = "same_method"
    """Scaled by steps and samples."""
    SAME_MODEL = "same_model"
    """Other methods of the model, scaled likewise."""
    OTHER_MODELS = "other_models"
    """The prior, corrected by what other models took."""
    PRIOR = "duration_prior"
    """Steps, samples and the model's size."""


DURATION_PRIORS = frozenset({DurationSource.OTHER_MODELS, DurationSource.PRIOR})


@dataclass(frozen=True, slots=True)
class Source:
    """Where a number is from, with what stands behind it."""

    kind: MemorySource | HostSource | DurationSource
    attempts: int = 0
    batches: int = 0
    """Other batches or sizes that were seen."""
    elsewhere: bool = False
    """True where the attempts ran on another kind of device."""

    @property
    def is_duration_prior(self) -> bool:
        """Whether nothing that was measured of the same model stands behind a duration."""
        return self.kind in DURATION_PRIORS
