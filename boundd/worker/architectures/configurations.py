"""What SD1.5, SD2.1 and SDXL are made of: the public configurations, as data.

Sources: the `config.json` files of stable-diffusion-v1-5/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1 and
stabilityai/stable-diffusion-xl-base-1.0 on the Hugging Face hub (unet, vae, text_encoder, text_encoder_2, scheduler).
Only what differs from the defaults of the library's own class is written down. The parameter counts which follow from
them are checked by a test against the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_TOKENS: Final = 77
"""CLIP's context: start, 75 tokens, end."""
VOCABULARY_SIZE: Final = 49408
"""CLIP's byte-pair vocabulary; OpenCLIP has the same."""


@dataclass(frozen=True)
class TextEncoderConfiguration:
    """A text encoder: what `CLIPTextConfig` is given, what pads a prompt, and whether it projects its output."""

    config: Mapping[str, Any]
    pad_token: str
    projects: bool = False


@dataclass(frozen=True)
class Architecture:
    """One model, without weights.

    Attributes:
        unet: what `UNet2DConditionModel` is given.
        vae: what `AutoencoderKL` is given.
        text_encoders: one, or two for an SDXL.
        scheduler_class: the scheduler it ships with.
        scheduler: what that is given.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[TextEncoderConfiguration, ...]
    scheduler_class: str
    scheduler: Mapping[str, Any]

    @property
    def is_xl(self) -> bool:
        """Whether it is an SDXL: two text encoders, a pooled embedding and time ids beside the time step."""
        return len(self.text_encoders) == 2


def _clip(**config: Any) -> dict[str, Any]:
    """A CLIP text model's configuration; the last two tokens of CLIP's vocabulary are the marks."""
    return {
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": VOCABULARY_SIZE - 2,
        "eos_token_id": VOCABULARY_SIZE - 1,
        "pad_token_id": 1,
    } | config


_CLIP_L: Final = TextEncoderConfiguration(
    _clip(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        hidden_act="quick_gelu",
    ),
    pad_token="<|endoftext|>",  # noqa: S106 - a text token
)
# SD2.1 reads the layer before the last of OpenCLIP-H's 24, so its text encoder has 23.
_OPENCLIP_H: Final = TextEncoderConfiguration(
    _clip(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        projection_dim=512,
        hidden_act="gelu",
    ),
    pad_token="!",  # noqa: S106
)
_OPENCLIP_BIG_G: Final = TextEncoderConfiguration(
    _clip(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    ),
    pad_token="!",  # noqa: S106
    projects=True,
)

_VAE: Final[Mapping[str, Any]] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
_FOUR_LEVELS: Final[Mapping[str, Any]] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
_NOISE_SCHEDULE: Final[Mapping[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "SD1.5": Architecture(
        # "attention_head_dim" is a number of heads in these files: diffusers' name for it is a known mistake.
        unet={**_FOUR_LEVELS, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
        vae={**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
        text_encoders=(_CLIP_L,),
        scheduler_class="PNDMScheduler",
        scheduler={**_NOISE_SCHEDULE, "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False},
    ),
    "SD2.1": Architecture(
        unet={
            **_FOUR_LEVELS,
            "sample_size": 96,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        vae={**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
        text_encoders=(_OPENCLIP_H,),
        scheduler_class="DDIMScheduler",
        scheduler={
            **_NOISE_SCHEDULE,
            "prediction_type": "v_prediction",
            "set_alpha_to_one": False,
            "clip_sample": False,
            "skip_prk_steps": True,
        },
    ),
    "SDXL": Architecture(
        unet={
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2,
            "sample_size": 128,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        text_encoders=(_CLIP_L, _OPENCLIP_BIG_G),
        scheduler_class="EulerDiscreteScheduler",
        scheduler={
            **_NOISE_SCHEDULE,
            "timestep_spacing": "leading",
            "set_alpha_to_one": False,
            "clip_sample": False,
            "skip_prk_steps": True,
        },
    ),
}
"""By the model's name. The sides of an image are 8 x the UNet's `sample_size`: 512, 768 and 1024 pixels."""
