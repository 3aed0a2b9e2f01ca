"""The commands that put boundd into systemd's hands, and take it out again."""

from __future__ import annotations

import os
import sys

import click

from boundd.cli.text import safe

EXIT_FAILED = 1


def _options(command: click.Command) -> click.Command:
    for option in (
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--user", is_flag=True, help="A service of your own, without root (`systemctl --user`)."),
    ):
        option(command)
    return command


@_options
@click.command("install-service")
def install_service(user: bool, dry_run: bool) -> None:
    """Put the systemd units in place, for the boundd that this is, and say how to start it.

    A system service runs as the user boundd, which is made, and is not started or enabled.

    \b
    Example:
      sudo /opt/boundd/bin/boundd install-service
      boundd install-service --user --dry-run
    """
    from boundd.cli import service

    try:
        place = service.Place.of_user(os.environ) if user else service.Place.of_system()
        plan = service.plan_install(place, service.Installation.of_this_process(), service.systemd_version())
        _tell_and_do(plan, dry_run=dry_run)
    except service.ServiceError as error:
        _fail(error)


@_options
@click.command("uninstall-service")
def uninstall_service(user: bool, dry_run: bool) -> None:
    """Remove what install-service put in place. Results, caches, the config and the user boundd stay.

    \b
    Example:
      sudo boundd uninstall-service
    """
    from boundd.cli import service

    try:
        place = service.Place.of_user(os.environ) if user else service.Place.of_system()
        plan = service.plan_uninstall(place)
        if not plan.remove:
            click.echo("nothing of boundd's is installed there")
            return
        if not dry_run and service.is_active(place):
            stop = " ".join(place.systemctl("disable", "--now", "boundd"))
            raise service.ServiceError(
                f"the service runs: `boundctl shutdown --end-workers` if they are to end, `{stop}`"
            )
        _tell_and_do(plan, dry_run=dry_run)
    except service.ServiceError as error:
        _fail(error)


def _tell_and_do(plan: object, *, dry_run: bool) -> None:
    from boundd.cli import service

    assert isinstance(plan, service.Plan)
    for line in plan.lines():
        click.echo(safe(line))
    if dry_run:
        for path, text in plan.write.items():
            click.echo(f"\n--- {path}\n{text}", nl=False)
        return
    service.carry_out(plan)
    for line in plan.notes:
        click.echo(safe(line))


def _fail(error: Exception) -> None:
    click.echo(f"boundd: {safe(error)}", err=True)
    sys.exit(EXIT_FAILED)
