"""Measures of the code's shape: `python -m tools.code_measures [CHECKOUT …]`, a column for each checkout.

It reads `boundd/` of each checkout as text, so one version of this tool measures any commit. What a row counts:

- record types: classes that only hold fields: dataclasses, NamedTuples, TypedDicts and pydantic models.
- mixed modules: modules outside the composition root that import from more than one subject beside their own. Subjects
  are the rooms of the core and the other packages; what everybody may use (`COMMON`) is none.
- a change: the files of `boundd/` and `pyproject.toml` that mention what such a change must touch (`CHANGES`). It is an
  estimate by names, the same one for every checkout.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMMON = frozenset({"api", "catalogue", "model", "ports", "protocol", "text", "__init__"})
COMPOSITION = frozenset({"composition", "main", "wiring", "start", "__main__"})
FLAT_CORE = {
    **dict.fromkeys(
        [
            "cells",
            "matrix",
            "attempts",
            "devices",
            "outcomes",
            "events",
            "effects",
            "records",
            "state",
            "history",
            "workload",
        ],
        "model",
    ),
    **dict.fromkeys(["lifecycle", "query", "table"], "model"),
    **dict.fromkeys(["footprint", "headroom", "causes", "listing"], "memory"),
    **dict.fromkeys(
        ["planner", "ranking", "placement", "durations", "host", "suspicion", "unkillable", "insight"], "scheduler"
    ),
    **dict.fromkeys(["step", "ending", "classify", "retry"], "lifecycle"),
    **dict.fromkeys(["bounds", "staleness"], "results"),
}
"""The subject of each module of `core/` before it had rooms."""
CHANGES = {
    "a built-in method": r"\btome\b|ToMeMethod",
    "a remote launcher": r"results_path|log_path|LocalLauncher|\bpids_of\b|read_chunk|open_regular",
    "another kind of GPU": r"backend [!=]= \"|\"nvml\"|NvmlProbe",
    "another form of report": r"\bprint_bounds\b|\bFORMATS\b|ExportFormat|search-params",
    "a matrix id in the state": r"\bstate\.order\b|ConfigLoaded|\.matrix\(\)|\bRules\(",
}
_MODELS = frozenset({"BaseModel", "NamedTuple", "TypedDict"})


@dataclass(frozen=True, slots=True)
class Module:
    """A source file, parsed. `name` is dotted, without the package's own."""

    name: str
    text: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Measures:
    """What one checkout's column says. Lengths of functions are in lines."""

    files: int
    lines: int
    longest_function: int
    function_95th_percentile: int
    record_types: int
    mixed_modules: tuple[str, ...]
    changes: dict[str, int]


def measure(checkout: Path) -> Measures:
    """All measures of a checkout.

    Raises:
        OSError: there is no `boundd/` that can be read.
        SyntaxError: a module is not Python of this interpreter.
    """
    modules = list(_modules(checkout / "boundd"))
    lengths = sorted(_function_lengths(modules))
    texts = [module.text for module in modules] + [(checkout / "pyproject.toml").read_text(encoding="utf-8")]
    return Measures(
        len(modules),
        sum(module.text.count("\n") for module in modules),
        lengths[-1],
        lengths[len(lengths) * 95 // 100],
        _record_types(modules),
        tuple(module.name for module in modules if _is_mixed(module)),
        {change: sum(1 for text in texts if re.search(names, text)) for change, names in CHANGES.items()},
    )


def _modules(package: Path) -> Iterator[Module]:
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield Module(".".join(path.relative_to(package).with_suffix("").parts), text, ast.parse(text))


def _function_lengths(modules: list[Module]) -> Iterator[int]:
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or node.lineno) - node.lineno + 1


def _record_types(modules: list[Module]) -> int:
    """Dataclasses, and classes that descend from `_MODELS`, whatever module they are in."""
    classes = [node for module in modules for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    known = set(_MODELS)
    found = -1
    while found != len(known):
        found = len(known)
        known |= {each.name for each in classes if {ast.unparse(base).split("[")[0] for base in each.bases} & known}
    decorated = {id(each) for each in classes if any("dataclass" in ast.unparse(d) for d in each.decorator_list)}
    return sum(1 for each in classes if id(each) in decorated or each.name in known)


def subject_of(dotted: str) -> str:
    """The subject that a module belongs to; `dotted` is without the package's own name."""
    first, *rest = dotted.split(".")
    if first == "core" and rest:
        return FLAT_CORE.get(rest[0], rest[0])
    return first


def _is_mixed(module: Module) -> bool:
    own = subject_of(module.name)
    if own in COMPOSITION:
        return False
    imported = {
        subject_of(node.module.removeprefix("boundd."))
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("boundd.")
    }
    return len(imported - COMMON - {own}) > 1


def main(arguments: list[str]) -> None:
    """Print the table."""
    checkouts = [Path(argument) for argument in arguments] or [Path()]
    columns = [measure(checkout) for checkout in checkouts]
    table = Table()
    table.add_column("")
    for checkout in checkouts:
        table.add_column(str(checkout), justify="right")
    rows: list[tuple[str, list[int]]] = [
        ("files", [each.files for each in columns]),
        ("lines", [each.lines for each in columns]),
        ("longest function, lines", [each.longest_function for each in columns]),
        ("95th percentile of functions, lines", [each.function_95th_percentile for each in columns]),
        ("record types", [each.record_types for each in columns]),
        ("mixed modules", [len(each.mixed_modules) for each in columns]),
    ]
    rows += [(f"files that name {change}", [each.changes[change] for each in columns]) for change in CHANGES]
    for name, values in rows:
        table.add_row(name, *(f"{value:,}" for value in values))
    Console().print(table)
    for checkout, each in zip(checkouts, columns, strict=True):
        print(f"mixed modules of {checkout}: {', '.join(each.mixed_modules) or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:])
