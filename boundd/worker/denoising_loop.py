"""Times the denoising loop within a pipeline's call, and keeps the final latents.

The loop begins with the first UNet call and ends when the VAE starts to decode. This holds for the pipelines of
diffusers and of T-GATE. Taking a time costs microseconds and does not wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from boundd.worker.devices import Instant, TorchDevice

if TYPE_CHECKING:
    import torch


class DenoisingLoopTimer:
    """Watches one pipeline from now on. `on_decode`, if set, is called when a loop ends."""

    def __init__(self, pipe: Any, device: TorchDevice) -> None:
        self._device = device
        self._began: Instant | None = None
        self._ended: Instant | None = None
        self._timesteps: list[Any] = []
        self.latents: torch.Tensor | None = None
        """The latents that the last call gave to the VAE: (images, channels, height, width)."""
        self.on_decode: Callable[[], None] | None = None
        pipe.unet.register_forward_pre_hook(self._note_call, with_kwargs=True)
        decode = pipe.vae.decode

        def watched(latents: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self._note_end(latents)
            return decode(latents, *arguments, **options)

        pipe.vae.decode = watched

    def reset(self) -> None:
        """Forget the last call; to be called before each call."""
        self._began = self._ended = self.latents = None
        self._timesteps = []

    def timesteps(self) -> tuple[float, ...]:
        """The timesteps of the last call's UNet calls, in order. Waits for the device."""
        return tuple(float(timestep) for timestep in self._timesteps)

    def loop_s(self) -> float | None:
        """Seconds of the last call's loop, once the device is done; None if the loop was not observed."""
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
