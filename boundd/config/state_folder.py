"""Whether a file system can hold a state folder: SQLite's log needs shared memory maps, attempts need locks.

Rules: what can be tried is tried, in the folder itself or, where it is not there yet, in the nearest one above it; a
file system of another machine is named, because there what one machine tries says little of the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset(
    {
        *(
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "smbfs",
            "afs",
            "ncpfs",
            "9p",
            "lustre",
            "gpfs",
            "beegfs",
            "ceph",
            "glusterfs",
        ),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse", "ocfs2", "gfs2"),
    }
)
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
"""A full, failing or forbidden disk says nothing of what its file system can do; whoever needs it tells."""
_CURE = "set daemon.state_dir to a folder on a local disk"


def lacking(folder: Path) -> str:
    """What a state folder there would lack, with what to do; empty where it lacks nothing, or that can't be tried.

    Where a file is in its way, it lacks its place.
    """
    place = _nearest(folder)
    if place.exists() and not place.is_dir():
        return f"{folder} can't be a folder, since {place} is a file: choose another folder"
    where = f"{folder} is on a file system ({kind_of(place) or 'of an unknown kind'}) without"
    try:
        file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - the with statement follows
    except OSError:
        return ""
    with file:
        try:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            with contextlib.closing(mmap.mmap(file.fileno(), mmap.PAGESIZE)) as shared:
                shared[0] = 1
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in _PASSING:
                return ""
            what = "shared memory maps, which the store's log needs"
            return f"{where} {what} ({_words(error)}), as some network homes are: {_CURE}"
        for lock, unlock, kind in ((fcntl.lockf, fcntl.LOCK_UN, "record"), (fcntl.flock, fcntl.LOCK_UN, "file")):
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock(file, unlock)
            except OSError as error:
                if error.errno in _PASSING:
                    return ""
                return (
                    f"{where} {kind} locks, which attempts need ({_words(error)}), as some network homes are: {_CURE}"
                )
    return ""


def over_the_network(folder: Path) -> str:
    """A warning where a state folder would be on another machine's disk; empty elsewhere."""
    kind = kind_of(_nearest(folder))
    if kind not in NETWORK:
        return ""
    return f"{folder} is on a network file system ({kind}), where SQLite promises nothing after a crash: {_CURE}"


def kind_of(folder: Path) -> str:
    """The kind of the file system that a folder is on, such as "ext4"; empty where that can't be told."""
    try:
        device = folder.stat().st_dev
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    wanted, found = f"{os.major(device)}:{os.minor(device)}", ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [wanted] and rest:
            found = rest.split()[0]
    return found


def _nearest(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
