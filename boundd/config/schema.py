"""The config's tables and keys, with their types and defaults: what can be said about each value alone.

Rules: what depends on several keys is in `checks`; what depends on the environment is in `settings`. A key that is not
here is an error. Values are taken as they are written: no text becomes a number.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from boundd.api.constants import ExportFormat
from boundd.catalogue.backends import AUTO, BACKENDS
from boundd.catalogue.options import OPTIONS
from boundd.config.units import parse_duration, parse_size

DEFAULT_COMMAND = (
    *("{python}", "-m", "boundd.worker", "--pipe", "{model}", "--sched", "{scheduler}", "--steps", "{steps}"),
    *("--search_targets", "{method}", "--num_samples", "{num_samples}", "--batch_size", "{batch_size}"),
)


def _positive_size(value: object) -> int:
    size_bytes = parse_size(value)
    if size_bytes == 0:
        raise ValueError("must be more than 0 bytes")
    return size_bytes


def _positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise ValueError("must be longer than 0 seconds")
    return seconds


def _limit(value: object) -> int:
    return 0 if value == "" else _positive_size(value)


def _count_limit(value: int) -> int:
    if value < 0:
        raise ValueError(f"must be a number of processes and threads, such as 4096, or 0 for no limit, not {value}")
    return value


def _plain(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character, which no path, argument or name can hold: take it out")
    return value


def _filled(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty: give it a value")
    return value


def _device_name(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f'must be a UUID, an index or a name, such as "GPU-8a2f…" or 0, not {value!r}')
    return _plain(str(value))


def _safety_factor(value: float) -> float:
    if not math.isfinite(value) or value < 1:
        raise ValueError(f"must be a number of at least 1, such as 1.1, not {value}: less would be no upper bound")
    return value


def _ladder(value: list[int]) -> list[int]:
    if any(batch < 1 for batch in value):
        raise ValueError(f"must hold positive batch sizes, such as [4, 2, 1], not {value}")
    if any(first <= second for first, second in pairwise(value)):
        raise ValueError(f"must go strictly down, such as [4, 2, 1], not {value}")
    return value


def _attempts(value: int) -> int:
    if value < 1:
        raise ValueError(f"must be at least 1, not {value}: a cell needs an attempt to have a result")
    return value


def _cores(value: int) -> int:
    if value < 0:
        raise ValueError(f"must be a number of cores, such as 2, or 0 for cells that aren't to be counted, not {value}")
    return value


def _max_cells(value: int) -> int:
    if value < 0:
        raise ValueError(f"must be a number of cells, such as 4, or 0 for as many as fit, not {value}")
    return value


def _backend(value: str) -> str:
    known = (AUTO, *BACKENDS)
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)}, not {value!r}")
    return value


def _option(name: str) -> AfterValidator:
    """What the built-in worker takes for the option of this name."""
    option = OPTIONS[name]

    def checked(value: str) -> str:
        if problem := option.problem(value):
            raise ValueError(problem)
        return value

    return AfterValidator(checked)


Size = Annotated[int, BeforeValidator(parse_size)]
Limit = Annotated[int, BeforeValidator(_limit)]
"""A size, 0 for none, which is written ""."""
CountLimit = Annotated[int, AfterValidator(_count_limit)]
PositiveSize = Annotated[int, BeforeValidator(_positive_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
PositiveDuration = Annotated[float, BeforeValidator(_positive_duration)]
Text = Annotated[str, AfterValidator(_plain)]
FilledText = Annotated[str, AfterValidator(_plain), AfterValidator(_filled)]
DeviceName = Annotated[str, BeforeValidator(_device_name)]


BackendName = Annotated[str, AfterValidator(_backend)]
Weights = Annotated[str, _option("weights")]
Dtype = Annotated[str, _option("dtype")]


class Table(BaseModel):
    """A table of the config: its keys and no others, unchangeable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DaemonTable(Table):
    """[daemon]; an empty path means its default, and an empty export means none."""

    state_dir: Text = ""
    socket: Text = ""
    export: Text = "speedup_bounds.json"
    export_format: ExportFormat = "json"
    safety_factor: Annotated[float, AfterValidator(_safety_factor)] = 1.1
    keep_logs: Duration = 30 * 86400.0
    disk_reserve: Size = 64 * 1024**2


class LogTable(Table):
    """[log]."""

    file: Text = ""
    level: Literal["debug", "info", "warning", "error"] = "info"


class SimulatedTable(Table):
    """[[devices.simulated]]."""

    name: FilledText
    memory: PositiveSize


class DevicesTable(Table):
    """[devices]."""

    backend: BackendName = AUTO
    include: list[DeviceName] = []
    exclude: list[DeviceName] = []
    margin: Size = 512 * 1024**2
    mix_models: bool = False
    accept_unknown: bool = False
    max_cells: Annotated[int, AfterValidator(_max_cells)] = 0
    simulated: list[SimulatedTable] = []


class MatrixTable(Table):
    """[matrix]: names and values are the user's own; `checks` looks at them."""

    axes: dict[str, list[Any]] = {}
    constants: dict[str, Any] = {}
    exclude: list[dict[str, Any]] = []
    include: list[dict[str, Any]] = []


class RuleTable(Table):
    """[[rule]]: what it says about the cells that it matches; None where it says nothing."""

    match: dict[str, Any]
    exclusive: bool | None = None
    timeout: PositiveDuration | None = None
    grace: Duration | None = None
    footprint: PositiveSize | None = None
    lease: bool | None = None
    host_memory: Size | None = None
    cores: Annotated[int, AfterValidator(_cores)] | None = None
    memory_max: Limit | None = None
    pids_max: CountLimit | None = None


class WorkerTable(Table):
    """[worker]."""

    command: list[Text] = list(DEFAULT_COMMAND)
    wrapper: list[Text] = []
    result: Literal["protocol", "stdout"] = "protocol"
    pattern: Text = ""
    sample: Text = ""
    timeout: PositiveDuration = 3600.0
    fetch_timeout: PositiveDuration = 3600.0
    grace: Duration = 10.0
    python: Text = ""
    env: dict[str, Text] = {}
    memory_max: Limit = 0
    pids_max: CountLimit = 0


class ModelTable(Table):
    """[models."X"]."""

    source: FilledText = ""  # needed but for random weights; `checks` sees to it
    weights: Weights = "pretrained"
    dtype: Dtype = "float16"
    pipeline: Text = ""


class ScorerTable(Table):
    """[scorer]."""

    source: Text = ""


class RetryTable(Table):
    """[retry]."""

    batch_ladder: Annotated[list[int], AfterValidator(_ladder)] = [4, 2, 1]
    max_attempts: Annotated[int, AfterValidator(_attempts)] = 4
    backoff: Duration = 30.0
    quick: PositiveDuration = 60.0
    patience: Duration = 86400.0


class ControlTable(Table):
    """[control]."""

    group: Text = ""
    others: Literal["nothing", "read"] = "nothing"


class Config(Table):
    """The whole file."""

    daemon: DaemonTable = Field(default_factory=DaemonTable)
    log: LogTable = Field(default_factory=LogTable)
    devices: DevicesTable = Field(default_factory=DevicesTable)
    matrix: MatrixTable = Field(default_factory=MatrixTable)
    rule: list[RuleTable] = []
    worker: WorkerTable = Field(default_factory=WorkerTable)
    models: dict[str, ModelTable] = {}
    scorer: ScorerTable = Field(default_factory=ScorerTable)
    retry: RetryTable = Field(default_factory=RetryTable)
    control: ControlTable = Field(default_factory=ControlTable)
