"""Scorers: how well an image shows its prompt, from 0 to 100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from boundd.worker.compatibility import check_tokenizer
from boundd.worker.completeness import check_complete, check_dtypes, load_or_refuse
from boundd.worker.digits import scorer_folder
from boundd.worker.errors import ModelUnavailableError
from boundd.worker.model_folder import (
    CONFIG,
    TOKENIZER_FILES,
    TRANSFORMERS_STEM,
    Part,
    find_weights,
    head_of,
    read_json,
    read_tokenizer,
)
from boundd.worker.settings import BUILTIN

if TYPE_CHECKING:
    import torch

# How CLIP's training images were normalised: openai/CLIP, clip/clip.py, `_transform`.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

CLIP = "clip"
"""The model_type of a CLIP model with text and image encoder."""
SCORER_ROOM_PERCENT = 150
"""Free memory that a scorer needs, in percent of its weights: the weights and the activations of a batch."""


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

    @property
    def max_tokens(self) -> int | None:
        """How many tokens of a prompt are read; None for no limit."""

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens of a prompt before it is cut."""

    def why_unscorable(self, prompt: str) -> str | None:
        """Why images can't be scored against this prompt; None if they can."""


class ClipScorer:
    """CLIP score (Hessel et al., 2021, arXiv:2104.08718): 100 x the cosine of image and text, not below 0.

    It is on the CPU until it is placed.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.device_name = "cpu"

    def place(self, device_name: str, free_bytes: int | None) -> None:
        """Move to the device if there is enough free memory; else stay on the CPU.

        Args:
            device_name: torch's.
            free_bytes: free memory there at the pipeline's peak; None on the CPU.
        """
        parts = (*self._model.parameters(), *self._model.buffers())
        size_bytes = sum(part.numel() * part.element_size() for part in parts)
        if free_bytes is None or free_bytes >= size_bytes * SCORER_ROOM_PERCENT // 100:
            self._model.to(device_name)
            self.device_name = device_name

    @property
    def max_tokens(self) -> int | None:
        """The text encoder's context length."""
        return int(self._model.config.text_config.max_position_embeddings)

    def count_tokens(self, prompt: str) -> int:
        """Including the start and end tokens."""
        return len(self._tokenizer(prompt, verbose=False).input_ids)

    def why_unscorable(self, prompt: str) -> str | None:
        """A prompt without a single known token can't be scored."""
        tokens = set(self._tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)
        return None if tokens - {self._tokenizer.unk_token_id} else "its tokenizer has no token for anything in it"

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
        with torch.inference_mode():
            seen = self._model(
                input_ids=tokens.input_ids.to(self.device_name),
                attention_mask=tokens.attention_mask.to(self.device_name),
                pixel_values=_as_clip_sees(images, vision.image_size).to(self.device_name),
            )
        # The embeddings come normalised.
        cosine = (seen.image_embeds * seen.text_embeds).sum(dim=-1)
        scores: torch.Tensor = (100 * cosine).clamp(min=0).float().cpu()
        return scores


