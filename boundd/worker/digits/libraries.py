"""diffusers, and names for its objects, for a type checker.

diffusers calls itself typed, yet shows type checkers empty stand-ins of its classes, without a method or an attribute.
Imported like this it counts as what it is: untyped. The names below say in signatures what is meant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeAlias

diffusers: Any = import_module("diffusers")

Autoencoder: TypeAlias = Any
"""An `AutoencoderKL`."""
UNet: TypeAlias = Any
"""A `UNet2DConditionModel`."""
Pipeline: TypeAlias = Any
"""A `StableDiffusionPipeline` or a `StableDiffusionXLPipeline`."""
NoiseScheduler: TypeAlias = Any
"""A `DDPMScheduler`."""
TextEncoder: TypeAlias = Any
"""A `CLIPTextModel` or a `CLIPTextModelWithProjection`."""
