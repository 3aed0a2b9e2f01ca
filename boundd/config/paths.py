"""Where a config's files are: which config is read, and what its relative paths are relative to.

The rules are those of `boundd.locations`, which clients share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boundd.locations import (
    CONFIG_VARIABLE,
    config_path,
    outputs_dir,
    read_toml,
    socket_path,
    state_dir,
    usual_configs,
    within,
)
from boundd.ports import ConfigError

if TYPE_CHECKING:
    from boundd.config.schema import Config

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` has 108 bytes on Linux, the last of them a NUL: unix(7)."""
BUILTIN_SOURCE = "builtin"
"""A source that ships with boundd, whatever folders there are."""


@dataclass(frozen=True, slots=True)
class Places:
    """The absolute paths of a config's outputs."""

    state_dir: Path
    socket: Path
    export: Path | None
    log_file: Path | None

    def errors(self) -> list[str]:
        """What can't be, each with its key path."""
        used_bytes = len(os.fsencode(self.socket))
        if used_bytes <= MAX_SOCKET_PATH_BYTES:
            return []
        too_long = f"{self.socket} is {used_bytes} bytes long, and a unix socket's path has at most"
        return [f"daemon.socket: {too_long} {MAX_SOCKET_PATH_BYTES}: set a shorter one, such as /tmp/boundd.sock"]


def find_config(explicit: Path | str | None, environ: Mapping[str, str], cwd: Path, home: Path) -> Path:
    """The config to read: the one named by option or by $BOUNDD_CONFIG, else the first there is.

    One that is named is returned whether or not it is there: reading another one in its place would be a surprise.

    Raises:
        ConfigError: none is named, and none of the usual places has one; it lists them.
    """
    found = config_path(explicit, environ, cwd, home)
    if found is not None:
        return found
    looked = ", ".join(map(str, usual_configs(environ, cwd, home)))
    raise ConfigError([f"no config: looked for {looked}; name one with --config or ${CONFIG_VARIABLE}"])


def places(config: Config, folder: Path, environ: Mapping[str, str]) -> Places:
    """Every output of the config; `folder` is the config's own, absolute."""
    outputs = outputs_dir(folder, environ)
    daemon = config.daemon
    return Places(
        state_dir=state_dir(daemon.state_dir, folder, environ),
        socket=socket_path(daemon.socket, daemon.state_dir, folder, environ),
        export=within(outputs, daemon.export, environ) if daemon.export else None,
        log_file=within(outputs, config.log.file, environ) if config.log.file else None,
    )


def state_dir_of(path: Path, environ: Mapping[str, str]) -> Path | None:
    """The state folder that a config names, at the price of its TOML alone; None where it has to be read properly."""
    try:
        text = read_toml(path).get("daemon", {}).get("state_dir", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return state_dir(text, path.absolute().parent, environ) if isinstance(text, str) else None


def source(folder: Path, text: str, environ: Mapping[str, str]) -> str:
    """A model's source: absolute where it is a folder, else the hub id it was.

    A text is a folder where it looks like a path, or where there is such a folder beside the config.
    """
    if text in ("", BUILTIN_SOURCE):
        return text
    looks_like_path = text in (".", "..", "~") or text.startswith(("/", "./", "../", "~/"))
    path = within(folder, text, environ)
    return str(path) if looks_like_path or path.is_dir() else text


def program(folder: Path, text: str, environ: Mapping[str, str]) -> str:
    """An interpreter: a bare name is left to $PATH, a path is made absolute, and "" stays."""
    return str(within(folder, text, environ)) if "/" in text else text
