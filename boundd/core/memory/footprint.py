"""Footprints: the estimated peak device memory of a cell, including the CUDA context and the allocator's cache.

An estimate comes from the first of these that applies: attempts of the same workload, attempts of the same work with
other batch sizes or resolutions, the config's `footprint`, the model's prior. A cell of an unknown model runs alone. An
attempt that ran out of memory gives a lower bound of the estimate. Arithmetic is in integers of bytes.

Slack on top of the learned peaks:

| peaks of the same workload            | estimate                                                         |
| ------------------------------------- | ---------------------------------------------------------------- |
| none, but other batches were measured | the extrapolated peak x 1.10 + 256 MiB                           |
| one                                   | the peak + 5% + 64 MiB                                           |
| 2 to 4                                | the largest + their spread (at least 4%, from 3 on 3%; at most 5%) |
| 5 or more                             | the 95th percentile + their spread (2% to 5%), and at least the  |
|                                       | largest of the last 5                                            |

Once it is known how much peaks of equal workloads vary here, that variation replaces the lower limit of the slack if
it is smaller: 1.5 times the variation for a single peak, the variation itself for more, and at least 0.5%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boundd.catalogue.backends import BACKENDS
from boundd.catalogue.models import MIB, MODELS, MemoryPrior
from boundd.core.memory.raising import RAISED_PERCENT
from boundd.core.model.attempts import CellRecord
from boundd.core.model.history import Observation, Observations
from boundd.core.model.sources import MemorySource, Source
from boundd.core.model.workload import Workload, native_pixels, subject_on, workload_of

GIB = 1024**3
MEGAPIXEL = 1_000_000

CONTEXT_BYTES = BACKENDS["nvml"].context_bytes
"""The context of an NVIDIA GPU; the priors are for these."""
EXTRAPOLATED_PERCENT = 110
EXTRAPOLATED_SLACK_BYTES = 256 * MIB
"""Slack on an extrapolated peak."""
ONE_PEAK_SLACK_PERCENT = 5
ONE_PEAK_SLACK_BYTES = 64 * MIB
"""Slack on a single peak of the same workload."""
MANY_PEAKS = 5
MANY_PEAKS_PERCENTILE = 95
MIN_SLACK_PERCENT = {2: 4, 3: 3, 4: 3}
MANY_PEAKS_MIN_SLACK_PERCENT = 2
MAX_SLACK_PERCENT = 5
"""Limits of the slack on two or more peaks of the same workload."""
ONE_PEAK_VARIATION_PERCENT = 150
MIN_VARIATION_PERMILLE = 5
"""Slack by the variation of peaks that was measured over all workloads."""
PRIOR_SLACK_PERCENT = 125
WHOLE_DEVICE_PERCENT = 90
"""A cell whose estimate is above this share of a device runs alone on it, once this much is free. The estimate can
be wrong and the driver always uses some bytes, so such a cell would otherwise wait for ever."""


SCORER_BYTES = 4 * 427_616_513
"""CLIP ViT-L/14 in fp32 (parameters x 4). It is on the device between batches, when there are no activations."""
DIGITS_BYTES = GIB
"""The built-in digits models on the CPU, including torch itself."""
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
UNKNOWN_WEIGHTS_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate of a footprint and its source. None: unknown, so the cell runs alone."""

    size_bytes: int | None
    source: Source

    @property
    def learned(self) -> bool:
        """True if the estimate comes from attempts of the same workload."""
        return self.source.kind is MemorySource.LEARNED


def estimate(record: CellRecord, device_name: str, observations: Observations, torch: str = "") -> Estimate:
    """Estimate the footprint of the cell's next attempt on a device of this name, with this version of torch."""
    return estimate_of(workload_of(record), record.policy.footprint_bytes, device_name, observations, torch)


