"""What a pipeline really does with the settings it is given, seen up to its first U-Net call and no further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from boundd.worker.sampling import Batch, Sampler


@dataclass(frozen=True)
class FirstCall:
    """What the U-Net was about to be called with.

    Attributes:
        timesteps: those that the scheduler will visit, in order, one U-Net call each.
        is_guided: whether each image is there twice, with its prompt and without.
    """

    timesteps: tuple[float, ...]
    is_guided: bool


class _FirstCallSeenError(Exception):
    """Leaves a pipeline's call."""


def observe_first_call(pipe: Any, sampler: Sampler, batch: Batch) -> FirstCall:
    """Call the pipeline as a measurement would, and leave it where it calls its U-Net for the first time."""
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
