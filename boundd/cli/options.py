"""What every command of `boundctl` shares: its options, its client, its exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boundd import __version__
from boundd.cli.text import safe
from boundd.client import Client, DamagedAnswerError, NoDaemonError, RefusedError
from boundd.client.sockets import find_socket

if TYPE_CHECKING:
    from boundd.api import answers

EXIT_NOTHING = 1
EXIT_USAGE = 2
EXIT_NO_DAEMON = 3
EXIT_INTERRUPTED = 130
USAGE_STATUSES = (400, 409, 413)


class Talk:
    """A command's conversation with the daemon: it asks, and says the answer to a person or to a program."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self.client = client
        self.as_json = as_json

    def say(self, answer: Any, text: str | Callable[[], str]) -> None:
        """The answer alone as JSON, or else its text."""
        if self.as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            click.echo(text if isinstance(text, str) else text())

    def complain(self, text: str) -> None:
        """A line on stderr."""
        click.echo(safe(text), err=True)

    def affected(
        self, answer: answers.AffectedReply | answers.RetryReply | answers.ImportReply, done: str, would: str
    ) -> None:
        """The affected labels, a line each; exit 1 where there are none."""
        labels = answer["affected"]
        verb = would if answer.get("dry_run") else done
        self.say(answer, lambda: "\n".join(safe(f"{verb} {label}") for label in labels) or "nothing was affected")
        if not labels:
            sys.exit(EXIT_NOTHING)


def _complain_of_another_release(client: Client, missing: KeyError) -> None:
    """Say that the daemon's answers lack what this release shows, where it is of another one.

    Raises:
        KeyError: it is of this one, so that the error is ours.
    """
    version = client.status()["daemon"]["version"]
    if version == __version__:
        raise missing
    click.echo(
        f"boundctl: the daemon is boundd {safe(version)}, and its answer has no {missing}, which boundd {__version__} "
        "shows: restart the daemon (its workers go on), or use its own boundctl",
        err=True,
    )
    sys.exit(EXIT_NOTHING)


def talking(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command --socket and --json, a `Talk` for its first argument, and the exit codes."""

    @click.option("--socket", "socket_path", metavar="PATH", help="The daemon's socket.  [default: found]")
    @click.option("--json", "as_json", is_flag=True, help="The answer alone, as JSON.")
    @wraps(function)
    def command(*arguments: Any, socket_path: str | None, as_json: bool, **options: Any) -> None:
        try:
            client = Client(find_socket(socket_path, os.environ, Path.cwd()))
            try:
                function(Talk(client, as_json=as_json), *arguments, **options)
            except KeyError as missing:
                _complain_of_another_release(client, missing)
        except (NoDaemonError, DamagedAnswerError) as error:
            click.echo(f"boundctl: {safe(error)}", err=True)
            sys.exit(EXIT_NO_DAEMON)
        except RefusedError as error:
            for line in error.details.get("errors") or [error.message]:
                click.echo(f"boundctl: {safe(line)}", err=True)
            sys.exit(EXIT_USAGE if error.status in USAGE_STATUSES else EXIT_NOTHING)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read us has enough; Python would complain once more when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return command
