"""Names that the config and the worker both know: schedulers, methods, models.

The daemon checks a config against these without importing a deep-learning library; the worker acts on them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from importlib.metadata import entry_points

METHOD_GROUP = "boundd.methods"
METHODS = ("deepcache", "tgate", "tome")
"""The methods that come with boundd."""

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

_STABLE_DIFFUSION = "StableDiffusionPipeline"
_STABLE_DIFFUSION_XL = "StableDiffusionXLPipeline"
BUILTIN_MODELS: Mapping[str, str] = {
    "digits-sd15": _STABLE_DIFFUSION,
    "digits-sd21": _STABLE_DIFFUSION,
    "digits-sdxl": _STABLE_DIFFUSION_XL,
}
"""The models that ship with boundd and need no entry in the config -> their pipeline class."""

PIPELINE_CLASSES: Mapping[str, str] = {
    "SD1.5": _STABLE_DIFFUSION,
    "SD2.1": _STABLE_DIFFUSION,
    "SDXL": _STABLE_DIFFUSION_XL,
    **BUILTIN_MODELS,
}
"""The pipeline class of every model known by name. A model of any other name is what its config entry
says."""

WEIGHTS = ("pretrained", "random")
ARCHITECTURES = ("SD1.5", "SD2.1", "SDXL")
"""The models that the worker can build at their true size with random weights."""
ATTENTIONS = ("sdpa", "eager", "sliced", "xformers")
"""How a model may compute attention."""


class UnknownNameError(ValueError):
    """A name that is not known; `nearest` holds the known ones it may have meant, best first."""

    def __init__(self, kind: str, name: str, known: Collection[str]) -> None:
        folded = {_fold(candidate): candidate for candidate in known}
        close = difflib.get_close_matches(_fold(name), list(folded), n=3, cutoff=0.5)
        self.nearest = tuple(folded[match] for match in close)
        hint = f"did you mean {' or '.join(self.nearest)}?" if self.nearest else "known: " + ", ".join(sorted(known))
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class InvalidMethodError(ValueError):
    """A combination of methods that can't be; the message says why."""


def resolve_scheduler(name: str) -> str:
    """The diffusers class that `name` means: a config name (in any case) or a class name.

    Raises:
        UnknownNameError: when it means none.
    """
    by_folded = {_fold(known): scheduler for known, scheduler in SCHEDULERS.items()}
    by_folded |= {_fold(scheduler): scheduler for scheduler in SCHEDULERS.values()}
    try:
        return by_folded[_fold(name)]
    except KeyError:
        raise UnknownNameError("scheduler", name, [*SCHEDULERS, *SCHEDULERS.values()]) from None


def scheduler_name(name: str) -> str:
    """The config's name of the scheduler that `name` means.

    Raises:
        UnknownNameError: when it means none.
    """
    scheduler = resolve_scheduler(name)
    return next(known for known, candidate in SCHEDULERS.items() if candidate == scheduler)


def installed_methods() -> tuple[str, ...]:
    """The names of the methods that this environment offers, sorted; none of them is imported."""
    return tuple(sorted({*METHODS, *(entry.name for entry in entry_points(group=METHOD_GROUP))}))


def parse_method(text: str, known: Collection[str] | None = None) -> tuple[str, ...]:
    """The methods that `text` combines, sorted: 'tome+deepcache' is ('deepcache', 'tome').

    Args:
        text: one method, or several joined by '+'.
        known: the methods there are; by default those installed here.

    Raises:
        UnknownNameError: when a part is not a method that is known.
        InvalidMethodError: when a part is empty or there twice.
    """
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise InvalidMethodError(f"{text!r}: join methods by single '+' signs, as in 'deepcache+tome'")
    names = installed_methods() if known is None else known
    for part in parts:
        if part not in names:
            raise UnknownNameError("method", part, names)
        if parts.count(part) > 1:
            raise InvalidMethodError(f"{text!r}: {part} is there twice, and can be applied only once")
    return tuple(sorted(parts))


def _fold(name: str) -> str:
    return name.casefold().replace("_", "-")
