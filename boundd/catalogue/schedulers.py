"""The schedulers: what a config calls them, and their classes in diffusers."""

from __future__ import annotations

from collections.abc import Mapping

from boundd.catalogue.names import UnknownNameError, folded

SCHEDULERS: Mapping[str, str] = {
    "DDIM": "DDIMScheduler",
    "DDPM": "DDPMScheduler",
    "DEIS": "DEISMultistepScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "DPM-Solver++-single": "DPMSolverSinglestepScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler-a": "EulerAncestralDiscreteScheduler",
    "Heun": "HeunDiscreteScheduler",
    "KDPM2": "KDPM2DiscreteScheduler",
    "LMS": "LMSDiscreteScheduler",
    "PNDM": "PNDMScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
"""The config's name of a scheduler -> its class in diffusers."""


def resolve_scheduler(name: str) -> str:
    """The diffusers class that `name` means: a config name (in any case) or a class name.

    Raises:
        UnknownNameError: when it means none.
    """
    by_folded = {folded(known): scheduler for known, scheduler in SCHEDULERS.items()}
    by_folded |= {folded(scheduler): scheduler for scheduler in SCHEDULERS.values()}
    try:
        return by_folded[folded(name)]
    except KeyError:
        raise UnknownNameError("scheduler", name, [*SCHEDULERS, *SCHEDULERS.values()]) from None


def scheduler_name(name: str) -> str:
    """The config's name of the scheduler that `name` means.

    Raises:
        UnknownNameError: when it means none.
    """
    scheduler = resolve_scheduler(name)
    return next(known for known, candidate in SCHEDULERS.items() if candidate == scheduler)
