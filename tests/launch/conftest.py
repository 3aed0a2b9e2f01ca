"""What the tests of launching share: an event loop, and attempts to launch."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boundd.launch import processes, shim
from boundd.launch.local import LocalLauncher
from boundd.ports import LaunchSpec

MakeSpec = Callable[..., LaunchSpec]


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the daemon runs on."""
    return "asyncio"


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Path]:
    """The attempts' folder; whatever a failed test left alive in it is killed."""
    folder = tmp_path / "attempts"
    yield folder
    for attempt in folder.glob("*"):
        stats = processes.leftovers(attempt / shim.LOCK, attempt / "results.jsonl", None)
        processes.kill(stats)


@pytest.fixture
def launcher(attempts: Path) -> Iterator[LocalLauncher]:
    """A launcher of the attempts' folder."""
    made = LocalLauncher(attempts)
    yield made
    made.close()


@pytest.fixture
def make_spec(attempts: Path, tmp_path: Path) -> MakeSpec:
    """Makes a spec out of a command, with short times."""

    def make(*argv: str, attempt_id: str = "1", **changes: object) -> LaunchSpec:
        values: dict[str, object] = {
            "attempt_id": attempt_id,
            "argv": argv,
            "env": {"PATH": "/usr/bin:/bin", "BOUNDD_RESULTS": str(attempts / attempt_id / "results.jsonl")},
            "cwd": tmp_path,
            "timeout_s": 30.0,
            "grace_s": 0.3,
        }
        return LaunchSpec(**{**values, **changes})  # type: ignore[arg-type]

    return make
