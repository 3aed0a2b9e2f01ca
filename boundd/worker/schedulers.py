"""Which scheduler can sample which model, and a dry run that checks it.

diffusers builds a scheduler from any other scheduler's config, even where the result is wrong: latents clipped to
[-1, 1], the noise schedule of another kind of model, an unsupported prediction type, a thousand calls at one timestep.
So boundd reads the model's family from the config of its own scheduler, looks the pair up in a table (`SUPPORTED`), and
does a dry run: the scheduler denoises known latents with correct predictions. That needs no model and takes
milliseconds.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from boundd.catalogue.schedulers import scheduler_name
from boundd.worker.errors import BadDataError

Scheduler: TypeAlias = Any
"""A diffusers scheduler; diffusers is not typed."""

DIFFUSION: Final = "diffusion"
EDM: Final = "EDM"
FLOW: Final = "flow matching"
CONSISTENCY: Final = "consistency"

FAMILIES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        DIFFUSION: frozenset(
            {
                "DDIMParallelScheduler",
                "DDIMScheduler",
                "DDPMParallelScheduler",
                "DDPMScheduler",
                "DEISMultistepScheduler",
                "DPMSolverMultistepScheduler",
                "DPMSolverSDEScheduler",
                "DPMSolverSinglestepScheduler",
                "EulerAncestralDiscreteScheduler",
                "EulerDiscreteScheduler",
                "HeunDiscreteScheduler",
                "KDPM2AncestralDiscreteScheduler",
                "KDPM2DiscreteScheduler",
                "LMSDiscreteScheduler",
                "PNDMScheduler",
                "SASolverScheduler",
                "UniPCMultistepScheduler",
            }
        ),
        EDM: frozenset({"CosineDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"}),
        FLOW: frozenset(
            {
                "FlowMatchEulerDiscreteScheduler",
                "FlowMatchHeunDiscreteScheduler",
                "FlowMatchLCMScheduler",
            }
        ),
        CONSISTENCY: frozenset({"CMStochasticIterativeScheduler", "LCMScheduler", "TCDScheduler"}),
    }
)
"""Model family (how a model was trained) -> the schedulers that such models ship with.

`diffusion` is noise added in discrete steps by a table of betas (Ho et al., 2020, arXiv:2006.11239), as in
SD and SDXL."""

_ALL: Final = frozenset({"epsilon", "v_prediction", "sample"})
_NO_SAMPLE: Final = _ALL - {"sample"}

SUPPORTED: Final[Mapping[tuple[str, str], frozenset[str]]] = MappingProxyType(
    {
        (DIFFUSION, "DDIMScheduler"): _ALL,
        (DIFFUSION, "DDPMScheduler"): _ALL,
        (DIFFUSION, "DEISMultistepScheduler"): _ALL,
        (DIFFUSION, "DPMSolverMultistepScheduler"): _ALL,
        (DIFFUSION, "DPMSolverSinglestepScheduler"): _ALL,
        (DIFFUSION, "EulerDiscreteScheduler"): _ALL,
        (DIFFUSION, "EulerAncestralDiscreteScheduler"): _NO_SAMPLE,
        (DIFFUSION, "HeunDiscreteScheduler"): _ALL,
        (DIFFUSION, "KDPM2DiscreteScheduler"): _NO_SAMPLE,
        (DIFFUSION, "LMSDiscreteScheduler"): _ALL,
        (DIFFUSION, "PNDMScheduler"): _NO_SAMPLE,
        (DIFFUSION, "UniPCMultistepScheduler"): _ALL,
    }
)
"""(model family, scheduler class) -> the prediction types that work. Other pairs are refused. docs/worker.md shows this
table; `tests/worker/test_schedulers.py` tests every entry."""

_NOISE_KEYS: Final = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""Config keys of the noise schedule that the model was trained with. They are passed to the new scheduler one by one,
because diffusers replaces values equal to the old class's defaults by the new class's defaults."""
_LATENTS_HAVE_NO_BOUNDS: Final = {"clip_sample": False, "thresholding": False}
"""Both options clip to the range of pixels, for models that denoise pixels (diffusers, documentation of `clip_sample`
and `thresholding`). Latents reach about ±4. DDIM and DDPM clip by default."""
_SKIP_RUNGE_KUTTA: Final = {"skip_prk_steps": True}
"""Set in every Stable Diffusion config with PNDM. Without it the first three steps take four UNet calls each."""

