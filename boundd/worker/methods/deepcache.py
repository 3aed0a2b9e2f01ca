"""DeepCache (Ma et al., 2023, arXiv:2312.00858): deep features are computed every few steps and reused in
between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from boundd.worker.methods.base import Call, GridSize, ModelContext, Parameters, Restored

_STANDARD_INTERVALS = (2, 3, 5, 7, 10)
_STANDARD_BRANCHES = (0, 1, 2, 3)
_COARSE = ((2, 0), (3, 0), (5, 1), (10, 0))


class DeepCacheMethod:
    """DeepCache by its own helper, in its 'uniform' mode."""

    name = "deepcache"
    distribution = "DeepCache"
    parameter_names = ("cache_interval", "cache_branch_id")
    composes_with = frozenset({"tgate", "tome"})
    # A longer interval reuses more often; a lower branch recomputes less of the UNet in between.
    lossier: ClassVar[Mapping[str, int]] = {"cache_interval": +1, "cache_branch_id": -1}
    faster: ClassVar[Mapping[str, int]] = lossier

    def requires(self, context: ModelContext) -> str | None:
        """DeepCache identifies a step by its timestep, so no timestep may occur twice."""
        if context.scheduler_order != 1:
            return (
                "DeepCache tells steps apart by their timestep, and this scheduler visits each one "
                f"{context.scheduler_order} times"
            )
        if (timestep := context.repeated_timestep) is not None:
            return (
                "DeepCache tells steps apart by their timestep, and this scheduler visits timestep "
                f"{timestep:g} more than once"
            )
        if context.cache_branches < 1:
            return "DeepCache needs a UNet with down blocks to cache at"
        return None

    def grid(self, context: ModelContext, size: GridSize) -> Sequence[Parameters]:
        """Intervals below the number of steps, and branches that the UNet has (larger numbers mean the last one)."""
        pairs: Sequence[tuple[int, int]] = _COARSE
        if size == "standard":
            pairs = [(interval, branch) for interval in _STANDARD_INTERVALS for branch in _STANDARD_BRANCHES]
        return [
            {"cache_interval": interval, "cache_branch_id": branch}
            for interval, branch in pairs
            if interval < context.steps and branch < context.cache_branches
        ]

    def identity(self, context: ModelContext) -> Parameters:  # noqa: ARG002 - the same for every model
        """Every step is computed."""
        return {"cache_interval": 1, "cache_branch_id": 0}

    @contextmanager
    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> Iterator[Call]:
        """Wrap the UNet's blocks. Enabled only once: enabling it twice recurses for ever."""
        from DeepCache import DeepCacheSDHelper

        with Restored(pipe.unet):
            helper = DeepCacheSDHelper(pipe=pipe)
            helper.set_params(**parameters, skip_mode="uniform")
            helper.enable()
            try:
                yield call
            finally:
                helper.disable()
