"""The command `boundctl`: it asks the daemon over its socket, and never opens the store.

Rules: answers go to stdout, everything else to stderr; 0 done, 1 nothing was affected or not found, 2 usage, 3 no
daemon answers. Nothing slow is imported: `status` is expected at once.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from boundd import __version__
from boundd.cli import commands as changing
from boundd.cli import queries as looking
from boundd.cli import streams
from boundd.cli.backup import backup


class _Boundctl(click.Group):
    """A command whose reader may go away, as `| head` does: that is no error of the command's."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run it; where nobody reads what it prints, that is the end of it, and fine."""
        if extra.get("standalone_mode", True) and sys.stdout is sys.__stdout__:
            streams.open_closed()
            streams.spare_standard(ends=True)
        return super().main(*args, **extra)


@click.group(cls=_Boundctl, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="boundctl")
def main() -> None:
    """Look at a running boundd, and tell it what to do.

    A CELL is a label such as SD1.5/DDIM/20/deepcache, the start of its id, or its key. A QUERY is terms that a cell
    must match, all of them: state=out_of_memory, model=SDXL, a glob over labels; none is every cell.

    Exit codes: 0 done, 1 nothing was affected or not found, 2 usage, 3 no daemon answers. The socket is --socket,
    else $BOUNDD_SOCKET, else the first that answers of the config's, /run/boundd/boundd.sock and
    boundd/boundd.sock in $XDG_STATE_HOME or ~/.local/state.
    """


for _command in (*looking.COMMANDS, backup, *changing.COMMANDS):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="boundctl")
