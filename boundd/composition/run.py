"""The composition root: the one place that knows every part and puts them together."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import anyio
from anyio.abc import TaskStatus

from boundd import __version__
from boundd.cli.boundd import RunOptions, make_cli
from boundd.composition.wiring import (
    LEASES_NAME,
    Exporter,
    check_limits,
    control_app,
    disk_free_bytes,
    is_timed,
    make_run,
    versions_of,
)
from boundd.config import Settings, check_writable, find_config, load
from boundd.control.peers import AccessRules
from boundd.control.server import SocketError, serve
from boundd.core.model.attempts import CellState
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Action, Note
from boundd.core.model.state import State
from boundd.devices.discover import Backend, open_probe, select
from boundd.devices.host import read_host
from boundd.launch import cgroups
from boundd.launch.local import LocalLauncher
from boundd.launch.prune import prune
from boundd.ports import ConfigError, DeviceError, DeviceProbe, HeldError, Observer, StoreBusyError, StoreError
from boundd.results.staleness import is_stale
from boundd.results.table import print_bounds
from boundd.service.clock import SystemClock
from boundd.service.daemon import Daemon, Hooks, Run
from boundd.service.instance_lock import hold
from boundd.service.notify import Notifier, status_line
from boundd.store.sqlite import SqliteStore
from boundd.telemetry import journal, library
from boundd.telemetry.export_file import ForeignExportError
from boundd.telemetry.logs import JsonLog
from boundd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from boundd.cli.progress import Progress

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
    (HeldError, Action.DAEMON_STOPPED, EXIT_HELD),
    (StoreError, Action.STORE_UNAVAILABLE, EXIT_STORE),
    (StoreBusyError, Action.STORE_UNAVAILABLE, EXIT_OURS),
    (DeviceError, Action.DEVICE_UNAVAILABLE, EXIT_NO_DEVICE),
)
"""What a person can mend, how it is told, and the exit code that others rely on."""
PRUNE_INTERVAL_S = 3600.0
CLOCK_SET_S = 60.0
"""Somebody has set the clock by more than this since the daemon started: it doesn't tell how old logs are."""
AT_START_ONLY = (
    *("state_dir", "socket", "export", "export_format", "safety_factor", "keep_logs_s", "log_file", "log_level"),
    *("device_backend", "device_include", "device_exclude", "simulated_devices", "control_group", "control_others"),
)
"""Settings that a reload can't change: it is refused whole, so that nothing is half in force."""


def main() -> None:
    """The command `boundd`."""
    make_cli(run, probe_devices)()


def run(options: RunOptions) -> int:
    """Run the daemon to its end; returns its exit code and tells every error in a line of the log."""
    notifier = Notifier.from_environ(os.environ, os.getpid())
    if notifier.watchdog_s is not None:
        # A watchdog's SIGABRT then leaves in the journal where every thread was stuck.
        faulthandler.enable()
    log = JsonLog(format=options.log_format, journal=journal.connect(os.environ, sys.stderr.fileno()))
    stop_listening = library.listen(log, SystemClock().now)
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
        where = "".join(traceback.format_exception(group))[-library.TRACEBACK_CHARACTERS :]
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
    log.set_level("warning" if options.quiet and settings.log_level in ("debug", "info") else settings.log_level)
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
        probe = await open_probe(_backend(settings), settings.simulated_devices, os.environ, is_timed=timed)
        stack.push_async_callback(probe.aclose)
        groups = cgroups.find()
        cgroups.sweep(groups)
        check_limits(settings, groups)
        launcher = LocalLauncher(
            settings.state_dir / ATTEMPTS_NAME, groups, leases_folder=settings.state_dir / LEASES_NAME
        )
        stack.callback(launcher.close)
        hooks = Hooks(
            partial(_reload, settings, groups),
            exporter.write,
            notifier.reloading,
            read_host,
            partial(disk_free_bytes, settings.state_dir),
        )
        daemon = Daemon(make_run(settings), store, launcher, Chosen(probe, settings), clock, tuple(observers), hooks)
        rules = AccessRules.of(settings.control_group, settings.control_others)
        app = control_app(daemon, settings, exporter, metrics, lambda: sum(each.dropped_lines for each in logs), rules)
        notifier.status("taking up what the store knows")
        await daemon.recover()
        gc.freeze()
        gc.enable()
        nothing_to_do = daemon.state.idle
        if progress is not None:
            progress.watch(lambda: daemon.state)
        async with anyio.create_task_group() as group:
            await group.start(_signals, daemon)
            group.start_soon(_prune_now_and_then, daemon, settings)
            group.start_soon(notifier.keep_informed, lambda: status_line(daemon.state, daemon.store_problem))
            group.start_soon(notifier.keep_alive, daemon.prove_alive)
            daemon.tell(_started(settings))
            if unreachable := rules.unreachable(settings.socket):
                daemon.tell(Note(Action.SOCKET_UNREACHABLE, unreachable, "warning"))
            serve_api = partial(serve, app, settings.socket, rules=rules, ready=notifier.ready)
            await daemon.run(until_idle=options.until_idle, serve=serve_api)
            group.cancel_scope.cancel()
        daemon.tell(Note(Action.DAEMON_STOPPED, "stopped"))
    if not options.until_idle:
        return EXIT_FINE
    if nothing_to_do:
        print("everything is there already: no cell was waiting to be measured")
    return _summary(daemon.state, settings)


