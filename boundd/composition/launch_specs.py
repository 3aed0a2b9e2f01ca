"""How a worker is started: an attempt and the settings in force, as a command, an environment and limits."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from boundd.catalogue.backends import BACKENDS
from boundd.composition.config import settings_of
from boundd.config import Settings, command_for, model_value, scorer_value
from boundd.core.model.attempts import Attempt, attempt_id
from boundd.core.model.cells import Cell
from boundd.core.model.state import State
from boundd.ports import LaunchSpec
from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lease import lease_use
from boundd.service.log_reading import kept_lines

LEASES_NAME = "leases"
"""The folder of the devices' leases, in the state folder: a RuntimeDirectory is made anew at each restart."""


def launch_spec(environ: Mapping[str, str], attempt: Attempt, cell: Cell, state: State) -> LaunchSpec:
    """What is needed to run an attempt by the settings in force: its command, its environment, its limits."""
    settings = settings_of(state)
    device = state.devices.get(attempt.device)
    device_index = 0 if device is None else device.reading.index
    return LaunchSpec(
        attempt_id=attempt.id,
        argv=command_for(settings, cell, attempt.batch_size, sys.executable, device_index),
        env={
            **environ,
            **worker_environment(settings, attempt, cell, state),
            **settings.worker_env,
        },
        cwd=settings.config_folder,
        timeout_s=attempt.timeout_s,
        grace_s=attempt.grace_s,
        kept_lines=kept_lines(from_stdout=settings.worker_result == "stdout", pattern=settings.worker_pattern),
        fetch_timeout_s=settings.worker_fetch_timeout_s,
        memory_max_bytes=state.cells[attempt.key].policy.memory_max_bytes,
        pids_max=state.cells[attempt.key].policy.pids_max,
        device=attempt.device,
        earlier_attempts=tuple(attempt_id(cell, number) for number in range(1, attempt.number)),
    )


def worker_environment(settings: Settings, attempt: Attempt, cell: Cell, state: State) -> Mapping[str, str]:
    """The protocol's variables for an attempt, and those that name its device."""
    device = state.devices.get(attempt.device)
    kind = device.reading.kind if device is not None else BACKENDS["nvml"]
    environment = WorkerEnvironment(
        cell=dict(cell.parameters),
        attempt=attempt.id,
        memory_cap_bytes=attempt.cap_bytes,
        batch_size=attempt.batch_size,
        model=model_value(settings, cell),
        scorer=scorer_value(settings),
        fetch_timeout_s=max(1, round(settings.worker_fetch_timeout_s)),
    )
    return {**environment.to_environ(), **kind.environment(attempt.device), "PYTHONUNBUFFERED": "1"}


def is_timed(settings: Settings, device: str) -> bool:
    """Whether a worker holds the device's lease for timing at this instant."""
    return bool(lease_use(settings.state_dir / LEASES_NAME / device).timing)
