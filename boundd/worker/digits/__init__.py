"""The built-in digits models: three small diffusion pipelines of the real architectures, and their scorer.

They were trained on scikit-learn's handwritten digits and are part of the package, so that the whole search can
be run, with images and scores that mean something, on a machine with no GPU and no model hub. Importing this
module loads no heavy library; `docs/digits.md` tells what they are and `train.py` makes them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from boundd.worker.digits.prompts import DIGIT_WORDS, PROMPTS, digit_in

__all__ = ["DIGIT_WORDS", "MODEL_NAMES", "PROMPTS", "digit_in", "model_folder", "scorer_folder"]

MODEL_NAMES: Final = ("digits-sd15", "digits-sd21", "digits-sdxl")
SCORER_NAME: Final = "digits-scorer"

_MODELS = Path(__file__).parent / "models"


def model_folder(name: str) -> Path:
    """The folder of a built-in model, in the form that `DiffusionPipeline.from_pretrained` reads."""
    if name not in MODEL_NAMES:
        raise ValueError(f"{name!r} is no built-in digits model; there are {', '.join(MODEL_NAMES)}")
    return _MODELS / name


def scorer_folder() -> Path:
    """The folder of the built-in scorer, in the form that `DigitsScorer.from_pretrained` reads."""
    return _MODELS / SCORER_NAME