def _progress() -> Progress:
    """The bar of a run to idle. Its library is slow to import, and a service has no use for it."""
    from boundd.cli.progress import Progress

    return Progress()


def _summary(state: State, settings: Settings) -> int:
    """Print the table and where the results are; the exit code says whether all cells succeeded."""
    simulated = [device.uuid for device in state.devices.values() if device.reading.is_simulated]
    version_of = versions_of(settings)
    stale = {record.cell.key for record in state.matrix() if is_stale(record, version_of)}
    print_bounds(sys.stdout, state.matrix(), settings.safety_factor, simulated=simulated, stale=stale)
    if settings.export is not None:
        print(f"results: {settings.export}")
    print(f"store:   {settings.state_dir / STORE_NAME}")
    print(f"logs:    {settings.state_dir / ATTEMPTS_NAME}", flush=True)
    everything = all(record.state is CellState.SUCCEEDED for record in state.matrix())
    return EXIT_FINE if everything else EXIT_NOT_ALL


async def _signals(daemon: Daemon, *, task_status: TaskStatus[None]) -> None:
    """SIGTERM leaves the workers running, SIGINT ends them, SIGHUP reads the config anew."""
    try:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGHUP and not (sys.stdin and sys.stdin.isatty()):
                    # What is wrong with the config has been told; the one before stays in force.
                    with contextlib.suppress(ConfigError, StoreBusyError):
                        await daemon.reload()
                else:
                    daemon.request_stop(end_workers=number == signal.SIGINT)
    finally:
        # It is ending: what asks for that, or for a reload, would kill it while it closes the store.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


async def _prune_now_and_then(daemon: Daemon, settings: Settings) -> None:
    folder = settings.state_dir / ATTEMPTS_NAME
    first = daemon.clock.now()
    while True:
        now = daemon.clock.now()
        set_by_s = (now.unix_s - first.unix_s) - (now.boot_s - first.boot_s)
        live = frozenset(daemon.state.attempts)
        trusted = abs(set_by_s) < CLOCK_SET_S
        # A folder that can't be read now is looked at the next time.
        with contextlib.suppress(OSError):
            await anyio.to_thread.run_sync(partial(prune, folder, live, settings.keep_logs_s, now, wall_clock=trusted))
        await anyio.sleep(PRUNE_INTERVAL_S)


def _reload(settings: Settings, groups: cgroups.Cgroups) -> Run:
    new = load(settings.config_path, os.environ)
    changed = [name for name in AT_START_ONLY if getattr(new, name) != getattr(settings, name)]
    if changed:
        raise ConfigError([f"{name}: takes effect at a restart only; put it back, or restart" for name in changed])
    check_limits(new, groups)
    return make_run(new)


def _started(settings: Settings) -> Note:
    message = f"boundd {__version__}: {len(settings.cells)} cells of {settings.config_path}, socket {settings.socket}"
    return Note(Action.DAEMON_STARTED, message, fields={"boundd.cells": len(settings.cells)})


@contextlib.contextmanager
def _file_log(settings: Settings) -> Iterator[JsonLog]:
    assert settings.log_file is not None
    try:
        settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(settings.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError([f"log.file: {settings.log_file} can't be written: {error.strerror}"]) from None
    log = JsonLog(level=settings.log_level, stream=descriptor)
    try:
        yield log
    finally:
        log.close()
        os.close(descriptor)


class Chosen:
    """A probe that shows only the devices of the config's `include` and `exclude`."""

    def __init__(self, probe: DeviceProbe, settings: Settings) -> None:
        self._probe = probe
        self._include = settings.device_include
        self._exclude = settings.device_exclude

    async def read(self, *, processes: bool) -> tuple[DeviceReading, ...]:
        """The chosen devices' readings."""
        return select(await self._probe.read(processes=processes), self._include, self._exclude)

    async def aclose(self) -> None:
        """End the probe."""
        await self._probe.aclose()


def probe_devices(settings: Settings | None) -> list[DeviceReading]:
    """One reading of the devices that a config would use, or, without one, of what the machine has.

    Raises:
        DeviceError: there is no device to work on.
    """

    async def read() -> list[DeviceReading]:
        backend: Backend = "auto" if settings is None else _backend(settings)
        probe = await open_probe(backend, () if settings is None else settings.simulated_devices, os.environ)
        try:
            return list(await (probe if settings is None else Chosen(probe, settings)).read(processes=False))
        finally:
            await probe.aclose()

    return anyio.run(read)


def _backend(settings: Settings) -> Backend:
    return cast("Backend", settings.device_backend)
