"""Where things are: the config, the state folder, the socket. The daemon and its clients look by the same rules.

Inputs (models, an interpreter) belong beside the config; outputs (state, export, logs) belong in systemd's
$STATE_DIRECTORY where there is one, because the folder of a system's config is not writable. A user's folders are those
of the XDG base directory specification: https://specifications.freedesktop.org/basedir-spec/latest/. Nothing but the
standard library is imported, because a client is quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_VARIABLE = "BOUNDD_CONFIG"
SOCKET_NAME = "boundd.sock"
SYSTEM_SOCKET = Path("/run/boundd") / SOCKET_NAME


def config_path(named: Path | str | None, environ: Mapping[str, str], cwd: Path, home: Path) -> Path | None:
    """The config to read: the one named, here or by $BOUNDD_CONFIG, else the first of `usual_configs`; None for none.

    One that is named is returned whether or not it is there: reading another one in its place would be a surprise.
    """
    named = named or environ.get(CONFIG_VARIABLE)
    if named:
        return cwd / named
    return next((place for place in usual_configs(environ, cwd, home) if place.is_file()), None)


def usual_configs(environ: Mapping[str, str], cwd: Path, home: Path) -> tuple[Path, ...]:
    """Where a config is looked for that nobody named, in order; $XDG_CONFIG_HOME comes before its default."""
    of_user = (_absolute(environ.get("XDG_CONFIG_HOME")), home / ".config")
    folders = dict.fromkeys(folder / "boundd" for folder in of_user if folder is not None)
    return (cwd / "config.toml", *(folder / "config.toml" for folder in folders), Path("/etc/boundd/config.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """A config's tables as they are written, with or without a byte-order mark.

    Raises:
        OSError: the file can't be read.
        UnicodeDecodeError: it is not UTF-8.
        RecursionError: it is nested too deeply.
        ValueError: it is not TOML.
    """
    import tomllib  # not at the top: a client that is told its socket reads no config

    return tomllib.loads(path.read_bytes().decode("utf-8-sig"))


def home_of(environ: Mapping[str, str]) -> Path:
    """The user's home."""
    home = environ.get("HOME", "")
    return Path(home) if home.startswith("/") else Path.home()


def user_state_dirs(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a user's daemon may have its state: in $XDG_STATE_HOME, or in its default."""
    folders = (_absolute(environ.get("XDG_STATE_HOME")), home_of(environ) / ".local/state")
    return tuple(dict.fromkeys(folder / "boundd" for folder in folders if folder is not None))


def user_state_dir(environ: Mapping[str, str]) -> Path:
    """The first of `user_state_dirs`, unless the default is there already and the first is not."""
    wanted, *default = user_state_dirs(environ)
    return default[0] if default and default[0].is_dir() and not wanted.is_dir() else wanted


def outputs_dir(config_folder: Path, environ: Mapping[str, str]) -> Path:
    """What relative paths of outputs are relative to."""
    return first_dir(environ.get("STATE_DIRECTORY")) or config_folder


def state_dir(text: str, config_folder: Path, environ: Mapping[str, str]) -> Path:
    """The state folder for `daemon.state_dir = text`."""
    if text:
        return within(outputs_dir(config_folder, environ), text, environ)
    return first_dir(environ.get("STATE_DIRECTORY")) or user_state_dir(environ)


def socket_path(socket: str, state_dir_text: str, config_folder: Path, environ: Mapping[str, str]) -> Path:
    """The socket for `daemon.socket = socket` and `daemon.state_dir = state_dir_text`."""
    if socket:
        return within(outputs_dir(config_folder, environ), socket, environ)
    runtime = first_dir(environ.get("RUNTIME_DIRECTORY"))
    return (runtime or state_dir(state_dir_text, config_folder, environ)) / SOCKET_NAME


def within(folder: Path, text: str, environ: Mapping[str, str]) -> Path:
    """`text` as an absolute path, relative to `folder`; `~` is the user's home."""
    expanded = home_of(environ) / text[2:] if text == "~" or text.startswith("~/") else Path(text)
    return Path(os.path.normpath(folder / expanded))


def first_dir(text: str | None) -> Path | None:
    """The first of the folders that systemd joins with colons, which is the service's main one."""
    return _absolute((text or "").split(":")[0])


def _absolute(text: str | None) -> Path | None:
    # The base directory specification: a relative path is to be ignored.
    return Path(text) if text and text.startswith("/") else None
