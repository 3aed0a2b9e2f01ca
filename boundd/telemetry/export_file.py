"""Writing an export: whole or not at all, and never over a file that boundd did not write."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path

from boundd.results.export import EXPORT_FORMAT

_FORMAT_MARK = EXPORT_FORMAT.encode()


class ForeignExportError(Exception):
    """The operator's: the export's file was not written by boundd, so it is left as it is. Exit code 2."""


def digest_of(text: str) -> str:
    """What the caller remembers of an export that it wrote, to know the file again."""
    return hashlib.sha256(text.encode()).hexdigest()


def owner_of(content: bytes) -> str | None:
    """Whose export in the format `json` this is, "" where it doesn't say; None where it is no such export."""
    if _FORMAT_MARK not in content:
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("format") != EXPORT_FORMAT:
        return None
    return str(document.get("owner", ""))


def is_boundd_json(content: bytes) -> bool:
    """Whether this is an export in the format `json`, of whatever state folder."""
    return owner_of(content) is not None


def written_by_us(digests: Collection[str], owners: Collection[str]) -> Callable[[bytes], bool]:
    """A `may_overwrite` that knows exports in the format `json` by their owner, and others by their `digest_of`.

    One that names no owner is of a release before, or was asked for by a person: its place is ours.
    """
    known = frozenset(digests)
    # The digest first: the common case, and much cheaper than to parse a large export.
    return lambda content: hashlib.sha256(content).hexdigest() in known or owner_of(content) in ("", *owners)


def check_may_write(path: Path, may_overwrite: Callable[[bytes], bool]) -> None:
    """See that an export to `path` would harm nobody's file.

    Raises:
        ForeignExportError: something is there that boundd did not write.
        OSError: what is there can't be read.
    """
    _content_to_replace(Path(os.path.realpath(path)), path, may_overwrite)


def clear_drafts(path: Path) -> None:
    """Remove the drafts of exports to `path` whose writers were killed, so that they don't pile up."""
    target = Path(os.path.realpath(path))
    for draft in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        pid = draft.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                draft.unlink()


def write_export(path: Path, text: str, may_overwrite: Callable[[bytes], bool]) -> bool:
    """Replace `path` by `text` in one step that a power cut can't split; False where it said just that already.

    A symbolic link stays one: what it points at is replaced. An existing file keeps its mode.

    Args:
        path: where to; its folder must be there.
        text: the whole export.
        may_overwrite: whether boundd wrote the content that it is given.

    Raises:
        ForeignExportError: something is there that boundd did not write; nothing is changed.
        OSError: the folder can't be written to, or the disk is full; the old file is still whole.
    """
    target = Path(os.path.realpath(path))
    before = _content_to_replace(target, path, may_overwrite)
    content = text.encode()
    if content == before:
        return False
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # left by an earlier process with our pid
    try:
        _write_whole(temporary, content, None if before is None else stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)
    return True


def _content_to_replace(target: Path, shown: Path, may_overwrite: Callable[[bytes], bool]) -> bytes | None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise ForeignExportError(f"{shown} is not a file, so no export is written there: choose another `export`")
    content = target.read_bytes()
    if not may_overwrite(content) and owner_of(content):
        raise ForeignExportError(
            f"{shown} holds the results of another config, with a state folder of its own, so it is left as it is: "
            "give one of the two another `daemon.export`"
        )
    if not may_overwrite(content):
        raise ForeignExportError(
            f"{shown} was not written by boundd, so it is left as it is: take its results over with"
            f" `boundctl import {shown}` and move it away, or choose another `export`"
        )
    return content


def _write_whole(path: Path, content: bytes, mode: int | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        if mode is not None:
            os.fchmod(descriptor, mode)
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
