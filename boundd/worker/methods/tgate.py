"""T-GATE (Zhang et al., 2024, arXiv:2404.02747): cross-attention is frozen, and guidance dropped, after a
gate step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from boundd.worker.methods.base import Call, GridSize, ModelContext, Parameters, Restored

WARM_UP_STEPS = 2
"""Steps before self-attention is cached; T-GATE's own default for SD."""

_STANDARD_GATES = (0.2, 0.3, 0.4, 0.5, 0.6)  # shares of the steps
_STANDARD_SP_INTERVALS = (1, 3, 5)
_STANDARD_FI_INTERVALS = (1, 2)
_COARSE = ((0.3, 3, 1), (0.5, 1, 1), (0.5, 3, 2), (0.7, 1, 1))


class TGateMethod:
    """T-GATE by its own loaders."""

    name = "tgate"
    distribution = "tgate"
    parameter_names = ("gate_step", "sp_interval", "fi_interval", "warm_up")
    composes_with = frozenset({"deepcache", "tome"})
    # An earlier gate drops guidance and cross-attention for more steps; longer intervals reuse attention more often.
    lossier: ClassVar[Mapping[str, int]] = {"gate_step": -1, "sp_interval": +1, "fi_interval": +1}
    faster: ClassVar[Mapping[str, int]] = lossier

    def requires(self, context: ModelContext) -> str | None:
        """T-GATE needs guidance, one UNet call per step, and SDPA attention, which it uses itself."""
        if context.guidance_scale <= 1:
            return f"T-GATE gates guidance, and a guidance scale of {context.guidance_scale:g} (at most 1) has none"
        if not context.is_guided:
            return (
                "T-GATE gates guidance, and this UNet is not guided whatever the scale (a distilled one takes the scale"
                " as an input): T-GATE would mix pairs of images"
            )
        if context.scheduler_order != 1:
            return f"T-GATE counts UNet calls as steps, and this scheduler makes {context.scheduler_order} a step"
        if context.timesteps and len(context.timesteps) != context.steps:
            return (
                f"T-GATE counts UNet calls as steps, and this scheduler makes {len(context.timesteps)} calls in"
                f" {context.steps} steps"
            )
        if context.attention != "sdpa":
            return (
                f"T-GATE computes attention by SDPA whatever the model does, so beside a baseline with "
                f"{context.attention} attention it would be credited with SDPA's speed-up too: take --attention sdpa"
            )
        return None

    def grid(self, context: ModelContext, size: GridSize) -> Sequence[Parameters]:
        """Gates at fixed shares of the steps. Shares that round to the same step give one point."""
        triples: Sequence[tuple[float, int, int]] = _COARSE
        if size == "standard":
            triples = [
                (gate, sp, fi)
                for gate in _STANDARD_GATES
                for sp in _STANDARD_SP_INTERVALS
                for fi in _STANDARD_FI_INTERVALS
            ]
        rounded = [(max(1, round(gate * context.steps)), sp, fi) for gate, sp, fi in triples]
        return [
            {"gate_step": gate, "sp_interval": sp, "fi_interval": fi, "warm_up": WARM_UP_STEPS}
            for gate, sp, fi in dict.fromkeys(rounded)
        ]

    def identity(self, context: ModelContext) -> Parameters:
        """A gate past the last step, with nothing cached before it."""
        return {"gate_step": context.steps + 1, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}

    @contextmanager
    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> Iterator[Call]:
        """Load T-GATE, whose call replaces the pipeline's."""
        import tgate

        if call != pipe:
            raise ValueError("T-GATE replaces the pipeline's call, so it must be applied before what wraps it")
        load = tgate.TgateSDXLLoader if is_xl(pipe) else tgate.TgateSDLoader
        with Restored(pipe.unet):
            load(pipe)
            try:
                yield gated_call(pipe, parameters)
            finally:
                vars(pipe).pop("tgate", None)


def is_xl(pipe: Any) -> bool:
    """Whether the pipeline is an SDXL: T-GATE has another loader for those."""
    return hasattr(pipe, "text_encoder_2")


def gated_call(pipe: Any, parameters: Parameters) -> Call:
    """The call that a T-GATE loader added to `pipe`, with its parameters filled in."""
    settings: Mapping[str, Any] = parameters
    if "lcm" in inspect.signature(pipe.tgate).parameters:
        settings = {**parameters, "lcm": False}
    return functools.partial(pipe.tgate, **settings)
