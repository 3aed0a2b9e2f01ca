"""Every error of a config is told, with its key path and what to do, and all of them at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from boundd.config import load
from boundd.ports import ConfigError

Errors = Callable[..., tuple[str, ...]]
SCRIPT = '[worker]\nresult = "stdout"\ncommand = ["run.sh", "{a}"]\n[matrix.axes]\na = [1, 2]\n'
BUILTIN = '[matrix.axes]\nmodel = ["digits-sd15"]\nscheduler = ["DDIM"]\nsteps = [20]\nmethod = ["tome"]\n'
CONSTANTS = "[matrix.constants]\nnum_samples = 8\nbatch_size = 4\n"

VALUES = [
    ('[daemon]\nstate_dr = "x"', "daemon.state_dr: unknown key: did you mean 'state_dir'"),
    ("[deamon]", "deamon: unknown key: did you mean 'daemon'"),
    ('[daemon]\nexport_format = "jsn"', "daemon.export_format: must be one of json, legacy, search-params, csv"),
    ("[daemon]\nsafety_factor = 0.9", "daemon.safety_factor: must be a number of at least 1"),
    ("[daemon]\nsafety_factor = nan", "daemon.safety_factor: must be a number of at least 1"),
    ("[daemon]\nkeep_logs = 30", "daemon.keep_logs: must be a duration"),
    ('[daemon]\nexport = "a\\u0000b"', "daemon.export: holds a NUL"),
    ("[daemon]\nexport = 3", "daemon.export: must be a text in quotes, not 3"),
    ('[log]\nlevel = "loud"', "log.level: must be one of debug, info, warning, error"),
    ('[devices]\nbackend = "cuda"', "devices.backend: must be one of auto, nvml, cpu, simulated"),
    ('[devices]\nmargin = "half"', "devices.margin: 'half' is not a size"),
    ("[devices]\ninclude = [true]", "devices.include[0]: must be a UUID, an index or a name"),
    ('[devices]\nbackend = "simulated"', "devices.simulated: backend is"),
    ('[[devices.simulated]]\nname = "a"\nmemory = "1GiB"', 'devices.simulated: is only for backend = "simulated"'),
    ('[[devices.simulated]]\nname = "a"', "devices.simulated[0].memory: is missing"),
    ("[retry]\nbatch_ladder = [4, 4]", "retry.batch_ladder: must go strictly down"),
    ("[retry]\nbatch_ladder = [4, 0]", "retry.batch_ladder: must hold positive"),
    ("[retry]\nmax_attempts = 0", "retry.max_attempts: must be at least 1"),
    ('[retry]\nmax_attempts = "4"', "retry.max_attempts: must be a whole number"),
    ('[[rule]]\ntimeout = "1h"', "rule[0].match: is missing"),
    ('[[rule]]\nmatch = {}\ntimeout = "0s"', "rule[0].timeout: must be longer"),
    ("[[rule]]\nmatch = { aa = 1 }", "rule[0].match.aa: is no axis and no constant: did you mean 'a'"),
    ('[models."X 1"]\nsource = ""', 'models."X 1".source: is empty'),
    ('[models.X]\nsource = "y"\nweights = "random"', 'models.X.weights: "random" builds SD1.5, SD2.1, SDXL only'),
    ('[models.X]\ndtype = "float32"', "models.X.source: is missing: give a hub id, or a folder"),
    ('[models.X]\nsource = "y"\ndtype = "int8"', "models.X.dtype: must be one of"),
    ("[matrix.constants]\na = 1", "matrix.constants.a: is an axis too"),
    ("[matrix.constants]\nb = 2026-01-01", "matrix.constants.b: is a date"),
    ("[matrix.constants]\nb = nan", "matrix.constants.b: is nan"),
    ("[matrix.constants]\nb = [inf]", "matrix.constants.b: is inf"),
    ("[matrix.constants]\nb = 99999999999999999999", "matrix.constants.b: is over 64 bits"),
    ("[matrix.constants]\npython = 1", "matrix.constants.python: {python} already means"),
    ('[matrix.constants]\n"b c" = 1', 'matrix.constants."b c": a name needs'),
    ("[[matrix.exclude]]\nb = 1", "matrix.exclude[0].b: is no axis"),
    ("[[matrix.include]]\n", "matrix.include[0]: gives no value for a"),
    ("[[matrix.exclude]]\na = [1, 2]", "matrix: the matrix has no cells: its 2 are all excluded"),
]


@pytest.mark.parametrize(("text", "expected"), VALUES)
def test_each_error_names_its_key(errors_of: Errors, text: str, expected: str) -> None:
    """One thing is wrong, and one error says what, at its key."""
    errors = errors_of(SCRIPT + text)
    assert len(errors) == 1
    assert errors[0].startswith(expected)


MATRICES = [
    ("a = []", "matrix: the matrix has no cells: the axis 'a' has no values"),
    ("a = [1, 2, 1]", "matrix.axes.a[2]: 1 is already at [0]"),
    ("a = [12:00:00]", "matrix.axes.a[0]: is a time"),
    (f"a = {list(range(1001))}\nb = {list(range(1000))}", "matrix: the matrix has 1,001,000 cells, over the limit"),
]


@pytest.mark.parametrize(("axes", "expected"), MATRICES)
def test_a_matrix_that_cannot_be(errors_of: Errors, axes: str, expected: str) -> None:
    """Zero cells, over a million, values that are there twice or are no JSON."""
    errors = errors_of(f'[worker]\ncommand = ["x"]\n[matrix.axes]\n{axes}')
    assert len(errors) == 1
    assert errors[0].startswith(expected)


COMMANDS = [
    ("command = []", "worker.command: is empty"),
    ('command = [""]', "worker.command: is empty"),
    ('command = ["x", "{model}"]', "worker.command[1]: {model} is no axis and no constant"),
    ('command = ["x", "{a"]', "worker.command[1]: '{a' has a lone '{'"),
    ('command = ["x", "a\\u0000"]', "worker.command[1]: holds a NUL"),
    ('command = ["x", 3]', "worker.command[1]: must be a text"),
    ('command = ["x"]\nenv = { "A=B" = "c" }', 'worker.env."A=B": a variable\'s name'),
    ('command = ["x"]\nenv = { A = "c\\u0000" }', "worker.env.A: holds a NUL"),
    ('command = ["x"]\nenv = { BOUNDD_CELL = "c" }', "worker.env.BOUNDD_CELL: boundd sets this"),
    ('command = ["x"]\nwrapper = [""]', "worker.wrapper: names no program"),
    ('command = ["x"]\nwrapper = ["nice", "{b}"]', "worker.wrapper[1]: {b} is no axis and no constant"),
    ('command = ["x"]\npids_max = -1', "worker.pids_max: must be a number of processes and threads"),
    ('command = ["x"]\nmemory_max = "0GiB"', "worker.memory_max: must be more than 0 bytes"),
    ('command = ["x"]\nresult = "file"', "worker.result: must be one of protocol, stdout"),
]


@pytest.mark.parametrize(("worker", "expected"), COMMANDS)
def test_a_worker_that_cannot_be_started(errors_of: Errors, worker: str, expected: str) -> None:
    """Commands, placeholders and variables that can't be."""
    errors = errors_of(f"[matrix.axes]\na = [1]\n[worker]\n{worker}")
    assert len(errors) == 1
    assert errors[0].startswith(expected)


