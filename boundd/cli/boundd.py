"""The command `boundd`: run, check-config, doctor, install-service, uninstall-service."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import click

from boundd import __version__
from boundd.cli.service_commands import install_service, uninstall_service
from boundd.cli.text import safe
from boundd.core.model.devices import DeviceReading

if TYPE_CHECKING:
    from boundd.config import Settings

LogFormat = Literal["json", "console"]
Probe = Callable[..., "list[DeviceReading]"]

EXIT_USAGE = 2


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `boundd run` was asked for."""

    config: Path | None
    until_idle: bool
    log_format: LogFormat
    quiet: bool = False
    """The terminal shows progress, and of the log only warnings and errors; the log's file still gets all."""
    gpus: tuple[str, ...] = ()
    """Only these of the config's devices, by UUID, index or name; empty for all of them."""


def make_cli(run: Callable[[RunOptions], int], probe: Probe) -> click.Group:
    """The command group. `run` runs the daemon; `probe` reads the devices of a config, or of the machine."""

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(__version__, prog_name="boundd")
    def boundd() -> None:
        """Finds the upper bound of what acceleration can do for diffusion models, unattended."""

    boundd.add_command(_run_command(run))
    boundd.add_command(_check_config_command())
    boundd.add_command(_doctor_command(probe))
    boundd.add_command(install_service)
    boundd.add_command(uninstall_service)
    return boundd


def _run_command(run: Callable[[RunOptions], int]) -> click.Command:
    @click.command("run")
    @click.option("--config", type=click.Path(path_type=Path), help="The config; else $BOUNDD_CONFIG, ./config.toml, …")
    @click.option("--until-idle", is_flag=True, help="End once nothing runs and nothing is pending, with a table.")
    @click.option(
        "--log-format",
        type=click.Choice(["json", "console"]),
        help="How the log is written to stderr. [default: json; on a terminal console, and with --until-idle only what "
        "is wrong, beside the progress]",
    )
    @click.option("--gpus", default="", metavar="0,1", help="Only these of the config's GPUs: indices, UUIDs or names.")
    def run_command(config: Path | None, until_idle: bool, log_format: str | None, gpus: str) -> None:
        """Run the daemon.

        SIGTERM leaves the workers running for the next daemon to adopt; SIGINT (Ctrl-C) ends them and puts their cells
        back; SIGHUP reads the config anew. Exit codes: 0 fine, 1 an error of ours, 2 usage or config, 3 (--until-idle)
        some cell did not succeed, 4 another daemon holds this state, 5 the store can't be used, 6 no device.

        \b
        Example:
          boundd run --config examples/digits.toml --until-idle
          boundd run --gpus 0,1
        """
        chosen = log_format or ("console" if sys.stderr.isatty() else "json")
        quiet = until_idle and log_format is None and sys.stderr.isatty()
        names = tuple(filter(None, (name.strip() for name in gpus.split(","))))
        sys.exit(run(RunOptions(config, until_idle, cast("LogFormat", chosen), quiet, names)))

    return run_command


def _check_config_command() -> click.Command:
    @click.command("check-config")
    @click.argument("file", type=click.Path(path_type=Path))
    @click.option(
        "--sample",
        type=click.File("rb"),
        help='What your script printed once (- for stdin): says what is read from it with result = "stdout".',
    )
    def check_config(file: Path, sample: BinaryIO | None) -> None:
        """Print every error of a config with its key path (exit 2), or what it comes to.

        \b
        Example:
          boundd check-config config.toml
          python traversal_search.py | boundd check-config own-script.toml --sample -
        """
        from boundd.config import load
        from boundd.control.peers import AccessRules, SocketError
        from boundd.ports import ConfigError

        try:
            settings = load(file, os.environ)
        except ConfigError as error:
            for line in error.errors:
                click.echo(safe(f"{file}: {line}"), err=True)
            sys.exit(EXIT_USAGE)
        from boundd.config.state_folder import lacking, over_the_network

        if problem := lacking(settings.state_dir):
            click.echo(safe(f"{file}: daemon.state_dir: {problem}"), err=True)
            sys.exit(EXIT_USAGE)
        if warning := over_the_network(settings.state_dir):
            click.echo(safe(f"{file}: daemon.state_dir: {warning}"), err=True)
        axes = " x ".join(f"{len(values)} {name}" for name, values in settings.axes.items())
        click.echo(safe(f"{file}: fine"))
        click.echo(safe(f"cells:  {len(settings.cells)} ({axes})"))
        click.echo(safe(f"state:  {settings.state_dir}"))
        click.echo(safe(f"export: {settings.export or 'none'}"))
        click.echo(safe(f"socket: {settings.socket}"))
        try:
            rules = AccessRules.of(settings.control_group, settings.control_others)
        except SocketError as error:
            click.echo(safe(f"{file}: {error}"), err=True)
            sys.exit(EXIT_USAGE)
        reading = "; others may read" if settings.control_others == "read" else ""
        click.echo(safe(f"access: {rules.who_may_change()} may change things{reading}"))
        if unreachable := rules.unreachable(settings.socket):
            click.echo(safe(f"{file}: {unreachable}"), err=True)
        if not _says_what_is_read(settings, sample):
            sys.exit(EXIT_USAGE)

    return check_config


def _says_what_is_read(settings: Settings, sample: BinaryIO | None) -> bool:
    """Print what would be read from a sample of a script's output; false where that is nothing, or malformed."""
    from boundd.protocol.script_output import ScriptOutputReader

    if settings.worker_result != "stdout":
        if sample is not None:
            click.echo('--sample: result = "protocol": nothing is read from what the worker prints', err=True)
        return sample is None
    if sample is None and not settings.worker_sample:
        if settings.worker_pattern:
            click.echo("result: no sample to try the pattern on: give --sample FILE, or worker.sample")
        return True
    reader = ScriptOutputReader(settings.worker_pattern)
    reader.feed(settings.worker_sample.encode() if sample is None else sample.read())
    found = reader.finish()
    if found.malformed or found.line is None:
        why = found.malformed or found.unread or "it has no line that the pattern or `speedup: X` finds"
        click.echo(safe(f"result: nothing is read from the sample: {why}"), err=True)
        return False
    others = f"; {found.count - 1} other lines have one" if found.count > 1 else ""
    where = f"line {found.line.number} of the sample: {found.line.text}"
    click.echo(safe(f"result: {found.largest:g}x, from {where}{others}"))
    return True


def _doctor_command(probe: Probe) -> click.Command:
    @click.command("doctor")
    @click.option("--config", type=click.Path(path_type=Path), help="The config to look at; found as `run` finds it.")
    @click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
    def doctor(config: Path | None, as_json: bool) -> None:
        """Say what this machine has, what would not work, and why: devices, libraries, weights, disk.

        \b
        Example:
          boundd doctor --config config.toml
        """
        from boundd.cli.doctor import examine, show

        findings = examine(config, probe)
        show(findings, as_json=as_json)
        sys.exit(findings.exit_code)

    return doctor
