"""`boundctl`'s commands that change nothing."""

from __future__ import annotations

import codecs
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from boundd.api.constants import EXPORT_FORMATS, HISTORY_DEFAULT, HISTORY_LIMIT, ExportFormat
from boundd.cli import text
from boundd.cli.options import EXIT_NOTHING, Talk, talking

WATCH_S = 2.0
PLAN_ROWS = 40

query_argument = click.argument("query", nargs=-1)
cell_argument = click.argument("cell")


@click.command()
@query_argument
@click.option("--watch", is_flag=True, help="Every 2 seconds, until Ctrl-C; on a terminal, on a screen of its own.")
@talking
def status(talk: Talk, query: tuple[str, ...], watch: bool) -> None:
    """The daemon, its devices, the cells by state, what runs, and when it would end.

    \b
    Example:
      boundctl status model=SDXL --watch
    """
    if watch and not talk.as_json and sys.stdout.isatty():
        _watch(talk, query)
    while True:
        answer = talk.client.status(*query)
        talk.say(answer, "" if talk.as_json else text.status_text(answer))
        if not watch:
            return
        time.sleep(WATCH_S)


def _watch(talk: Talk, query: tuple[str, ...]) -> NoReturn:
    """Show the status on a screen of its own until Ctrl-C, and give the terminal back as it was."""
    from rich.live import Live  # not at the top: it is most of what a `status` may take
    from rich.text import Text

    with Live(screen=True, auto_refresh=False) as live:
        while True:
            shown = Text(text.status_text(talk.client.status(*query)), no_wrap=True, overflow="ellipsis")
            live.update(shown, refresh=True)
            time.sleep(WATCH_S)


@click.command()
@query_argument
@talking
def cells(talk: Talk, query: tuple[str, ...]) -> None:
    """The cells of a query, a line each.

    \b
    Example:
      boundctl cells state=failed 'SD1.5/*'
    """
    answer = talk.client.cells(*query)
    talk.say(answer, lambda: text.cells_text(answer))
    if not answer:
        sys.exit(EXIT_NOTHING)


@click.command()
@cell_argument
@click.option(
    "--limit",
    type=click.IntRange(0, HISTORY_LIMIT),
    default=HISTORY_DEFAULT,
    show_default=True,
    metavar="N",
    help="At most so many attempts.",
)
@click.option("--before", type=click.IntRange(min=1), metavar="N", help="Only attempts with a lower number.")
@talking
def show(talk: Talk, cell: str, limit: int, before: int | None) -> None:
    """A cell: its result or error, and its latest attempts.

    \b
    Example:
      boundctl show SD1.5/DDIM/20/deepcache
    """
    answer = talk.client.show(cell, limit=limit, before=before)
    talk.say(answer, lambda: text.cell_text(answer))


@click.command()
@cell_argument
@talking
def explain(talk: Talk, cell: str) -> None:
    """Why a cell is not running, or what became of it: which device, how many bytes short, held by whom.

    \b
    Example:
      boundctl explain SDXL/DDIM/50/tome
    """
    answer = talk.client.explain(cell)
    talk.say(answer, lambda: text.explain_text(answer))


@click.command()
@cell_argument
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows, until the attempt has ended.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Which attempt.  [default: the latest]")
@talking
def logs(talk: Talk, cell: str, follow: bool, attempt: int | None) -> None:
    """What an attempt's worker printed: as it is into a pipe, with its controls spelt out on a terminal.

    \b
    Example:
      boundctl logs -f SD1.5/DDIM/20/tgate
    """
    chunks = talk.client.logs(cell, attempt=attempt, follow=follow)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    if talk.as_json:
        talk.say({"cell": cell, "attempt": attempt, "text": decoder.decode(b"".join(chunks), final=True)}, "")
        return
    for chunk in chunks:
        sys.stdout.buffer.write(text.safe_log(decoder.decode(chunk)).encode() if sys.stdout.isatty() else chunk)
        sys.stdout.buffer.flush()


@click.command()
@click.option("--footprints", is_flag=True, help="What cells are expected to take of them instead, and the error.")
@talking
def devices(talk: Talk, footprints: bool) -> None:
    """The devices, a line each; or, with --footprints, the memory that cells are expected to take of them.

    \b
    Example:
      boundctl devices --footprints
    """
    if footprints:
        known = talk.client.footprints()
        talk.say(known, lambda: text.footprints_text(known))
        return
    answer = talk.client.devices()
    talk.say(answer, lambda: text.devices_text(answer))


@click.command()
@click.option(
    "--devices", "boxes", multiple=True, metavar="4x24GiB", help="Plan for these devices instead; repeatable."
)
@click.option("--all", "everything", is_flag=True, help=f"Every attempt, not just the first {PLAN_ROWS}.")
@talking
def plan(talk: Talk, boxes: tuple[str, ...], everything: bool) -> None:
    """What would run where, when, and when all would be done: from learned durations, and priors, said as such.

    \b
    Example:
      boundctl plan --devices 4x24GiB
    """
    answer = talk.client.plan(*boxes)
    talk.say(answer, lambda: text.plan_text(answer, None if everything else PLAN_ROWS))
    if not answer["attempts"]:
        sys.exit(EXIT_NOTHING)


@click.command()
@click.option("--format", "wanted", type=click.Choice(EXPORT_FORMATS), default=EXPORT_FORMATS[0], show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="A file instead of stdout.")
@talking
def export(talk: Talk, wanted: ExportFormat, output: Path | None) -> None:
    """The results in a format; what it can't represent is named on stderr.

    \b
    Example:
      boundctl export --format csv -o bounds.csv
    """
    answer = talk.client.export(wanted)
    for warning in answer["warnings"]:
        talk.complain(f"left out: {warning}")
    if output is None:
        content = text.safe_log(answer["text"]) if sys.stdout.isatty() else answer["text"]
        click.echo(content, nl=not content.endswith("\n"))
        return
    try:
        output.write_text(answer["text"], encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{output}: {error.strerror or error}") from None
    talk.say({"file": str(output), "warnings": answer["warnings"]}, text.safe(f"written: {output}"))


@click.command()
@query_argument
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long.")
@talking
def wait(talk: Talk, query: tuple[str, ...], timeout_s: float | None) -> None:
    """Wait until no cell of the query is pending or running. Exit 1 where the timeout came first.

    \b
    Example:
      boundctl wait 'SD1.5/*' --timeout 3600
    """
    answer = talk.client.wait(*query, timeout_s=timeout_s)
    counts = ", ".join(f"{count} {state}" for state, count in answer["cells"]["by_state"].items() if count)
    talk.say(answer, counts)
    if not answer["done"]:
        sys.exit(EXIT_NOTHING)


COMMANDS = (status, cells, show, explain, logs, devices, plan, export, wait)
