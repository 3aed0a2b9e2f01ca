"""What the wheel imports is what pyproject.toml declares, and the other way round.

Seen to fail: with `h11` taken out of the dependencies; with `tqdm` put in; with `import torch` in the daemon; with the
upper bound of uvicorn taken away.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"boundd", "shim"}
"""`shim` is what boundd/launch/shim is called in the process that it runs in."""
NOT_IMPORTED = {
    "accelerate": "diffusers loads weights through it without a second copy of them",
    "numpy": "torch's Tensor.numpy(), which writes images, needs it",
    "scipy": "diffusers' LMS scheduler integrates with it",
}
"""Declared, although boundd's modules don't import them."""
EXTENDED = {"uvicorn": "boundd.control.connection", "h11": "boundd.control.connection"}
"""Libraries of which more is used than their public interface: an upper bound keeps what was tested."""


def requirements(*texts: str) -> dict[str, Requirement]:
    """Requirements by their canonical names."""
    return {canonicalize_name(each.name): each for each in map(Requirement, texts)}


DAEMON = requirements(*PROJECT["dependencies"])
WORKER = requirements(*(text for extra in PROJECT["optional-dependencies"].values() for text in extra))


def imports() -> Iterator[tuple[str, str]]:
    """Each module of the wheel, as a path, with the distribution of each thing that it imports, wherever in it."""
    distributions = packages_distributions()
    for path in sorted((ROOT / "boundd").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            for name in {name.partition(".")[0] for name in names} - OWN - sys.stdlib_module_names:
                assert name in distributions, f"{where} imports {name}, which is not installed"
                yield where, canonicalize_name(distributions[name][0])


IMPORTS = sorted(set(imports()))


@pytest.mark.parametrize(("where", "name"), IMPORTS)
def test_what_is_imported_is_declared(where: str, name: str) -> None:
    """By the daemon in the dependencies, by the worker in these or in an extra."""
    declared = {*DAEMON, *WORKER} if where.startswith("boundd/worker/") else set(DAEMON)
    assert name in declared, f"{where} imports {name}, which pyproject.toml doesn't declare for it"


def test_what_is_declared_is_imported() -> None:
    """The dependencies by the daemon, the extras by the worker, but for those that others import on our behalf."""
    daemon = {name for where, name in IMPORTS if not where.startswith("boundd/worker/")}
    worker = {name for where, name in IMPORTS if where.startswith("boundd/worker/")}
    assert set(DAEMON) - daemon == set()
    assert set(WORKER) - worker == set(NOT_IMPORTED)


def test_what_is_extended_is_bounded() -> None:
    """A release that nobody has tried must not be installed where more than the public interface is used."""
    for name, where in EXTENDED.items():
        assert (where.replace(".", "/") + ".py", name) in IMPORTS
        assert any(each.operator in ("<", "<=", "==", "~=") for each in DAEMON[name].specifier), name
    code = "".join(path.read_text() for path in (ROOT / "boundd").rglob("*.py"))
    assert not re.search(r"noqa: SLF001", code), "a private name of somebody else's is used: bound its library above"


def test_the_constraints_have_every_dependency() -> None:
    """A fresh clone gets the versions that the suite was last run with, all within what is declared."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = requirements(*lines)
    for name, wanted in {**DAEMON, **WORKER}.items():
        (version,) = [each.version for each in pinned[name].specifier]
        assert wanted.specifier.contains(version), f"{wanted} and {pinned[name]}"
