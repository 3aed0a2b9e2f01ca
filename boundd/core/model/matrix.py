"""The matrix: the product of the axes, with excludes and includes, as cells in a fixed order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from boundd.core.model.cells import Cell, Parameters
from boundd.text import count

MAX_CELLS = 1_000_000
"""A larger matrix is taken for a typing error in the config."""


class MatrixError(ValueError):
    """The matrix is empty, or has more than `MAX_CELLS` cells."""


def matches(pattern: Parameters, parameters: Parameters) -> bool:
    """Whether the parameters match the pattern: each name of it has the given value, or one of a list of values.

    The empty pattern matches everything.
    """
    return all(
        name in parameters and (parameters[name] in wanted if isinstance(wanted, list) else parameters[name] == wanted)
        for name, wanted in pattern.items()
    )


def expand(
    axes: Mapping[str, Sequence[Any]],
    constants: Parameters,
    excludes: Sequence[Parameters] = (),
    includes: Sequence[Parameters] = (),
) -> tuple[Cell, ...]:
    """The cells of a matrix in the order of the axes, then the includes, without duplicates.

    An include gives a value to every axis, and may set constants of its own.

    Raises:
        MatrixError: no cell is left, or the product has over `MAX_CELLS` cells (checked before it is made).
    """
    size = prod(len(values) for values in axes.values()) if axes else 0
    if size + len(includes) > MAX_CELLS:
        raise MatrixError(f"the matrix has {size + len(includes):,} cells, over the limit of {MAX_CELLS:,}")
    names = tuple(axes)
    cells = {cell.key: cell for cell in _cells(names, axes, constants, excludes, includes)}
    if not cells:
        raise MatrixError(_why_empty(axes, size, excludes))
    return tuple(cells.values())


def _cells(
    names: tuple[str, ...],
    axes: Mapping[str, Sequence[Any]],
    constants: Parameters,
    excludes: Sequence[Parameters],
    includes: Sequence[Parameters],
) -> Iterator[Cell]:
    if axes:
        for values in itertools.product(*axes.values()):
            parameters = {**constants, **dict(zip(names, values, strict=True))}
            if not any(matches(pattern, parameters) for pattern in excludes):
                yield Cell.of(parameters, names)
    for include in includes:
        yield Cell.of({**constants, **include}, names)


def _why_empty(axes: Mapping[str, Sequence[Any]], size: int, excludes: Sequence[Parameters]) -> str:
    empty = [name for name, values in axes.items() if not values]
    if not axes:
        return "the matrix has no axes, so it has no cells"
    if empty:
        return f"the matrix has no cells: the axis {empty[0]!r} has no values"
    return f"the matrix has no cells: its {size:,} are all excluded by {count(len(excludes), 'exclude')}"
