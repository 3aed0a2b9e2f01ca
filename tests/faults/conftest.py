"""The figures of the campaigns that ran, told at the end of the test run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults import campaign

_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> campaign.Report:
    """Tells a campaign's figures, whatever becomes of the test: call it before asserting on them."""

    def tell(name: str, **figures: object) -> None:
        campaign.record(name, figures)
        request.config.stash.setdefault(_FIGURES, []).append(campaign.line(name, figures))

    return tell


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the daemon runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """diskfault.c, compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("what makes calls fail is compiled with gcc")
    made = tmp_path_factory.mktemp("diskfault") / "diskfault.so"
    source = Path(__file__).with_name("diskfault.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, source, "-ldl"], check=True)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The denominators of every campaign, also of those that passed."""
    figures = config.stash.get(_FIGURES, [])
    if figures:
        terminalreporter.section("fault campaigns")
        for each in figures:
            terminalreporter.write_line(each)
