"""The built-in worker's options, which are a config's constants of the same names: values, defaults, meanings.

The command line, the worker's settings, the config's checks, the footprint's key and docs/worker.md are made from this
table. Where an option is a parameter of a cell under another name (`--pipe` is `model`), `parameter` says it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["name", "text", "whole", "real", "flag", "choice", "path"]
"""What a value is. A `name` is resolved by whoever knows the names (models, schedulers, methods)."""

MAX_STEPS = 1000
"""Diffusion models are trained with a schedule of 1000 steps, and a sampler has no more to choose from."""
WEIGHTS = ("pretrained", "random")
DTYPES = ("float32", "float16", "bfloat16")
ATTENTIONS = ("sdpa", "eager", "sliced", "xformers")
"""How a model may compute attention."""
GRIDS = ("coarse", "standard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. Bounds are inclusive, but `below`, which is not."""

    name: str
    """With underscores, as the old script had it; dashes are taken too."""
    kind: Kind
    help: str
    default: str | int | float | bool | None = None
    default_text: str = ""
    """How the default is told where it isn't a value of its own, such as "the model's own"."""
    low: float | None = None
    high: float | None = None
    below: float | None = None
    multiple_of: int = 1
    why_multiple: str = ""
    example: str = ""
    """Said with a refusal, where a number alone doesn't tell what it means."""
    choices: tuple[str, ...] = ()
    parameter: str = ""
    """The cell's parameter that it is, where that has another name."""
    is_needed: bool = False
    changes_memory: bool = True
    """Whether the peak of an attempt depends on it in a way that its batch, pixels and steps don't tell."""

    @property
    def key(self) -> str:
        """The name of the cell's parameter."""
        return self.parameter or self.name

    @property
    def default_shown(self) -> str:
        """The default, for people; empty where there is none."""
        if self.default_text or self.default is None or isinstance(self.default, bool):
            return self.default_text
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def problem(self, value: Any) -> str:
        """What is wrong with a value, without its name; empty where nothing is."""
        if self.kind == "flag":
            return "" if isinstance(value, bool) else f"must be true or false, not {value!r}"
        if self.kind == "choice":
            return "" if value in self.choices else f"must be one of {', '.join(self.choices)}, not {value!r}"
        if self.kind in ("whole", "real"):
            return self._number_problem(value)
        return "" if isinstance(value, str) else f"must be text, not {value!r}"

    def _number_problem(self, value: Any) -> str:
        kinds = int if self.kind == "whole" else int | float
        is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        inside = is_number and (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )
        if not inside:
            example = f", {self.example}" if self.example else ""
            return f"must be a {'whole ' if self.kind == 'whole' else ''}number {self._span}{example}, not {value!r}"
        if self.multiple_of > 1 and value % self.multiple_of:
            return f"{value} is not a multiple of {self.multiple_of}, {self.why_multiple}"
        return ""

    @property
    def _span(self) -> str:
        if self.below is not None:
            return f"from {self.low:g} to below {self.below:g}"
        return f"of at least {self.low:g}" if self.high is None else f"from {self.low:g} to {self.high:g}"


