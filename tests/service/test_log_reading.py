"""Logs and results that are huge, cut, or not regular files.

Seen to fail: without O_NONBLOCK in boundd/protocol/regular_file.py the daemon waits for the pipe; without O_NOFOLLOW
the link is read; without the check for a regular file the folder becomes an error of the daemon.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from boundd.launch.local import LocalLauncher
from boundd.launch.shim import CappedLog
from boundd.protocol.out_of_memory import out_of_memory_text
from boundd.protocol.regular_file import NotAFileError
from boundd.protocol.script_output import ScriptResults
from boundd.service import log_reading
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
    assert await log_reading.read_log(launcher, "1") == ""
    assert await log_reading.read_script_results(launcher, "1") == ScriptResults()


@pytest.mark.anyio
async def test_what_is_not_there_is_empty(launcher: LocalLauncher) -> None:
    """A worker that has said nothing yet has no file."""
    assert await launcher.read_results("1", 0, 10) == b""
    assert await launcher.log_size_bytes("1") is None
    assert await log_reading.read_log(launcher, "1") == ""


@pytest.mark.anyio
async def test_a_log_is_read_by_its_head_and_its_tail(launcher: LocalLauncher) -> None:
    """A short one whole; of a long one what was said first and last, in a memory that doesn't depend on it."""
    path = launcher.log_path("1")
    for size in (
        1,
        log_reading.LOG_HEAD_BYTES,
        log_reading.LOG_HEAD_BYTES + 1,
        log_reading.LOG_HEAD_BYTES + log_reading.LOG_TAIL_BYTES,
    ):
        path.write_bytes(b"x" * (size - 1) + b"\n")
        assert await log_reading.read_log(launcher, "1") == "x" * (size - 1) + "\n"
    path.write_bytes(b"first\n" + b"x\n" * 8 * MIB + b"last\n")
    tracemalloc.start()
    text = await log_reading.read_log(launcher, "1")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "of the middle only lines that tell of a failure" in text
    assert peak_bytes < 4 * MIB