MAX_SCHEDULE_DRIFT: Final = 1e-4
"""Largest difference of `alphas_cumprod` between two schedulers, by rounding in float32. It also covers the value that
diffusers uses for zero signal (2⁻²⁴)."""
MAX_DRY_RUN_ERROR: Final = 0.5
"""Largest root mean square error of a dry run's latents, which lie within ±3.5 (root mean square 2.0). Measured over
the table for 2 to 999 steps it is at most 0.31 (PNDM in two steps); with clipping it is 1.4."""
MIN_START_NOISE: Final = 1.0
"""Smallest ratio of noise to signal power at a schedule's first timestep. Sampling starts from pure noise; a model that
expects more signal than noise there makes no image."""


@dataclass(frozen=True)
class OwnScheduler:
    """The scheduler that a model ships with.

    Attributes:
        classes: the class named in model_index.json and the one in the scheduler's config; usually the same.
        config: the scheduler's config.
    """

    classes: tuple[str, ...]
    config: Mapping[str, Any]


NOTED_START_SIGNAL: Final = 0.1
"""From this expected share of signal power at the first timestep on, the result carries a warning."""


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run.

    Attributes:
        timesteps: the timesteps of the UNet calls, in order.
        start_signal: the share of signal power that the model expects at the first one, where it is given pure noise.
    """

    timesteps: tuple[float, ...]
    start_signal: float

    def remarks(self) -> list[str]:
        """Warnings for the result."""
        if self.start_signal < NOTED_START_SIGNAL:
            return []
        begins = f"the scheduler begins at timestep {self.timesteps[0]:g}, where the model expects an image that is"
        return [f"{begins} {self.start_signal:.0%} there, and is given noise: images lack contrast"]


def read_own_scheduler(folder: Path) -> OwnScheduler | None:
    """The scheduler of the model in a folder; None if its files can't be read (loading the model reports that)."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        named = (index["scheduler"][1], config.get("_class_name"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return OwnScheduler(tuple(dict.fromkeys(name for name in named if isinstance(name, str))), config)


def check_family(own_class: str, class_name: str) -> str:
    """The family of a model that ships with the scheduler `own_class`.

    Raises:
        BadDataError: when the family is unknown, or `class_name` can't sample it.
    """
    family = next((family for family, classes in FAMILIES.items() if own_class in classes), None)
    if family is None:
        raise BadDataError(
            f"the model's own scheduler is {own_class}, of which it is not known what else can sample such a model;"
            f" known are models of {', '.join(sorted(FAMILIES[DIFFUSION]))} (docs/worker.md, Schedulers)"
        )
    if (family, class_name) not in SUPPORTED:
        samplers = sorted(name for known, name in SUPPORTED if known == family)
        can = f"it can be sampled by {', '.join(samplers)}" if samplers else "no scheduler of boundd can sample it"
        raise BadDataError(
            f"the model's own scheduler is {own_class}, so it is a model of {family}, and {class_name}"
            f" ({scheduler_name(class_name)}) is a scheduler for others; {can} (docs/worker.md, Schedulers)"
        )
    return family


