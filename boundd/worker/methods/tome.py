"""ToMe for Stable Diffusion (Bolya & Hoffman, 2023, arXiv:2303.17604): similar tokens are merged before
attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from boundd.worker.methods.base import Call, GridSize, ModelContext, Parameters, Restored

STRIDE = 2
MAX_RATIO = 1 - 1 / (STRIDE * STRIDE)
"""One token of each STRIDE x STRIDE patch stays (tomesd's documentation of `ratio`)."""

_STANDARD_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_COARSE = ((0.3, 0), (0.5, 0), (0.7, 0), (0.5, 1))  # ratio, and the index of the level among those with attention


class ToMeMethod:
    """ToMe by tomesd, without random token choice: that would use the global generator, and images must be
    reproducible."""

    name = "tome"
    distribution = "tomesd"
    parameter_names = ("ratio", "max_downsample")
    composes_with = frozenset({"deepcache", "tgate"})
    lossier: ClassVar[Mapping[str, int]] = {"ratio": +1, "max_downsample": +1}
    faster: ClassVar[Mapping[str, int]] = {}  # merging costs time too, and on small models more than it saves

    def requires(self, context: ModelContext) -> str | None:
        """ToMe needs transformer blocks, whose tokens it merges."""
        return None if context.attention_downsamples else "ToMe needs a UNet with transformer blocks"

    def grid(self, context: ModelContext, size: GridSize) -> Sequence[Parameters]:
        """Ratios at the first two levels which have attention: 1 and 2 for SD, 2 and 4 for SDXL."""
        levels = context.attention_downsamples[:2]
        pairs: Sequence[tuple[float, int]] = _COARSE
        if size == "standard":
            pairs = [(ratio, level) for level in range(2) for ratio in _STANDARD_RATIOS]
        return [{"ratio": ratio, "max_downsample": levels[level]} for ratio, level in pairs if level < len(levels)]

    def identity(self, context: ModelContext) -> Parameters:
        """Nothing is merged."""
        return {"ratio": 0.0, "max_downsample": context.attention_downsamples[0]}

    @contextmanager
    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> Iterator[Call]:
        """Patch the transformer blocks' classes."""
        import tomesd

        if parameters["ratio"] > MAX_RATIO:
            raise ValueError(f"ToMe can merge at most {MAX_RATIO:g} of the tokens, not {parameters['ratio']:g}")
        with Restored(pipe.unet):
            tomesd.apply_patch(pipe, **parameters, sx=STRIDE, sy=STRIDE, use_rand=False)
            try:
                yield call
            finally:
                tomesd.remove_patch(pipe)
