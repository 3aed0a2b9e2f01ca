"""Puts a model's parts together into the pipeline that a user loads, and asks that pipeline what a prompt means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from boundd.worker.digits.architectures import IMAGE_PX, NOISE_SCHEDULE, ModelShape, build_text_encoder
from boundd.worker.digits.libraries import Autoencoder, Pipeline, UNet, diffusers
from boundd.worker.digits.tokenizer import build_tokenizer

SDXL_TIME_IDS: Final = (IMAGE_PX, IMAGE_PX, 0, 0, IMAGE_PX, IMAGE_PX)
"""What SDXLs are told of an image: its original height and width, its crop's top and left, the size wanted; pixels."""


@dataclass(frozen=True)
class Conditioning:
    """What a UNet is told of p prompts: `hidden` (p, tokens, channels); for an SDXL `pooled` (p, channels)."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None

    def rows(self, index: torch.Tensor) -> Conditioning:
        """The conditioning of the prompts with these numbers, int64 (n,)."""
        return Conditioning(self.hidden[index], None if self.pooled is None else self.pooled[index])

    def unet_arguments(self) -> dict[str, Any]:
        """As the keyword arguments of `UNet2DConditionModel.forward`."""
        arguments: dict[str, Any] = {"encoder_hidden_states": self.hidden}
        if self.pooled is not None:
            time_ids = torch.tensor([SDXL_TIME_IDS], dtype=torch.float32).expand(len(self.hidden), -1)
            arguments["added_cond_kwargs"] = {"text_embeds": self.pooled, "time_ids": time_ids}
        return arguments


def build_pipeline(shape: ModelShape, vae: Autoencoder, unet: UNet, folder: Path) -> Pipeline:
    """The pipeline around `vae` and `unet`, its text encoders not yet trained.

    `folder` is where the tokenizers' files are written: the place that the pipeline will be saved to.
    """
    tokenizers = [
        build_tokenizer(folder / f"tokenizer{suffix}", pad_token=encoder.pad_token)
        for suffix, encoder in zip(("", "_2"), shape.text_encoders, strict=False)
    ]
    encoders = [
        build_text_encoder(encoder, tokenizer)
        for encoder, tokenizer in zip(shape.text_encoders, tokenizers, strict=True)
    ]
    schedule = {**NOISE_SCHEDULE, "prediction_type": shape.prediction_type}
    if not shape.is_xl:
        return diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=encoders[0],
            tokenizer=tokenizers[0],
            unet=unet,
            scheduler=diffusers.DDIMScheduler(**schedule),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        # Euler steps, as SDXL ships with. `from_config` keeps what Euler has no use for (clip_sample), so that a
        # DDIM made of this configuration does not clip latents, which is its default.
        scheduler=diffusers.EulerDiscreteScheduler.from_config(schedule),
        force_zeros_for_empty_prompt=True,
    )


@torch.no_grad()
def encode_prompts(pipeline: Pipeline, prompts: list[str]) -> Conditioning:
    """What the pipeline itself tells its UNet of these prompts."""
    encoded = pipeline.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    pooled = encoded[2] if isinstance(pipeline, diffusers.StableDiffusionXLPipeline) else None
    return Conditioning(encoded[0], pooled)
