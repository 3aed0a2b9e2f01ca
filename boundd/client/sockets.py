"""Which socket the daemon answers on, found without the config's own machinery, which is slow to import."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from boundd.client.errors import NoDaemonError
from boundd.client.transport import why_not

SOCKET_VARIABLE = "BOUNDD_SOCKET"
CONFIG_VARIABLE = "BOUNDD_CONFIG"
SOCKET_NAME = "boundd.sock"


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
    home = Path(environ.get("HOME") or Path.home())
    usual = [Path("/run/boundd") / SOCKET_NAME, *(folder / SOCKET_NAME for folder in _state_dirs(environ, home))]
    return list(dict.fromkeys([*named, *_of_config(environ, cwd, home), *usual]))


def _of_config(environ: Mapping[str, str], cwd: Path, home: Path) -> Iterator[Path]:
    """The socket that the config names, where there is a config that can be read; what is wrong with it, `boundd
    check-config` says."""
    named = environ.get(CONFIG_VARIABLE)
    of_user = [folder / "boundd/config.toml" for folder in _xdg(environ, "XDG_CONFIG_HOME", home / ".config")]
    usual = (cwd / "config.toml", *of_user, Path("/etc/boundd/config.toml"))
    config = cwd / named if named else next((place for place in usual if place.is_file()), None)
    if config is None:
        return
    import tomllib  # not at the top: whoever names the socket needs no config

    try:
        daemon = tomllib.loads(config.read_text(encoding="utf-8")).get("daemon", {})
        socket, state = str(daemon.get("socket", "")), str(daemon.get("state_dir", ""))
    except (OSError, ValueError, AttributeError):
        return
    outputs = _first(environ.get("STATE_DIRECTORY")) or config.parent.absolute()
    if socket:
        yield _within(outputs, socket, home)
        return
    state_dir = _within(outputs, state, home) if state else None
    state_dir = state_dir or _first(environ.get("STATE_DIRECTORY"))
    runtime_dir = _first(environ.get("RUNTIME_DIRECTORY"))
    if runtime_dir is not None or state_dir is not None:
        yield (runtime_dir or state_dir or home) / SOCKET_NAME
        return
    for folder in _state_dirs(environ, home):
        yield folder / SOCKET_NAME


def _state_dirs(environ: Mapping[str, str], home: Path) -> list[Path]:
    """Where a user's daemon may have its state: in $XDG_STATE_HOME, or in its default from before that was honoured."""
    return [folder / "boundd" for folder in _xdg(environ, "XDG_STATE_HOME", home / ".local/state")]


def _xdg(environ: Mapping[str, str], variable: str, default: Path) -> list[Path]:
    """A folder of the XDG base directory specification, and its default; a relative path is ignored, as it says."""
    named = environ.get(variable, "")
    return list(dict.fromkeys([*([Path(named)] if named.startswith("/") else []), default]))


def _first(folders: str | None) -> Path | None:
    """systemd gives several folders with colons between them; the first is ours."""
    name = (folders or "").split(":")[0]
    return Path(name) if name.startswith("/") else None


def _within(folder: Path, text: str, home: Path) -> Path:
    expanded = home / text[2:] if text.startswith("~/") else Path(text)
    return Path(os.path.normpath(folder / expanded))
