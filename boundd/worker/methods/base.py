"""What an acceleration method is: a grid of points, an identity point, and a way to be applied and undone.

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
"""One point of a grid: what is passed to the method's library, by its own names."""
Call: TypeAlias = Callable[..., Any]
"""What generates: called as the pipeline itself would be."""
GridSize: TypeAlias = Literal["coarse", "standard"]


@dataclass(frozen=True, kw_only=True)
class ModelContext:
    """What a method may depend on: the structure of the loaded model and how it is about to be called.

    Attributes:
        steps: denoising steps of a call.
        guidance_scale: as it is passed to the pipeline; guidance is on above 1.
        is_xl: whether the pipeline is an SDXL.
        scheduler_order: UNet calls a step (2 for Heun).
        attention_downsamples: the factors by which latents are downsampled where the UNet has transformer
            blocks, in rising order: (1, 2, 4) for SD1.5, (2, 4) for SDXL.
        cache_branches: the skip connections DeepCache can cache at: 11 for SD, 8 for SDXL.
        attention: how the model computes it: 'sdpa', 'eager', 'sliced' or 'xformers'.
        timesteps: those that the UNet will be called at, in order, one call each; as the pipeline was seen to set them.
        is_guided: whether the UNet was seen to be given each image twice, with its prompt and without. A scale above 1
            does not do it: a distilled UNet is never guided.
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
    """An acceleration method. Implementations hold no state: what they change, they change on the
    pipeline."""

    name: str
    """As it is asked for, such as 'deepcache'."""
    distribution: str
    """The PyPI name of the library it uses, for the result's fingerprint; '' for none."""
    parameter_names: tuple[str, ...]
    """The keys of its points; no other method it composes with may use them."""
    composes_with: frozenset[str]
    """The methods it can be applied together with; the other one need not know of it."""

    def requires(self, context: ModelContext) -> str | None:
        """Why the method can't work on this model; None when it can."""

    def grid(self, context: ModelContext, size: GridSize) -> Sequence[Parameters]:
        """The points worth measuring, the identity not among them."""

    def identity(self, context: ModelContext) -> Parameters:
        """The point at which the images equal the unaccelerated ones bit for bit."""

    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> AbstractContextManager[Call]:
        """Apply the method to `pipe` while the context lasts, and undo it exactly.

        Args:
            pipe: the diffusers pipeline, to be changed in place.
            parameters: the point, with this method's own keys only.
            call: what generates so far: the pipeline, or what another method made of it.

        Returns:
            A context whose value is what generates now.
        """


class Restored:
    """A context that leaves a module tree as it found it: attributes, forwards and classes of every module.

    The libraries' own ways to undo leave things behind: T-GATE has none, and DeepCache leaves an instance
    `forward` on 51 modules of SD1.5. Weights are not copied; methods don't change them.
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
