"""What a result depends on besides its parameters: a result whose fingerprint changed must be measured
again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

from boundd.catalogue.libraries import MEASURING, installed_version
from boundd.protocol.strict_json import Json
from boundd.worker.devices import Device


def fingerprint(device: Device, pipe: Any, distributions: Sequence[str]) -> dict[str, Json]:
    """Versions, the device model, and the weights' revision where the pipeline knows it.

    Args:
        device: that it ran on.
        pipe: the pipeline.
        distributions: the PyPI names of the libraries that the methods use.
    """
    names = dict.fromkeys((*MEASURING, *distributions))
    libraries: dict[str, Json] = {name: installed_version(name) for name in names}
    return {
        **libraries,
        "python": platform.python_version(),
        "device": device.label(),
        "weights_revision": _revision(pipe),
    }


def _revision(pipe: Any) -> str | None:
    """The hub commit the weights came from: the cache keeps them in a folder `snapshots/<commit>`."""
    folder = str(getattr(pipe.unet.config, "_name_or_path", ""))
    parts = folder.split("/")
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