def estimate_of(
    work: Workload, rule_bytes: int | None, device_name: str, observations: Observations, torch: str = ""
) -> Estimate:
    """Estimate the footprint of a workload; `rule_bytes` is the config's `footprint` for it."""
    known = [o for o in observations.about(subject_on(work, device_name)) if torch in ("", o.torch) or not o.torch]
    base = _learned(known, work, observations.variation_permille)
    if base is None:
        base = prior(work) if rule_bytes is None else Estimate(rule_bytes, Source(MemorySource.RULE))
    bound = _lower_bound(known, work)
    if bound is None or (base.size_bytes is not None and base.size_bytes >= bound):
        return base
    return Estimate(bound, Source(MemorySource.RAN_OUT))


def prior(work: Workload) -> Estimate:
    """The model's prior: context + weights + the largest activations + the methods' caches, x 1.25."""
    if _is_builtin(work.architecture):
        return Estimate(CONTEXT_BYTES + DIGITS_BYTES, Source(MemorySource.DIGITS))
    if _prior_of(work.architecture) is None:
        return Estimate(None, Source(MemorySource.UNKNOWN_MODEL))
    size = CONTEXT_BYTES + weights_bytes(work.architecture, work.dtype)
    size += max(activations_bytes(work), SCORER_BYTES) + caches_bytes(work)
    return Estimate(size * PRIOR_SLACK_PERCENT // 100, Source(MemorySource.MODEL))


def weights_bytes(model: str, dtype: str = "") -> int:
    """Size of a whole pipeline's weights; 2 GiB for an unknown model."""
    if _is_builtin(model):
        return 5 * MIB
    architecture = _prior_of(model)
    if architecture is None:
        return UNKNOWN_WEIGHTS_BYTES
    value = VALUE_BYTES.get(dtype, 2)
    vae_value = 4 if architecture.vae_in_float32 else value
    parameters = architecture.unet_parameters + architecture.text_parameters
    return parameters * value + architecture.vae_parameters * vae_value


def _is_builtin(model: str) -> bool:
    return model in MODELS and MODELS[model].is_builtin


def _prior_of(model: str) -> MemoryPrior | None:
    return MODELS[model].prior if model in MODELS else None


def activations_bytes(work: Workload) -> int:
    """The larger of the UNet's peak (guidance doubles its batch) and the VAE's (it decodes the whole batch); 0 if
    unknown."""
    architecture = _prior_of(work.architecture)
    if architecture is None:
        return 0
    value = VALUE_BYTES.get(work.dtype, 2)
    unet = architecture.unet_activations * _guided(work) * value // 2
    vae = architecture.vae_activations * (4 if architecture.vae_in_float32 else value) // 2
    return max(unet, vae) * work.batch_pixels // MEGAPIXEL


def caches_bytes(work: Workload) -> int:
    """What the methods cache between steps for each latent sample (guidance makes two for an image); 0 if unknown."""
    architecture = _prior_of(work.architecture)
    if architecture is None:
        return 0
    sample = sum(architecture.caches.get(part.strip(), 0) for part in work.method.split("+"))
    native = native_pixels(work.architecture)
    value = VALUE_BYTES.get(work.dtype, 2)
    return sample * _guided(work) * work.batch_pixels // native * value // 2


def _guided(work: Workload) -> int:
    return 2 if work.guided else 1


def _learned(known: Sequence[Observation], work: Workload, variation_permille: int | None) -> Estimate | None:
    seen = [o for o in known if not o.censored]
    same = [o.peak_bytes for o in seen if (o.batch_size, o.pixels) == (work.batch_size, work.pixels)]
    if same:
        size = _with_slack(same, variation_permille)
        return Estimate(size, Source(MemorySource.LEARNED, len(same)))
    return _extrapolated(seen, work) if seen else None


def _with_slack(peaks: Sequence[int], variation_permille: int | None) -> int:
    """The estimate from peaks of the same workload, oldest first: the peak plus slack, by the table above.

    `variation_permille` is how much peaks of any workload vary; None if unknown.
    """
    many = len(peaks) >= MANY_PEAKS
    top = _percentile(peaks, MANY_PEAKS_PERCENTILE) if many else max(peaks)
    if len(peaks) == 1:
        least = top * ONE_PEAK_SLACK_PERCENT // 100 + ONE_PEAK_SLACK_BYTES
    else:
        least = top * (MANY_PEAKS_MIN_SLACK_PERCENT if many else MIN_SLACK_PERCENT[len(peaks)]) // 100
    if variation_permille is not None:
        percent = ONE_PEAK_VARIATION_PERCENT if len(peaks) == 1 else 100
        usual_permille = max(variation_permille * percent // 100, MIN_VARIATION_PERMILLE)
        least = min(least, top * usual_permille // 1000)
    slack = max(least, min(top - min(peaks), top * MAX_SLACK_PERCENT // 100))
    return max(top + slack, max(peaks[-MANY_PEAKS:]))


def _with_extrapolation_slack(peak_bytes: int) -> int:
    return peak_bytes * EXTRAPOLATED_PERCENT // 100 + EXTRAPOLATED_SLACK_BYTES


def _percentile(values: Sequence[int], percent: int) -> int:
    """The nearest-rank percentile, which is always one of the values."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]


def _extrapolated(seen: Sequence[Observation], work: Workload) -> Estimate:
    """Extrapolate to other batch sizes and resolutions: peak = a + b x (batch x pixels).

    The line is fitted to the peaks of the same model, method and device. With a single other batch, the slope is the
    prior's. For an unknown model, the peak grows in proportion to the batch, which overestimates by the weights, and
    never shrinks.
    """
    peaks: dict[int, int] = {}
    for o in seen:
        peaks[o.batch_pixels] = max(peaks.get(o.batch_pixels, 0), o.peak_bytes)
    wanted = work.batch_pixels
    if len(peaks) > 1:
        size, how = _fitted(peaks, wanted), MemorySource.OTHER_BATCHES
    else:
        ((pixels, peak),) = peaks.items()
        size, how = _carried_over(work, pixels, peak, wanted), MemorySource.OTHER_BATCH
    at_least = max((peak for pixels, peak in peaks.items() if pixels <= wanted), default=0)
    return Estimate(_with_extrapolation_slack(max(size, at_least)), Source(how, len(seen), len(peaks)))


def _fitted(peaks: Mapping[int, int], wanted: int) -> int:
    """The least-squares line at `wanted`, in integers; never falling with the batch."""
    n, sum_x, sum_y = len(peaks), sum(peaks), sum(peaks.values())
    covariance = n * sum(x * y for x, y in peaks.items()) - sum_x * sum_y
    variance = n * sum(x * x for x in peaks) - sum_x * sum_x
    if covariance <= 0:
        return max(peaks.values())
    return (sum_y * variance + covariance * (n * wanted - sum_x)) // (n * variance)


def _carried_over(work: Workload, pixels: int, peak: int, wanted: int) -> int:
    if _prior_of(work.architecture) is None:
        return peak if wanted <= pixels else peak * wanted // max(1, pixels)
    slope = activations_bytes(work) + caches_bytes(work)  # of `wanted` pixels, and linear in them
    return max(CONTEXT_BYTES + weights_bytes(work.architecture, work.dtype), peak + slope * (wanted - pixels) // wanted)


def _lower_bound(known: Sequence[Observation], work: Workload) -> int | None:
    """The lower bound from attempts that ran out of memory with at most this work.

    Such an attempt no longer counts after five later successes of the same workload, or one with as large a peak.
    """
    bounds = []
    for place, censored in enumerate(known):
        if not censored.censored or censored.batch_pixels > work.batch_pixels:
            continue
        since = [
            o
            for o in known[place + 1 :]
            if not o.censored and (o.batch_size, o.pixels) == (work.batch_size, work.pixels)
        ]
        if len(since) < MANY_PEAKS and not any(o.peak_bytes >= censored.peak_bytes for o in since):
            bounds.append(censored.peak_bytes)
    if not bounds:
        return None
    # Several attempts that failed with about the same reservation (they ran side by side) count as one.
    once_percent, again_percent = RAISED_PERCENT
    again = max(bounds) * 100 >= min(bounds) * once_percent
    return max(bounds) * (again_percent if again else once_percent) // 100
