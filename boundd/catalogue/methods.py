"""The acceleration methods: found by the entry points of one group, boundd's own among them.

A built-in method is a file in `boundd/worker/methods/` and a line in pyproject.toml; one of another package is the same
there. None of them is imported here.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points

from boundd.catalogue.names import UnknownNameError

METHOD_GROUP = "boundd.methods"
_OURS = "boundd"
"""The distribution whose methods no other package can replace."""


class InvalidMethodError(ValueError):
    """A combination of methods that can't be; the message says why."""


def method_entry_points() -> dict[str, EntryPoint]:
    """Where each method is that this environment offers, by its name; of two with one name, boundd's own wins."""
    found = sorted(
        entry_points(group=METHOD_GROUP), key=lambda entry: entry.dist is not None and entry.dist.name == _OURS
    )
    return {entry.name: entry for entry in found}


def builtin_methods() -> tuple[str, ...]:
    """The names of the methods that come with boundd, sorted."""
    return tuple(
        sorted(name for name, entry in method_entry_points().items() if entry.dist and entry.dist.name == _OURS)
    )


def installed_methods() -> tuple[str, ...]:
    """The names of the methods that this environment offers, sorted."""
    return tuple(sorted(method_entry_points()))


def parse_method(text: str, known: Collection[str] | None = None) -> tuple[str, ...]:
    """The methods that `text` combines, sorted: 'tome+deepcache' is ('deepcache', 'tome').

    Args:
        text: one method, or several joined by '+'.
        known: the methods there are; by default those installed here.

    Raises:
        UnknownNameError: when a part is not a method that is known.
        InvalidMethodError: when a part is empty or there twice.
    """
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise InvalidMethodError(f"{text!r}: join methods by single '+' signs, as in 'deepcache+tome'")
    names = installed_methods() if known is None else known
    for part in parts:
        if part not in names:
            raise UnknownNameError("method", part, names)
        if parts.count(part) > 1:
            raise InvalidMethodError(f"{text!r}: {part} is there twice, and can be applied only once")
    return tuple(sorted(parts))
