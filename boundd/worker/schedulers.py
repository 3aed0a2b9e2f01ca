"""Which scheduler may sample which model, and what it does when it runs.

diffusers makes a scheduler from any other scheduler's config, whatever comes of it: latents clipped to [-1, 1], a
schedule of another kind of model, a prediction type that it can't use, a thousand calls at one timestep. So the model's
family is read off its own config, one table says what can sample it, and the scheduler is rehearsed: it denoises known
latents, by predictions that are right. That needs no model and takes milliseconds.
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
"""How a model was trained -> the schedulers that models of that kind name as their own.

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
"""The table: (model family, scheduler class) -> what a model may predict for that scheduler to sample it. A pair that
is not here is refused. docs/worker.md shows it; `tests/worker/test_schedulers.py` tries every entry."""

_NOISE_KEYS: Final = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""What the model was trained with. Given to a scheduler one by one: diffusers leaves out what equals the default of the
config's own class, and takes the new class's default for it."""
_LATENTS_HAVE_NO_BOUNDS: Final = {"clip_sample": False, "thresholding": False}
"""Both cut to the range of pixels, for models that denoise pixels (diffusers, documentation of `clip_sample` and
`thresholding`); an image's latents go to about ±4. On by default in DDIM and DDPM."""
_SKIP_RUNGE_KUTTA: Final = {"skip_prk_steps": True}
"""As every Stable Diffusion that ships with PNDM has it: else the first three steps take four calls each."""

MAX_SCHEDULE_DRIFT: Final = 1e-4
"""By how much a share of signal may differ between two schedulers' own sums in float32; also what stands for zero where
the noise is rescaled to leave no signal (2⁻²⁴ in diffusers)."""
MAX_DRY_RUN_ERROR: Final = 0.5
"""Root mean square that a rehearsal may miss its latents by, which lie in ±3.5 (2.0). Measured over the table, 2 to 999
steps: at most 0.31, of PNDM in two steps; clipping misses them by 1.4."""
MIN_START_NOISE: Final = 1.0
"""Noise over signal, in power, where a schedule begins. It begins with nothing but noise, so where the model expects
more signal than noise what it makes of it is no image."""


@dataclass(frozen=True)
class OwnScheduler:
    """What a model says of its own scheduler.

    Attributes:
        classes: by its pipeline's index and by its scheduler's file; the same one, as a rule.
        config: of the file.
    """

    classes: tuple[str, ...]
    config: Mapping[str, Any]


NOTED_START_SIGNAL: Final = 0.1
"""Share of signal, in power, expected where a schedule begins, from which on it is said."""


@dataclass(frozen=True)
class DryRun:
    """What a scheduler does in a run of some steps.

    Attributes:
        timesteps: those that the denoiser is called at, in order; one call each.
        start_signal: the share of signal, in power, that the model expects at the first of them; there is none.
    """

    timesteps: tuple[float, ...]
    start_signal: float

    def remarks(self) -> list[str]:
        """What whoever reads a result should know of it."""
        if self.start_signal < NOTED_START_SIGNAL:
            return []
        begins = f"the scheduler begins at timestep {self.timesteps[0]:g}, where the model expects an image that is"
        return [f"{begins} {self.start_signal:.0%} there, and is given noise: images lack contrast"]


def read_own_scheduler(folder: Path) -> OwnScheduler | None:
    """What the model in a folder says of its scheduler; None where that can't be read, which loading it will tell."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        named = (index["scheduler"][1], config.get("_class_name"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return OwnScheduler(tuple(dict.fromkeys(name for name in named if isinstance(name, str))), config)


def check_family(own_class: str, class_name: str) -> str:
    """The family of the model whose own scheduler is `own_class`, where `class_name` can sample it.

    Raises:
        BadDataError: where it can't, or the family isn't known.
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
    """Refuse a scheduler that can't use what the model predicts, and configs of another family in all but name.

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
    """Let a copy of the scheduler denoise latents that are known, with a model that always predicts rightly.

    Raises:
        BadDataError: when it fails, misses them, calls the model where it was not trained, begins where there is
            more signal than noise, or takes fewer steps than were asked for.
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
    """In a few words, for a message."""
    repeated = sorted({each for each in timesteps if timesteps.count(each) > 1}, reverse=True)
    again = f", {repeated[0]:g} more than once" if repeated else ""
    return f"{len(timesteps)} calls from timestep {timesteps[0]:g} to {timesteps[-1]:g}{again}"


def _trained_as(config: Mapping[str, Any], own_class: str) -> Scheduler:
    """The model's own scheduler, which knows the defaults of what its config leaves out."""
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
    """The timesteps it visits, and by how much (root mean square) it misses the latents in the end."""
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
        # Past the ends it is rehearsed as at them, so that the reason given is where it is, not what came of it.
        share = _signal_share(scheduler, visited[-1])
        predicted = _predict(scheduler.config.prediction_type, seen.double(), wanted.double(), share)
        latents = scheduler.step(predicted.float(), timestep, latents, **options).prev_sample
    return tuple(visited), float((latents - wanted).square().mean().sqrt())


def _predict(prediction_type: str, seen: Any, wanted: Any, share: float) -> Any:
    """What a perfect model predicts of `seen`, in which `share` (in power) is `wanted` and the rest is noise."""
    if prediction_type == "sample":
        return wanted
    signal, noise = math.sqrt(share), math.sqrt(1 - share)
    # Where there is next to no noise left there is none to predict either.
    epsilon = (seen - signal * wanted) / max(noise, 1e-6)
    return epsilon if prediction_type == "epsilon" else signal * epsilon - noise * wanted


def _signal_share(scheduler: Scheduler, timestep: float) -> float:
    """The share of signal in power at a timestep, between two of them by the logarithm of signal over noise."""
    shares = scheduler.alphas_cumprod
    place = min(max(timestep, 0.0), len(shares) - 1.0)
    below, above = math.floor(place), math.ceil(place)
    first, second = (min(max(float(shares[at]), 1e-12), 1 - 1e-12) for at in (below, above))
    ratio = math.log(first / (1 - first)) * (1 - place + below) + math.log(second / (1 - second)) * (place - below)
    return 1 / (1 + math.exp(-ratio))


def _noise_levels(scheduler: Scheduler, timesteps: Sequence[float]) -> int:
    """How many different amounts of noise the model sees. Timesteps are rounded where sigmas were spaced otherwise
    (Karras), so those count where there are any; the last one, which ends the last step, is none of them."""
    if hasattr(scheduler, "sigmas"):
        return len(set(scheduler.sigmas[: len(timesteps)].tolist()))
    return len(set(timesteps))
