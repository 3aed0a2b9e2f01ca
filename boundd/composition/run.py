"""The composition root: the one place that knows every part and puts them together."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from boundd import __version__
from boundd.cli.boundd import RunOptions, make_cli
from boundd.composition.config import check_limits, config_loaded, read_anew, settings_of
from boundd.composition.control_app import control_app
from boundd.composition.devices import ChosenDevices, choice_of, probe_devices
from boundd.composition.disk import disk_free_bytes, prune_now_and_then
from boundd.composition.exporter import Exporter
from boundd.composition.launch_specs import LEASES_NAME, is_timed, launch_spec
from boundd.config import Settings, check_writable, find_config, load
from boundd.control.peers import AccessRules
from boundd.control.server import SocketError, SocketPlace, serve
from boundd.core.model.attempts import CellState
from boundd.core.model.effects import Action, Note
from boundd.core.model.state import State
from boundd.devices.discover import open_probe
from boundd.devices.host import read_host
from boundd.launch import cgroups
from boundd.launch.local import LocalLauncher
from boundd.ports import AlreadyRunningError, ConfigError, DeviceError, Observer, StoreBusyError, StoreError
from boundd.results.staleness import Today, is_stale
from boundd.results.table import print_bounds
from boundd.service.clock import SystemClock
from boundd.service.daemon import Daemon, Hooks
from boundd.service.instance_lock import hold
from boundd.service.notify import Notifier, status_line
from boundd.store.sqlite import SqliteStore
from boundd.telemetry import journal, library_log
from boundd.telemetry.export_file import ForeignExportError
from boundd.telemetry.logs import JsonLog
from boundd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from boundd.cli.progress import Progress

STDERR = 2
EXIT_FINE = 0
EXIT_OURS = 1
EXIT_USAGE = 2
EXIT_NOT_ALL = 3
EXIT_HELD = 4
EXIT_STORE = 5
EXIT_NO_DEVICE = 6

STORE_NAME = "boundd.db"
"""The store's file in the state folder."""
ATTEMPTS_NAME = "attempts"
"""The folder of the attempts' own folders, in the state folder."""
FAILURES: tuple[tuple[type[Exception], Action, int], ...] = (
    (ConfigError, Action.CONFIG_REJECTED, EXIT_USAGE),
    (ForeignExportError, Action.CONFIG_REJECTED, EXIT_USAGE),
    (SocketError, Action.CONFIG_REJECTED, EXIT_USAGE),
    (AlreadyRunningError, Action.DAEMON_STOPPED, EXIT_HELD),
    (StoreError, Action.STORE_UNAVAILABLE, EXIT_STORE),
    (StoreBusyError, Action.STORE_UNAVAILABLE, EXIT_OURS),
    (DeviceError, Action.DEVICE_UNAVAILABLE, EXIT_NO_DEVICE),
)
"""What a person can mend, how it is told, and the exit code that others rely on."""


def main() -> None:
    """The command `boundd`."""
    make_cli(run, probe_devices)()


def run(options: RunOptions) -> int:
    """Run the daemon to its end; returns its exit code and tells every error in a line of the log."""
    notifier = Notifier.from_environ(os.environ, os.getpid())
    if notifier.watchdog_s is not None:
        # A watchdog's SIGABRT then leaves in the journal where every thread was stuck.
        faulthandler.enable()
    log = JsonLog(format=options.log_format, journal=journal.connect(os.environ, STDERR))
    stop_listening = library_log.listen(log, SystemClock().now)
    try:
        return _run(options, log, notifier)
    except Exception as group:
        error = _innermost(group)
        for kind, action, status in FAILURES:
            if isinstance(error, kind):
                messages = getattr(error, "errors", (str(error),))
                notifier.status("; ".join(messages))
                return _fail(log, action, messages, status)
        # Ours, or of the machine: nothing is lost, because what was acknowledged is in the store.
        where = "".join(traceback.format_exception(group))[-library_log.TRACEBACK_CHARACTERS :]
        note = Note(Action.INTERNAL_ERROR, f"{type(error).__name__}: {error}", "error", fields={"traceback": where})
        log.note(note, SystemClock().now())
        return EXIT_OURS
    finally:
        stop_listening()
        log.close()


