"""scikit-learn's handwritten digits as 32 x 32 images, black on white, in a fixed split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's own documentation uses)

from boundd.worker.digits.architectures import IMAGE_PX

HELD_OUT_SHARE: Final = 0.2
SPLIT_SEED: Final = 0
_FULL_INK: Final = 16.0


@dataclass(frozen=True)
class LabelledImages:
    """Images, float32 (n, 3, 32, 32) in [0, 1], and the digit each shows, int64 (n,)."""

    images: torch.Tensor
    digits: torch.Tensor

    def __len__(self) -> int:
        return len(self.digits)


def images_of_ink(ink: torch.Tensor) -> torch.Tensor:
    """Ink of 0 to 16, (n, 8, 8), as scikit-learn has it -> dark digits on white, float32 (n, 3, 32, 32) in [0, 1]."""
    grey = 1.0 - ink.to(torch.float32) / _FULL_INK
    smooth = F.interpolate(grey[:, None], size=(IMAGE_PX, IMAGE_PX), mode="bicubic", align_corners=False)
    return smooth.clamp(0.0, 1.0).expand(-1, 3, -1, -1).contiguous()


def ink_of_images(images: torch.Tensor) -> torch.Tensor:
    """The way back: images (n, 3, 32, 32) in [0, 1] -> ink of 0 to 16, float32 (n, 8, 8).

    Each value is the mean of 4 x 4 pixels.
    """
    grey = F.avg_pool2d(images.mean(dim=1, keepdim=True), IMAGE_PX // 8)
    return (1.0 - grey[:, 0]) * _FULL_INK


def load_split() -> tuple[LabelledImages, LabelledImages]:
    """The 1,437 images to train on and the 360 held out, with every digit in proportion; always the same ones."""
    # A user of the models needs no scikit-learn: only whoever trains or measures them does.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, held_out = train_test_split(
        range(len(digits.target)),
        test_size=HELD_OUT_SHARE,
        stratify=digits.target,
        random_state=SPLIT_SEED,
    )
    images = images_of_ink(torch.from_numpy(digits.images))
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return (
        LabelledImages(images[train], labels[train]),
        LabelledImages(images[held_out], labels[held_out]),
    )
