"""Sees, inside a pipeline's call, where its denoising loop begins and ends, and the latents it ends with.

The loop begins with the first call of the UNet and ends where the VAE begins to decode; both hold for the pipelines of
diffusers and for what T-GATE puts in their place. Noting a moment costs microseconds and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from boundd.worker.devices import Instant, TorchDevice

if TYPE_CHECKING:
    import torch


class DenoisingLoopTimer:
    """Watches one pipeline, from now on. `on_decode`, where set, is called when a loop has ended."""

    def __init__(self, pipe: Any, device: TorchDevice) -> None:
        self._device = device
        self._began: Instant | None = None
        self._ended: Instant | None = None
        self._timesteps: list[Any] = []
        self.latents: torch.Tensor | None = None
        """The latents of the last call, as the VAE was given them: (images, channels, height, width)."""
        self.on_decode: Callable[[], None] | None = None
        pipe.unet.register_forward_pre_hook(self._note_call, with_kwargs=True)
        decode = pipe.vae.decode

        def watched(latents: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self._note_end(latents)
            return decode(latents, *arguments, **options)

        pipe.vae.decode = watched

    def reset(self) -> None:
        """Before a call."""
        self._began = self._ended = self.latents = None
        self._timesteps = []

    def timesteps(self) -> tuple[float, ...]:
        """Those that the last call's UNet was called at, in order; waits for the device."""
        return tuple(float(timestep) for timestep in self._timesteps)

    def loop_s(self) -> float | None:
        """Seconds of the last call's loop, once the device is done; None where it was not seen."""
        if self._began is None or self._ended is None:
            return None
        return self._device.between(self._began, self._ended)

    def _note_call(self, _: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._timesteps.append(arguments[1] if len(arguments) > 1 else options["timestep"])
        if self._began is None:
            self._began = self._device.now()

    def _note_end(self, latents: torch.Tensor) -> None:
        if self._ended is None:
            self._ended = self._device.now()
            self.latents = latents.detach()
            if self.on_decode is not None:
                self.on_decode()
