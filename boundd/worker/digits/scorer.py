"""A CLIP-like scorer of digit images: how well does an image match the digit that its prompt names?

As with CLIP, an image and what the text means become vectors, and the score is 100 times the cosine between the
two, cut off at 0. The text side is one vector a digit, because a digit is all that these prompts can mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Final, Self

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's own documentation uses)
from safetensors.torch import load_file, save_file
from torch import nn

from boundd.worker.digits.prompts import digit_in

DIGITS: Final = 10
_INPUT_PX: Final = 32
_CONFIG_FILE: Final = "config.json"
_WEIGHTS_FILE: Final = "model.safetensors"


class DigitsScorer(nn.Module):
    """Scores images against prompts that name a digit. Made by `DigitsScorer.from_pretrained(folder)`.

    `width` is the number of channels of the first convolution, `embedding_dim` the length of the common vectors.
    """

    def __init__(self, width: int = 16, embedding_dim: int = 32) -> None:
        super().__init__()
        self.width = width
        self.embedding_dim = embedding_dim
        self.image_encoder = nn.Sequential(
            _halving_block(3, width),
            _halving_block(width, 2 * width),
            _halving_block(2 * width, 4 * width),
            nn.Flatten(),
            nn.Linear(4 * width * (_INPUT_PX // 8) ** 2, embedding_dim),
        )
        self.digit_vectors = nn.Parameter(torch.randn(DIGITS, embedding_dim))

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """The scorer that `save_pretrained` wrote into `folder`, on the CPU, ready to score."""
        config = json.loads((Path(folder) / _CONFIG_FILE).read_text(encoding="utf-8"))
        scorer = cls(width=config["width"], embedding_dim=config["embedding_dim"])
        scorer.load_state_dict(load_file(Path(folder) / _WEIGHTS_FILE))
        return scorer.eval()

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the configuration and the weights into `folder`, making it if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = {"width": self.width, "embedding_dim": self.embedding_dim}
        (Path(folder) / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(self.state_dict(), Path(folder) / _WEIGHTS_FILE, metadata={"format": "pt"})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The cosine of each image with each digit's vector: (n, 3, 32, 32) in [0, 1] -> (n, 10) in [-1, 1]."""
        of_images = F.normalize(self.image_encoder(2.0 * images - 1.0), dim=-1)
        return of_images @ F.normalize(self.digit_vectors, dim=-1).T

    @property
    def max_tokens(self) -> int | None:
        """All of a prompt is read."""
        return None

    def count_tokens(self, prompt: str) -> int:
        """Its words."""
        return len(prompt.split())

    def why_unscorable(self, prompt: str) -> str | None:
        """Why no image can be judged by this prompt: it names no digit, or two."""
        try:
            digit_in(prompt)
        except ValueError as error:
            return str(error)
        return None

    @torch.no_grad()
    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """How well each image matches its prompt: float32 (n,), 0 (not at all) to 100.

        `images` are (n, 3, height, width) in [0, 1], of any floating-point type and on the scorer's device; other
        sizes than 32 x 32 are resized. Raises ValueError where a prompt names no digit, or two, and where the counts
        differ.
        """
        digits = _digits_of(images, prompts).to(images.device)
        cosines = self.forward(_resized(images))
        return 100.0 * cosines.gather(1, digits[:, None])[:, 0].clamp(min=0.0)

    @torch.no_grad()
    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """The digit that each image is most like: (n, 3, height, width) in [0, 1] -> int64 (n,)."""
        return self.forward(_resized(images)).argmax(dim=1)

    def accuracy(self, images: torch.Tensor, prompts: Sequence[str]) -> float:
        """The share, 0 to 1, of the images that are most like the digit of their prompt."""
        digits = _digits_of(images, prompts).to(images.device)
        return (self.classify(images) == digits).to(torch.float32).mean().item()


def _halving_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """A convolution, and a second one that halves height and width."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.GroupNorm(4, out_channels),
        nn.SiLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, stride=2),
        nn.GroupNorm(4, out_channels),
        nn.SiLU(),
    )


def _digits_of(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """The digit of each prompt, int64 (n,); one prompt an image."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images cannot be scored against {len(prompts)} prompts")
    return torch.tensor([digit_in(prompt) for prompt in prompts], dtype=torch.int64)


def _resized(images: torch.Tensor) -> torch.Tensor:
    """The images as float32 (n, 3, 32, 32)."""
    images = images.to(torch.float32)
    if images.shape[-2:] == (_INPUT_PX, _INPUT_PX):
        return images
    return F.interpolate(images, size=(_INPUT_PX, _INPUT_PX), mode="bilinear", antialias=True)
