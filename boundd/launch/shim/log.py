"""The capped log: what the worker said, its head and its tail, and between them what tells of results and failures."""
# pathlib and contextlib would cost each shim memory and start-up time:
# ruff: noqa: SIM105

from __future__ import annotations

import os
from typing import Any

from .kept_lines import KeptLines
from .kernel import now_s

_MARK_ROOM_BYTES = 96
_LEFT_OUT = b"\n[boundd: %d bytes left out here; the lines of them that tell of a result or a failure:]\n"
_GOES_ON = b"[boundd: %d more such lines found no room; the last of the output:]\n"
_KEPT_SHARE = 16
"""One part in so many of the log is for lines that are kept."""
_MARKS_ROOM_BYTES = 256
_UNWRITTEN_BYTES = 256 * 1024
_CUT_LINE_BYTES = 4096
_TAIL_PERIOD_S = 2.0


class CappedLog:
    """A file that never outgrows `limit_bytes`: once more was said, it holds the first half, a mark, and the last half.

    Up to the limit everything goes straight to the file, so that it can be followed. After that the last half lives
    in a ring in memory and is brought to the file every two seconds and at the end. What a full or failing disk
    doesn't take is tried again with what comes next and at the end; only its last 256 KiB are kept for that, so that
    the log may lose output, but not the last of it, and the worker is never held up.
    """

    def __init__(self, path: str, limit_bytes: int, wanted: list[dict[str, Any]] | None = None) -> None:
        """A log at `path`; `wanted` says which lines are kept of what is left out (`KeptLines`)."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._limit_bytes = limit_bytes
        self._head_bytes = limit_bytes // 2
        kept_bytes = limit_bytes // _KEPT_SHARE if wanted else 0
        marks_bytes = _MARKS_ROOM_BYTES if wanted else _MARK_ROOM_BYTES
        self._tail_bytes = max(0, limit_bytes - self._head_bytes - kept_bytes - marks_bytes)
        self._kept = KeptLines(wanted, kept_bytes) if wanted else None
        self._ring: bytearray | None = None
        self._ring_at = 0
        self._written_bytes = 0
        self._cut_bytes = 0
        self._failed_bytes = 0
        self._unwritten = bytearray()
        self._tail_due_s: float | None = None

    @property
    def tail_due_s(self) -> float | None:
        """When the tail wants to be brought to the file, in seconds since boot; None where it is there already."""
        return self._tail_due_s

    def write(self, data: bytes) -> None:
        """Take all of `data`, whatever becomes of it."""
        if self._ring is None:
            room = max(0, self._limit_bytes - self._written_bytes - len(self._unwritten))
            self._append(data[:room])
            data = data[room:]
            if not data:
                return
            self._ring = self._cut()
            self._push(self._ring, bytes(self._unwritten))
            self._unwritten = bytearray()
        self._push(self._ring, data)
        if self._tail_due_s is None:
            self._tail_due_s = now_s() + _TAIL_PERIOD_S

    def flush_tail(self) -> None:
        """Bring the file up to date."""
        self._tail_due_s = None
        if self._ring is None:
            return
        mark = b"\n[boundd: %d bytes left out here]\n" % self._cut_bytes
        if self._kept is not None:
            mark = _LEFT_OUT % self._cut_bytes + self._kept.text() + _GOES_ON % self._kept.left_out
        ring = memoryview(self._ring)
        offset = self._head_bytes
        try:
            for part in (mark, ring[self._ring_at :], ring[: self._ring_at]):
                self._put(part, offset)
                offset += len(part)
            os.ftruncate(self._descriptor, offset)
        except OSError:
            # A full disk: what is in the file stays, and the next flush tries again.
            self._tail_due_s = now_s() + _TAIL_PERIOD_S

    def catch_up(self) -> bool:
        """Write what the disk did not take before; False where it still doesn't."""
        self._append(b"")
        self.flush_tail()
        return not self._unwritten and self._tail_due_s is None

    @property
    def has_reusable_room(self) -> bool:
        """Whether what could not be written finds a place in what the file has already."""
        return self._ring is not None or self._written_bytes >= len(self._unwritten) + _MARK_ROOM_BYTES

    def close(self) -> bool:
        """Bring the file up to date and close it; on a full disk, the last lines take the room of earlier ones.

        Returns:
            Whether the last of what was said is in the file.
        """
        if self._kept is not None:
            self._kept.finish()
        whole = self.catch_up()
        if not whole and self._unwritten and self.has_reusable_room:
            offset = self._written_bytes - len(self._unwritten) - _MARK_ROOM_BYTES
            lost = self._failed_bytes + len(self._unwritten) + _MARK_ROOM_BYTES
            mark = b"\n[boundd: %d bytes could not be written here]\n" % lost
            try:
                self._put(mark.ljust(_MARK_ROOM_BYTES, b"\n") + self._unwritten, offset)
            except OSError:
                self._failed_bytes = lost
            else:
                self._failed_bytes = 0
                whole = True
        if self._failed_bytes:
            try:
                self._put(
                    b"\n[boundd: %d bytes could not be written]\n" % self._failed_bytes,
                    os.fstat(self._descriptor).st_size,
                )
            except OSError:
                pass  # Still no room; the log is short, and that is all.
        os.close(self._descriptor)
        return whole

    def _append(self, data: bytes) -> None:
        pending = self._unwritten + data
        try:
            self._put(pending, self._written_bytes)
        except OSError:
            over = max(0, len(pending) - _UNWRITTEN_BYTES)
            self._failed_bytes += over
            self._unwritten = pending[over:]
        else:
            self._written_bytes += len(pending)
            self._unwritten = bytearray()

    def _put(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view = view[count:]
            offset += count

    def _cut(self) -> bytearray:
        """A ring that holds what the file's last part holds now; the middle is given up."""
        # Less than the limit was written where the disk filled up on the way.
        last = os.pread(self._descriptor, self._tail_bytes, max(0, self._written_bytes - self._tail_bytes))
        self._cut_bytes = max(0, self._written_bytes - self._head_bytes - self._tail_bytes)
        if self._kept is not None:
            # With the beginning of the line that the head breaks off in, which is not looked at in the head.
            head = os.pread(self._descriptor, _CUT_LINE_BYTES, max(0, self._head_bytes - _CUT_LINE_BYTES))
            self._kept.feed(head.rpartition(b"\n")[2])
            for offset in range(self._head_bytes, self._written_bytes, _UNWRITTEN_BYTES):
                size = min(_UNWRITTEN_BYTES, self._written_bytes - offset)
                self._kept.feed(os.pread(self._descriptor, size, offset))
        return bytearray(last.rjust(self._tail_bytes, b"\n"))

    def _push(self, ring: bytearray, data: bytes) -> None:
        size = self._tail_bytes
        self._cut_bytes += len(data)
        if self._kept is not None:
            self._kept.feed(data)
        if len(data) >= size:
            ring[:] = data[len(data) - size :]
            self._ring_at = 0
            return
        until_end = min(len(data), size - self._ring_at)
        ring[self._ring_at : self._ring_at + until_end] = data[:until_end]
        ring[: len(data) - until_end] = data[until_end:]
        self._ring_at = (self._ring_at + len(data)) % size
