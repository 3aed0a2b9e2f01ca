"""The acceleration methods, one file each, found by the entry points of the group `boundd.methods`."""

from __future__ import annotations

from collections.abc import Sequence

from boundd.catalogue.methods import installed_methods, method_entry_points
from boundd.catalogue.names import UnknownNameError
from boundd.worker.methods.base import Method
from boundd.worker.methods.combination import Combination


def load_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UnknownNameError: when this environment has none of that name.
    """
    entry = method_entry_points().get(name)
    if entry is None:
        raise UnknownNameError("method", name, installed_methods())
    method: Method = entry.load()()
    return method


def distributions(method: Method) -> tuple[str, ...]:
    """The PyPI names of the libraries that a method, or each part of a combination, uses."""
    parts = method.parts if isinstance(method, Combination) else (method,)
    return tuple(part.distribution for part in parts if part.distribution)


def combine(names: Sequence[str]) -> Method:
    """One method that applies all of `names`.

    Raises:
        UnknownNameError: when there is none of a name.
        ValueError: when they don't compose.
    """
    methods = [load_method(name) for name in names]
    return methods[0] if len(methods) == 1 else Combination(methods)
