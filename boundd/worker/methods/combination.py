"""Combines several methods into one. A point of the combination holds one point of each method."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from boundd.worker.methods import deepcache_tgate
from boundd.worker.methods.base import Call, GridSize, Method, ModelContext, Parameters

_REPLACES_CALL = frozenset({"tgate"})  # must be applied first: it replaces the pipeline's call


class Combination:
    """Methods that compose.

    Raises:
        ValueError: when two of them don't compose, or use the same parameter name.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        for first, second in itertools.combinations(methods, 2):
            if second.name not in first.composes_with and first.name not in second.composes_with:
                raise ValueError(f"{first.name} and {second.name} don't compose: neither says that they do")
            if shared := set(first.parameter_names) & set(second.parameter_names):
                raise ValueError(f"{first.name} and {second.name} both have a parameter {min(shared)!r}")
        self._methods = tuple(methods)
        self.name = "+".join(method.name for method in methods)
        self.distribution = ""
        self.parameter_names = tuple(name for method in methods for name in method.parameter_names)
        self.composes_with: frozenset[str] = frozenset()

    def requires(self, context: ModelContext) -> str | None:
        """The first reason that any part gives."""
        return next((reason for method in self._methods if (reason := method.requires(context))), None)

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods that are combined."""
        return self._methods

    def grid(self, context: ModelContext, size: GridSize) -> Sequence[Parameters]:
        """Every part alone, and several at once. All come from the parts' coarse grids. The standard grid has every
        combination; the coarse one pairs the first points of each part, the second ones, and so on. A part whose
        parameters are missing from a point is not applied."""
        parts = [method.grid(context, "coarse") for method in self._methods]
        if size == "standard":
            options = [[{}, *part] for part in parts]
            return [union for point in itertools.product(*options) if (union := _union(point))]
        return [*itertools.chain.from_iterable(parts), *(_union(point) for point in zip(*parts, strict=False))]

    def identity(self, context: ModelContext) -> Parameters:
        """Every part at its own identity."""
        return _union([method.identity(context) for method in self._methods])

    @contextmanager
    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> Iterator[Call]:
        """Apply every part that has parameters; DeepCache with T-GATE by T-GATE's loader for the pair."""
        used = [method for method in self._methods if method.parameter_names[0] in parameters]
        own = {method.name: {name: parameters[name] for name in method.parameter_names} for method in used}
        remaining = sorted(used, key=lambda method: method.name not in _REPLACES_CALL)
        with ExitStack() as stack:
            if own.keys() >= deepcache_tgate.PAIR:
                pair = deepcache_tgate.applied(pipe, own["deepcache"], own["tgate"])
                call = stack.enter_context(pair)
                remaining = [method for method in remaining if method.name not in deepcache_tgate.PAIR]
            for method in remaining:
                call = stack.enter_context(method.applied(pipe, own[method.name], call))
            yield call


def _union(points: Sequence[Parameters]) -> Parameters:
    return {name: value for point in points for name, value in point.items()}
