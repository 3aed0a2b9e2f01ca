"""`boundctl`'s commands that change something."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from boundd.api.constants import BATCH_SIZE_LIMIT, CORDON_REASON
from boundd.cli import text
from boundd.cli.options import EXIT_USAGE, Talk, talking
from boundd.text import count

if TYPE_CHECKING:
    from boundd.api.requests import Selector

device_argument = click.argument("device")


@click.command()
@click.argument("query", nargs=-1)
@click.option("--oom", "selector", flag_value="oom", help="Cells that ran out of memory.")
@click.option("--timeout", "selector", flag_value="timeout", help="Cells that timed out.")
@click.option("--failed", "selector", flag_value="failed", help="Cells that failed, or whose worker was lost.")
@click.option(
    "--stale",
    "selector",
    flag_value="stale",
    help="Results of other versions, or another model, than today's.",
)
@click.option("--batch-size", type=click.IntRange(1, BATCH_SIZE_LIMIT), metavar="N", help="With this batch size.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@talking
def retry(talk: Talk, query: tuple[str, ...], selector: Selector | None, batch_size: int | None, dry_run: bool) -> None:
    """Run cells again that have ended without a result; ones that succeeded only with --stale or state=succeeded.

    \b
    Example:
      boundctl retry --oom --batch-size 2 --dry-run
    """
    answer = talk.client.retry(*query, selector=selector, batch_size=batch_size, dry_run=dry_run)
    if dry_run and answer["affected"] and not talk.as_json:
        rows = [
            (cell["label"], cell["state"], cell["batch_size"] or text.NOTHING, cell["note"]) for cell in answer["cells"]
        ]
        click.echo(text.table(("WOULD RETRY", "STATE", "BATCH", "AS THINGS ARE"), rows, right=("BATCH",)))
        return
    talk.affected(answer, "retrying", "would retry")


@click.command()
@click.argument("query", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@talking
def cancel(talk: Talk, query: tuple[str, ...], dry_run: bool) -> None:
    """Cancel the pending and running cells of a query; '*' is every cell.

    \b
    Example:
      boundctl cancel model=SDXL method=tome
    """
    answer = talk.client.cancel(*query, dry_run=dry_run)
    talk.affected(answer, "cancelled", "would cancel")


@click.command()
@talking
def pause(talk: Talk) -> None:
    """Start nothing new; what runs goes on.

    \b
    Example:
      boundctl pause
    """
    answer = talk.client.pause()
    talk.say(answer, "paused; what runs goes on" if answer["changed"] else "it was paused already")


@click.command()
@talking
def resume(talk: Talk) -> None:
    """Start new attempts again.

    \b
    Example:
      boundctl resume
    """
    answer = talk.client.resume()
    talk.say(answer, "resumed" if answer["changed"] else "it was not paused")


@click.command()
@device_argument
@click.option("--reason", default=CORDON_REASON, show_default=True, help="What `devices` says of it.")
@talking
def cordon(talk: Talk, device: str, reason: str) -> None:
    """Take a device out of service: a UUID, the start of one, an index or a name. What runs there goes on.

    \b
    Example:
      boundctl cordon 1 --reason 'fan is loud'
    """
    answer = talk.client.cordon(device, reason=reason)
    talk.affected(answer, "cordoned", "would cordon")


@click.command()
@device_argument
@talking
def uncordon(talk: Talk, device: str) -> None:
    """Put a device back into service.

    \b
    Example:
      boundctl uncordon 1
    """
    talk.affected(talk.client.uncordon(device), "back in service:", "would put back")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME", help="Which model's file it is, where its keys don't tell.")
@talking
def import_(talk: Talk, file: Path, model: str | None) -> None:
    """Take over an old speedup_bounds.json, for the cells that have not run here.

    \b
    Example:
      boundctl import speedup_bounds.json --model SD1.5
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        talk.complain(f"boundctl: {file}: {error}")
        sys.exit(EXIT_USAGE)
    answer = talk.client.import_(content, model=model)
    if answer["kept"]:
        talk.complain(f"{count(len(answer['kept']), 'cell')} ended or running here already: left as they are")
    for entry in answer["unmatched"]:
        talk.complain(f"no cell of the matrix is meant by {entry}")
    talk.affected(answer, "imported", "would import")


@click.command()
@talking
def reload(talk: Talk) -> None:
    """Read the config anew, all or nothing.

    \b
    Example:
      boundctl reload
    """
    answer = talk.client.reload()
    talk.say(answer, text.safe(answer["changes"] or "nothing has changed"))


@click.command()
@click.option("--end-workers", is_flag=True, help="End the workers too and put their cells back.")
@talking
def shutdown(talk: Talk, end_workers: bool) -> None:
    """End the daemon. Its workers go on, and the next one adopts them, unless --end-workers.

    \b
    Example:
      boundctl shutdown --end-workers
    """
    answer = talk.client.shutdown(end_workers=end_workers)
    fate = "being ended" if end_workers else "left for the next daemon"
    talk.say(answer, f"stopping; {count(answer['live_attempts'], 'worker')} {fate}")


COMMANDS = (retry, cancel, pause, resume, cordon, uncordon, import_, reload, shutdown)
