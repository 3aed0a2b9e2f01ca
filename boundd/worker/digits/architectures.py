"""The real architectures at toy width: what makes SD1.5, SD2.1 and SDXL differ is kept, the channels are few.

Images are 32 x 32 pixels and latents 4 x 8 x 8. The three levels of a UNet see 8 x 8, 4 x 4 and 2 x 2 positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from boundd.worker.digits.libraries import Autoencoder, TextEncoder, UNet, diffusers
from boundd.worker.digits.tokenizer import MAX_TOKENS

IMAGE_PX: Final = 32
LATENT_CHANNELS: Final = 4
LATENT_PX: Final = 8

NOISE_SCHEDULE: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion's own: with it, a scheduler's defaults mean the same here as on the real models."""


@dataclass(frozen=True)
class TextEncoderShape:
    """One text encoder: its width in channels, its depth in layers, and what its family does differently."""

    width: int
    layers: int
    activation: str
    pad_token: str
    projects: bool = False


@dataclass(frozen=True)
class ModelShape:
    """What sets one of the three models apart from the others."""

    prediction_type: str
    text_encoders: tuple[TextEncoderShape, ...]
    unet: dict[str, Any]

    @property
    def is_xl(self) -> bool:
        """Whether it is an SDXL: two text encoders, a pooled embedding and time ids beside the time step."""
        return len(self.text_encoders) == 2


_ATTENDING_DOWN: Final = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_ATTENDING_UP: Final = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
_TIME_ID_CHANNELS: Final = 8
_TIME_IDS: Final = 6

SHAPES: Final[dict[str, ModelShape]] = {
    # As SD1.5: 1x1 convolutions into the transformers, the same number of heads on every level.
    "digits-sd15": ModelShape(
        prediction_type="epsilon",
        text_encoders=(TextEncoderShape(64, 2, "quick_gelu", "<|endoftext|>"),),
        unet={
            "down_block_types": _ATTENDING_DOWN,
            "up_block_types": _ATTENDING_UP,
            "attention_head_dim": 4,
            "use_linear_projection": False,
            "cross_attention_dim": 64,
        },
    ),
    # As SD2.1: velocity, linear projections, heads of a constant 8 channels, OpenCLIP's activation and padding.
    "digits-sd21": ModelShape(
        prediction_type="v_prediction",
        text_encoders=(TextEncoderShape(96, 3, "gelu", "!"),),
        unet={
            "down_block_types": _ATTENDING_DOWN,
            "up_block_types": _ATTENDING_UP,
            "attention_head_dim": (4, 5, 5),
            "use_linear_projection": True,
            "cross_attention_dim": 96,
        },
    ),
    # As SDXL: no attention on the first level, deeper transformers further down, both encoders side by side.
    "digits-sdxl": ModelShape(
        prediction_type="epsilon",
        text_encoders=(
            TextEncoderShape(32, 2, "quick_gelu", "<|endoftext|>"),
            TextEncoderShape(64, 3, "gelu", "!", projects=True),
        ),
        unet={
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (4, 5, 5),
            "transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "cross_attention_dim": 96,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_ID_CHANNELS,
            "projection_class_embeddings_input_dim": _TIME_IDS * _TIME_ID_CHANNELS + 64,
        },
    ),
}


def build_vae() -> Autoencoder:
    """An autoencoder of 32 x 32 RGB images into 4 x 8 x 8 latents, with weights not yet trained."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_PX,
        force_upcast=False,
    )


def build_unet(shape: ModelShape) -> UNet:
    """The model's UNet, with weights not yet trained."""
    return diffusers.UNet2DConditionModel(
        sample_size=LATENT_PX,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 40, 40),
        layers_per_block=2,
        norm_num_groups=8,
        **shape.unet,
    )


def build_text_encoder(shape: TextEncoderShape, tokenizer: CLIPTokenizer) -> TextEncoder:
    """A text encoder for the tokenizer's vocabulary, with weights not yet trained.

    transformers starts embeddings at a standard deviation of 0.02, made for a long training. SDXL reads a layer that
    no normalisation follows, so the tokens' embeddings start at 1 here, which leaves each word distinct there.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 16,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=shape.width,
        hidden_act=shape.activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder: TextEncoder = CLIPTextModelWithProjection(config) if shape.projects else CLIPTextModel(config)
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=1.0)
    return encoder