def _innermost(error: BaseException) -> BaseException:
    """The first error inside groups of them: task groups wrap what their tasks raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(log: JsonLog, action: Action, messages: tuple[str, ...], status: int) -> int:
    for message in messages:
        log.note(Note(action, message, "error"), SystemClock().now())
    return status


def _run(options: RunOptions, log: JsonLog, notifier: Notifier) -> int:
    path = find_config(options.config, os.environ, Path.cwd(), Path.home())
    settings = load(path, os.environ)
    check_writable(settings)
    _set_levels(settings, options, [log])
    with hold(settings.state_dir):
        return anyio.run(partial(_serve, settings, options, log, notifier))


async def _serve(settings: Settings, options: RunOptions, log: JsonLog, notifier: Notifier) -> int:
    clock = SystemClock()
    progress = _progress() if options.until_idle else None
    metrics = Metrics(__version__)
    async with AsyncExitStack() as stack:
        logs = [log]
        observers: list[Observer] = [log, metrics, notifier]
        if settings.log_file is not None:
            logs.append(stack.enter_context(_file_log(settings)))
            observers.append(logs[-1])
        if progress is not None:
            observers.append(progress)
            stack.callback(progress.close)
        notifier.status("opening the store")
        # What is made from here on to the end of the recovery lives as long as the daemon: looking it through for
        # garbage again and again is a fifth of the time that a large store takes.
        gc.disable()
        stack.callback(gc.enable)
        store = await SqliteStore.open(settings.state_dir / STORE_NAME)
        stack.push_async_callback(store.aclose)
        exporter = Exporter(settings, store, log, clock)
        await exporter.check_may_write()
        notifier.status("looking for devices")
        timed = partial(is_timed, settings)
        probe = await open_probe(settings.device_backend, settings.simulated_devices, os.environ, is_timed=timed)
        stack.push_async_callback(probe.aclose)
        groups = cgroups.find()
        cgroups.sweep(groups)
        check_limits(settings, groups)
        launcher = LocalLauncher(
            settings.state_dir / ATTEMPTS_NAME, groups, leases_folder=settings.state_dir / LEASES_NAME
        )
        stack.callback(launcher.close)
        hooks = Hooks(
            spec_of=partial(launch_spec, dict(os.environ)),  # once: reading it decodes every variable
            reload=partial(read_anew, settings, groups),
            write_export=exporter.write,
            reloading=notifier.reloading,
            read_host=read_host,
            read_disk=partial(disk_free_bytes, settings.state_dir),
            taken_up=lambda state: _set_levels(settings_of(state), options, logs),
        )
        chosen = ChosenDevices(probe, choice_of(settings, options.gpus))
        daemon = Daemon(config_loaded(settings), store, launcher, chosen, clock, tuple(observers), hooks)
        rules = AccessRules.of(settings.control_group, settings.control_others)
        app = control_app(daemon, exporter, metrics, lambda: sum(each.dropped_lines for each in logs), rules)
        place = SocketPlace(settings.socket, rules)
        notifier.status("taking up what the store knows")
        await daemon.recover()
        gc.freeze()
        gc.enable()
        nothing_to_do = daemon.state.idle
        if progress is not None:
            progress.watch(lambda: daemon.state)
        async with anyio.create_task_group() as group:
            await group.start(_signals, daemon, [place.look, *(each.look for each in logs)])
            group.start_soon(prune_now_and_then, daemon, settings.state_dir / ATTEMPTS_NAME)
            group.start_soon(notifier.keep_informed, lambda: status_line(daemon.state, daemon.store_problem))
            group.start_soon(notifier.keep_alive, daemon.prove_alive)
            daemon.tell(_started(settings))
            if unreachable := rules.unreachable(settings.socket):
                daemon.tell(Note(Action.SOCKET_UNREACHABLE, unreachable, "warning"))
            serve_api = partial(serve, app, place, ready=notifier.ready)
            await daemon.run(until_idle=options.until_idle, serve=serve_api)
            group.cancel_scope.cancel()
        daemon.tell(Note(Action.DAEMON_STOPPED, "stopped"))
    if not options.until_idle:
        return EXIT_FINE
    if nothing_to_do:
        print("everything is there already: no cell was waiting to be measured")
    return _summary(daemon.state, settings, exporter.today(daemon.state))


def _progress() -> Progress:
    """The bar of a run to idle. Its library is slow to import, and a service has no use for it."""
    from boundd.cli.progress import Progress

    return Progress()


def _summary(state: State, settings: Settings, today: Today) -> int:
    """Print the table and where the results are; the exit code says whether all cells succeeded."""
    simulated = [device.uuid for device in state.devices.values() if device.reading.is_simulated]
    stale = {record.cell.key for record in state.matrix() if is_stale(record, today)}
    print_bounds(sys.stdout, state.matrix(), settings.bound_rules, simulated=simulated, stale=stale)
    if settings.export is not None:
        print(f"results: {settings.export}")
    print(f"store:   {settings.state_dir / STORE_NAME}")
    print(f"logs:    {settings.state_dir / ATTEMPTS_NAME}", flush=True)
    everything = all(record.state is CellState.SUCCEEDED for record in state.matrix())
    return EXIT_FINE if everything else EXIT_NOT_ALL


async def _signals(daemon: Daemon, looks: Sequence[Callable[[], None]], *, task_status: TaskStatus[None]) -> None:
    """SIGTERM leaves the workers running, SIGINT ends them, SIGHUP looks after socket and log and reads the config."""
    try:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGHUP and not (sys.stdin and sys.stdin.isatty()):
                    for look in looks:
                        look()
                    # What is wrong with the config has been told; the one before stays in force.
                    with contextlib.suppress(ConfigError, StoreBusyError):
                        await daemon.reload()
                else:
                    daemon.request_stop(end_workers=number == signal.SIGINT)
    finally:
        # It is ending: what asks for that, or for a reload, would kill it while it closes the store.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def _set_levels(settings: Settings, options: RunOptions, logs: Sequence[JsonLog]) -> None:
    """Log from the config's level on: all of it in the config's file, and elsewhere as quietly as was asked."""
    first, *others = logs
    is_quiet = options.quiet and settings.log_level in ("debug", "info")
    first.set_level("warning" if is_quiet else settings.log_level)
    for log in others:
        log.set_level(settings.log_level)


def _started(settings: Settings) -> Note:
    message = f"boundd {__version__}: {len(settings.cells)} cells of {settings.config_path}, socket {settings.socket}"
    return Note(Action.DAEMON_STARTED, message, fields={"boundd.cells": len(settings.cells)})


@contextlib.contextmanager
def _file_log(settings: Settings) -> Iterator[JsonLog]:
    assert settings.log_file is not None
    try:
        settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        log = JsonLog(level=settings.log_level, file=settings.log_file, only_file=True)
    except OSError as error:
        raise ConfigError([f"log.file: {settings.log_file} can't be written: {error.strerror}"]) from None
    try:
        yield log
    finally:
        log.close()