@pytest.mark.parametrize("gap", [b"x\n", b"x", b"x\r"])
@pytest.mark.anyio
async def test_speed_ups_are_found_wherever_they_are(launcher: LocalLauncher, gap: bytes) -> None:
    """On both sides of a chunk's end, in lines or one long one, each once."""
    path = launcher.log_path("1")
    start = b"speedup: 1.5\n" + gap * (log_reading.CHUNK_BYTES // len(gap) - 10)
    for shift in range(24):
        path.write_bytes(
            start + b" " * shift + b" speedup: 2.25\n" + gap * log_reading.CHUNK_BYTES + b"\nspeedup: 1.75"
        )
        found = await log_reading.read_script_results(launcher, "1")
        assert (found.count, found.largest, found.malformed) == (3, 2.25, "")


@pytest.mark.anyio
async def test_what_tells_of_a_failure_is_found_in_the_middle(launcher: LocalLauncher) -> None:
    """Whatever stands around it; and where there is too much of it, the last."""
    path = launcher.log_path("1")
    gap = b"step 3 of 50\n" * 100_000
    path.write_bytes(gap + b"Traceback (most recent call last):\n  x\nRuntimeError: CUDA error: out of memory\n" + gap)
    assert out_of_memory_text(await log_reading.read_log(launcher, "1")) == "RuntimeError: CUDA error: out of memory"
    path.write_bytes(gap + b"KeyError: 'a'\n" * 50_000 + b"RuntimeError: HIP error: out of memory\n" + gap)
    text = await log_reading.read_log(launcher, "1")
    assert out_of_memory_text(text) == "RuntimeError: HIP error: out of memory"
    assert len(text) < 512 * 1024


LIMIT = 64 * 1024


def write_log(path: Path, output: bytes, *, pattern: str = "", chunk: int = 4000) -> None:
    """Have a shim leave an output in a small log."""
    log = CappedLog(
        str(path), LIMIT, [dict(kind) for kind in log_reading.kept_lines(from_stdout=True, pattern=pattern)]
    )
    for at in range(0, len(output), chunk):
        log.write(output[at : at + chunk])
    assert log.close()
    assert path.stat().st_size <= LIMIT


@pytest.mark.parametrize("chunk", [4000, 7, 100_000])
@pytest.mark.anyio
async def test_a_cut_log_still_has_the_result(launcher: LocalLauncher, chunk: int) -> None:
    """What was left out is kept where it is a result or tells why there is none, by the names and by a pattern."""
    path, best = launcher.log_path("1"), r"best: (\S+)"
    gap, failure = b"step 3 of 50\n" * 8_000, b"RuntimeError: CUDA error: out of memory\n"
    output = gap + b"best: 2.31 speedup: 1.25\n" + gap + failure + gap + b"speedup: 1.5"
    write_log(path, output, chunk=chunk)
    found = await log_reading.read_script_results(launcher, "1")
    assert (found.count, found.largest, found.malformed) == (2, 1.5, "")
    assert found.line is not None
    assert path.read_bytes().split(b"\n")[found.line.number - 1] == b"speedup: 1.5"
    assert out_of_memory_text(await log_reading.read_log(launcher, "1")) == "RuntimeError: CUDA error: out of memory"
    write_log(path, output, pattern=best, chunk=chunk)
    assert (await log_reading.read_script_results(launcher, "1", best)).largest == 2.31
    bar = b"\r 10%|#" * 40_000
    write_log(path, bar + b"\rspeedup: 2.5" + bar, chunk=chunk)
    assert (await log_reading.read_script_results(launcher, "1")).largest == 2.5


def printed_in(content: bytes, chunk: int = 100) -> ScriptResults:
    """The results in a log."""
    reader = log_reading.LogReader()
    for at in range(0, len(content), chunk):
        reader.feed(content[at : at + chunk])
    return reader.finish()


def test_half_a_line_at_a_cut_is_no_result(tmp_path: Path) -> None:
    """Wherever the head or the tail breaks off: neither half a name nor half a number is read."""
    path, lines = tmp_path / "log", [b"min_required_speedup: 9.75\n", b"speedup: 1.25\n"]
    for shift in range(60):
        output = b"x" * shift + b"\n" + lines[0] * 5 + (b"x" * 40 + b"\n") * 700 + (lines[0] + lines[1]) * 20
        output += (b"y" * 40 + b"\n") * 3000 + (lines[0] + lines[1]) * 20
        write_log(path, output)
        found = printed_in(path.read_bytes(), 1000 + shift)
        assert (found.largest, found.malformed, found.count) == (1.25, "", 40)
    # A shim of the release before keeps no lines, and its marks break lines too.
    mark = b"speedup: 1.2\nspeedup: 9\n[boundd: 99 bytes left out here]\n"
    for chunk in range(1, 40):
        assert printed_in(mark + b"_speedup: 8\nspeedup: 1.3\n", chunk).largest == 1.3
        assert printed_in(mark + b"speedup: 8", chunk).largest == 1.2


def test_more_results_than_there_is_room_for_are_none(tmp_path: Path) -> None:
    """The largest could be among what was left out: that is said, and nothing is taken for the result."""
    for output in (b"speedup: 1.25\n" * 20_000, b"a\n" * 40_000 + b"x" * 100_000 + b" speedup: 2 " + b"x" * 100_000):
        write_log(tmp_path / "log", output)
        assert "found no room" in printed_in((tmp_path / "log").read_bytes()).malformed


@pytest.mark.parametrize("behind_bytes", [64 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.campaign, id="1 GiB")])
@pytest.mark.anyio
async def test_a_gigabyte_behind_the_cause(launcher: LocalLauncher, behind_bytes: int) -> None:
    """It hides neither the cause nor the result; 64 MiB are four times what the log holds."""
    wanted = [dict(kind) for kind in log_reading.kept_lines(from_stdout=True)]
    log = CappedLog(str(launcher.log_path("1")), 16 * MIB, wanted)
    noise = b"[rank0]: step 3 of 50, loss 0.12345\n" * 1800
    for _ in range(200):
        log.write(noise)
    log.write(b"speedup: 2.5\n[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB\n")
    for _ in range(behind_bytes // len(noise)):
        log.write(noise)
    log.close()
    assert (await log_reading.read_script_results(launcher, "1")).largest == 2.5
    assert out_of_memory_text(await log_reading.read_log(launcher, "1")).startswith(
        "torch.OutOfMemoryError: CUDA out of memory"
    )


def collect(data: bytes, *, times: int = 1) -> tuple[Collected, int]:
    """What so much of a results file makes, and of how many events."""
    collected, events = Collected(), 0
    for _ in range(times):
        events += len(collected.add("1", data))
        if collected.malformed:
            break
    return collected, events


def test_a_result_has_limits() -> None:
    """Of points, of a line, of the file: past them it is malformed, and that is said with the number."""
    collected, events = collect(POINT * 1000, times=11)
    assert (collected.malformed, events) == (f"more than {POINTS_LIMIT:,} points", POINTS_LIMIT)
    collected, _ = collect(b"x" * log_reading.CHUNK_BYTES, times=100)
    assert collected.malformed.startswith("a line of more than 1,048,576 bytes")
    progress = b'{"type": "progress", "done": 1, "total": 2}\n' * 1000
    collected, events = collect(progress, times=RESULTS_LIMIT_BYTES // len(progress) // 100)
    assert (collected.malformed, events) == ("", RESULTS_LIMIT_BYTES // len(progress) // 100)


def test_a_file_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than so many bytes of lines are no result, whatever they say."""
    monkeypatch.setattr("boundd.service.attempts.RESULTS_LIMIT_BYTES", 100 * len(POINT))
    assert collect(POINT * 99)[0].malformed == ""
    assert "bytes of results" in collect(POINT * 100)[0].malformed
