"""Settings: defaults, paths, rules, commands, and the configs that are shipped."""

import json
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from boundd.config import Settings, check_writable, command_for, find_config, load, model_value, scorer_value
from boundd.config.command import fill, placeholders
from boundd.config.schema import DEFAULT_COMMAND, Config
from boundd.ports import ConfigError
from boundd.protocol.environment import WorkerEnvironment

ROOT = Path(__file__).parents[2]
SCRIPT = '[worker]\nresult = "stdout"\ncommand = ["run.sh", "{a}"]\n[matrix.axes]\na = [1, 2]\n'
Read = Callable[..., Settings]


def test_the_defaults_are_the_documented_ones() -> None:
    """Other programs rely on these defaults."""
    config = Config()
    assert config.daemon.model_dump() == {
        "state_dir": "",
        "socket": "",
        "export": "speedup_bounds.json",
        "export_format": "json",
        "safety_factor": 1.1,
        "keep_logs": 30 * 86400.0,
        "disk_reserve": 64 * 1024**2,
    }
    assert config.log.model_dump() == {"file": "", "level": "info"}
    assert config.devices.model_dump() == {
        "backend": "auto",
        "include": [],
        "exclude": [],
        "margin": 512 * 1024**2,
        "mix_models": False,
        "accept_unknown": False,
        "max_cells": 0,
        "simulated": [],
    }
    assert config.worker.model_dump() == {
        "command": list(DEFAULT_COMMAND),
        "result": "protocol",
        "pattern": "",
        "sample": "",
        "timeout": 3600.0,
        "fetch_timeout": 3600.0,
        "grace": 10.0,
        "python": "",
        "env": {},
        "wrapper": [],
        "memory_max": 0,
        "pids_max": 0,
    }
    assert config.retry.model_dump() == {
        "batch_ladder": [4, 2, 1],
        "max_attempts": 4,
        "backoff": 30.0,
        "quick": 60.0,
        "patience": 86400.0,
    }
    assert config.scorer.source == config.control.group == ""


def test_outputs_are_beside_the_config_by_default(settings_of: Read, tmp_path: Path) -> None:
    """Without systemd, outputs are the config folder's and the state is the user's."""
    settings = settings_of('[log]\nfile = "a.log"\n' + SCRIPT)
    assert settings.state_dir == tmp_path / "home/.local/state/boundd"
    assert settings.socket == settings.state_dir / "boundd.sock"
    assert settings.export == tmp_path / "speedup_bounds.json"
    assert settings.log_file == tmp_path / "a.log"


def test_outputs_are_in_systemds_folders(settings_of: Read, tmp_path: Path) -> None:
    """systemd's folders take the outputs, and the inputs stay beside the config."""
    text = SCRIPT + '[models.X]\nsource = "./x"\n[daemon]\nexport = "out.json"\n'
    settings = settings_of(text, STATE_DIRECTORY="/s:/t", RUNTIME_DIRECTORY="/r")
    assert settings.state_dir == Path("/s")
    assert settings.socket == Path("/r/boundd.sock")
    assert settings.export == Path("/s/out.json")
    assert settings.models["X"].source == str(tmp_path / "x")


def test_no_export_and_absolute_paths(settings_of: Read) -> None:
    """An empty export is none; absolute paths and the home stay what they are."""
    settings = settings_of(SCRIPT + '[daemon]\nexport = ""\nstate_dir = "~/st"\nsocket = "/tmp/b.sock"')
    assert settings.export is None
    assert settings.state_dir.parts[-2:] == ("home", "st")
    assert settings.socket == Path("/tmp/b.sock")


def test_hub_ids_stay_hub_ids(settings_of: Read, tmp_path: Path) -> None:
    """A source is a folder where one is there, or where it looks like a path."""
    (tmp_path / "here").mkdir()
    settings = settings_of(SCRIPT + '[models.A]\nsource = "org/name"\n[models.B]\nsource = "here"\n')
    assert settings.models["A"].source == "org/name"
    assert settings.models["B"].source == str(tmp_path / "here")


