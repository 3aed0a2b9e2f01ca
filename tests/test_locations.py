"""The daemon and its clients find the same config, state and socket.

Seen to fail: with `read_toml` decoding plain UTF-8, a client misses the socket of a config with a byte-order mark.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from boundd.client.sockets import candidates
from boundd.config import find_config, load
from boundd.config.paths import state_dir_of

CONFIG = """
[daemon]
{daemon}
export = ""
[devices]
backend = "simulated"
[[devices.simulated]]
name = "A"
memory = "24GiB"
[matrix.axes]
n = [1]
[worker]
command = ["true", "{{n}}"]
"""


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "daemon", ["", 'socket = "a.sock"', 'state_dir = "s"', 'state_dir = "~/s"\nsocket = "~/b.sock"']
)
@pytest.mark.parametrize("variables", [(), ("STATE_DIRECTORY",), ("RUNTIME_DIRECTORY",), ("XDG_STATE_HOME",)])
def test_a_client_looks_where_the_daemon_is(tmp_path: Path, mark: str, daemon: str, variables: tuple[str, ...]) -> None:
    """First of all at the socket of the config that both find, however it names it and whatever begins it."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    for folder in (home, cwd):
        folder.mkdir()
    environ = {"HOME": str(home), **{name: str(tmp_path / name) for name in variables}}
    (cwd / "config.toml").write_text(mark + CONFIG.format(daemon=daemon), encoding="utf-8")
    config = find_config(None, environ, cwd, home)
    settings = load(config, environ)
    assert candidates(None, environ, cwd)[0] == settings.socket
    assert state_dir_of(config, environ) == settings.state_dir
