"""Prompts and seeds of the images, and the calls that generate them.

Image number `index` uses prompt number `index` (starting over after the last) and the seed `base + index`. Each image
has its own random generator, so it does not depend on the batch size, except for rounding: about 4e-5, because sums
are taken in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boundd.worker.digits import PROMPTS as DIGIT_PROMPTS
from boundd.worker.errors import BadDataError
from boundd.worker.methods.base import Call
from boundd.worker.prompts import PROMPTS, read_prompt_file
from boundd.worker.settings import BUILTIN, RunSettings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """The prompts and seeds of the images that one call generates."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def read_prompts(settings: RunSettings) -> Sequence[str]:
    """The prompts: those of the given file; else of the digits models, for these; else the list that ships with boundd.

    Raises:
        BadDataError: when the file can't be read or has no prompts.
    """
    if settings.prompts is None:
        return DIGIT_PROMPTS if settings.source == BUILTIN else PROMPTS
    return read_prompt_file(settings.prompts)


def cut_batches(prompts: Sequence[str], num_samples: int, batch_size: int, seed: int) -> list[Batch]:
    """The samples in batches of `batch_size`; the last one may be smaller."""
    return [
        Batch(
            prompts=tuple(prompts[index % len(prompts)] for index in indices),
            seeds=tuple(seed + index for index in indices),
        )
        for start in range(0, num_samples, batch_size)
        for indices in [range(start, min(start + batch_size, num_samples))]
    ]


class Sampler:
    """Calls a pipeline, accelerated or not, always with the same arguments."""

    def __init__(self, settings: RunSettings, device_name: str) -> None:
        self._device_name = device_name
        self._options: dict[str, Any] = {
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "output_type": "pt",
        }
        if settings.resolution is not None:
            self._options |= {"height": settings.resolution, "width": settings.resolution}

    def call(self, call: Call, batch: Batch) -> Any:
        """The batch's output, as the pipeline gives it."""
        import torch

        generators = [torch.Generator(self._device_name).manual_seed(seed) for seed in batch.seeds]
        return call(list(batch.prompts), generator=generators, **self._options)

    def generate(self, call: Call, batch: Batch) -> torch.Tensor:
        """The batch's images on the device: (images, 3, height, width) in [0, 1]."""
        images: torch.Tensor = self.call(call, batch).images
        return images


def to_host(images: torch.Tensor, what: str) -> torch.Tensor:
    """The images in host memory as float32.

    Raises:
        BadDataError: when a pixel is not finite, as happens when a model overflows in half precision.
    """
    import torch

    on_host = images.detach().to("cpu", torch.float32)
    if not torch.isfinite(on_host).all():
        raise BadDataError(
            f"{what}: the images hold values that are not finite; the model may overflow in this dtype (try "
            "--dtype bfloat16 or float32)"
        )
    return on_host
