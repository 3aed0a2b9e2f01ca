"""What acceleration cost in quality: the score it lost, and how far its images are from the unaccelerated
ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boundd.worker.errors import BadDataError
from boundd.worker.scorers import Scorer
from boundd.worker.statistics import Estimate, relative_loss

if TYPE_CHECKING:
    import torch

# Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment: from error visibility to structural
# similarity", 2004: an 11 x 11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03.
SSIM_WINDOW_PX = 11
SSIM_DEVIATION_PX = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03


@dataclass(frozen=True)
class Quality:
    """A variant's images against the baseline's of the same seeds.

    Attributes:
        score_loss: with its interval; None where nothing was scored.
        mean_score: 0 to 100; None where nothing was scored.
        psnr_db: of the mean squared error over all pixels; None for identical images, where it is infinite.
        ssim: the mean over images, 1 for identical ones.
    """

    score_loss: Estimate | None
    mean_score: float | None
    psnr_db: float | None
    ssim: float


def score_all(scorer: Scorer | None, images: torch.Tensor, prompts: Sequence[str], batch_size: int) -> list[float]:
    """One score an image, a batch at a time; an empty list without a scorer.

    Raises:
        BadDataError: when a score is not finite.
    """
    if scorer is None:
        return []
    scores: list[float] = []
    for start in range(0, len(images), batch_size):
        end = start + batch_size
        scores += scorer.score(images[start:end], prompts[start:end]).tolist()
    if not all(map(math.isfinite, scores)):
        raise BadDataError("the scorer gave values that are not finite")
    return scores


def compare(
    baseline: torch.Tensor,
    variant: torch.Tensor,
    baseline_scores: Sequence[float],
    variant_scores: Sequence[float],
    seed: int,
) -> Quality:
    """The variant's quality.

    Args:
        baseline: (n, 3, height, width) in [0, 1], float32.
        variant: the same, of the same prompts and seeds.
        baseline_scores: n of them, or none.
        variant_scores: as many.
        seed: of the bootstrap.

    Raises:
        ValueError: when the baseline scored nothing, so that there is no loss to speak of.
    """
    loss = mean = None
    if variant_scores:
        loss = relative_loss(baseline_scores, variant_scores, seed)
        mean = math.fsum(variant_scores) / len(variant_scores)
    return Quality(loss, mean, psnr_db(baseline, variant), ssim(baseline, variant))


def psnr_db(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """Peak signal-to-noise ratio of images in [0, 1], in decibels; None when they are identical."""
    mean_squared_error = float(((first - second).double() ** 2).mean())
    return None if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)


def ssim(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean structural similarity of images (n, channels, height, width) in [0, 1].

    Images smaller than the window are compared with the largest odd window that fits.
    """
    import torch

    size_px = min(SSIM_WINDOW_PX, *first.shape[-2:])
    size_px -= 1 - size_px % 2
    offsets = torch.arange(size_px, dtype=torch.float32) - size_px // 2
    bell = torch.exp(-(offsets**2) / (2 * SSIM_DEVIATION_PX**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2
    channels = first.shape[1]
    kernel = window.expand(channels, 1, size_px, size_px)

    def local(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values, kernel, groups=channels)

    total = 0.0
    # An image at a time: the statistics of 32 images of 1024 pixels would take gigabytes.
    for index in range(len(first)):
        one, other = first[index : index + 1], second[index : index + 1]
        mean_one, mean_other = local(one), local(other)
        variance_one = local(one * one) - mean_one**2
        variance_other = local(other * other) - mean_other**2
        covariance = local(one * other) - mean_one * mean_other
        luminance = (2 * mean_one * mean_other + SSIM_K1**2) / (mean_one**2 + mean_other**2 + SSIM_K1**2)
        structure = (2 * covariance + SSIM_K2**2) / (variance_one + variance_other + SSIM_K2**2)
        total += float((luminance * structure).mean())
    return total / len(first)