def check_prediction(family: str, config: Mapping[str, Any], class_name: str) -> None:
    """Refuse a scheduler that does not support the model's prediction type, and configs with continuous noise.

    Raises:
        BadDataError: says what the model predicts and what the scheduler takes.
    """
    predicted = config.get("prediction_type", "epsilon")
    takes = SUPPORTED[family, class_name]
    if predicted not in takes:
        raise BadDataError(
            f"the model's scheduler config says prediction_type {predicted!r}, and {class_name} takes only"
            f" {', '.join(sorted(takes))}; its images would be noise"
        )
    for key, value in (("use_flow_sigmas", True), ("timestep_type", "continuous")):
        if config.get(key) == value:
            raise BadDataError(
                f"the model's scheduler config says {key} = {value!r}: its noise does not come in discrete steps, and"
                f" {class_name} samples models whose does"
            )


def build_scheduler(config: Mapping[str, Any], class_name: str, own_class: str | None = None) -> Scheduler:
    """A scheduler of the class, with the noise schedule and prediction type the model was trained with.

    Args:
        config: of the model's own scheduler.
        class_name: one of the catalogue's classes.
        own_class: of the model's own scheduler; by default what the config names, else a scheduler of this class.

    Raises:
        BadDataError: when the class can't sample such a model.
    """
    import diffusers

    own_class = own_class or config.get("_class_name") or class_name
    check_prediction(check_family(own_class, class_name), config, class_name)
    scheduler_class, trained_as = getattr(diffusers, class_name), _trained_as(config, own_class)
    known = inspect.signature(scheduler_class.__init__).parameters
    own = {key: trained_as.config[key] for key in _NOISE_KEYS if key in known and key in trained_as.config}
    own |= {key: value for key, value in _LATENTS_HAVE_NO_BOUNDS.items() if key in known}
    if "skip_prk_steps" not in config:
        own |= {key: value for key, value in _SKIP_RUNGE_KUTTA.items() if key in known}
    if class_name.startswith("DPMSolver"):
        own["algorithm_type"] = "dpmsolver++"
    try:
        scheduler = scheduler_class.from_config(config, **own)
    except Exception as error:  # what a config may hold is anybody's guess, and so is what that raises
        raise _cannot_be_made(class_name, error) from error
    _check_noise_schedule(scheduler, trained_as, class_name)
    return scheduler


def dry_run(scheduler: Scheduler, steps: int) -> DryRun:
    """Let a copy of the scheduler denoise known latents, with correct predictions instead of a model's.

    Raises:
        BadDataError: when it fails, does not arrive at the latents, uses timesteps that the model was not trained at,
            begins where the model expects more signal than noise, or has fewer noise levels than steps.
    """
    class_name, spacing = type(scheduler).__name__, scheduler.config.get("timestep_spacing", "its own")
    what = f"{class_name} ({spacing} spacing) in {steps} steps"
    running = copy.deepcopy(scheduler)
    try:
        timesteps, error = _denoise(running, steps)
    except Exception as failure:  # as above: what it raises depends on what the config holds
        raise BadDataError(f"{what} fails by itself: {type(failure).__name__}: {failure}") from failure
    last = scheduler.config.num_train_timesteps - 1
    if outside := [timestep for timestep in timesteps if not 0 <= timestep <= last]:
        raise BadDataError(
            f"{what} calls the model at timestep {outside[0]:g}, and it was trained at 0 to {last}: take fewer steps"
        )
    levels = _noise_levels(running, timesteps)
    if levels < steps:
        raise BadDataError(
            f"{what} visits only {levels} different noise levels, the first at timestep {timesteps[0]:g}: what is asked"
            " for does not run; take fewer steps"
        )
    signal = _signal_share(scheduler, timesteps[0])
    if (1 - signal) < MIN_START_NOISE * signal:
        raise BadDataError(
            f"{what} begins at timestep {timesteps[0]:g}, where the model expects an image that is"
            f" {signal:.0%} there, and is given noise: its images would show nothing"
        )
    if not error <= MAX_DRY_RUN_ERROR:
        raise BadDataError(
            f"{what} does not arrive: with a model that predicts rightly, it misses latents between -3.5 and 3.5 by"
            f" {error:.2g} (root mean square); its config does not fit the model"
        )
    return DryRun(timesteps, signal)


