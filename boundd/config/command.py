"""The worker's command: placeholders, and what fills them.

Rules: a placeholder is a name in braces, `{{` and `}}` are braces. Whatever fills one stays inside its argument,
because no shell ever sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from boundd.core.model.cells import canonical_json

BUILTIN_WORKER = "boundd.worker"
ALWAYS_KNOWN = ("python", "label", "device_index")
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def placeholders(template: str) -> tuple[str, ...]:
    """The names in braces, in order.

    Raises:
        ValueError: a brace that opens or closes nothing.
    """
    names = []
    for match in _TOKEN.finditer(template):
        if match[1] is not None:
            names.append(match[1])
        elif match[0] in "{}":
            double = match[0] * 2
            raise ValueError(f"{template!r} has a lone {match[0]!r}: write {double!r} for the brace itself")
    return tuple(names)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders filled, in one pass: what a value holds is never taken for one."""
    return _TOKEN.sub(lambda match: values[match[1]] if match[1] is not None else match[0][0], template)


def as_argument(value: Any) -> str:
    """A value as a program expects it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else canonical_json(value)
