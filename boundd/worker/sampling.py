"""Which image comes from which prompt and seed, and calling a pipeline for a batch of them.

Image `index` has prompt `index` (round again past the last) and the seed `base + index`, by a generator of
its own, so that it is the same image however the samples are cut into batches (up to about 4e-5, since sums
are taken in another order).
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
    """Images that are generated in one call: their indices' prompts and seeds."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def read_prompts(settings: RunSettings) -> Sequence[str]:
    """The prompts to go round: a file's lines, else the digits' own, else the list that ships with boundd.

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
    """Calls a pipeline, or what a method made of it, always in the same way."""

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
        BadDataError: when a pixel is not finite: in half precision a model can overflow, and its images mean
            nothing.
    """
    import torch

    on_host = images.detach().to("cpu", torch.float32)
    if not torch.isfinite(on_host).all():
        raise BadDataError(
            f"{what}: the images hold values that are not finite; the dtype may be too narrow for this model (try "
            "--dtype bfloat16 or float32)"
        )
    return on_host
