"""Where a config's files are: which config is read, and what its relative paths are relative to.

Rules: inputs (models, an interpreter) belong beside the config; outputs (state, export, logs) belong in systemd's
$STATE_DIRECTORY where there is one, because the folder of a system's config is not writable. A user's folders are those
of the XDG base directory specification: https://specifications.freedesktop.org/basedir-spec/latest/.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boundd.ports import ConfigError

if TYPE_CHECKING:
    from boundd.config.schema import Config

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` has 108 bytes on Linux, the last of them a NUL: unix(7)."""
CONFIG_VARIABLE = "BOUNDD_CONFIG"
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
    named = explicit or environ.get(CONFIG_VARIABLE)
    if named:
        return cwd / named
    places = usual_configs(environ, cwd, home)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise ConfigError([f"no config: looked for {looked}; name one with --config or ${CONFIG_VARIABLE}"])


def usual_configs(environ: Mapping[str, str], cwd: Path, home: Path) -> tuple[Path, ...]:
    """Where a config is looked for that nobody named, in order; $XDG_CONFIG_HOME comes before its default."""
    of_user = (_absolute(environ.get("XDG_CONFIG_HOME")), home / ".config")
    folders = dict.fromkeys(folder / "boundd" for folder in of_user if folder is not None)
    return (cwd / "config.toml", *(folder / "config.toml" for folder in folders), Path("/etc/boundd/config.toml"))


def users_state_dir(environ: Mapping[str, str], home: Path) -> Path:
    """The state folder of a user's daemon: in $XDG_STATE_HOME, but for one that is in its default from before."""
    default = home / ".local/state/boundd"
    wanted = _absolute(environ.get("XDG_STATE_HOME"))
    if wanted is None or (default.is_dir() and not (wanted / "boundd").is_dir()):
        return default
    return wanted / "boundd"


def _absolute(text: str | None) -> Path | None:
    # The base directory specification: a relative path is to be ignored.
    return Path(text) if text and text.startswith("/") else None


def places(config: Config, folder: Path, environ: Mapping[str, str]) -> Places:
    """Every output of the config; `folder` is the config's own, absolute."""
    state_directory = _first(environ.get("STATE_DIRECTORY"))
    runtime_directory = _first(environ.get("RUNTIME_DIRECTORY"))
    outputs = state_directory or folder
    daemon = config.daemon
    state_dir = _state_dir(daemon.state_dir, folder, environ)
    default_socket = (runtime_directory or state_dir) / "boundd.sock"
    return Places(
        state_dir=state_dir,
        socket=within(outputs, daemon.socket, environ) if daemon.socket else default_socket,
        export=within(outputs, daemon.export, environ) if daemon.export else None,
        log_file=within(outputs, config.log.file, environ) if config.log.file else None,
    )


def state_dir_of(config_path: Path, environ: Mapping[str, str]) -> Path | None:
    """The state folder that a config names, at the price of its TOML alone; None where it has to be read properly."""
    try:
        daemon = tomllib.loads(config_path.read_text()).get("daemon", {})
        text = daemon.get("state_dir", "")
    except (OSError, ValueError, AttributeError):
        return None
    return _state_dir(text, config_path.absolute().parent, environ) if isinstance(text, str) else None


def _state_dir(text: str, folder: Path, environ: Mapping[str, str]) -> Path:
    state_directory = _first(environ.get("STATE_DIRECTORY"))
    if not text:
        return state_directory or users_state_dir(environ, _home(environ))
    return within(state_directory or folder, text, environ)


def within(folder: Path, text: str, environ: Mapping[str, str]) -> Path:
    """`text` as an absolute path, relative to `folder`; `~` is the user's home."""
    expanded = _home(environ) / text[2:] if text == "~" or text.startswith("~/") else Path(text)
    return Path(os.path.normpath(folder / expanded))


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


def _first(text: str | None) -> Path | None:
    # systemd joins several directories by colons; the first is the service's main one.
    name = (text or "").split(":")[0]
    return Path(name) if name.startswith("/") else None


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "")
    return Path(home) if home.startswith("/") else Path.home()
