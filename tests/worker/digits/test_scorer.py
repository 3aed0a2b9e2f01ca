"""The scorer: right on digits that it was not trained on, near zero elsewhere, strict about what it is given."""

from pathlib import Path

import pytest
import torch

from boundd.worker.digits.scorer import DigitsScorer
from tools.digits.data import images_of_ink, ink_of_images, load_split


def prompts_for(digits: torch.Tensor) -> list[str]:
    """One prompt a digit."""
    return [f"the digit {digit}" for digit in digits.tolist()]


def test_held_out_digits_are_recognised_and_score_far_above_wrong_prompts(scorer: DigitsScorer) -> None:
    """At least 90% right; a digit's own prompt scores high and its neighbour's low."""
    _, held_out = load_split()
    right = prompts_for(held_out.digits)
    wrong = prompts_for((held_out.digits + 1) % 10)
    assert scorer.accuracy(held_out.images, right) >= 0.9
    assert scorer.score(held_out.images, right).mean() > 60
    assert scorer.score(held_out.images, wrong).mean() < 20
    assert scorer.accuracy(held_out.images, wrong) < 0.1


def test_the_split_shares_no_image_and_keeps_every_digit() -> None:
    """What is held out was never trained on."""
    data, held_out = load_split()
    assert (len(data), len(held_out)) == (1437, 360)
    assert not {image.numpy().tobytes() for image in data.images} & {
        image.numpy().tobytes() for image in held_out.images
    }
    assert held_out.digits.bincount(minlength=10).min() >= 30


def test_images_are_the_ink_they_were_made_of() -> None:
    """Black on white, and down at 8 x 8 close to the original values."""
    ink = torch.zeros(1, 8, 8)
    ink[0, 3:5, 3:5] = 16.0
    images = images_of_ink(ink)
    assert images.shape == (1, 3, 32, 32)
    assert images[0, :, 15, 15].max() < 0.1
    assert images[0, :, 0, 0].min() > 0.9
    assert (ink_of_images(images) - ink).abs().mean() < 1.0


def test_a_score_has_the_promised_type_and_range(scorer: DigitsScorer, noise: torch.Tensor) -> None:
    """float32 (n,), 0 to 100, and noise gets next to nothing."""
    scores = scorer.score(noise, ["a handwritten seven"] * 20)
    assert scores.dtype == torch.float32
    assert scores.shape == (20,)
    assert 0 <= scores.min() <= scores.max() < 20


def test_other_sizes_and_types_score_alike(scorer: DigitsScorer) -> None:
    """An image twice as large, or in half precision, is the same image."""
    _, held_out = load_split()
    images, prompts = held_out.images[:40], prompts_for(held_out.digits[:40])
    scores = scorer.score(images, prompts)
    doubled = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert (scorer.score(doubled, prompts) - scores).abs().mean() < 5
    assert (scorer.score(images.to(torch.bfloat16), prompts) - scores).abs().mean() < 5


def test_what_cannot_be_scored_is_refused(scorer: DigitsScorer, noise: torch.Tensor) -> None:
    """A count that differs, and a prompt without a digit."""
    with pytest.raises(ValueError, match="20 images cannot be scored against 1 prompts"):
        scorer.score(noise, ["the digit 7"])
    with pytest.raises(ValueError, match="names no digit"):
        scorer.score(noise, ["a cat"] * 20)


def test_saving_and_loading_keeps_every_score(scorer: DigitsScorer, noise: torch.Tensor, tmp_path: Path) -> None:
    """The same bits come back."""
    scorer.save_pretrained(tmp_path / "copy")
    copy = DigitsScorer.from_pretrained(tmp_path / "copy")
    assert torch.equal(copy(noise), scorer(noise))
