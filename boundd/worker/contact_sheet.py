"""Samples side by side in one PNG, small enough to keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_IMAGES = 32
MAX_SIDE_PX = 2048


def save_sheet(images: torch.Tensor, path: Path) -> None:
    """Write a sheet of the first images, in rows, scaled down to at most MAX_SIDE_PX a side.

    Args:
        images: (n, 3, height, width) in [0, 1], in host memory.
        path: of the PNG; its folder is made.
    """
    import torch
    from PIL import Image

    shown = images[:MAX_IMAGES]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    height, width = shown.shape[-2:]
    sheet = torch.ones(3, rows * height, columns * width)
    for index, image in enumerate(shown):
        top, left = index // columns * height, index % columns * width
        sheet[:, top : top + height, left : left + width] = image
    pixels = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
