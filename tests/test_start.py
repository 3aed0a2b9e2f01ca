"""The command's way in: held states are refused before anything heavy is imported.

Seen to fail: without `hold` in `boundd.__main__._run`, with another EXIT_HELD, without the line to systemd or to the
log in `_held`, without one of the errors that `_run` leaves to the daemon; without `clear_drafts` in
boundd/composition/exporter.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from boundd import __main__ as start
from boundd.cli.boundd import RunOptions
from boundd.composition import run as daemon_main
from boundd.ports import StoreBusyError
from boundd.service.instance_lock import hold

RUN = """
import sys
from boundd.__main__ import main
sys.argv = ["boundd", "run", "--log-format", "json", "--config", sys.argv[1]]
try:
    main()
except SystemExit as end:
    print(end.code, *sorted({"pydantic", "boundd.composition.run", "starlette"} & set(sys.modules)))
"""


@pytest.mark.parametrize("rest", ["", "nonsense = 1\n"])
def test_a_held_state_is_refused_cheaply(rest: str, tmp_path: Path) -> None:
    """Exit 4 with a line of the log, whatever else the config says, and without pydantic and the API."""
    (tmp_path / "state").mkdir()
    (tmp_path / "config.toml").write_text(f'{rest}[daemon]\nstate_dir = "state"\n')
    with hold(tmp_path / "state"), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        run = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path / "config.toml")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        manager.setblocking(False)
        assert b"STATUS=another daemon" in manager.recv(65536)
    assert run.stdout == "4\n"
    (line,) = run.stderr.splitlines()
    assert json.loads(line)["event.action"] == "daemon-stopped"
    assert "another daemon" in json.loads(line)["message"]


@pytest.mark.parametrize(
    ("config", "code"),
    [("[daemon]\nstate_dir = 7\n", 2), ("not toml", 2), (None, 2), ('daemon = "x"\n', 2), ("[daemon]\n", 2)],
)
def test_what_is_wrong_is_told_by_who_reads_all_of_it(config: str | None, code: int, tmp_path: Path) -> None:
    """A config whose state folder can't be told at a glance gets as far as it always did."""
    path = tmp_path / "config.toml"
    if config is not None:
        path.write_text(config)
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path / "home")},
    )
    assert run.stdout.split()[0] == str(code), run.stderr
    assert "config-rejected" in run.stderr
    assert not (tmp_path / "home").exists()


def test_a_disk_that_fails_is_the_daemons_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the disk and says so; whoever only looked whether the state is held doesn't end for it."""
    (tmp_path / "state").mkdir()
    (tmp_path / "config.toml").write_text('[daemon]\nstate_dir = "state"\n')

    def failing(_: Path) -> None:
        raise StoreBusyError("the state folder can't be held")

    monkeypatch.setattr(start, "hold", failing)
    monkeypatch.setattr(start, "_use_one_arena", lambda: None)
    monkeypatch.setattr(daemon_main, "run", lambda _: 17)
    assert start._run(RunOptions(tmp_path / "config.toml", until_idle=True, log_format="json")) == 17


CONFIG = """
[daemon]
state_dir = "state"
socket = "{folder}/socket"
export = "bounds.json"
[devices]
backend = "cpu"
[matrix.axes]
n = [1]
[worker]
result = "stdout"
command = ["echo", "speedup: 1.5"]
"""


def test_a_start_clears_away_what_killed_writers_left(tmp_path: Path) -> None:
    """Of the export, in the folder that it is in."""
    dead = next(pid for pid in range(4_000_000, 4_194_304) if not Path(f"/proc/{pid}").exists())
    draft = tmp_path / f".bounds.json.{dead}.tmp"
    draft.touch()
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    command = [sys.executable, "-m", "boundd", "run", "--until-idle", "--config", str(tmp_path / "config.toml")]
    subprocess.run(command, check=True, capture_output=True)
    assert not draft.exists()
    assert json.loads((tmp_path / "bounds.json").read_text())["cells"][0]["max_speedup"] == 1.5