def test_an_interpreter_by_name_is_left_to_the_path(settings_of: Read, tmp_path: Path) -> None:
    """A bare name is looked up in $PATH; a relative path is beside the config."""
    worker = SCRIPT.replace("[worker]", '[worker]\npython = "{}"', 1)
    assert settings_of(worker.replace('"{}"', '"python3"')).worker_python == "python3"
    assert settings_of(worker.replace('"{}"', '"venv/bin/python"')).worker_python == str(tmp_path / "venv/bin/python")


def test_later_rules_win_key_by_key(settings_of: Read) -> None:
    """A rule changes only the keys that it has."""
    settings = settings_of(
        '[[rule]]\nmatch = {}\ntimeout = "2h"\nexclusive = true\n[[rule]]\nmatch = { a = [2, 3] }\ntimeout = "3h"\n'
        'grace = "1m"\nfootprint = "1GiB"\n[[rule]]\nmatch = { a = 2 }\nexclusive = false\nlease = true\n' + SCRIPT
    )
    (_, first), (_, second) = settings.cells
    assert (first.timeout_s, first.exclusive, first.grace_s, first.footprint_bytes) == (7200, True, 10, None)
    assert (second.timeout_s, second.exclusive, second.grace_s, second.footprint_bytes) == (10800, False, 60, 2**30)
    assert (first.lease, second.lease) == (False, True)


def test_a_worker_is_wrapped_and_limited(settings_of: Read) -> None:
    """The wrapper comes first, its placeholders filled; a rule may raise a limit, or take it away with ""."""
    settings = settings_of(
        '[worker]\ncommand = ["run.sh", "{a}"]\nwrapper = ["nice", "--label={label}"]\n'
        'memory_max = "1GiB"\npids_max = 10\n'
        '[matrix.axes]\na = [1, 2, 3]\n[[rule]]\nmatch = { a = 2 }\nmemory_max = "2GiB"\n'
        '[[rule]]\nmatch = { a = 3 }\nmemory_max = ""\npids_max = 0\n'
    )
    assert command_for(settings, settings.cells[1][0], None, "python") == ("nice", "--label=2", "run.sh", "2")
    limits = [(policy.memory_max_bytes, policy.pids_max) for _, policy in settings.cells]
    assert limits == [(1024**3, 10), (2 * 1024**3, 10), (0, 0)]


def test_a_protocol_worker_takes_the_lease(settings_of: Read) -> None:
    """Only a script that reads nothing of boundd must be alone by default."""
    assert settings_of(SCRIPT.replace('"stdout"', '"protocol"')).cells[0][1].lease


HOSTILE = ["; rm -rf /", "$(id)", "a b\nc", "'\"", "{python}", "{{", "--help", "*", "é", ""]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_stays_one_argument(settings_of: Read, value: str) -> None:
    """Nothing in a value is split, expanded or filled again."""
    settings = settings_of(f'[worker]\ncommand = ["run.sh", "x={{a}}"]\n[matrix.axes]\na = [{json.dumps(value)}]')
    assert command_for(settings, settings.cells[0][0], None, "/py") == ("run.sh", f"x={value}")


def test_a_command_is_filled(settings_of: Read) -> None:
    """Numbers, lists, braces, the label, the interpreter and this attempt's batch."""
    settings = settings_of(
        '[worker]\ncommand = ["{python}", "{label}", "{a}", "{b}", "{{{c}}}", "{batch_size}"]\n'
        "[matrix.axes]\na = [1.5]\n[matrix.constants]\nb = [1, {x = 2}]\nc = true\nbatch_size = 4"
    )
    cell = settings.cells[0][0]
    assert command_for(settings, cell, 2, "/py") == ("/py", "1.5", "1.5", '[1,{"x":2}]', "{true}", "2")
    assert command_for(settings, cell, None, "/py")[-1] == "4"


