"""The quality of accelerated images: score loss, PSNR, SSIM and latent error against the unaccelerated images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boundd.worker.errors import BadDataError
from boundd.worker.scorers import Scorer
from boundd.worker.statistics import IntervalEstimate, relative_loss

if TYPE_CHECKING:
    import torch

# Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment: from error visibility to structural
# similarity", 2004: an 11 x 11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03.
SSIM_WINDOW_PX = 11
SSIM_DEVIATION_PX = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03


@dataclass(frozen=True)
class Sample:
    """One image of a variant against the baseline's of the same prompt and seed.

    Attributes:
        score: 0 to 100; None where nothing was scored.
        squared_error: the mean over the image's pixels, which are in [0, 1].
        ssim: 1 for identical images.
        latent_error: ‖variant − baseline‖ / ‖baseline‖ of the latents that were decoded; None where they were not
            seen.
    """

    score: float | None
    squared_error: float
    ssim: float
    latent_error: float | None


@dataclass(frozen=True)
class Quality:
    """A variant's images against the baseline's of the same seeds, over `samples` of them.

    Attributes:
        score_loss: with its interval; None where nothing was scored.
        mean_score: 0 to 100; None where nothing was scored.
        psnr_db: of the mean squared error over all pixels; None for identical images, where it is infinite.
        ssim: the mean over images, 1 for identical ones.
        latent_error: the mean over images.
    """

    samples: int
    score_loss: IntervalEstimate | None
    mean_score: float | None
    psnr_db: float | None
    ssim: float
    latent_error: float | None


def score_all(scorer: Scorer | None, images: torch.Tensor, prompts: Sequence[str]) -> list[float]:
    """One score an image; an empty list without a scorer.

    Raises:
        BadDataError: when a score is not finite.
    """
    if scorer is None:
        return []
    scores: list[float] = scorer.score(images, prompts).tolist()
    if not all(map(math.isfinite, scores)):
        raise BadDataError("the scorer gave values that are not finite")
    return scores


BLANK_DEVIATION = 1 / 255
"""Largest standard deviation, per channel over pixels in [0, 1], of an image of a single colour."""


def blank_images(images: torch.Tensor) -> list[str | None]:
    """For each image of (n, 3, height, width) in [0, 1] its colour if it has a single one, else None."""
    deviations = images.flatten(2).std(dim=2, correction=0).amax(dim=1).tolist()
    means = images.flatten(1).mean(dim=1).tolist()
    return [
        None if deviation > BLANK_DEVIATION else "black" if mean < 0.02 else "white" if mean > 0.98 else "of one colour"
        for deviation, mean in zip(deviations, means, strict=True)
    ]


def compare_images(
    baseline: torch.Tensor,
    variant: torch.Tensor,
    scores: Sequence[float],
    latents: tuple[torch.Tensor | None, torch.Tensor | None],
) -> list[Sample]:
    """Each image of the variant against the baseline's.

    Args:
        baseline: (n, 3, height, width) in [0, 1], float32.
        variant: the same, of the same prompts and seeds.
        scores: n of the variant's, or none.
        latents: the baseline's and the variant's, (n, channels, height, width), where they were seen.
    """
    errors = ((baseline - variant).double() ** 2).flatten(1).mean(dim=1).tolist()
    drifts = _latent_errors(*latents) or [None] * len(variant)
    return [
        Sample(scores[index] if scores else None, errors[index], ssim(baseline[index], variant[index]), drifts[index])
        for index in range(len(variant))
    ]


def summarize(samples: Sequence[Sample], baseline_scores: Sequence[float], seed: int) -> Quality:
    """The quality over some samples.

    Args:
        samples: n of a variant, n at least 1.
        baseline_scores: of the baseline's images with the same seeds; none where nothing was scored.
        seed: of the bootstrap.

    Raises:
        ValueError: when the baseline's mean score is 0, so that a relative loss is undefined.
    """
    scores = [sample.score for sample in samples if sample.score is not None]
    drifts = [sample.latent_error for sample in samples if sample.latent_error is not None]
    squared_error = statistics.fmean(sample.squared_error for sample in samples)
    return Quality(
        samples=len(samples),
        score_loss=relative_loss(baseline_scores, scores, seed) if scores else None,
        mean_score=statistics.fmean(scores) if scores else None,
        psnr_db=None if squared_error == 0 else -10 * math.log10(squared_error),
        ssim=statistics.fmean(sample.ssim for sample in samples),
        latent_error=statistics.fmean(drifts) if len(drifts) == len(samples) else None,
    )


def _latent_errors(baseline: torch.Tensor | None, variant: torch.Tensor | None) -> list[float | None]:
    if baseline is None or variant is None or baseline.shape != variant.shape:
        return []
    distance = (variant.double() - baseline.double()).flatten(1).norm(dim=1)
    errors: list[float | None] = (distance / baseline.double().flatten(1).norm(dim=1)).tolist()
    return errors


def ssim(first: torch.Tensor, second: torch.Tensor) -> float:
    """Structural similarity of two images, each (channels, height, width) in [0, 1].

    Images smaller than the window are compared with the largest odd window that fits.
    """
    import torch

    size_px = min(SSIM_WINDOW_PX, *first.shape[-2:])
    size_px -= 1 - size_px % 2
    offsets = torch.arange(size_px, dtype=torch.float32) - size_px // 2
    bell = torch.exp(-(offsets**2) / (2 * SSIM_DEVIATION_PX**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2
    channels = first.shape[0]
    kernel = window.expand(channels, 1, size_px, size_px)

    def local(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values[None], kernel, groups=channels)

    mean_first, mean_second = local(first), local(second)
    variance_first = local(first * first) - mean_first**2
    variance_second = local(second * second) - mean_second**2
    covariance = local(first * second) - mean_first * mean_second
    luminance = (2 * mean_first * mean_second + SSIM_K1**2) / (mean_first**2 + mean_second**2 + SSIM_K1**2)
    structure = (2 * covariance + SSIM_K2**2) / (variance_first + variance_second + SSIM_K2**2)
    return float((luminance * structure).mean())
