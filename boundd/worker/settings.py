"""The settings of one run: from options, the cell, the model's config entry and defaults, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boundd.catalogue.methods import parse_method
from boundd.catalogue.models import BUILTIN_MODELS, MODELS, RANDOM_MODELS, pipeline_classes
from boundd.catalogue.names import UnknownNameError
from boundd.catalogue.options import OPTIONS, Option
from boundd.catalogue.schedulers import resolve_scheduler
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.strict_json import Json
from boundd.worker.methods.base import GridSize

BUILTIN = "builtin"
RANDOM = "random"


_DIRECT_OPTIONS = (
    *(
        "steps",
        "num_samples",
        "batch_size",
        "tolerance",
        "seed",
        "guidance_scale",
        "resolution",
        "dtype",
        "device",
        "grid",
    ),
    *("budget_s", "repeats", "max_repeats", "precision", "prompts", "output_dir", "threads"),
)
"""Options that become settings of the same name unchanged."""


class SettingsError(ValueError):
    """An invalid setting; the message names the option and says why."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings of one run, all resolved.

    Attributes:
        model: the name asked for, such as 'SD1.5'.
        pipeline_class: the diffusers class, or '' to let the model's own index say.
        source: a hub id, a folder, or 'builtin'; with random weights the architecture's name.
        weights: 'pretrained' or 'random'.
        attention: how the model computes it, one of `boundd.catalogue.options.ATTENTIONS`.
        scheduler_class: the diffusers class.
        methods: names, sorted.
        resolution: pixels of a side; None for the model's own.
        dtype, device: None to choose by the available device.
        scorer: a hub id, a folder, 'builtin', or '' for no score.
        budget_s: seconds to spend timing a point once it has its fewest pairs; 0 for no limit.
        repeats: the fewest pairs of baseline and variant to time a point by.
        max_repeats: the most.
        precision: the half width of a speed-up's interval, as a share of it, at which timing ends.
        is_exhaustive: whether every point is measured on all samples.
        is_fresh: whether points of earlier attempts are ignored.
        threads: number of CPU threads.
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


def resolve(options: Mapping[str, Any], environment: WorkerEnvironment) -> RunSettings:
    """Resolve every setting. An option wins over the cell, the cell over the model's entry, the entry over the default.

    Args:
        options: by option name with underscores; None for one that was not given.

    Raises:
        SettingsError: for an invalid value; names the option.
    """
    cell, entry = environment.cell or {}, environment.model or {}

    def setting(name: str) -> Any:
        option = OPTIONS[name]
        if name == "batch_size" and options.get(name) is None and environment.batch_size is not None:
            return _valid(option, environment.batch_size)
        for values, key in ((options, name), (cell, option.key), (entry, name)):
            if values.get(key) is not None:
                return _valid(option, values[key])
        if option.is_needed:
            raise SettingsError(f"--{name}: is needed")
        return option.default

    weights = setting("weights")
    model, pipeline_class = _model(setting("pipe"), setting("source"))
    return RunSettings(
        model=model,
        pipeline_class=pipeline_class,
        source=_source(model, setting("source"), weights),
        weights=weights,
        attention=setting("attention"),
        scheduler_class=_checked("sched", resolve_scheduler, setting("sched")),
        methods=_checked("search_targets", parse_method, setting("search_targets")),
        scorer=_scorer(model, setting("scorer"), environment.scorer, weights),
        is_exhaustive=setting("exhaustive"),
        is_fresh=setting("fresh"),
        **{name: setting(name) for name in _DIRECT_OPTIONS},
    )


def _valid(option: Option, value: Any) -> Any:
    """The value, converted to the option's type.

    Raises:
        SettingsError: it is invalid.
    """
    if option.kind == "name" and value == "":
        raise SettingsError(f"--{option.name}: is needed")
    # The old configs write steps as text.
    if option.kind == "whole" and isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if problem := option.problem(value):
        raise SettingsError(f"--{option.name}: {problem}")
    if option.kind == "real":
        return float(value)
    return Path(value) if option.kind == "path" else value


def _model(name: str, source: object) -> tuple[str, str]:
    """The model's name and its pipeline class: `name` is a model's or a pipeline class's."""
    classes = pipeline_classes()
    if name in classes:
        return name, classes[name]
    if name in classes.values():
        candidates = [each for each, model in MODELS.items() if model.hub_id and model.pipeline_class == name]
        if source is not None:
            return name, name
        if len(candidates) == 1:
            return candidates[0], name
        raise SettingsError(f"--pipe {name} may mean {' or '.join(candidates)}: name the model, or give --source")
    if source is not None:
        return name, ""
    hint = UnknownNameError("model", name, classes)
    raise SettingsError(f'--pipe: {hint}; any other name needs --source, or a config entry [models."{name}"]')


def _source(model: str, source: object, weights: str) -> str:
    if weights == RANDOM:
        return _architecture(model, source)
    if source is not None:
        return str(source)
    return BUILTIN if model in BUILTIN_MODELS else MODELS[model].hub_id


def _architecture(model: str, source: object) -> str:
    """The architecture to build with random weights: the one named by the source, else by the model."""
    for name in (source, model):
        if name in RANDOM_MODELS:
            return str(name)
    raise SettingsError(
        f"--weights {RANDOM}: {model} is no architecture that can be built without its files; take --pipe (or, under "
        f"another name, --source) {', '.join(RANDOM_MODELS)}"
    )


def _scorer(model: str, given: object, table: Mapping[str, Json] | None, weights: str) -> str:
    """The scorer of the option, else of the config. The built-in models use the built-in scorer unless told otherwise.
    With random weights there is none: the images are meaningless."""
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


def _checked(name: str, parse: Any, value: str) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise SettingsError(f"--{name}: {error}") from None
