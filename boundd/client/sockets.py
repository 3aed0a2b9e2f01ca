"""Which socket the daemon answers on, found without the config's own machinery, which is slow to import."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from boundd import locations
from boundd.client.errors import NoDaemonError
from boundd.client.transport import why_not

SOCKET_VARIABLE = "BOUNDD_SOCKET"


def find_socket(explicit: str | os.PathLike[str] | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The socket of the first daemon that answers; one that is named is the only one that is tried.

    Raises:
        NoDaemonError: none does; it names the paths.
    """
    tried: list[tuple[str, str]] = []
    for path in candidates(explicit, environ, cwd):
        why = why_not(str(path))
        if not why:
            return path
        tried.append((str(path), why))
    raise NoDaemonError(tried)


def candidates(explicit: str | os.PathLike[str] | None, environ: Mapping[str, str], cwd: Path) -> list[Path]:
    """The paths to try, in order, each once."""
    if explicit:
        return [cwd / explicit]
    named = [cwd / environ[SOCKET_VARIABLE]] if environ.get(SOCKET_VARIABLE) else []
    usual = [locations.SYSTEM_SOCKET, *(each / locations.SOCKET_NAME for each in locations.user_state_dirs(environ))]
    return list(dict.fromkeys([*named, *_of_config(environ, cwd), *usual]))


def _of_config(environ: Mapping[str, str], cwd: Path) -> Iterator[Path]:
    """The socket that the config names, where there is a config that can be read; what is wrong with it, `boundd
    check-config` says."""
    config = locations.config_path(None, environ, cwd, locations.home_of(environ))
    if config is None:
        return
    try:
        daemon = locations.read_toml(config).get("daemon", {})
        socket, state_dir = str(daemon.get("socket", "")), str(daemon.get("state_dir", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    yield locations.socket_path(socket, state_dir, config.parent.absolute(), environ)