def test_a_script_that_needs_an_index_can_have_it(settings_of: Read) -> None:
    """NVML's, of the attempt's device; the name is taken, as that of the other placeholders is."""
    settings = settings_of('[worker]\ncommand = ["run.sh", "--gpu={device_index}"]\n[matrix.axes]\na = [1]')
    assert command_for(settings, settings.cells[0][0], None, "/py", 3) == ("run.sh", "--gpu=3")
    with pytest.raises(ConfigError, match=r"matrix\.axes\.device_index: .* already means something else"):
        settings_of('[worker]\ncommand = ["run.sh"]\n[matrix.axes]\ndevice_index = [1]')


@given(st.text(), st.text())
def test_escaped_braces_come_back(text: str, value: str) -> None:
    """Any text can be written in a command, and a value is never read as a template."""
    template = text.replace("{", "{{").replace("}", "}}")
    assert placeholders(template + "{v}") == ("v",)
    assert fill(template + "{v}", {"v": value}) == text + value


def test_the_workers_values_survive_the_environment(settings_of: Read) -> None:
    """What the worker reads back from its environment is what the config said."""
    settings = load(ROOT / "config.toml", {})
    cell = settings.cells[0][0]
    sent = WorkerEnvironment(model=model_value(settings, cell), scorer=scorer_value(settings))
    assert WorkerEnvironment.from_environ(sent.to_environ()) == sent
    assert sent.model == {
        "source": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "weights": "pretrained",
        "dtype": "float16",
    }
    silent = settings_of(SCRIPT)
    assert (model_value(silent, silent.cells[0][0]), scorer_value(silent)) == (None, None)
    assert scorer_value(settings_of(SCRIPT + '[scorer]\nsource = ""')) == {"source": ""}


def test_the_shipped_config_is_the_81_cell_matrix() -> None:
    """The shipped config is what it promises."""
    settings = load(ROOT / "config.toml", {})
    assert len(settings.cells) == 81
    assert settings.axes == {
        "model": ("SD1.5", "SD2.1", "SDXL"),
        "scheduler": ("DDIM", "DPM-Solver++", "UniPC"),
        "steps": (20, 25, 50),
        "method": ("deepcache", "tgate", "tome"),
    }
    assert settings.constants == {"num_samples": 32, "batch_size": 4, "tolerance": 0.02}
    assert settings.safety_factor == 1.1
    for cell, policy in settings.cells:
        assert policy.timeout_s == 3600
        assert policy.exclusive == (cell.parameters["model"] == "SDXL")
    assert (settings.state_dir, settings.export) == (ROOT / "boundd-state", ROOT / "speedup_bounds.json")
    assert settings.scorer_source


def test_the_demo_is_27_cells_of_built_in_models() -> None:
    """The demo needs no hub: its models and scorer are built in."""
    settings = load(ROOT / "examples/digits.toml", {})
    assert len(settings.cells) == 27
    assert not settings.models
    assert settings.scorer_source == "builtin"
    assert {policy.timeout_s for _, policy in settings.cells} == {300}


def test_the_script_example_runs_the_old_script() -> None:
    """Somebody's own script gets its old options, and runs alone."""
    settings = load(ROOT / "examples/own-script.toml", {})
    cell, policy = settings.cells[0]
    argv = command_for(settings, cell, cell.batch_size, "/py")
    assert argv[:4] == ("/py", "traversal_search.py", "--pipe", "StableDiffusionPipeline")
    assert settings.worker_result == "stdout"
    assert policy.must_be_alone


def test_commented_keys_of_the_shipped_config_are_valid(tmp_path: Path) -> None:
    """A key that the shipped config shows in a comment can be switched on as it stands."""
    lines = (ROOT / "config.toml").read_text().splitlines()
    shown = ("socket", "file", "level", "backend", "include", "exclude", "margin", "mix_models", "keep_logs", "seed")
    shown += (
        "guidance_scale",
        "grid",
        "budget_s",
        "timeout",
        "grace",
        "footprint",
        "lease",
        "result",
        "backoff",
        "quick",
        "group",
        "others",
    )
    path = tmp_path / "config.toml"
    switched = [line[2:] if line.startswith(tuple(f"# {name} =" for name in shown)) else line for line in lines]
    assert sum(line not in lines for line in switched) == len(shown)
    path.write_text("\n".join(switched))
    assert len(load(path, {"HOME": str(tmp_path)}).cells) == 81


