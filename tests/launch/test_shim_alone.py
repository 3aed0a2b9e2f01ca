"""What a shim is by itself: small, of the standard library alone, and never a signal to a bare pid.

Seen to fail: with `import asyncio` in boundd/launch/shim/__init__.py (memory, and what it imports); with an
`os.kill(stat.pid, …)` anywhere in boundd/launch (signals).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.shim import TARGET_BYTES, private_bytes
from boundd.launch import shim
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec

ROOT = Path(__file__).parents[2]
MakeSpec = Callable[..., LaunchSpec]
MAY_SIGNAL_A_GROUP = {("boundd/launch/shim/attempt.py", "killpg")}
"""The shim's own child, which it has not reaped: nobody else can have its pid."""
HEAVY = {"asyncio", "subprocess", "pathlib", "typing_extensions", "inspect", "dataclasses", "logging", "boundd"}


@pytest.mark.anyio
async def test_its_private_memory_is_small(launcher: LocalLauncher, make_spec: MakeSpec, attempts: Path) -> None:
    """What it doesn't share with the zygote and the other shims: under 12 MB, while its worker runs."""
    for name in ("1", "2"):
        await launcher.launch(make_spec("sleep", "60", attempt_id=name))
    for name in ("1", "2"):
        pid = json.loads((attempts / name / shim.SHIM).read_text())["pid"]
        assert private_bytes(pid) < TARGET_BYTES
        await launcher.end(name)
        await launcher.wait(name)


def test_it_imports_little() -> None:
    """As the zygote does: by its folder, without site packages, and nothing of boundd's."""
    program = f"import sys; sys.path.append({str(ROOT / 'boundd/launch')!r}); import shim, zygote; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert "shim" in loaded
    assert not loaded & HEAVY
    assert loaded - {"shim", "zygote"} <= sys.stdlib_module_names | {"__main__"}


def calls(path: Path) -> Iterator[str]:
    """The names of what of `os` sends signals, as far as this file names it; signal 0 asks, and harms nobody."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    asking = {
        id(node.func)
        for node in nodes
        if isinstance(node, ast.Call) and [ast.unparse(each) for each in node.args[1:]] == ["0"]
    }
    for node in nodes:
        if id(node) in asking:
            continue
        if isinstance(node, ast.Attribute) and node.attr in ("kill", "killpg") and isinstance(node.value, ast.Name):
            if node.value.id == "os":
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (each.name for each in node.names if each.name in ("kill", "killpg"))
        elif isinstance(node, ast.Name) and node.id == "psutil" and path.parts[-2] == "launch":
            yield "psutil"


def test_nothing_signals_a_bare_pid() -> None:
    """A pid may have been used again: os.kill and os.killpg are for children that have not been reaped."""
    found = {
        (str(path.relative_to(ROOT)), name) for path in sorted((ROOT / "boundd").rglob("*.py")) for name in calls(path)
    }
    assert found == MAY_SIGNAL_A_GROUP
