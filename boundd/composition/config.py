"""A config in force: what a daemon takes up of it, at the start and at a reload, and what needs a restart."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from boundd.composition.versions import versions_of
from boundd.config import Settings, load
from boundd.core.model.events import ConfigLoaded
from boundd.core.model.state import Rules, State
from boundd.launch.cgroups import Cgroups
from boundd.ports import ConfigError
from boundd.service.daemon import NewConfig

AT_START_ONLY: Mapping[str, Callable[[Settings], object]] = {
    "daemon.state_dir": lambda settings: settings.state_dir,
    "daemon.socket": lambda settings: settings.socket,
    "daemon.export": lambda settings: settings.export,
    "daemon.export_format": lambda settings: settings.export_format,
    "daemon.safety_factor": lambda settings: settings.safety_factor,
    "log.file": lambda settings: settings.log_file,
    "devices.backend": lambda settings: settings.device_backend,
    "devices.include": lambda settings: settings.device_include,
    "devices.exclude": lambda settings: settings.device_exclude,
    "devices.simulated": lambda settings: settings.simulated_devices,
    "devices.accept_unknown": lambda settings: settings.accept_unknown,
    "control.group": lambda settings: settings.control_group,
    "control.others": lambda settings: settings.control_others,
}
"""The keys that a running daemon can't take up. A reload that changes one is refused whole, and names it."""


def config_loaded(settings: Settings) -> ConfigLoaded:
    """The event that puts a config in force."""
    rules = Rules(
        margin_bytes=settings.margin_bytes,
        mix_models=settings.mix_models,
        max_cells=settings.max_cells,
        torch=versions_of(settings)("torch") or "",
        batch_ladder=settings.batch_ladder,
        max_attempts=settings.max_attempts,
        backoff_s=settings.backoff_s,
        quick_s=settings.quick_s,
        patience_s=settings.patience_s,
        disk_reserve_bytes=settings.disk_reserve_bytes,
        result_is_printed=settings.worker_result == "stdout",
        result_pattern=settings.worker_pattern,
    )
    return ConfigLoaded(settings.cells, rules, settings)


def settings_of(state: State) -> Settings:
    """The settings in force."""
    assert isinstance(state.settings, Settings), "only a config's settings are ever put in force"
    return state.settings


def read_anew(started_with: Settings, groups: Cgroups, environ: Mapping[str, str] = os.environ) -> NewConfig:
    """The config as its file is now, for a daemon that was started with other settings.

    Raises:
        ConfigError: it has errors, or differs in what needs a restart: every such key is named.
    """
    new = load(started_with.config_path, environ)
    changed = [key for key, value in AT_START_ONLY.items() if value(new) != value(started_with)]
    if changed:
        raise ConfigError([f"{key}: takes effect at a restart only; put it back, or restart" for key in changed])
    check_limits(new, groups)
    return NewConfig(config_loaded(new), f"{new.config_path}: {len(new.cells)} cells")


def check_limits(settings: Settings, groups: Cgroups) -> None:
    """See at start, not cell by cell, that the limits of the config can be kept to here.

    Raises:
        ConfigError: they can't; it says why.
    """
    policies = [policy for _, policy in settings.cells]
    lacking = groups.lacking(
        memory_max_bytes=max((policy.memory_max_bytes for policy in policies), default=0),
        pids_max=max((policy.pids_max for policy in policies), default=0),
    )
    if lacking:
        raise ConfigError([f"worker.memory_max, worker.pids_max: {lacking}: take them out, or see docs/systemd.md"])