def test_the_config_is_found_in_order(tmp_path: Path) -> None:
    """An option wins over the variable, that over the places; what is named is not replaced."""
    cwd, home = tmp_path / "cwd", tmp_path / "home"
    (home / ".config/boundd").mkdir(parents=True)
    cwd.mkdir()
    named = {"BOUNDD_CONFIG": "/named.toml"}
    assert find_config("mine.toml", named, cwd, home) == cwd / "mine.toml"
    assert find_config(None, named, cwd, home) == Path("/named.toml")
    (home / ".config/boundd/config.toml").touch()
    assert find_config(None, {}, cwd, home) == home / ".config/boundd/config.toml"
    (cwd / "config.toml").touch()
    assert find_config(None, {}, cwd, home) == cwd / "config.toml"


@pytest.mark.skipif(Path("/etc/boundd/config.toml").exists(), reason="this machine has a config for all users")
def test_no_config_lists_where_it_looked(tmp_path: Path) -> None:
    """The error says all places, and how to name a config."""
    with pytest.raises(ConfigError, match=r"/etc/boundd/config\.toml; name one with --config"):
        find_config(None, {}, tmp_path, tmp_path)


def test_the_state_folder_is_made_for_its_user_alone(settings_of: Read) -> None:
    """The folder and its parents are made; nothing is left in it."""
    settings = settings_of(SCRIPT + '[daemon]\nstate_dir = "a/b"')
    check_writable(settings)
    assert settings.state_dir.stat().st_mode & 0o777 == 0o700
    assert not list(settings.state_dir.iterdir())


def test_a_state_folder_that_cannot_be_written(settings_of: Read, tmp_path: Path) -> None:
    """A file in the way is named, with the reason."""
    (tmp_path / "a").touch()
    settings = settings_of(SCRIPT + '[daemon]\nstate_dir = "a/b"')
    with pytest.raises(ConfigError, match=r"daemon\.state_dir: .*/a/b can't be written to \(Not a directory\)"):
        check_writable(settings)


def _tables(model: type[BaseModel]) -> typing.Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for candidate in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from _tables(candidate)


def test_every_key_is_documented() -> None:
    """Each key has its row in docs/config.md, under its own table's heading, and no row is of a key that is not."""
    text = (ROOT / "docs/config.md").read_text()
    headings = {"ScorerTable": "[scorer]", "ModelTable": '[models."X"]', "RuleTable": "[[rule]]"}
    headings |= {"SimulatedTable": "[[devices.simulated]]"}
    for table in _tables(Config):
        if table is Config:
            continue
        heading = headings.get(table.__name__, f"[{table.__name__.removesuffix('Table').lower()}]")
        section = text.split(f"# {heading}\n")[1].split("\n#")[0]
        if heading == "[devices]":
            assert "# [[devices.simulated]]" in text
        rows = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
        assert rows == set(table.model_fields) - {"simulated"}, heading


ONE_CELL = '[matrix.axes]\nx = [1]\n[worker]\ncommand = ["true"]\n[control]\n'


def test_who_may_use_the_socket(
    settings_of: Callable[..., Settings], errors_of: Callable[..., tuple[str, ...]]
) -> None:
    """The config's group wins over the unit's; others may nothing, unless it says that they may read."""
    alone = settings_of(ONE_CELL)
    assert (alone.control_group, alone.control_others) == ("", "nothing")
    assert settings_of(ONE_CELL, BOUNDD_CONTROL_GROUP="boundd").control_group == "boundd"
    named = settings_of(ONE_CELL + 'group = "lab"\nothers = "read"', BOUNDD_CONTROL_GROUP="boundd")
    assert (named.control_group, named.control_others) == ("lab", "read")
    (error,) = errors_of(ONE_CELL + 'others = "write"')
    assert error.startswith("control.others: ")
    assert "read" in error
