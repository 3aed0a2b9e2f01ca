"""The command's way in: held states are refused before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from boundd.service.hold import hold

RUN = """
import sys
from boundd.start import main
sys.argv = ["boundd", "run", "--log-format", "json", "--config", sys.argv[1]]
try:
    main()
except SystemExit as end:
    print(end.code, *sorted({"pydantic", "boundd.main", "starlette"} & set(sys.modules)))
"""


@pytest.mark.parametrize("rest", ["", "nonsense = 1\n"])
def test_a_held_state_is_refused_cheaply(rest: str, tmp_path: Path) -> None:
    """Exit 4 with a line of the log, whatever else the config says, and without pydantic and the API."""
    (tmp_path / "state").mkdir()
    (tmp_path / "config.toml").write_text(f'{rest}[daemon]\nstate_dir = "state"\n')
    with hold(tmp_path / "state"):
        run = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path / "config.toml")], capture_output=True, text=True, check=True
        )
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
