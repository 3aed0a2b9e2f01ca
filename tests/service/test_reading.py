"""What a worker may have put where its results and its log are to be.

Seen to fail: without O_NONBLOCK in boundd/service/reading.py the pipe is waited for; without O_NOFOLLOW the link is
read; without the check for a regular file the folder is an error of the daemon's.
"""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from boundd.core.lifecycle.classification import Printed
from boundd.service import reading
from boundd.service.attempts import POINTS_LIMIT, RESULTS_LIMIT_BYTES, Collected

MIB = 1024**2
POINT = b'{"type": "point", "parameters": {}, "speedup": 2.0, "score_loss": null}\n'


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
@pytest.mark.timeout(20)
def test_only_a_regular_file_is_read(tmp_path: Path, make: object) -> None:
    """A pipe isn't waited for, a link isn't followed, a folder is no error; results say so, a log is empty."""
    path = tmp_path / "file"
    make(path)  # type: ignore[operator]
    with pytest.raises(reading.NotAFileError, match=r"^file "):
        reading.read_chunk(path, 0)
    assert reading.read_log(path) == ""
    assert reading.read_printed(path) == Printed()


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    """A worker that has said nothing yet has no file."""
    assert reading.read_chunk(tmp_path / "none", 0) == b""
    assert reading.read_log(tmp_path / "none") == ""


def test_a_log_is_read_by_its_head_and_its_tail(tmp_path: Path) -> None:
    """A short one whole; of a long one what was said first and last, in a memory that doesn't depend on it."""
    path = tmp_path / "log"
    path.write_bytes(b"short\n")
    assert reading.read_log(path) == "short\n"
    path.write_bytes(b"first\n" + b"x\n" * 8 * MIB + b"last\n")
    tracemalloc.start()
    text = reading.read_log(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "the middle is not looked at" in text
    assert peak_bytes < 4 * MIB


@pytest.mark.parametrize("gap", [b"x\n", b"x"])
def test_speed_ups_are_found_wherever_they_are(tmp_path: Path, gap: bytes) -> None:
    """On both sides of a chunk's end, in lines or one long one, each once; digits without end are none."""
    path = tmp_path / "log"
    start = b"speedup: 1.5\n" + gap * (reading.CHUNK_BYTES // len(gap) - 10)
    for shift in range(24):
        path.write_bytes(start + b"\n" * shift + b"speedup: 2.25\n" + gap * reading.CHUNK_BYTES + b"\nspeedup: 1.75")
        assert reading.read_printed(path) == Printed(3, 2.25)
    path.write_bytes(b"speedup: " + b"9" * 500 + b".0\nspeedup: 0.0\n")
    assert reading.read_printed(path) == Printed()


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
