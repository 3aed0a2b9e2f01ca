"""Quality: PSNR and SSIM against known values, scores in batches, and what can't be scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from boundd.worker.errors import BadDataError
from boundd.worker.quality import compare, psnr_db, score_all, ssim


class Brightness:
    """Scores an image by its mean brightness; notes how many it was given at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """100 x the mean."""
        assert len(images) == len(prompts)
        self.sizes.append(len(images))
        return 100 * images.mean(dim=(1, 2, 3))


def images(count: int = 3, side_px: int = 32, seed: int = 0) -> torch.Tensor:
    """Noise images in [0, 1]."""
    return torch.rand(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(seed))


def test_identical_images_are_identical() -> None:
    """No finite PSNR, and an SSIM of 1."""
    assert psnr_db(images(), images()) is None
    assert ssim(images(), images()) == pytest.approx(1, abs=1e-5)


def test_psnr_of_a_known_error() -> None:
    """A constant error of 0.1 is 20 dB."""
    assert psnr_db(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.1)) == pytest.approx(20)


def test_ssim_of_two_flat_images() -> None:
    """Without structure only luminance is left: (2ab + C1) / (a² + b² + C1)."""
    a, b, c1 = 0.2, 0.6, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b)) == pytest.approx(expected, rel=1e-3)


def test_ssim_falls_with_noise_and_takes_small_images() -> None:
    """More noise is less alike, and images below the window's size are compared too."""
    base = images(side_px=8)
    noise = images(side_px=8, seed=1) - 0.5
    slightly, strongly = ssim(base, base + 0.05 * noise), ssim(base, base + noise)
    assert 1 > slightly > strongly > -1


def test_scores_come_in_batches_and_in_order() -> None:
    """Five images two at a time."""
    scorer = Brightness()
    five = images(5)
    scores = score_all(scorer, five, ["x"] * 5, batch_size=2)
    assert scores == pytest.approx((100 * five.mean(dim=(1, 2, 3))).tolist())
    assert scorer.sizes == [2, 2, 1]
    assert score_all(None, five, ["x"] * 5, batch_size=2) == []


def test_a_score_that_is_no_number_is_an_error() -> None:
    """NaN never becomes a score."""
    broken = images(2)
    broken[1] = math.nan
    with pytest.raises(BadDataError, match="not finite"):
        score_all(Brightness(), broken, ["x", "x"], batch_size=1)


def test_loss_is_of_the_means() -> None:
    """(50 − 45) / 50, and nothing where nothing was scored."""
    quality = compare(images(2), images(2, seed=1), [40.0, 60.0], [36.0, 54.0], seed=0)
    assert quality.score_loss is not None
    assert quality.score_loss.value == pytest.approx(0.1)
    assert quality.mean_score == pytest.approx(45)
    unscored = compare(images(2), images(2, seed=1), [], [], seed=0)
    assert unscored.score_loss is unscored.mean_score is None
    assert unscored.psnr_db is not None


def test_a_baseline_that_scores_nothing_has_no_loss() -> None:
    """There is no share of nothing to lose."""
    with pytest.raises(ValueError, match="not above 0"):
        compare(images(1), images(1), [0.0], [0.0], seed=0)
