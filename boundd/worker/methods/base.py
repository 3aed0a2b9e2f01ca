"""The interface of an acceleration method: a grid of points, an identity point, and how to apply and undo it.

A method is one file. Its class is named by an entry point of the group `boundd.methods`, is made without
arguments, and imports its library only when it is applied, so that the worker's `--help` needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias

Parameters: TypeAlias = Mapping[str, int | float]
"""One point of a grid: parameters of the method's library, under the library's names."""
Call: TypeAlias = Callable[..., Any]
"""A callable that generates images; called like the pipeline itself."""
GridSize: TypeAlias = Literal["coarse", "standard"]


@dataclass(frozen=True, kw_only=True)
class ModelContext:
    """What a method needs to know: the structure of the loaded model and how it will be called.

    Attributes:
        steps: denoising steps of a call.
        guidance_scale: the value passed to the pipeline; guidance is on above 1.
        is_xl: whether the pipeline is an SDXL.
        scheduler_order: UNet calls a step (2 for Heun).
        attention_downsamples: the factors by which latents are downsampled where the UNet has transformer
            blocks, in rising order: (1, 2, 4) for SD1.5, (2, 4) for SDXL.
        cache_branches: the skip connections DeepCache can cache at: 11 for SD, 8 for SDXL.
        attention: how the model computes it: 'sdpa', 'eager', 'sliced' or 'xformers'.
        timesteps: the timesteps of the UNet calls, in order, as observed up to the first call.
        is_guided: whether the UNet gets each image twice, with its prompt and without, as observed. A scale above 1 is
            not enough: a distilled UNet is never guided.
    """

    steps: int
    guidance_scale: float
    is_xl: bool
    scheduler_order: int
    attention_downsamples: tuple[int, ...]
    cache_branches: int
    attention: str = "sdpa"
    timesteps: tuple[float, ...] = ()
    is_guided: bool = True

    @property
    def repeated_timestep(self) -> float | None:
        """The first timestep that the UNet is called at more than once; None where there is none."""
        return next((each for at, each in enumerate(self.timesteps) if each in self.timesteps[:at]), None)


class Method(Protocol):
    """An acceleration method. Implementations hold no state; they only change the pipeline."""

    name: str
    """Its name in configs and options, such as 'deepcache'."""
    distribution: str
    """The PyPI name of the library it uses, for the result's fingerprint; '' for none."""
    parameter_names: tuple[str, ...]
    """The keys of its points. Methods that are combined must not share one."""
    composes_with: frozenset[str]
    """The methods that it can be combined with. It is enough if one of the two names the other."""

    def requires(self, context: ModelContext) -> str | None:
        """Why the method can't work on this model; None when it can."""

    def grid(self, context: ModelContext, size: GridSize) -> Sequence[Parameters]:
        """The points worth measuring, without the identity."""

    def identity(self, context: ModelContext) -> Parameters:
        """The point at which the images equal the unaccelerated ones bit for bit."""

    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> AbstractContextManager[Call]:
        """Apply the method to `pipe` while the context lasts, and undo it exactly.

        Args:
            pipe: the diffusers pipeline, to be changed in place.
            parameters: the point, with this method's own keys only.
            call: the callable to use: the pipeline, or the one of a method that was applied before.

        Returns:
            A context whose value is the accelerated callable.
        """


class Restored:
    """A context that restores every module of a tree on exit: attributes, `forward` and class.

    The libraries don't undo their changes completely: T-GATE undoes nothing, and DeepCache leaves an instance `forward`
    on 51 modules of SD1.5. Weights are not copied, because methods don't change them.
    """

    def __init__(self, root: Any) -> None:
        self._saved = [(module, type(module), dict(vars(module))) for module in root.modules()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, original, attributes in self._saved:
            if type(module) is not original:
                module.__class__ = original
            present = vars(module)
            for name in present.keys() - attributes.keys():
                del present[name]
            present.update(attributes)
