"""What a worker may have put where its results and its log are to be.

Seen to fail: without O_NONBLOCK in boundd/protocol/plain_file.py the pipe is waited for; without O_NOFOLLOW the link is
read; without the check for a regular file the folder is an error of the daemon's.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from boundd.core.lifecycle.classification import Printed
from boundd.launch.local import LocalLauncher
from boundd.protocol.plain_file import NotAFileError
from boundd.service import reading
from boundd.service.attempts import POINTS_LIMIT, RESULTS_LIMIT_BYTES, Collected

MIB = 1024**2
POINT = b'{"type": "point", "parameters": {}, "speedup": 2.0, "score_loss": null}\n'


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    """A launcher whose attempt 1 has a folder, with nothing in it."""
    made = LocalLauncher(tmp_path)
    made.log_path("1").parent.mkdir()
    yield made
    made.close()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
@pytest.mark.timeout(20)
@pytest.mark.anyio
async def test_only_a_regular_file_is_read(launcher: LocalLauncher, make: object) -> None:
    """A pipe isn't waited for, a link isn't followed, a folder is no error; results say so, a log is empty."""
    for path in (launcher.log_path("1"), launcher.results_path("1")):
        make(path)  # type: ignore[operator]
    with pytest.raises(NotAFileError, match=r"^results.jsonl "):
        await launcher.read_results("1", 0, 10)
    with pytest.raises(NotAFileError, match=r"^output.log "):
        await launcher.read_log("1", 0, 10)
    assert await reading.read_log(launcher, "1") == ""
    assert await reading.read_printed(launcher, "1") == Printed()


@pytest.mark.anyio
async def test_what_is_not_there_is_empty(launcher: LocalLauncher) -> None:
    """A worker that has said nothing yet has no file."""
    assert await launcher.read_results("1", 0, 10) == b""
    assert await launcher.log_size_bytes("1") is None
    assert await reading.read_log(launcher, "1") == ""


@pytest.mark.anyio
async def test_a_log_is_read_by_its_head_and_its_tail(launcher: LocalLauncher) -> None:
    """A short one whole; of a long one what was said first and last, in a memory that doesn't depend on it."""
    path = launcher.log_path("1")
    for size in (
        1,
        reading.LOG_HEAD_BYTES,
        reading.LOG_HEAD_BYTES + 1,
        reading.LOG_HEAD_BYTES + reading.LOG_TAIL_BYTES,
    ):
        path.write_bytes(b"x" * (size - 1) + b"\n")
        assert await reading.read_log(launcher, "1") == "x" * (size - 1) + "\n"
    path.write_bytes(b"first\n" + b"x\n" * 8 * MIB + b"last\n")
    tracemalloc.start()
    text = await reading.read_log(launcher, "1")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "the middle is not looked at" in text
    assert peak_bytes < 4 * MIB


@pytest.mark.parametrize("gap", [b"x\n", b"x"])
@pytest.mark.anyio
async def test_speed_ups_are_found_wherever_they_are(launcher: LocalLauncher, gap: bytes) -> None:
    """On both sides of a chunk's end, in lines or one long one, each once; digits without end are none."""
    path = launcher.log_path("1")
    start = b"speedup: 1.5\n" + gap * (reading.CHUNK_BYTES // len(gap) - 10)
    for shift in range(24):
        path.write_bytes(start + b"\n" * shift + b"speedup: 2.25\n" + gap * reading.CHUNK_BYTES + b"\nspeedup: 1.75")
        assert await reading.read_printed(launcher, "1") == Printed(3, 2.25)
    path.write_bytes(b"speedup: " + b"9" * 500 + b".0\nspeedup: 0.0\n")
    assert await reading.read_printed(launcher, "1") == Printed()


def collect(data: bytes, *, times: int = 1) -> tuple[Collected, int]:
    """What so much of a results file makes, and of how many events."""
    collected, events = Collected(), 0
    for _ in range(times):
        events += len(collected.take("1", data))
        if collected.malformed:
            break
    return collected, events


def test_a_result_has_limits() -> None:
    """Of points, of a line, of the file: past them it is malformed, and that is said with the number."""
    collected, events = collect(POINT * 1000, times=11)
    assert (collected.malformed, events) == (f"more than {POINTS_LIMIT:,} points", POINTS_LIMIT)
    collected, _ = collect(b"x" * reading.CHUNK_BYTES, times=100)
    assert collected.malformed.startswith("a line of more than 1,048,576 bytes")
    progress = b'{"type": "progress", "done": 1, "total": 2}\n' * 1000
    collected, events = collect(progress, times=RESULTS_LIMIT_BYTES // len(progress) // 100)
    assert (collected.malformed, events) == ("", RESULTS_LIMIT_BYTES // len(progress) // 100)


def test_a_file_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than so many bytes of lines are no result, whatever they say."""
    monkeypatch.setattr("boundd.service.attempts.RESULTS_LIMIT_BYTES", 100 * len(POINT))
    assert collect(POINT * 99)[0].malformed == ""
    assert "bytes of results" in collect(POINT * 100)[0].malformed
