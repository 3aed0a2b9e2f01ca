"""The acceleration methods, one file each, found by the entry points of the group `boundd.methods`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

from boundd.protocol.catalogue import METHOD_GROUP, UnknownNameError, installed_methods
from boundd.worker.methods.base import Method
from boundd.worker.methods.combination import Combination

# So that a source tree which is not installed has them too, and that no other package can take their names.
_BUILTIN: Mapping[str, tuple[str, str]] = {
    "deepcache": ("boundd.worker.methods.deepcache", "DeepCacheMethod"),
    "tgate": ("boundd.worker.methods.tgate", "TGateMethod"),
    "tome": ("boundd.worker.methods.tome", "ToMeMethod"),
}


def load_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UnknownNameError: when this environment has none of that name.
    """
    method: Method
    if name in _BUILTIN:
        module, attribute = _BUILTIN[name]
        method = getattr(importlib.import_module(module), attribute)()
        return method
    for entry in entry_points(group=METHOD_GROUP, name=name):
        method = entry.load()()
        return method
    raise UnknownNameError("method", name, installed_methods())


def combine(names: Sequence[str]) -> Method:
    """One method that applies all of `names`.

    Raises:
        UnknownNameError: when there is none of a name.
        ValueError: when they don't compose.
    """
    methods = [load_method(name) for name in names]
    return methods[0] if len(methods) == 1 else Combination(methods)
