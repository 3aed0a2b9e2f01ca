"""The partial order of a method's points, or of a combination's, by which the lazy search rules points out."""

from __future__ import annotations

from collections.abc import Mapping

from boundd.worker.methods.base import Method, ModelContext
from boundd.worker.methods.combination import Combination
from boundd.worker.traversal import MethodOrder


def orders_of(method: Method, context: ModelContext) -> list[MethodOrder]:
    """One order for each method.

    `lossier` and `faster` are optional attributes of a method. Without them no point rules out another.
    """
    parts = method.parts if isinstance(method, Combination) else (method,)
    return [
        MethodOrder(
            part.parameter_names, part.identity(context), _directions(part, "lossier"), _directions(part, "faster")
        )
        for part in parts
    ]


def _directions(method: Method, name: str) -> Mapping[str, int]:
    directions: Mapping[str, int] = getattr(method, name, {})
    if unknown := directions.keys() - set(method.parameter_names):
        raise ValueError(f"{method.name}: {name} names {min(unknown)!r}, which is none of its parameters")
    return directions
