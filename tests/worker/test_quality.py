"""Quality: PSNR and SSIM against known values, scores in batches, and what can't be scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from boundd.worker.errors import BadDataError
from boundd.worker.quality import Quality, compare_images, score_all, ssim, summarize


class Brightness:
    """Scores an image by its mean brightness."""

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """100 x the mean."""
        assert len(images) == len(prompts)
        return 100 * images.mean(dim=(1, 2, 3))


def images(count: int = 3, side_px: int = 32, seed: int = 0) -> torch.Tensor:
    """Noise images in [0, 1]."""
    return torch.rand(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(seed))


def compared(baseline: torch.Tensor, variant: torch.Tensor, scores: Sequence[float] = ()) -> Quality:
    """The quality of images that scored like this, over a baseline that scored 50."""
    samples = compare_images(baseline, variant, scores, (None, None))
    return summarize(samples, [50.0] * len(samples) if scores else [], seed=0)


def test_identical_images_are_identical() -> None:
    """No finite PSNR, and an SSIM of 1."""
    quality = compared(images(), images())
    assert quality.psnr_db is None
    assert quality.ssim == pytest.approx(1, abs=1e-5)
    assert quality.samples == 3


def test_psnr_of_a_known_error() -> None:
    """A constant error of 0.1 is 20 dB, and errors are averaged over the images before the logarithm."""
    black, grey = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.1)
    assert compared(black, grey).psnr_db == pytest.approx(20)
    both = compared(torch.cat([black, black]), torch.cat([black, grey]))
    assert both.psnr_db == pytest.approx(20 + 10 * math.log10(2))


def test_latents_are_compared_too() -> None:
    """The distance as a share of the baseline's length, image by image; nothing where they were not seen."""
    before = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2).repeat(2, 1, 1, 1)
    after = before.clone()
    after[1, 0, 0, 0] += 1.0
    samples = compare_images(images(2), images(2), [], (before, after))
    assert [sample.latent_error for sample in samples] == pytest.approx([0.0, 0.2])
    assert summarize(samples, [], 0).latent_error == pytest.approx(0.1)
    assert compared(images(2), images(2)).latent_error is None


def test_ssim_of_two_flat_images() -> None:
    """Without structure only luminance is left: (2ab + C1) / (a² + b² + C1)."""
    a, b, c1 = 0.2, 0.6, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(torch.full((3, 16, 16), a), torch.full((3, 16, 16), b)) == pytest.approx(expected, rel=1e-3)


def test_ssim_falls_with_noise_and_takes_small_images() -> None:
    """More noise is less alike, and images below the window's size are compared too."""
    base = images(side_px=8)[0]
    noise = images(side_px=8, seed=1)[0] - 0.5
    slightly, strongly = ssim(base, base + 0.05 * noise), ssim(base, base + noise)
    assert 1 > slightly > strongly > -1


def test_every_image_has_its_score() -> None:
    """One each, in order; none without a scorer."""
    five = images(5)
    scores = score_all(Brightness(), five, ["x"] * 5)
    assert scores == pytest.approx((100 * five.mean(dim=(1, 2, 3))).tolist())
    assert score_all(None, five, ["x"] * 5) == []


def test_a_score_that_is_no_number_is_an_error() -> None:
    """NaN never becomes a score."""
    broken = images(2)
    broken[1] = math.nan
    with pytest.raises(BadDataError, match="not finite"):
        score_all(Brightness(), broken, ["x", "x"])


def test_loss_is_of_the_means() -> None:
    """(50 − 45) / 50, and nothing where nothing was scored."""
    quality = compared(images(2), images(2, seed=1), [36.0, 54.0])
    assert quality.score_loss is not None
    assert quality.score_loss.value == pytest.approx(0.1)
    assert quality.mean_score == pytest.approx(45)
    unscored = compared(images(2), images(2, seed=1))
    assert unscored.score_loss is unscored.mean_score is None
    assert unscored.psnr_db is not None


def test_a_baseline_that_scores_nothing_has_no_loss() -> None:
    """There is no share of nothing to lose."""
    with pytest.raises(ValueError, match="not above 0"):
        summarize(compare_images(images(1), images(1), [0.0], (None, None)), [0.0], seed=0)
