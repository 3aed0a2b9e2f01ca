"""The worker's command line.

Heavy libraries are imported only when a run begins, so that `--help` and usage errors are quick.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boundd.catalogue.methods import installed_methods
from boundd.catalogue.models import MODELS, RANDOM_MODELS
from boundd.catalogue.options import OPTIONS, Option
from boundd.catalogue.outcomes import ErrorKind
from boundd.catalogue.schedulers import SCHEDULERS
from boundd.protocol.environment import RESULTS, WorkerEnvironment
from boundd.protocol.lines import Error, Line, ResultsWriter
from boundd.worker.errors import EXIT_CODES, WorkerError, environment_of, printable, shortage_of
from boundd.worker.plot import Plotter, check_plot
from boundd.worker.report import JsonCollector, Reporter, ResultsReporter, SpeedupPrinter, TerminalReporter
from boundd.worker.settings import RunSettings, resolve

if TYPE_CHECKING:
    from boundd.worker.search import Search

EXIT_USAGE = 2

_EPILOG = """\b
Example:
  python -m boundd.worker --pipe digits-sd15 --sched DDIM --steps 20 \\
      --search_targets deepcache --num_samples 8 --grid coarse

\b
Exit codes: 0 done, 1 an error, 2 usage, 3 out of memory, 4 model or hub not
available, 5 data that can't be measured, 6 this machine: a package, a file system,
its memory or limits, a device that fails before it is used.
"""


_TYPES = {"whole": int, "real": float, "path": click.Path()}
_NAMES = {
    "models": lambda: MODELS,
    "random_models": lambda: RANDOM_MODELS,
    "schedulers": lambda: SCHEDULERS,
    "methods": installed_methods,
}
"""The names that replace each placeholder in an option's help text."""


def help_of(option: Option, *, quote: str = "") -> str:
    """An option's help text, its placeholders filled with the known names, each enclosed in `quote`."""
    names = {each: ", ".join(f"{quote}{name}{quote}" for name in known()) for each, known in _NAMES.items()}
    return option.help.format(**names)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add every option of the catalogue to a command. Names work with underscores and with dashes."""
    for option in reversed(list(OPTIONS.values())):
        spellings = dict.fromkeys((f"--{option.name}", f"--{option.name.replace('_', '-')}"))
        said = help_of(option).replace("`", "")
        default = option.default_shown.replace("`", "")
        shown = f"{said[0].upper()}{said[1:]}." + (f"  [default: {default}]" if default else "")
        if option.kind == "flag":
            add = click.option(*spellings, option.name, is_flag=True, default=None, help=shown)
        else:
            choice = click.Choice(option.choices) if option.choices else None
            add = click.option(*spellings, option.name, type=choice or _TYPES.get(option.kind, str), help=shown)
        command = add(command)
    return command


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@_options
@click.option(
    "--plot",
    metavar="FILE",
    help="Draw speed-up against score loss into FILE (png, svg or pdf); needs boundd[report].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end, and nothing else.")
def main(as_json: bool, plot: str | None, **options: Any) -> None:
    """Find how much an acceleration method speeds a diffusion model up before image quality suffers.

    Generates and scores baseline images, then measures points of the method's parameter grid: the speed-up
    over the baseline, timed in interleaved pairs, and the score loss. Prints `speedup: 2.31` for each point.
    When boundd starts it, options that are not given come from environment variables such as BOUNDD_CELL,
    and results are appended to $BOUNDD_RESULTS.
    """
    try:
        environment = WorkerEnvironment.from_environ(os.environ)
        settings = resolve(options, environment)
        if plot is not None:
            check_plot(Path(plot))
    except ValueError as error:
        _report_usage(str(error))
        raise click.UsageError(str(error)) from None
    with ExitStack() as stack:
        reporters = _reporters(stack, environment, as_json)
        if plot is not None:
            reporters.append(Plotter(Path(plot)))
        sys.exit(_run(settings, environment, _ReporterGroup(reporters)))


class _ReporterGroup:
    """Passes every line to several reporters."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def report(self, line: Line) -> None:
        for reporter in self._reporters:
            reporter.report(line)


def _reporters(stack: ExitStack, environment: WorkerEnvironment, as_json: bool) -> list[Reporter]:
    reporters: list[Reporter] = []
    if environment.results is not None:
        reporters.append(ResultsReporter(stack.enter_context(ResultsWriter(environment.results))))
    reporters.append(JsonCollector(sys.stdout) if as_json else SpeedupPrinter(sys.stdout))
    if sys.stderr.isatty():
        reporters.append(stack.enter_context(TerminalReporter()))
    return reporters


def _run(settings: RunSettings, environment: WorkerEnvironment, reporter: Reporter) -> int:
    """Run the search. A failure is reported as an error line; returns the exit code."""
    try:
        silence_libraries()
        from boundd.worker.search import OutOfMemoryError, Search
    except (ImportError, OSError) as error:
        return _no_start(error, reporter)
    search = Search(settings, environment, reporter)
    try:
        warned = search.run().extra["warnings"]
        for remark in warned if isinstance(warned, list) else ():
            print(f"boundd.worker: {remark}", file=sys.stderr, flush=True)
        return 0
    except OutOfMemoryError as error:
        line = error.shortage.line(search.phase)
    except WorkerError as error:
        line = error.line(search.phase)
    except Exception as error:
        shortage = shortage_of(error)
        if shortage is None and (lacking := environment_of(error)) is not None:
            return _ended(search, lacking.line(search.phase), reporter)
        if shortage is None:
            logging.getLogger(__name__).exception("the worker failed in the phase: %s", search.phase)
        message = printable(f"{type(error).__name__}: {error}")
        line = (
            shortage.line(search.phase)
            if shortage
            else Error(error=ErrorKind.OTHER, message=message, phase=search.phase)
        )
    return _ended(search, line, reporter)


def _ended(search: Search, line: Error, reporter: Reporter) -> int:
    search.report_memory()
    return _told(line, reporter)


def _told(line: Error, reporter: Reporter) -> int:
    reporter.report(line)
    print(f"boundd.worker: {line.error} ({line.phase}): {line.message}", file=sys.stderr, flush=True)
    return EXIT_CODES[line.error]


def _no_start(error: ImportError | OSError, reporter: Reporter) -> int:
    """Report that an import failed because of the machine (a missing package, a broken disk), not as a crash."""
    lacking = environment_of(error)
    if lacking is None:
        raise error
    return _told(lacking.line("import"), reporter)


def _report_usage(message: str) -> None:
    """Write wrong usage into the results file too, if there is one. Without a line the daemon would see a crash."""
    path = os.environ.get(RESULTS)
    if path and os.path.isabs(path):  # noqa: PTH117 - a variable that may hold anything
        with ResultsWriter(Path(path)) as writer:
            writer.write(Error(error=ErrorKind.BAD_DATA, message=printable(message), phase="usage"))


def silence_libraries() -> None:
    """Switch off the libraries' warnings, progress bars and telemetry. Errors are still shown."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore")
    for library in ("diffusers", "transformers"):
        importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