JUDGED = [
    ('"digits-sd15"', '"SDX"', "matrix.axes.model[0]: unknown model 'SDX'"),
    ('"DDIM"', '"DDMI"', "matrix.axes.scheduler[0]: unknown scheduler 'DDMI': did you mean"),
    ('"DDIM"', '"DDIM", "ddim"', "matrix.axes.scheduler[1]: 'ddim' means the same as 'DDIM'"),
    ('"tome"', '"tomee"', "matrix.axes.method[0]: unknown method 'tomee': did you mean tome"),
    ('"tome"', '"tome+tome"', "matrix.axes.method[0]: 'tome+tome': tome is there twice"),
    ('"tome"', "3", "matrix.axes.method[0]: must be a name"),
    ("[20]", "[0]", "matrix.axes.steps[0]: must be a whole number from 1 to 1000"),
    ("[20]", '["20"]', "matrix.axes.steps[0]: must be a whole number from 1 to 1000"),
    ("num_samples = 8", "num_samples = 0", "matrix.constants.num_samples: must be a whole number"),
    ("batch_size = 4", "batch_size = true", "matrix.constants.batch_size: must be a whole number"),
    (
        "batch_size = 4",
        "batch_size = 4\ntolerance = 1",
        "matrix.constants.tolerance: must be a number from 0",
    ),
    ("batch_size = 4", 'batch_size = 4\ngrid = "fine"', "matrix.constants.grid: must be one of coarse, standard"),
    ("batch_size = 4", "batch_size = 4\nbudget_s = -1", "matrix.constants.budget_s: must be a number"),
    ("batch_size = 4", "batch_size = 4\nresolution = 100", "matrix.constants.resolution: 100 is not a multiple of 8"),
]


