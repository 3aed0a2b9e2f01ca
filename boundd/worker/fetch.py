"""Fetches models and scorers that are not on this machine, in bounded time, once for all workers.

This happens before the device is opened and outside its lease, so that a slow hub does not block other cells. While it
goes on, a marker file exists, and the shim does not count the time towards the deadline (docs/worker.md). A record lock
beside the cache lets one worker fetch a model. The others wait; if the fetch fails, they report the same failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boundd.worker import hub
from boundd.worker.errors import ERRORS_BY_KIND, HubUnavailableError, WorkerError
from boundd.worker.fetching import DOWNLOADING

DEFAULT_TIMEOUT_S = 3600.0
STALL_S = 60.0
"""After this long without a new byte the hub counts as unavailable."""
ANSWER_S = 90.0
"""How long to wait for the hub's first answer: all tries of `fetching`, and the start of its process."""
POLL_S = 0.5
REPORT_S = 5.0
LOCKS = ".boundd"
"""Folder of the locks, in the Hugging Face cache, so that all users of the cache share them."""


@dataclass(frozen=True)
class Wanted:
    """Something to fetch: `what` is 'model' or 'scorer', `source` a hub id."""

    what: str
    source: str
    pipeline_class: str = ""


ReportProgress = Callable[[Mapping[str, Any]], None]
"""Called with the extra fields of a progress line: `message` and `fetched_bytes`."""


