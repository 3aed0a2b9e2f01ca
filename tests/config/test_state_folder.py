"""A state folder on a file system that can't hold it is refused in words, wherever somebody asks.

Seen to fail: with `lacking` always "" the daemon goes on, and the first commit fails with "disk I/O error".
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from boundd.config import check_writable, find_config, load
from boundd.config.state_folder import NETWORK, kind_of, lacking, over_the_network
from boundd.locations import user_state_dir
from boundd.ports import ConfigError

CONFIG = """
[daemon]
state_dir = "state"
[matrix.axes]
n = [1]
[worker]
command = ["true"]
"""


@pytest.fixture
def without_maps(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system without shared memory maps."""
    if os.geteuid() != 0 or shutil.which("bindfs") is None or not Path("/dev/fuse").exists():
        pytest.skip("needs root, /dev/fuse and Debian's bindfs")
    below, mounted = tmp_path / "below", tmp_path / "mounted"
    below.mkdir()
    mounted.mkdir()
    if subprocess.run(["bindfs", "-o", "direct_io", below, mounted], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_no_shared_maps(without_maps: Path) -> None:
    """Whether the folder is there already or not; in the config's check and at the start."""
    (without_maps / "config.toml").write_text(CONFIG)
    for folder in (without_maps, without_maps / "not" / "yet"):
        assert "without shared memory maps" in lacking(folder)
        assert "local disk" in lacking(folder)
    assert list(without_maps.iterdir()) == [without_maps / "config.toml"], "nothing is left behind"
    settings = load(without_maps / "config.toml", {})
    with pytest.raises(ConfigError, match=r"daemon.state_dir: .*without shared memory maps"):
        check_writable(settings)


def test_a_local_folder_lacks_nothing(tmp_path: Path) -> None:
    """And its file system has a name."""
    assert lacking(tmp_path) == lacking(tmp_path / "a" / "b") == over_the_network(tmp_path) == ""
    assert kind_of(tmp_path) not in ("", *NETWORK)


def test_no_locks_and_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said as such; a full or forbidden disk says nothing of its file system."""
    path = "boundd.config.state_folder"

    def fail(error: int) -> None:
        def lock(*_: object) -> None:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(f"{path}.fcntl.lockf", lock)

    fail(37)  # ENOLCK, as an NFS without its lock daemon says
    assert "without record locks" in lacking(tmp_path)
    fail(28)
    assert lacking(tmp_path) == ""
    monkeypatch.setattr(f"{path}.kind_of", lambda _: "nfs4")
    assert "network file system (nfs4)" in over_the_network(tmp_path)


def test_xdg_folders(tmp_path: Path) -> None:
    """Config and state are where the user's environment says; relative ones are ignored, and what is there is kept."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    for place in (home / ".config/boundd", tmp_path / "xdg/boundd"):
        place.mkdir(parents=True)
        (place / "config.toml").touch()
    environ = {"HOME": str(home), "XDG_CONFIG_HOME": str(tmp_path / "xdg"), "XDG_STATE_HOME": str(tmp_path / "state")}
    assert find_config(None, environ, cwd, home) == tmp_path / "xdg/boundd/config.toml"
    assert find_config(None, {"XDG_CONFIG_HOME": "xdg"}, cwd, home) == home / ".config/boundd/config.toml"
    assert find_config(None, {"XDG_CONFIG_HOME": "/none"}, cwd, home) == home / ".config/boundd/config.toml"
    assert user_state_dir({**environ, "HOME": str(home)}) == tmp_path / "state/boundd"
    assert user_state_dir({"XDG_STATE_HOME": "state", "HOME": str(home)}) == home / ".local/state/boundd"
    (home / ".local/state/boundd").mkdir(parents=True)
    assert user_state_dir({**environ, "HOME": str(home)}) == home / ".local/state/boundd", (
        "a state from before is not lost"
    )
    (tmp_path / "state/boundd").mkdir(parents=True)
    assert user_state_dir({**environ, "HOME": str(home)}) == tmp_path / "state/boundd"


@pytest.mark.parametrize("below", ["", "state", "a/b"])
def test_a_file_in_its_place_is_told_before_the_start(tmp_path: Path, below: str) -> None:
    """Nobody's permissions matter for that, so it can be said to whoever asks."""
    file = tmp_path / "notes"
    file.write_text("mine")
    assert lacking(file / below) == f"{file / below} can't be a folder, since {file} is a file: choose another folder"
    assert lacking(tmp_path / "new" / below) == ""
