"""What a result depends on besides its parameters. When its fingerprint changes, a result is stale."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

from boundd.catalogue.libraries import MEASURING, installed_version
from boundd.protocol.file_digests import text_digest
from boundd.protocol.strict_json import Json, dumps
from boundd.worker.devices import TorchDevice
from boundd.worker.loading import Loaded


def fingerprint(device: TorchDevice, loaded: Loaded, distributions: Sequence[str]) -> dict[str, Json]:
    """Library versions, the device's model, digests of the model's and the scorer's files, a digest of the scheduler's
    configuration, and the hub revision of the weights if the folder's path holds it.

    Args:
        device: the device that was used.
        loaded: what was measured.
        distributions: the PyPI names of the libraries that the methods use.
    """
    names = dict.fromkeys(("boundd", *MEASURING, *distributions))
    libraries: dict[str, Json] = {name: installed_version(name) for name in names}
    return {
        **libraries,
        "python": platform.python_version(),
        "device": device.label(),
        "weights_revision": _revision(loaded.pipe),
        "content": {**loaded.content(), "scheduler": _scheduler_digest(loaded.pipe.scheduler)},
    }


def _scheduler_digest(scheduler: Any) -> str:
    """A digest of its class and configuration, without the private keys of diffusers."""
    config = {key: str(value) for key, value in scheduler.config.items() if not key.startswith("_")}
    return text_digest(dumps({"class": type(scheduler).__name__, **dict(sorted(config.items()))}))


def _revision(pipe: Any) -> str | None:
    """The hub commit the weights came from: the cache keeps them in a folder `snapshots/<commit>`."""
    folder = str(getattr(pipe.unet.config, "_name_or_path", ""))
    parts = folder.split("/")
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
