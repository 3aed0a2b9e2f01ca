"""Samples side by side in one PNG, small enough to keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_IMAGES = 32
MAX_SIDE_PX = 2048
MAX_TILE_PX = 340
"""So that six columns, which MAX_IMAGES fill, stay within MAX_SIDE_PX."""


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """The images small enough to keep many of: uint8, (n, 3, height, width), at most MAX_TILE_PX a side.

    Args:
        images: (n, 3, height, width) in [0, 1], float32, in host memory.
    """
    import torch

    scale = MAX_TILE_PX / max(images.shape[-2:])
    if scale < 1:
        images = torch.nn.functional.interpolate(images, scale_factor=scale, mode="area")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def save_sheet(tiles: torch.Tensor, path: Path) -> None:
    """Write a sheet of the first images, in rows.

    Args:
        tiles: (n, 3, height, width) as `thumbnails` gives them.
        path: of the PNG; its folder is made.
    """
    import torch
    from PIL import Image

    shown = tiles[:MAX_IMAGES]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    height, width = shown.shape[-2:]
    sheet = torch.full((3, rows * height, columns * width), 255, dtype=torch.uint8)
    for index, tile in enumerate(shown):
        top, left = index // columns * height, index % columns * width
        sheet[:, top : top + height, left : left + width] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
