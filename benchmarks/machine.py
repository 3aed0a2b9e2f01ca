"""Describes the machine (CPU, kernel, versions) for the head of a result file."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from boundd import __version__


def describe() -> str:
    """One line: boundd's version, the cores that this process may use, their name, Python and the kernel."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"boundd {__version__}, {cores} cores ({_processor()}), {platform.python_implementation()} "
        f"{platform.python_version()}, {platform.system()} {platform.release()}, load {os.getloadavg()[0]:.1f} at start"
    )


def command_line() -> str:
    """The command that made this result."""
    spec = sys.modules["__main__"].__spec__
    name = sys.argv[0] if spec is None else spec.name.removesuffix(".__main__")
    return " ".join(["python -m", name, *sys.argv[1:]])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
