"""`boundctl backup`: a copy of the store in a file of the caller's, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from boundd.cli import text
from boundd.cli.options import EXIT_NO_DAEMON, EXIT_USAGE, Talk, talking
from boundd.client import DamagedAnswerError

MODE = 0o600
"""The store may hold what a config says, so a copy is its owner's alone."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@talking
def backup(talk: Talk, file: Path, force: bool) -> None:
    """Copy the daemon's store to FILE while it is in use. A daemon takes the copy for its own store (docs/store.md).

    The daemon makes the copy and checks all of it; FILE appears whole, and synced to the disk, or not at all.

    \b
    Example:
      boundctl backup /backups/boundd-$(date +%F).db
    """
    if not force and os.path.lexists(file):
        talk.complain(f"boundctl: {file} is there already; give another name, or --force to overwrite it")
        sys.exit(EXIT_USAGE)
    try:
        with _appearing(file, force=force) as output:
            copied = talk.client.backup(output.write)
    except DamagedAnswerError as error:
        talk.complain(f"boundctl: {error}; nothing was kept")
        sys.exit(EXIT_NO_DAEMON)
    except FileExistsError:
        talk.complain(f"boundctl: {file} has come to be meanwhile, and was left alone")
        sys.exit(EXIT_USAGE)
    except OSError as error:
        talk.complain(f"boundctl: {file} can't be written: {error.strerror or error}; nothing was kept")
        sys.exit(EXIT_USAGE)
    answer = {"file": str(file.absolute()), **copied}
    talk.say(answer, text.safe(f"written: {file} ({copied['bytes']:,} bytes, {copied['commits']:,} commits)"))


@contextlib.contextmanager
def _appearing(file: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name once all is on the disk; where anything fails, nothing is left.

    Raises:
        FileExistsError: without `force`, the name is taken.
        OSError: it can't be written.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}.part")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    try:
        with open(descriptor, "wb") as output:  # noqa: PTH123 - of a descriptor
            yield output
            output.flush()
            os.fsync(descriptor)
        if force:
            draft.replace(file)
        else:
            # A link never overwrites, whoever made a file of that name since we looked.
            os.link(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
