"""Sources of estimates: earlier attempts, the config, or a prior.

No two members of the three enums share a value, because the value is the `kind` of a source in JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MemorySource(StrEnum):
    """The source of an estimate of device memory."""

    LEARNED = "learned"
    """Attempts of the same workload."""
    OTHER_BATCHES = "other_batches"
    """A line fitted to several other batch sizes or resolutions."""
    OTHER_BATCH = "other_batch"
    """Extrapolated from one other batch size or resolution."""
    RULE = "config_footprint"
    """The config's `footprint`."""
    MODEL = "model_prior"
    """The model's prior: context, weights, activations and caches."""
    DIGITS = "digits_prior"
    """The prior of a built-in digits model."""
    UNKNOWN_MODEL = "unknown_model"
    """An unknown model, for which there is no estimate."""
    RAN_OUT = "ran_out"
    """More than attempts ran out of memory with."""


class HostSource(StrEnum):
    """The source of an estimate of host memory."""

    LEARNED = "host_learned"
    RULE = "config_host_memory"
    MODEL = "host_prior"
    """A prior: libraries, weights and scorer."""
    UNKNOWN_WORKER = "unknown_worker"
    """An unknown script: nothing is reserved until an attempt has reported its peak."""
    IS_DEVICE = "host_is_device"
    """The device's memory is the host's and is counted there."""


class DurationSource(StrEnum):
    """The source of an estimate of a duration."""

    SAME_WORK = "same_work"
    SAME_METHOD = "same_method"
    """The same method, scaled by steps and samples."""
    SAME_MODEL = "same_model"
    """Other methods of the same model, scaled by steps and samples."""
    OTHER_MODELS = "other_models"
    """The prior, corrected by the durations of other models."""
    PRIOR = "duration_prior"
    """A prior from steps, samples and the model's size."""


DURATION_PRIORS = frozenset({DurationSource.OTHER_MODELS, DurationSource.PRIOR})


@dataclass(frozen=True, slots=True)
class Source:
    """The source of an estimate, and how much data it rests on."""

    kind: MemorySource | HostSource | DurationSource
    attempts: int = 0
    batches: int = 0
    """Number of other batch sizes or resolutions that were measured."""
    elsewhere: bool = False
    """True if the attempts ran on another device model."""

    @property
    def is_duration_prior(self) -> bool:
        """Whether a duration is a prior, with no measurement of the same model behind it."""
        return self.kind in DURATION_PRIORS