_ALL = (
    Option(
        name="pipe",
        kind="name",
        parameter="model",
        is_needed=True,
        help="the model: {models}, a pipeline class that means one of them, or any name with `--source`",
    ),
    Option(
        name="sched",
        kind="name",
        parameter="scheduler",
        is_needed=True,
        changes_memory=False,
        help="the scheduler: {schedulers}, or its diffusers class",
    ),
    Option(
        name="steps",
        kind="whole",
        low=1,
        high=MAX_STEPS,
        is_needed=True,
        changes_memory=False,
        help="denoising steps",
    ),
    Option(
        name="search_targets",
        kind="name",
        parameter="method",
        is_needed=True,
        help="the method: {methods}, or several joined by `+`",
    ),
    Option(
        name="num_samples", kind="whole", low=1, default=32, changes_memory=False, help="images to generate and score"
    ),
    Option(
        name="batch_size",
        kind="whole",
        low=1,
        default=4,
        changes_memory=False,
        help="images a call, the same for baseline and variant",
    ),
    Option(
        name="tolerance",
        kind="real",
        low=0,
        below=1,
        default=0.02,
        changes_memory=False,
        example="such as 0.02 for 2 per cent of the score",
        help="the largest score loss of a point that may be the bound",
    ),
    Option(
        name="seed",
        kind="whole",
        low=0,
        default=42,
        changes_memory=False,
        help="image i is made from the seed SEED + i",
    ),
    # diffusers' own default for StableDiffusionPipeline
    Option(name="guidance_scale", kind="real", low=0, default=7.5, help="guidance is on above 1"),
    Option(
        name="resolution",
        kind="whole",
        low=8,
        high=8192,
        multiple_of=8,
        why_multiple="which the autoencoder needs",
        default_text="the model's own",
        changes_memory=False,
        help="pixels of a side, a multiple of 8",
    ),
    Option(
        name="dtype",
        kind="choice",
        choices=DTYPES,
        default_text="float16 on a GPU, else float32",
        help="of the weights: `float32`, `float16` or `bfloat16`; the built-in models stay in float32",
    ),
    Option(
        name="device",
        kind="text",
        default_text="the GPU, else the CPU",
        help="`cpu`, `cuda` or `cuda:N`; never replaced by another one silently",
    ),
    Option(
        name="source",
        kind="text",
        default_text="by the model",
        help="a hub id, or a folder that `save_pretrained` wrote",
    ),
    Option(
        name="weights",
        kind="choice",
        choices=WEIGHTS,
        default="pretrained",
        help="`random`: {random_models} at its true size, from no files; speed and memory are real, nothing is scored",
    ),
    Option(
        name="attention",
        kind="choice",
        choices=ATTENTIONS,
        default="sdpa",
        help="`sdpa`, `eager`, `sliced` or `xformers`; the same for baseline and variant",
    ),
    Option(
        name="scorer",
        kind="text",
        default_text="`builtin` for digits, else none",
        help="a CLIP model's hub id or folder, `builtin`, or `''` for no score",
    ),
    Option(
        name="grid",
        kind="choice",
        choices=GRIDS,
        default="standard",
        changes_memory=False,
        help="`coarse`: about four points; `standard`: the grids in use in the field",
    ),
    Option(
        name="budget_s",
        kind="real",
        low=0,
        default=0.0,
        changes_memory=False,
        help="seconds to spend timing a point once it has its two fewest pairs; 0 for no limit",
    ),
    Option(
        name="repeats",
        kind="whole",
        low=1,
        default=8,
        changes_memory=False,
        help="the fewest pairs of baseline and variant to time a point by",
    ),
    Option(name="max_repeats", kind="whole", low=1, default=40, changes_memory=False, help="the most"),
    Option(
        name="precision",
        kind="real",
        low=0,
        default=0.01,
        changes_memory=False,
        help="timing ends when half the 95% interval of the speed-up is this share of it, or less",
    ),
    Option(
        name="exhaustive",
        kind="flag",
        default=False,
        default_text="off",
        changes_memory=False,
        help="measure every point to its end instead of lazily",
    ),
    Option(
        name="fresh",
        kind="flag",
        default=False,
        default_text="off",
        changes_memory=False,
        help="measure again what earlier attempts of this cell have measured (`BOUNDD_EARLIER_RESULTS`)",
    ),
    Option(
        name="threads",
        kind="whole",
        low=1,
        default=1,
        changes_memory=False,
        help="on the CPU; with more than one, isolation is attested only where the kernel counts pressure",
    ),
    Option(name="prompts", kind="path", default_text="a shipped list", help="a file of prompts, one a line"),
    Option(
        name="output_dir",
        kind="path",
        default_text="beside the results file",
        help="a folder for `baseline.png` and `best.png`: contact sheets of at most 32 images, 340 pixels a side each",
    ),
)
OPTIONS: Mapping[str, Option] = {option.name: option for option in _ALL}
"""Every option by its name, in the order of `--help`."""
PARAMETERS: Mapping[str, Option] = {option.key: option for option in _ALL}
"""The same by the names that a cell has for them."""