@pytest.mark.parametrize(("old", "new", "expected"), JUDGED)
def test_what_the_built_in_worker_cannot_measure(errors_of: Errors, old: str, new: str, expected: str) -> None:
    """Names and values are judged before anything runs, with the reason."""
    errors = errors_of((BUILTIN + CONSTANTS).replace(old, new))
    assert len(errors) == 1
    assert errors[0].startswith(expected)


def test_tgate_needs_guidance(errors_of: Errors, settings_of: Callable[..., object]) -> None:
    """T-GATE without guidance is refused once, with a cell that has both, unless such cells are excluded."""
    axes = BUILTIN.replace('["tome"]', '["tome", "tgate"]') + "guidance_scale = [1, 7.5]\n" + CONSTANTS
    errors = errors_of(axes)
    assert len(errors) == 1
    assert "digits-sd15/DDIM/20/tgate/1: guidance_scale 1 means no guidance" in errors[0]
    settings_of(axes + '[[matrix.exclude]]\nmethod = "tgate"\nguidance_scale = 1')


def test_the_built_in_worker_needs_its_parameters(errors_of: Errors) -> None:
    """A parameter that the matrix and the command both lack is missed."""
    errors = errors_of(f'[worker]\ncommand = ["x", "-m", "boundd.worker"]\n{BUILTIN}'.replace("steps = [20]", ""))
    assert errors == ("matrix.axes: the built-in worker needs 'steps': make it an axis or a constant",)


def test_somebody_elses_values_are_not_judged(settings_of: Callable[..., object]) -> None:
    """A script of somebody's own may mean anything by a scheduler or by steps."""
    settings_of('[worker]\nresult = "stdout"\ncommand = ["x"]\n[matrix.axes]\nscheduler = ["mine"]\nsteps = ["many"]')


def test_all_errors_at_once(errors_of: Errors) -> None:
    """Errors of form and of meaning come together; none follows only from another."""
    errors = errors_of(
        '[daemon]\nstate_dr = "x"\nkeep_logs = "x"\n[retry]\nmax_attempts = 0\n[worker]\nenv = { "A=B" = "c" }\n'
        f'{BUILTIN}{CONSTANTS}[[rule]]\nmatch = {{ modle = "x" }}\n[models.X]\nsource = "y"\nweights = "random"\n'
    )
    paths = {error.split(":")[0] for error in errors}
    expected = {"daemon.state_dr", "daemon.keep_logs", "retry.max_attempts", 'worker.env."A=B"', "rule[0].match.modle"}
    assert paths == {*expected, "models.X.weights"}
    assert len(errors) == len(paths)


def test_a_misspelt_table_is_one_error(errors_of: Errors) -> None:
    """What follows from a table that isn't there is not told beside it."""
    assert len(errors_of("[matrx.axes]\na = [1]\n")) == 1


def test_a_syntax_error_has_its_line(errors_of: Errors) -> None:
    """What is not TOML is told with the line."""
    (error,) = errors_of("[daemon]\nexport = \n")
    assert "is not TOML" in error
    assert "line 2" in error


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000])
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes) -> None:
    """Bytes that aren't text, and text made to break a parser, are the operator's error too."""
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml: is"):
        load(path, {})


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    """The error names the file and the system's reason."""
    with pytest.raises(ConfigError, match=r"nothing\.toml: can't be read: No such file"):
        load(tmp_path / "nothing.toml", {})


def test_a_socket_path_that_is_too_long(errors_of: Errors) -> None:
    """The kernel's limit is told with both lengths."""
    (error,) = errors_of(SCRIPT + f'[daemon]\nsocket = "/{"x" * 107}"')
    assert error.startswith("daemon.socket: ")
    assert "108 bytes" in error
    assert "at most 107" in error
