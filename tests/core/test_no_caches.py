"""Pure code keeps nothing for the process: what it remembers belongs to a run.

Seen to fail: with `@lru_cache` on `weights_bytes`, and with a dict of a module that a function writes to.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import boundd
from boundd.core.model.memo import Memo
from boundd.core.model.state import State

ROOT = Path(boundd.__file__).parent
SOURCES = sorted([*(ROOT / "core").rglob("*.py"), *(ROOT / "results").rglob("*.py")])
CACHES = {"lru_cache", "cache", "cached_property"}
WRITES = {"append", "extend", "add", "update", "setdefault", "pop", "clear", "insert", "remove", "discard", "popitem"}


def names_of_module(tree: ast.Module) -> set[str]:
    """What a module's own statements bind."""
    targets: list[ast.expr] = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def kept_by_the_process(tree: ast.Module) -> Iterator[str]:
    """What a module keeps between two calls of its functions."""
    names = names_of_module(tree)
    for node in [*tree.body, *(inner for outer in tree.body for inner in methods_of(outer))]:
        decorators = getattr(node, "decorator_list", [])
        used = {each for decorator in decorators for each in ast.walk(decorator)}
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            used |= set(ast.walk(node))
        yield from (
            f"{name.id} (line {name.lineno})" for name in used if isinstance(name, ast.Name) and name.id in CACHES
        )
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                yield f"global (line {node.lineno})"
            written = node.value if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) else None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
                written = node.func.value
            if isinstance(written, ast.Name) and written.id in names and written.id.upper() == written.id:
                yield f"{written.id} (line {written.lineno})"


def methods_of(node: ast.stmt) -> list[ast.stmt]:
    """The statements of a class."""
    return node.body if isinstance(node, ast.ClassDef) else []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_process_global_caches(path: Path) -> None:
    """No cache around a function of a module or a class, and no container of a module that is written to."""
    assert not list(kept_by_the_process(ast.parse(path.read_text())))


def test_two_runs_share_nothing() -> None:
    """Each state that is made, and not derived, has a memo of its own."""
    assert State().memo is not State().memo
    assert Memo().table(dict) is not Memo().table(dict)
