"""`boundd doctor`: what this machine has, and what would not work."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boundd import __version__
from boundd.catalogue import libraries
from boundd.catalogue.models import BUILTIN_MODELS
from boundd.cli.text import safe
from boundd.core.model.devices import DeviceReading
from boundd.devices.environment_checks import check_environment
from boundd.ports import ConfigError, DeviceError

if TYPE_CHECKING:
    from boundd.config import Settings

WORKER_LIBRARIES = (*libraries.MEASURING, *libraries.BUILTIN_METHODS)
EXIT_USAGE = 2
EXIT_NO_DEVICE = 6
LITTLE_DISK_BYTES = 1024**3


@dataclass(slots=True)
class Findings:
    """What was found; `problems` is what would not work, in sentences."""

    boundd: str = __version__
    python: str = platform.python_version()
    config: str = ""
    devices: list[dict[str, Any]] = field(default_factory=list)
    driver: str = ""
    libraries: dict[str, str | None] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    disk_free_bytes: int | None = None
    lease_folder: str = ""
    surroundings: list[str] = field(default_factory=list)
    """What surrounds the process that people don't see, in sentences."""
    problems: list[str] = field(default_factory=list)
    exit_code: int = 0


def examine(config: Path | None, probe: Callable[..., list[DeviceReading]]) -> Findings:
    """Look at everything, whatever fails on the way. Imports none of the heavy libraries."""
    findings = Findings()
    settings = _settings(config, findings)
    _devices(settings, probe, findings)
    findings.libraries = {name: libraries.installed_version(name) for name in (*libraries.DAEMON, *WORKER_LIBRARIES)}
    missing = [name for name in WORKER_LIBRARIES if findings.libraries[name] is None]
    if missing and (settings is None or not settings.worker_python):
        findings.problems.append(f"not installed: {', '.join(missing)}; `pip install 'boundd[diffusion]'` brings them")
    if settings is not None:
        _models(settings, findings)
        _disk(settings, findings)
    return findings


def _settings(config: Path | None, findings: Findings) -> Settings | None:
    from boundd.config import find_config, load

    try:
        path = find_config(config, os.environ, Path.cwd(), Path.home())
        findings.config = str(path)
        return load(path, os.environ)
    except ConfigError as error:
        findings.problems += [f"config: {line}" for line in error.errors]
        if findings.config:
            findings.exit_code = EXIT_USAGE
        return None


def _devices(settings: Settings | None, probe: Callable[..., list[DeviceReading]], findings: Findings) -> None:
    try:
        readings = probe(settings)
    except DeviceError as error:
        findings.problems.append(f"devices: {error}")
        findings.problems += check_environment(()).problems
        findings.exit_code = findings.exit_code or EXIT_NO_DEVICE
        return
    around = check_environment(readings)
    findings.surroundings += around.remarks
    findings.problems += around.problems
    for reading in readings:
        findings.devices.append(
            {
                "uuid": reading.uuid,
                "index": reading.index,
                "name": reading.name,
                "backend": reading.backend,
                "total_bytes": reading.total_bytes,
                "free_bytes": reading.free_bytes,
                "unavailable": reading.unavailable,
                "ailment": reading.driver_fault,
                "remark": reading.remark,
            }
        )
        findings.driver = findings.driver or reading.driver
        if reading.unavailable:
            findings.problems.append(f"device {reading.uuid}: {reading.unavailable}")
        if reading.driver_fault:
            findings.problems.append(f"device {reading.uuid}: the driver reports {reading.driver_fault}")
    if readings and all(reading.unavailable for reading in readings):
        findings.exit_code = findings.exit_code or EXIT_NO_DEVICE


def _models(settings: Settings, findings: Findings) -> None:
    names = {str(cell.parameters["model"]) for cell, _ in settings.cells if "model" in cell.parameters}
    for name in sorted(names):
        entry = settings.models.get(name)
        if entry is None:
            findings.models[name] = "built in" if name in BUILTIN_MODELS else "no entry: the worker must know it"
            continue
        if entry.weights == "random":
            findings.models[name] = "random weights: nothing to load"
            continue
        where = _weights(entry.source)
        findings.models[name] = where or f"missing: {entry.source}"
        if where is None:
            findings.problems.append(
                f'models."{name}": {entry.source} is neither a folder nor in the hub\'s cache; it will be fetched from '
                "the hub, or give a folder as its source"
            )


def _weights(source: str) -> str | None:
    """Where a model's files are; None where they would have to be fetched."""
    if Path(source).is_dir():
        return source
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub")
    cached = Path(hub).expanduser() / f"models--{source.replace('/', '--')}" / "snapshots"
    return str(cached.parent) if cached.is_dir() and any(cached.iterdir()) else None


def _disk(settings: Settings, findings: Findings) -> None:
    folder = settings.state_dir
    while not folder.exists():
        folder = folder.parent
    from boundd.config.state_folder import lacking, over_the_network

    if problem := lacking(settings.state_dir) or over_the_network(settings.state_dir):
        findings.problems.append(f"daemon.state_dir: {problem}")
    findings.disk_free_bytes = shutil.disk_usage(folder).free
    findings.lease_folder = str(settings.state_dir / "leases")
    if findings.disk_free_bytes < LITTLE_DISK_BYTES:
        findings.problems.append(f"only {findings.disk_free_bytes:,} bytes free for {settings.state_dir}")
    if not os.access(folder, os.W_OK):
        findings.problems.append(f"{folder} is not writable, so {settings.state_dir} can't be used")


def show(findings: Findings, *, as_json: bool) -> None:
    """Print the findings."""
    if as_json:
        click.echo(json.dumps(asdict(findings), indent=2))
        return
    click.echo(safe(f"boundd {findings.boundd}, Python {findings.python}, config {findings.config or 'none'}"))
    for device in findings.devices:
        size = "?" if device["total_bytes"] is None else f"{device['total_bytes'] / 1024**3:.1f} GiB"
        free = "" if device["free_bytes"] is None else f", {device['free_bytes'] / 1024**3:.1f} GiB free"
        remark = f"; {device['remark']}" if device["remark"] else ""
        who = f"{device['name']} ({device['backend']}, {device['uuid']})"
        click.echo(safe(f"device  {device['index']}  {who}: {size}{free}{remark}"))
    if findings.driver:
        click.echo(safe(f"driver  {findings.driver}"))
    for name, version in findings.libraries.items():
        click.echo(safe(f"library {name} {version or 'not installed'}"))
    for name, where in findings.models.items():
        click.echo(safe(f"model   {name}: {where}"))
    if findings.disk_free_bytes is not None:
        click.echo(
            safe(f"disk    {findings.disk_free_bytes / 1024**3:.1f} GiB free; leases in {findings.lease_folder}")
        )
    for remark in findings.surroundings:
        click.echo(safe(f"around  {remark}"))
    for problem in findings.problems:
        click.echo(safe(f"problem {problem}"))
    if not findings.problems:
        click.echo("no problems found")
