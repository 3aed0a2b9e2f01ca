"""Finds out which timesteps a pipeline will use and whether it is guided, by running it up to its first UNet call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from boundd.worker.sampling import Batch, Sampler


@dataclass(frozen=True)
class FirstCall:
    """What a pipeline does, as its first UNet call shows.

    Attributes:
        timesteps: those of the scheduler, in order, one UNet call each.
        is_guided: whether the UNet gets each image twice, with its prompt and without (classifier-free guidance).
    """

    timesteps: tuple[float, ...]
    is_guided: bool


class _FirstCallSeenError(Exception):
    """Raised to stop a pipeline at its first UNet call."""


def observe_first_call(pipe: Any, sampler: Sampler, batch: Batch) -> FirstCall:
    """Call the pipeline as a measurement does, and stop it at its first UNet call."""
    seen_images = 0

    def look(_: Any, arguments: tuple[Any, ...]) -> None:
        nonlocal seen_images
        seen_images = len(arguments[0])
        raise _FirstCallSeenError

    hook = pipe.unet.register_forward_pre_hook(look)
    try:
        sampler.call(pipe, batch)
    except _FirstCallSeenError:
        pass
    finally:
        hook.remove()
    timesteps = tuple(float(timestep) for timestep in pipe.scheduler.timesteps)
    return FirstCall(timesteps, seen_images > len(batch.seeds))
