"""What a result depends on besides its parameters: a result whose fingerprint changed must be measured
again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from boundd.protocol.strict_json import Json
from boundd.worker.devices import Device

_LIBRARIES = ("torch", "diffusers", "transformers", "DeepCache", "tgate", "tomesd")


def fingerprint(device: Device, pipe: Any, distributions: Sequence[str] = ()) -> dict[str, Json]:
    """Versions, the device model, and the weights' revision where the pipeline knows it.

    Args:
        device: that it ran on.
        pipe: the pipeline.
        distributions: further PyPI names whose versions matter.
    """
    names = dict.fromkeys((*_LIBRARIES, *filter(None, distributions)))
    libraries: dict[str, Json] = {name: _version(name) for name in names}
    return {
        **libraries,
        "python": platform.python_version(),
        "device": device.label(),
        "weights_revision": _revision(pipe),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision(pipe: Any) -> str | None:
    """The hub commit the weights came from: the cache keeps them in a folder `snapshots/<commit>`."""
    folder = str(getattr(pipe.unet.config, "_name_or_path", ""))
    parts = folder.split("/")
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