def describe_timesteps(timesteps: Sequence[float]) -> str:
    """A short description of timesteps, for a message."""
    repeated = sorted({each for each in timesteps if timesteps.count(each) > 1}, reverse=True)
    again = f", {repeated[0]:g} more than once" if repeated else ""
    return f"{len(timesteps)} calls from timestep {timesteps[0]:g} to {timesteps[-1]:g}{again}"


def _trained_as(config: Mapping[str, Any], own_class: str) -> Scheduler:
    """The model's own scheduler, with its defaults for what the config leaves out."""
    import diffusers

    try:
        return getattr(diffusers, own_class).from_config(config)
    except Exception as error:  # as in `build_scheduler`
        raise _cannot_be_made(own_class, error) from error


def _cannot_be_made(class_name: str, error: Exception) -> BadDataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return BadDataError(f"{class_name} can't be made from the model's scheduler config: {reason}")


def _check_noise_schedule(scheduler: Scheduler, trained_as: Scheduler, class_name: str) -> None:
    trained, sampled = trained_as.alphas_cumprod, scheduler.alphas_cumprod
    drift = math.inf if trained.shape != sampled.shape else float((trained - sampled).abs().max())
    if not drift <= MAX_SCHEDULE_DRIFT:
        rescaled = trained_as.config.get("rescale_betas_zero_snr")
        reason = ": it can't rescale betas to zero signal, as the model's config wants" if rescaled else ""
        raise BadDataError(
            f"{class_name} does not keep the noise schedule that the model was trained with{reason}; its images would"
            " be wrong"
        )


def _denoise(scheduler: Scheduler, steps: int) -> tuple[tuple[float, ...], float]:
    """The timesteps of the run, and the root mean square error of the final latents."""
    import torch

    shape = (1, 4, 8, 8)
    wanted = torch.linspace(-3.5, 3.5, math.prod(shape)).reshape(shape)
    generator = torch.Generator().manual_seed(0)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if takes_generator else {}
    visited = []
    scheduler.set_timesteps(steps)
    latents = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep)
        visited.append(float(timestep))
        # Timesteps out of range are treated as the nearest valid one; the caller reports them.
        share = _signal_share(scheduler, visited[-1])
        predicted = _predict(scheduler.config.prediction_type, seen.double(), wanted.double(), share)
        latents = scheduler.step(predicted.float(), timestep, latents, **options).prev_sample
    return tuple(visited), float((latents - wanted).square().mean().sqrt())


def _predict(prediction_type: str, seen: Any, wanted: Any, share: float) -> Any:
    """What a perfect model predicts of `seen`, in which `share` (in power) is `wanted` and the rest is noise."""
    if prediction_type == "sample":
        return wanted
    signal, noise = math.sqrt(share), math.sqrt(1 - share)
    # Avoids a division by zero where there is almost no noise.
    epsilon = (seen - signal * wanted) / max(noise, 1e-6)
    return epsilon if prediction_type == "epsilon" else signal * epsilon - noise * wanted


def _signal_share(scheduler: Scheduler, timestep: float) -> float:
    """The share of signal power at a timestep; between two, interpolated by the log of the signal-to-noise ratio."""
    shares = scheduler.alphas_cumprod
    place = min(max(timestep, 0.0), len(shares) - 1.0)
    below, above = math.floor(place), math.ceil(place)
    first, second = (min(max(float(shares[at]), 1e-12), 1 - 1e-12) for at in (below, above))
    ratio = math.log(first / (1 - first)) * (1 - place + below) + math.log(second / (1 - second)) * (place - below)
    return 1 / (1 + math.exp(-ratio))


def _noise_levels(scheduler: Scheduler, timesteps: Sequence[float]) -> int:
    """Number of different noise levels that the model sees. Sigmas are counted if there are any, because timesteps may
    be rounded (Karras). The last sigma only ends the last step and does not count."""
    if hasattr(scheduler, "sigmas"):
        return len(set(scheduler.sigmas[: len(timesteps)].tolist()))
    return len(set(timesteps))