def load_scorer(source: str) -> Scorer | None:
    """The scorer that `source` names: 'builtin', a CLIP model's hub id or folder; None for ''.

    Raises:
        ModelUnavailableError: when it is not found, is no CLIP model, or lacks weights.
    """
    if not source:
        return None
    if source == BUILTIN:
        return _load_builtin()
    from transformers import AutoTokenizer, CLIPModel

    folder = Path(source).expanduser()
    if folder.is_file():
        raise ModelUnavailableError(f"the scorer {folder} is a file; give the folder that it is in")
    try:
        if (folder / CONFIG).is_file():
            variant = check_scorer_folder(folder)
            local: dict[str, Any] = {"variant": variant, "local_files_only": True, "output_loading_info": True}
            failure = f"the scorer in {folder} could not be loaded as a CLIP model"
            model, report = load_or_refuse(lambda: CLIPModel.from_pretrained(str(folder), **local), failure)
            tokenizer = load_or_refuse(
                lambda: AutoTokenizer.from_pretrained(str(folder), local_files_only=True), failure
            )
        else:
            # `fetch_missing` has asked the hub before.
            loader: Any = CLIPModel
            model, report = loader.from_pretrained(source, local_files_only=True, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise ModelUnavailableError(
            f"the scorer could not be loaded from {source!r} as a CLIP model. Looked in: the folder of that name, the"
            " Hugging Face cache, the hub. To give it: set source in the config's [scorer] (or --scorer) to a folder"
            f' or a hub id of a CLIP model, or to "" to measure without a score. {type(error).__name__}: {error}'
        ) from error
    where = f"the scorer {source}"
    _check_kind(model.config.to_dict(), source)
    check_complete(model, report, where)
    part = Part("tokenizer", type(tokenizer).__name__, folder, {}, None, ())
    check_tokenizer(tokenizer, part, model.config.text_config.to_dict(), where, needs_length=False)
    return ClipScorer(model.eval(), tokenizer)


def scorer_files(source: str) -> tuple[Path, list[Path]] | None:
    """Folder and files of the scorer that `source` names; None for '', and for a scorer not yet on this machine."""
    if not source:
        return None
    named = scorer_folder() if source == BUILTIN else Path(source).expanduser()
    folder = named if (named / CONFIG).is_file() else _cached_folder(source)
    if folder is None:
        return None
    patterns = (CONFIG, *TOKENIZER_FILES, "*.safetensors", "*.safetensors.index*.json", "pytorch_model*.bin")
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return folder, sorted(files)


def _cached_folder(source: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(source, CONFIG)
    except ValueError:  # no id that a hub could have
        return None
    return Path(config).parent if isinstance(config, str) else None


def _load_builtin() -> Scorer:
    from boundd.worker.digits.scorer import DigitsScorer

    scorer: Scorer = load_or_refuse(
        lambda: DigitsScorer.from_pretrained(scorer_folder()), f"the scorer in {scorer_folder()} could not be loaded"
    )
    return scorer


def check_scorer_folder(folder: Path) -> str | None:
    """Refuse a folder without a complete CLIP model. Only small files and the heads of large ones are read.

    Returns:
        The variant of its weights; None for the plain ones.

    Raises:
        ModelUnavailableError: names the file, and the cure.
    """
    _check_kind(read_json(folder / CONFIG), str(folder))
    read_tokenizer(folder, "tokenizer", "")
    pickles = list(folder.glob("pytorch_model*.bin"))
    if pickles and not list(folder.glob("*.safetensors")):
        for pickle in pickles:
            head_of(pickle)
        return None
    weights = find_weights(folder, TRANSFORMERS_STEM)
    check_dtypes(str(weights.files[0]), weights.dtypes)
    return weights.variant


def _check_kind(config: Mapping[str, Any], where: str) -> None:
    """Refuse other models: transformers would load a text encoder alone as a CLIP model with random weights."""
    if (kind := config.get("model_type")) != CLIP:
        raise ModelUnavailableError(
            f"the scorer {where} is no CLIP model: its {CONFIG} says model_type {kind!r}, not {CLIP!r}; set source in"
            " the config's [scorer] (or --scorer) to a whole CLIP model, with a text and an image side"
        )


def scorer_is_here(source: str) -> bool:
    """Whether the Hugging Face cache holds a whole scorer of this hub id."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(source, CONFIG)
        if not isinstance(config, str):
            return False
        check_scorer_folder(Path(config).parent)
    except (ModelUnavailableError, ValueError):
        return False
    return True


def _as_clip_sees(images: torch.Tensor, side_px: int) -> torch.Tensor:
    """CLIP's preprocessing: centre crop, resize to `side_px`, normalise by CLIP's mean and standard deviation."""
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
