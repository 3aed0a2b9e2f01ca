"""Scorers: how well an image shows its prompt, from 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from boundd.worker.digits import scorer_folder
from boundd.worker.errors import ModelUnavailableError
from boundd.worker.settings import BUILTIN

if TYPE_CHECKING:
    import torch

# How CLIP's training images were made: openai/CLIP, clip/clip.py, `_transform`.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Scorer(Protocol):
    """Scores images against their prompts."""

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """One score an image.

        Args:
            images: (n, 3, height, width) in [0, 1], float32, in host memory.
            prompts: n of them.

        Returns:
            (n,) float32, 0 to 100.
        """


class ClipScorer:
    """CLIP score (Hessel et al., 2021, arXiv:2104.08718): 100 x the cosine of image and text, not below 0.

    The model visits the device for a batch and leaves it again: beside a large pipeline both may not fit.
    """

    def __init__(self, model: Any, tokenizer: Any, device_name: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device_name = device_name

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """One score an image; prompts are cut to what the text encoder reads."""
        import torch

        vision, text = self._model.config.vision_config, self._model.config.text_config
        tokens = self._tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=text.max_position_embeddings,
            return_tensors="pt",
        )
        try:
            self._model.to(self._device_name)
            with torch.inference_mode():
                seen = self._model(
                    input_ids=tokens.input_ids.to(self._device_name),
                    attention_mask=tokens.attention_mask.to(self._device_name),
                    pixel_values=_as_clip_sees(images, vision.image_size).to(self._device_name),
                )
        finally:
            self._model.to("cpu")
        # The embeddings come normalised.
        cosine = (seen.image_embeds * seen.text_embeds).sum(dim=-1)
        scores: torch.Tensor = (100 * cosine).clamp(min=0).float().cpu()
        return scores


def load_scorer(source: str, device_name: str) -> Scorer | None:
    """The scorer that `source` names: 'builtin', a CLIP model's hub id or folder; None for ''.

    Raises:
        ModelUnavailableError: when it can't be had.
    """
    if not source:
        return None
    if source == BUILTIN:
        from boundd.worker.digits.scorer import DigitsScorer

        scorer: Scorer = DigitsScorer.from_pretrained(scorer_folder())
        return scorer
    from transformers import AutoTokenizer, CLIPModel

    try:
        model, tokenizer = (_cached_or_fetched(part, source) for part in (CLIPModel, AutoTokenizer))
    except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise ModelUnavailableError(
            f"the scorer could not be loaded from {source!r} as a CLIP model. Looked in: the folder of that name, the"
            " Hugging Face cache, the hub. To give it: set source in the config's [scorer] (or --scorer) to a folder"
            f' or a hub id of a CLIP model, or to "" to measure without a score. {type(error).__name__}: {error}'
        ) from error
    return ClipScorer(model.eval(), tokenizer, device_name)


def _cached_or_fetched(loader: Any, source: str) -> Any:
    try:
        return loader.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        if Path(source).is_dir():
            raise
        return loader.from_pretrained(source)


def _as_clip_sees(images: torch.Tensor, side_px: int) -> torch.Tensor:
    """The centre square, scaled to the side CLIP was trained on, with its mean and deviation taken out."""
    import torch

    height, width = images.shape[-2:]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    centre = images[..., top : top + square, left : left + square]
    scaled = torch.nn.functional.interpolate(
        centre, size=(side_px, side_px), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (scaled - mean) / deviation
