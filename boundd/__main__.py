"""The command `boundd`, and `python -m boundd`: holds the state folder before anything heavy is imported.

Importing all of the daemon takes most of a second of a processor. Where another daemon holds the state, and a service
manager or fifty people start one more, that is spent for nothing; and of two that start at once the quicker one has
the state from its first tenth of a second on.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from boundd.cli import streams
from boundd.cli.boundd import RunOptions, make_cli
from boundd.config.paths import find_config, state_dir_of
from boundd.core.model.devices import DeviceReading
from boundd.ports import AlreadyRunningError, ConfigError, StoreBusyError
from boundd.service.instance_lock import hold

if TYPE_CHECKING:
    from boundd.config import Settings

EXIT_HELD = 4
_M_ARENA_MAX = -8
"""Of mallopt(3), from glibc's malloc.h."""


def main() -> None:
    """The command `boundd`."""
    streams.open_closed()
    streams.spare_standard()
    make_cli(_run, _probe_devices)()


def _run(options: RunOptions) -> int:
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(_state_dir(options)))
        except AlreadyRunningError as error:
            return _held(options, error)
        except (ConfigError, OSError, StoreBusyError):
            pass  # Not there yet, or wrong in a way that is told better by who reads all of the config.
        _use_one_arena()
        from boundd.composition.run import run

        return run(options)


def _use_one_arena() -> None:
    """Have the C library serve all threads from one heap.

    By default it makes up to eight a core, and each keeps what was freed in it: the daemon's threads come and go, and
    its memory would grow for hours by nothing but fragments. As one Python thread runs at a time, they don't wait for
    each other. Does nothing where there is no such switch (musl).
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _state_dir(options: RunOptions) -> Path:
    found = state_dir_of(find_config(options.config, os.environ, Path.cwd(), Path.home()), os.environ)
    if found is None:
        raise ConfigError(["it has to be read properly"])
    return found


def _held(options: RunOptions, error: AlreadyRunningError) -> int:
    """Say so as the daemon would, in its log and to systemd."""
    from boundd.core.model.effects import Action, Note
    from boundd.service.clock import SystemClock
    from boundd.service.notify import Notifier
    from boundd.telemetry import journal
    from boundd.telemetry.logs import JsonLog

    Notifier.from_environ(os.environ, os.getpid()).status(str(error))
    log = JsonLog(format=options.log_format, journal=journal.connect(os.environ, 2))
    try:
        log.note(Note(Action.DAEMON_STOPPED, str(error), "error"), SystemClock().now())
    finally:
        log.close()
    return EXIT_HELD


def _probe_devices(settings: Settings | None) -> list[DeviceReading]:
    from boundd.composition.devices import probe_devices

    return probe_devices(settings)


if __name__ == "__main__":
    main()
