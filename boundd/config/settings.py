"""A config, read, checked and expanded: what the daemon works by.

Rules: a config is taken whole or not at all; all of its errors are told at once. Settings are values: reading them
touches no file but the config itself.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from boundd.catalogue.models import RANDOM_MODELS
from boundd.config import paths
from boundd.config.builtin_checks import cells_errors
from boundd.config.checks import semantic_errors
from boundd.config.command import BUILTIN_WORKER, as_argument, fill
from boundd.config.reading import read_tables, read_toml
from boundd.config.schema import Config, ModelTable, RuleTable
from boundd.config.state_folder import lacking
from boundd.core.model.cells import Cell, CellPolicy, Parameters
from boundd.core.model.matrix import MatrixError, expand, matches
from boundd.ports import ConfigError
from boundd.protocol.strict_json import Json
from boundd.results.bounds import BoundRules

GROUP_VARIABLE = "BOUNDD_CONTROL_GROUP"
"""The unit for systemd sets it to the group that it made for this purpose."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """Where a model comes from: `source` is a hub id or an absolute folder; `pipeline` a class name, or empty."""

    source: str
    weights: str
    dtype: str
    pipeline: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A config with nothing left to look up. All paths are absolute.

    Attributes:
        safety_factor: an upper bound is this times a measured maximum.
        accept_unknown: whether what nobody attests to have had its device alone makes a bound too.
        max_cells: attempts at a time on one device; 0 where memory alone decides.
        simulated_devices: (name, bytes of memory) each.
        worker_pattern: where the result is in what a worker prints; '' for `speedup: X`.
        worker_sample: some of what it prints, which the pattern has been tried on; '' for none.
        cells: the matrix with the rules applied, in the order of the axes.
        worker_python: the interpreter for `{python}`, or '' for the daemon's own.
        scorer_source: None where the config doesn't say, '' for none.
        backoff_s: the wait before a cell that failed is tried once more.
        quick_s: a plain failure within so long of the start speaks against the device.
        patience_s: for how long attempts that the environment fails are tried again for nothing.
        worker_fetch_timeout_s: how long a worker may fetch models while its deadline stands still.
        control_group: the group that may change things over the socket; '' for the daemon's own user and root alone.
        control_others: what everybody else may do there: 'nothing' or 'read'.
    """

    config_path: Path
    config_folder: Path
    state_dir: Path
    socket: Path
    export: Path | None
    export_format: str
    safety_factor: float
    accept_unknown: bool
    keep_logs_s: float
    disk_reserve_bytes: int
    log_file: Path | None
    log_level: str
    device_backend: str
    device_include: tuple[str, ...]
    device_exclude: tuple[str, ...]
    margin_bytes: int
    mix_models: bool
    max_cells: int
    simulated_devices: tuple[tuple[str, int], ...]
    axes: Mapping[str, tuple[Any, ...]]
    constants: Parameters
    cells: tuple[tuple[Cell, CellPolicy], ...]
    worker_command: tuple[str, ...]
    worker_result: str
    worker_pattern: str
    worker_sample: str
    worker_timeout_s: float
    worker_grace_s: float
    worker_fetch_timeout_s: float
    worker_python: str
    worker_env: Mapping[str, str]
    models: Mapping[str, ModelEntry]
    scorer_source: str | None
    batch_ladder: tuple[int, ...]
    max_attempts: int
    backoff_s: float
    quick_s: float
    patience_s: float
    control_group: str
    control_others: Literal["nothing", "read"]

    @property
    def bound_rules(self) -> BoundRules:
        """What makes a bound of a measurement."""
        return BoundRules(self.safety_factor, self.accept_unknown)


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read the config at `path`.

    Args:
        path: of the TOML file; its folder is what relative inputs are relative to.
        environ: for STATE_DIRECTORY, RUNTIME_DIRECTORY, HOME and BOUNDD_CONTROL_GROUP.

    Raises:
        ConfigError: everything that is wrong with it, a line each: `key.path: what is wrong, what to do`.
    """
    config_path = path.absolute()
    reading = read_tables(read_toml(config_path))
    config = reading.config
    errors = [*reading.errors, *semantic_errors(reading)]
    places = paths.places(config, config_path.parent, environ)
    if "daemon" not in reading.tainted:
        errors += places.errors()
    cells: tuple[Cell, ...] = ()
    if "matrix" not in reading.tainted and not any(error.startswith("matrix.") for error in errors):
        try:
            cells = _expand(config)
        except MatrixError as error:
            errors.append(f"matrix: {error}: {_matrix_help(config)}")
        if "worker" not in reading.tainted:
            errors += cells_errors(config, cells)
    if errors:
        raise ConfigError(errors)
    return _settings(config, config_path, places, environ, cells)


def command_for(
    settings: Settings, cell: Cell, batch_size: int | None, python: str, device_index: int = 0
) -> tuple[str, ...]:
    """The worker's command line for one attempt: an argument for each of the config's, whatever the values hold.

    Args:
        batch_size: of this attempt, which the ladder may have lowered; None for the cell's own.
        python: the daemon's own interpreter, used where the config names none.
        device_index: NVML's index of the attempt's device; 0 for the CPU.
    """
    values = {name: as_argument(value) for name, value in cell.parameters.items()}
    if batch_size is not None:
        values["batch_size"] = str(batch_size)
    values |= {"label": cell.label.replace("\0", ""), "python": settings.worker_python or python}
    values["device_index"] = str(device_index)
    return tuple(fill(template, values) for template in settings.worker_command)


def model_value(settings: Settings, cell: Cell) -> Mapping[str, Json] | None:
    """What BOUNDD_MODEL holds for this cell; None where the config has no entry for its model."""
    entry = settings.models.get(str(cell.parameters.get("model")))
    return None if entry is None else {"source": entry.source, "weights": entry.weights, "dtype": entry.dtype}


def scorer_value(settings: Settings) -> Mapping[str, Json] | None:
    """What BOUNDD_SCORER holds; None where the config says nothing of a scorer."""
    return None if settings.scorer_source is None else {"source": settings.scorer_source}


def check_writable(settings: Settings) -> None:
    """Make the state folder, for this user alone, and see that a file can be put there.

    Raises:
        ConfigError: it can't be made or written to, or its file system can't hold it; names the path and the reason.
    """
    folder = settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if problem := lacking(folder):
            raise ConfigError([f"daemon.state_dir: {problem}"])
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            return  # A full or failing disk is no error of the config: it passes, and whoever needs it says so.
        reason = error.strerror or str(error)
        raise ConfigError(
            [f"daemon.state_dir: {folder} can't be written to ({reason}): choose another folder"]
        ) from None


def _expand(config: Config) -> tuple[Cell, ...]:
    matrix = config.matrix
    return expand(matrix.axes, matrix.constants, matrix.exclude, matrix.include)


def _matrix_help(config: Config) -> str:
    if not config.matrix.axes:
        return 'add [matrix.axes], such as method = ["deepcache", "tome"]'
    return "change its axes and excludes"


def _settings(
    config: Config,
    config_path: Path,
    places: paths.Places,
    environ: Mapping[str, str],
    cells: tuple[Cell, ...],
) -> Settings:
    folder = config_path.parent
    scorer_is_given = "source" in config.scorer.model_fields_set
    return Settings(
        config_path=config_path,
        config_folder=folder,
        state_dir=places.state_dir,
        socket=places.socket,
        export=places.export,
        export_format=config.daemon.export_format,
        safety_factor=config.daemon.safety_factor,
        accept_unknown=config.devices.accept_unknown,
        keep_logs_s=config.daemon.keep_logs,
        disk_reserve_bytes=config.daemon.disk_reserve,
        log_file=places.log_file,
        log_level=config.log.level,
        device_backend=config.devices.backend,
        device_include=tuple(config.devices.include),
        device_exclude=tuple(config.devices.exclude),
        margin_bytes=config.devices.margin,
        mix_models=config.devices.mix_models,
        max_cells=config.devices.max_cells,
        simulated_devices=tuple((device.name, device.memory) for device in config.devices.simulated),
        axes=MappingProxyType({name: tuple(values) for name, values in config.matrix.axes.items()}),
        constants=MappingProxyType(dict(config.matrix.constants)),
        cells=_with_policies(config, cells, paths.program(folder, config.worker.python, environ)),
        worker_command=(*config.worker.wrapper, *config.worker.command),
        worker_result=config.worker.result,
        worker_pattern=config.worker.pattern,
        worker_sample=config.worker.sample,
        worker_timeout_s=config.worker.timeout,
        worker_grace_s=config.worker.grace,
        worker_fetch_timeout_s=config.worker.fetch_timeout,
        worker_python=paths.program(folder, config.worker.python, environ),
        worker_env=MappingProxyType(dict(config.worker.env)),
        models=_models(config, folder, environ),
        scorer_source=paths.source(folder, config.scorer.source, environ) if scorer_is_given else None,
        batch_ladder=tuple(config.retry.batch_ladder),
        max_attempts=config.retry.max_attempts,
        backoff_s=config.retry.backoff,
        quick_s=config.retry.quick,
        patience_s=config.retry.patience,
        control_group=config.control.group or environ.get(GROUP_VARIABLE, ""),
        control_others=config.control.others,
    )


def _models(config: Config, folder: Path, environ: Mapping[str, str]) -> Mapping[str, ModelEntry]:
    return MappingProxyType(
        {
            name: ModelEntry(_source(model, folder, environ), model.weights, model.dtype, model.pipeline)
            for name, model in config.models.items()
        }
    )


def _source(model: ModelTable, folder: Path, environ: Mapping[str, str]) -> str:
    # With random weights it is an architecture's name, even where there is a folder of that name.
    return model.source if model.weights == "random" else paths.source(folder, model.source, environ)


def _with_policies(config: Config, cells: Iterable[Cell], python: str) -> tuple[tuple[Cell, CellPolicy], ...]:
    """Each cell with its policy. Cells that the same rules match share one, because a matrix may be large."""
    known: dict[tuple[str, str, tuple[int, ...]], CellPolicy] = {}
    first = next(iter((*config.worker.wrapper, *config.worker.command)), "")
    pairs = []
    for cell in cells:
        model = str(cell.parameters.get("model", ""))
        matching = tuple(i for i, rule in enumerate(config.rule) if matches(rule.match, cell.parameters))
        program = first
        if "{" in first:
            values = {name: as_argument(value) for name, value in cell.parameters.items()}
            program = fill(first, {**values, "label": cell.label, "python": python})
        kind = program, model, matching
        if kind not in known:
            policy = _policy(config, model, [config.rule[i] for i in matching])
            known[kind] = replace(policy, program=program)
        pairs.append((cell, known[kind]))
    return tuple(pairs)


def _policy(config: Config, model: str, rules: Iterable[RuleTable]) -> CellPolicy:
    # A script of somebody's own does not know the lease, and must not be timed beside others.
    exclusive, lease = False, config.worker.result == "protocol"
    timeout_s, grace_s, footprint_bytes = config.worker.timeout, config.worker.grace, None
    memory_max_bytes, pids_max = config.worker.memory_max, config.worker.pids_max
    # The built-in worker computes in one thread; of a script of somebody's own nobody knows, and nothing is counted.
    builtin = BUILTIN_WORKER in config.worker.command
    host_memory_bytes, cores = None, 1 if builtin else 0
    for rule in rules:
        exclusive = exclusive if rule.exclusive is None else rule.exclusive
        timeout_s = timeout_s if rule.timeout is None else rule.timeout
        grace_s = grace_s if rule.grace is None else rule.grace
        footprint_bytes = footprint_bytes if rule.footprint is None else rule.footprint
        lease = lease if rule.lease is None else rule.lease
        memory_max_bytes = memory_max_bytes if rule.memory_max is None else rule.memory_max
        pids_max = pids_max if rule.pids_max is None else rule.pids_max
        host_memory_bytes = host_memory_bytes if rule.host_memory is None else rule.host_memory
        cores = cores if rule.cores is None else rule.cores
    entry = config.models.get(model)
    return CellPolicy(
        exclusive,
        timeout_s,
        grace_s,
        footprint_bytes,
        lease,
        memory_max_bytes=memory_max_bytes,
        pids_max=pids_max,
        dtype="" if entry is None else entry.dtype,
        architecture=entry.source if entry is not None and entry.source in RANDOM_MODELS else model,
        builtin=builtin,
        host_memory_bytes=host_memory_bytes,
        cores=cores,
    )
