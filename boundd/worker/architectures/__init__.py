"""SD1.5, SD2.1 and SDXL at their true sizes, with random weights: no hub, no files.

Speed and memory do not depend on the weights' values, so both are real; the images mean nothing, and nothing of them
is scored.
"""

from __future__ import annotations

from typing import Any

from boundd.worker.architectures.configurations import ARCHITECTURES, Architecture, TextEncoderConfiguration

__all__ = ["ARCHITECTURES", "Architecture", "TextEncoderConfiguration", "build_pipeline", "module_builders"]


def module_builders(architecture: Architecture) -> dict[str, Any]:
    """What makes each module of the pipeline, by the name the pipeline has for it; called without arguments."""
    from functools import partial

    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from boundd.worker.digits.libraries import diffusers

    def text_encoder(configuration: TextEncoderConfiguration) -> Any:
        build: Any = CLIPTextModelWithProjection if configuration.projects else CLIPTextModel
        return build(CLIPTextConfig(**configuration.config))

    builders = {
        "unet": partial(diffusers.UNet2DConditionModel, **architecture.unet),
        "vae": partial(diffusers.AutoencoderKL, **architecture.vae),
    }
    for suffix, configuration in zip(("", "_2"), architecture.text_encoders, strict=False):
        builders[f"text_encoder{suffix}"] = partial(text_encoder, configuration)
    return builders


def build_pipeline(architecture: Architecture, device: str, dtype: str, seed: int) -> Any:
    """The pipeline on `device` (torch's name of it), its weights in `dtype` ('float16'…) and drawn from `seed`.

    At its peak it takes no more memory than the weights themselves.
    """
    import torch

    from boundd.worker.architectures.tokenizer import build_tokenizer
    from boundd.worker.architectures.weights import materialise
    from boundd.worker.digits.libraries import diffusers

    parts: dict[str, Any] = {
        name: materialise(builder, device, getattr(torch, dtype), seed + index)
        for index, (name, builder) in enumerate(module_builders(architecture).items())
    }
    for suffix, configuration in zip(("", "_2"), architecture.text_encoders, strict=False):
        parts[f"tokenizer{suffix}"] = build_tokenizer(configuration.pad_token)
    parts["scheduler"] = getattr(diffusers, architecture.scheduler_class).from_config(dict(architecture.scheduler))
    if architecture.is_xl:
        return diffusers.StableDiffusionXLPipeline(
            **parts,
            force_zeros_for_empty_prompt=True,
            # The watermark is drawn by a package of its own, outside the model.
            add_watermarker=False,
        )
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
