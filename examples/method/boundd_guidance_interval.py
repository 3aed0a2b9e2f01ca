"""Guidance on the first steps only: afterwards the UNet computes half the batch.

Classifier-free guidance runs the UNet on every image twice, with the prompt and without. Late steps hardly need it
(Castillo et al., 2023, arXiv:2312.12487; Kynkäänniemi et al., 2024, arXiv:2404.07724), and diffusers can turn it off in
the middle of a call: a callback after each step sets the guidance scale to 0 and cuts the batch in half.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from boundd.worker.methods.base import Call, GridSize, ModelContext, Parameters

_SHARES = {"coarse": (0.4, 0.8), "standard": (0.2, 0.4, 0.6, 0.8)}
_HALVED = ("prompt_embeds", "add_text_embeds", "add_time_ids")
"""What a pipeline holds twice under guidance, without the prompt first; the last two are an SDXL's."""


class GuidanceInterval:
    """Guides the first `guided_steps` steps."""

    name = "guidance-interval"
    distribution = "boundd-method-guidance-interval"
    parameter_names = ("guided_steps",)
    composes_with: ClassVar[frozenset[str]] = frozenset({"tome"})
    # Fewer guided steps lose quality, and are sure to be faster: each one computes half as much.
    lossier: ClassVar[Mapping[str, int]] = {"guided_steps": -1}
    faster: ClassVar[Mapping[str, int]] = {"guided_steps": -1}

    def requires(self, context: ModelContext) -> str | None:
        """Guidance, and one UNet call a step."""
        if context.guidance_scale <= 1 or not context.is_guided:
            return f"there is no guidance to leave out at a guidance scale of {context.guidance_scale:g}"
        if context.scheduler_order != 1:
            return f"steps are counted by a callback, and this scheduler makes {context.scheduler_order} calls a step"
        return None

    def grid(self, context: ModelContext, size: GridSize) -> Sequence[Parameters]:
        """Shares of the steps; two that round to the same are one point, and guiding all of them is the identity."""
        counts = dict.fromkeys(max(1, round(share * context.steps)) for share in _SHARES[size])
        return [{"guided_steps": count} for count in counts if count < context.steps]

    def identity(self, context: ModelContext) -> Parameters:
        """Every step is guided."""
        return {"guided_steps": context.steps}

    @contextmanager
    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> Iterator[Call]:
        """Hand the call a callback. What that changes, the next call sets anew, so there is nothing to undo."""
        guided_steps = parameters["guided_steps"]
        is_xl = hasattr(pipe, "text_encoder_2")

        def after_step(running: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step + 1 != guided_steps or step + 1 >= running.num_timesteps:
                return tensors
            running._guidance_scale = 0.0  # noqa: SLF001 - how diffusers' own examples turn guidance off
            return {name: value.chunk(2)[-1] if name in _HALVED else value for name, value in tensors.items()}

        inputs = list(_HALVED if is_xl else _HALVED[:1])
        yield functools.partial(call, callback_on_step_end=after_step, callback_on_step_end_tensor_inputs=inputs)
