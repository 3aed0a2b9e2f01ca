"""Whether the files that results were measured with are what they were.

They lie where weights lie, on disks that may be slow or gone, so they are looked at by a thread of their own: the
daemon's loop waits for a first answer for a moment, and takes what is known by then.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from boundd.protocol.file_digests import file_digest

LOOKED_AT_S = 60.0
"""How long an answer is taken for today's."""
PATIENCE_S = 0.25
"""How long a first answer is waited for; not again until the thread has caught up."""

_Question = tuple[str, tuple[tuple[str, str], ...]]
_Identity = tuple[str, int, int, int, int, int]


class Contents:
    """Answers `is_changed`, from what its thread has seen."""

    def __init__(self, patience_s: float = PATIENCE_S, looked_at_s: float = LOOKED_AT_S) -> None:
        self._patience_s = patience_s
        self._looked_at_s = looked_at_s
        self._answers: dict[_Question, tuple[bool, float]] = {}
        self._asked: set[_Question] = set()
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._digests: dict[_Identity, str] = {}
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._is_late = False
        self._thread: threading.Thread | None = None

    def is_changed(self, folder: str, digests: Mapping[str, str]) -> bool:
        """Whether a file of the folder has another content than its digest, or is gone; False where the folder is, or
        nothing is known of it yet.

        Args:
            folder: an absolute path.
            digests: by the files' paths within it.
        """
        question = (folder, tuple(digests.items()))
        answer, until_s = self._answers.get(question, (False, -math.inf))
        if time.monotonic() >= until_s and question not in self._asked:
            self._ask(question)
            if until_s == -math.inf and not self._is_late:
                self._is_late = not self._idle.wait(self._patience_s)
                answer, _ = self._answers.get(question, (False, 0.0))
        return answer

    def _ask(self, question: _Question) -> None:
        with self._lock:
            self._asked.add(question)
            self._idle.clear()
        self._questions.put(question)
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="contents", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        while True:
            question = self._questions.get()
            answer = self._differs(Path(question[0]), question[1])
            self._answers[question] = (answer, time.monotonic() + self._looked_at_s)
            with self._lock:
                self._asked.discard(question)
                if not self._asked:
                    self._is_late = False
                    self._idle.set()

    def _differs(self, folder: Path, digests: tuple[tuple[str, str], ...]) -> bool:
        try:
            if not folder.is_dir():
                return False
            return any(self._digest(folder / name) != digest for name, digest in digests)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # ValueError: no path that a file could have
            return False

    def _digest(self, path: Path) -> str:
        """Read again only where another file, or another time of writing, says that it may have changed."""
        status = path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        identity = (str(path), status.st_dev, status.st_ino, status.st_size, *times)
        if identity not in self._digests:
            self._digests[identity] = file_digest(path)
        return self._digests[identity]