class Fetcher:
    """Fetches in bounded time.

    Args:
        timeout_s: limit for all fetches together, including waiting for other workers.
        marker: a file that exists while a fetch goes on, for the shim; None for no file.
        tell: called every few seconds.
        stall_s: give up after this long without a new byte.
    """

    def __init__(
        self, timeout_s: float, marker: Path | None, tell: ReportProgress, *, stall_s: float = STALL_S
    ) -> None:
        self._ends_s = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._stall_s = stall_s
        self._marker = marker
        self._tell = tell
        self._told_s = 0.0

    def ensure(self, wanted: Wanted, is_here: Callable[[], bool]) -> str:
        """Make sure that it is on this machine. Returns its new id if the hub renamed it, else ''.

        `is_here` must not ask the hub.

        Raises:
            WorkerError: it does not exist or may not be read (`model_unavailable`), or can't be fetched now
                (`hub_unavailable` and others).
        """
        if is_here():
            return ""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise hub.offline(wanted.what, wanted.source)
        with self._marked(), self._alone(Path(constants.HF_HUB_CACHE), wanted, constants.ENDPOINT) as record:
            if is_here():  # somebody else has fetched it meanwhile
                return ""
            try:
                renamed = self._fetch(wanted, constants.ENDPOINT, Path(constants.HF_HUB_CACHE))
            except WorkerError as error:
                record(error)
                raise
            record(None)
            return renamed

    @contextmanager
    def _marked(self) -> Iterator[None]:
        if self._marker is None:
            yield
            return
        self._marker.touch()
        try:
            yield
        finally:
            self._marker.unlink(missing_ok=True)

    @contextmanager
    def _alone(self, cache: Path, wanted: Wanted, endpoint: str) -> Iterator[Callable[[WorkerError | None], None]]:
        """Hold the lock of a model. Yields a function that records the outcome of the fetch.

        Raises:
            WorkerError: the worker that held the lock before failed to fetch it.
        """
        folder = cache / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{hub.host_of(endpoint)}--{wanted.source}".replace("/", "--").replace(":", "-")
        with (folder / f"{name}.lock").open("a+", encoding="utf-8") as lock:
            waited = False
            while True:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waited = True
                self._check_time(wanted, endpoint, "another worker's fetch")
                self._say(f"waits for another worker that fetches {wanted.source}", 0)
                time.sleep(POLL_S)
            if waited and (failure := _failure_in(lock)) is not None:
                raise failure
            yield lambda error: _record(lock, error)

    def _fetch(self, wanted: Wanted, endpoint: str, cache: Path) -> str:
        request = {"what": wanted.what, "source": wanted.source, "pipeline_class": wanted.pipeline_class}
        blobs = cache / f"models--{wanted.source.replace('/', '--')}" / "blobs"
        with subprocess.Popen(
            [sys.executable, "-m", "boundd.worker.fetching"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                os.set_blocking(child.stdout.fileno(), False)
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.close()
                said = self._watch(child, wanted, endpoint, blobs)
            finally:
                child.kill()
        return _answer(said, child.returncode, wanted, endpoint)

    def _watch(self, child: subprocess.Popen[str], wanted: Wanted, endpoint: str, blobs: Path) -> str:
        """The child's output, once it has ended.

        Raises:
            HubUnavailableError: it makes no progress.
        """
        assert child.stdout is not None
        said, moved_s, before = "", time.monotonic(), (0, 0)
        while True:
            ended = child.poll() is not None
            said += os.read(child.stdout.fileno(), 1 << 16).decode(errors="replace") if _readable(child) else ""
            if ended and not _readable(child):
                return said
            downloading = DOWNLOADING in said
            now_s, progress = time.monotonic(), (_size_bytes(blobs), _written_bytes(child.pid))
            if progress != before and downloading:
                moved_s, before = now_s, progress
            patience_s = self._stall_s if downloading else ANSWER_S
            host = hub.host_of(endpoint)
            if now_s - moved_s > patience_s:
                what = f"no byte of {wanted.source} came" if downloading else f"no answer about {wanted.source} came"
                raise HubUnavailableError(f"the hub {host} can't be reached: {what} for {patience_s:.0f} s", host)
            self._check_time(wanted, endpoint, f"{progress[0]:,} bytes of it")
            self._say(f"fetches {wanted.source}", progress[0])
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_S)

    def _check_time(self, wanted: Wanted, endpoint: str, had: str) -> None:
        if time.monotonic() > self._ends_s:
            host = hub.host_of(endpoint)
            raise HubUnavailableError(
                f"{wanted.source} was not fetched from {host} within {self._timeout_s:g} s (worker.fetch_timeout),"
                f" after {had}; what has come is kept",
                host,
            )

    def _say(self, message: str, size_bytes: int) -> None:
        if time.monotonic() - self._told_s >= REPORT_S:
            self._told_s = time.monotonic()
            self._tell({"message": message, "fetched_bytes": size_bytes})


def _answer(said: str, status: int | None, wanted: Wanted, endpoint: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        answer = {}
    if "kind" in answer:
        raise _error_of(answer)
    if "folder" not in answer:
        host = hub.host_of(endpoint)
        raise HubUnavailableError(
            f"fetching {wanted.source} from {host} ended with status {status} and no answer", host
        )
    return str(answer.get("renamed_to", ""))


def _error_of(answer: Mapping[str, str]) -> WorkerError:
    kind = ERRORS_BY_KIND.get(answer.get("kind", ""), WorkerError)
    error = kind(str(answer.get("message", "")))
    error.subject = str(answer.get("subject", ""))
    return error


def _record(lock: Any, error: WorkerError | None) -> None:
    """Write the outcome of the fetch into the lock file, for the workers that wait."""
    lock.seek(0)
    lock.truncate()
    if error is not None:
        json.dump({"kind": error.kind, "message": str(error), "subject": error.subject}, lock)
    lock.flush()


def _failure_in(lock: Any) -> WorkerError | None:
    lock.seek(0)
    try:
        found = json.loads(lock.read() or "null")
    except ValueError:
        return None
    return _error_of(found) if isinstance(found, Mapping) else None


def _readable(child: subprocess.Popen[str]) -> bool:
    assert child.stdout is not None
    poller = select.poll()
    poller.register(child.stdout, select.POLLIN)
    return any(event & select.POLLIN for _, event in poller.poll(0))


def _size_bytes(blobs: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(blobs):
            with contextlib.suppress(OSError):
                total += entry.stat().st_size
    return total


def _written_bytes(pid: int) -> int:
    """Bytes that a process has written so far, to any file (proc_pid_io(5)): a download may use another cache."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as counters:  # noqa: PTH123 - a virtual file
            return next((int(line.split()[1]) for line in counters if line.startswith("wchar:")), 0)
    except (OSError, ValueError):
        return 0
