"""The libraries that a measurement depends on, by their names on PyPI."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

MEASURING = ("torch", "diffusers", "transformers")
"""Part of every result's fingerprint; the libraries of a cell's own methods come with it (`Method.distribution`)."""
BUILTIN_METHODS = ("DeepCache", "tgate", "tomesd")
"""What the built-in methods need, for `boundd doctor`: no method is imported there."""
DAEMON = ("anyio", "aiosqlite", "pydantic", "structlog", "nvidia-ml-py")
"""What `boundd doctor` tells of the daemon's own."""


def installed_version(distribution: str) -> str | None:
    """The version of a package in this environment; None where it isn't installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
