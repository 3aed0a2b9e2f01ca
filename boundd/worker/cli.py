"""The worker's command line. Only what it needs to answer `--help` and wrong usage is imported at its
start."""

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
from boundd.worker.report import JsonCollector, Reporter, ResultsReporter, Screen, SpeedupPrinter
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
"""What the placeholders in an option's help stand for."""


def help_of(option: Option, *, quote: str = "") -> str:
    """What an option means, with the names that there are, each between two of `quote`."""
    names = {each: ", ".join(f"{quote}{name}{quote}" for name in known()) for each, known in _NAMES.items()}
    return option.help.format(**names)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Every option of the catalogue, by its old name with underscores, and with dashes too."""
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
    """Find how much faster a diffusion model can go with an acceleration method, before it shows.

    Generates and scores a baseline, then measures every point of the method's grid: its speed-up over the
    baseline, timed in interleaved pairs, and the score it loses. Prints `speedup: 2.31` for each point.
    Started by boundd it takes what is not given here from the environment (BOUNDD_CELL and its like), and
    appends its results to $BOUNDD_RESULTS.
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
        sys.exit(_run(settings, environment, _Fan(reporters)))


class _Fan:
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
        reporters.append(stack.enter_context(Screen()))
    return reporters


def _run(settings: RunSettings, environment: WorkerEnvironment, reporter: Reporter) -> int:
    """Search, and turn whatever goes wrong into a line and an exit code."""
    try:
        quieten()
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
            logging.getLogger(__name__).exception("the worker failed while it was at: %s", search.phase)
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
    """What the libraries lack is told as what it is, not as a worker that crashed."""
    lacking = environment_of(error)
    if lacking is None:
        raise error
    return _told(lacking.line("import"), reporter)


def _report_usage(message: str) -> None:
    """Wrong usage by the daemon is a result too: without a line it would look like a worker that crashed."""
    path = os.environ.get(RESULTS)
    if path and os.path.isabs(path):  # noqa: PTH117 - a variable that may hold anything
        with ResultsWriter(Path(path)) as writer:
            writer.write(Error(error=ErrorKind.BAD_DATA, message=printable(message), phase="usage"))


def quieten() -> None:
    """Keep the libraries' import chatter and bars off the output; their errors still come through."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore")
    for library in ("diffusers", "transformers"):
        importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
