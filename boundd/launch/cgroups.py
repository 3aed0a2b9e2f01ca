"""A cgroup for each attempt, below the one that systemd (or whoever else) has delegated to the daemon.

Rules: nothing is done in a cgroup that wasn't delegated to us. Controllers are turned on only where that can't keep the
next daemon from starting: cgroup v2 has processes in leaves alone, so a daemon that systemd puts into the delegated
cgroup itself (before version 254) can have cgroups below it, but no limits on them. An attempt without a cgroup is an
attempt all the same; one that was promised a limit and can't have it is not started.

The kernel's side: https://docs.kernel.org/admin-guide/cgroup-v2.html. systemd's: https://systemd.io/CGROUP_DELEGATION/.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CONTROLLERS = ("memory", "pids")
PREFIX = "attempt-"
_DELEGATED = ("user.delegate", "trusted.delegate")


class CgroupError(Exception):
    """The environment's: an attempt can't have the cgroup, or the limits, that it was promised."""


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where attempts' cgroups are made, which controllers they have, and why they lack what they lack."""

    base: Path | None
    controllers: frozenset[str]
    why_not: str = ""

    def lacking(self, *, memory_max_bytes: int, pids_max: int) -> str:
        """Why such limits (0 for none) can't be kept to here; empty where they can."""
        wanted = {"memory": memory_max_bytes, "pids": pids_max}
        lacks = [name for name, limit in wanted.items() if limit and name not in self.controllers]
        return f"no limit of {' and '.join(lacks)} is possible here: {self.why_not}" if lacks else ""

    def make(self, attempt_id: str, attempts_folder: Path, *, memory_max_bytes: int, pids_max: int) -> Path | None:
        """The attempt's cgroup, made and limited; None where there can be none and no limit was asked for.

        Raises:
            CgroupError: a limit can't be kept to; nothing was made.
        """
        lacking = self.lacking(memory_max_bytes=memory_max_bytes, pids_max=pids_max)
        if lacking:
            raise CgroupError(lacking)
        if self.base is None:
            return None
        path = self.base / (PREFIX + _name(attempt_id, attempts_folder))
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o755)
            if memory_max_bytes:
                (path / "memory.max").write_text(str(memory_max_bytes))
                # Without it a worker over its limit would be swapped to and fro for hours instead.
                _write_if_there(path / "memory.swap.max", "0")
            if pids_max:
                (path / "pids.max").write_text(str(pids_max))
        except OSError as error:
            with contextlib.suppress(OSError):
                path.rmdir()
            if memory_max_bytes or pids_max:
                raise CgroupError(f"{path}: {error.strerror}") from error
            return None
        return path


NONE = Cgroups(None, frozenset(), "nobody looked for any")


def find(proc: Path = Path("/proc")) -> Cgroups:
    """What this process may use, controllers turned on where they can be."""
    own = _own(proc)
    if own is None:
        return Cgroups(None, frozenset(), "the machine has no cgroup v2 hierarchy mounted")
    if _is_marked(own.parent):
        # systemd has put us into a subgroup: the delegated cgroup has no process of its own, and can have controllers.
        enabled, why_not = _enable(own.parent)
        return Cgroups(own.parent, enabled, why_not)
    if _is_marked(own) or _is_own(own):
        why_not = "the daemon is in the delegated cgroup itself; DelegateSubgroup= needs systemd 254"
        return Cgroups(own, frozenset(), why_not)
    return Cgroups(None, frozenset(), f"{own} was not delegated to boundd; as a service, it is (docs/systemd.md)")


def sweep(cgroups: Cgroups) -> None:
    """Remove the attempts' cgroups that nothing lives in; the kernel refuses the others."""
    for path in cgroups.base.glob(PREFIX + "*") if cgroups.base is not None else ():
        with contextlib.suppress(OSError):
            path.rmdir()


def kill(path: Path) -> bool:
    """KILL everything in a cgroup, and remove one that is empty; True where something was in it.

    Raises:
        OSError: the system refuses.
    """
    try:
        if "populated 1" in (path / "cgroup.events").read_text():
            (path / "cgroup.kill").write_text("1")
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    with contextlib.suppress(OSError):
        path.rmdir()
    return False


def _own(proc: Path) -> Path | None:
    """The folder of this process's cgroup in the v2 hierarchy; None where that isn't mounted."""
    lines = (proc / "self/cgroup").read_text().splitlines()
    name = next((line[3:] for line in lines if line.startswith("0::")), None)
    if name is None:
        return None
    for line in (proc / "self/mountinfo").read_text().splitlines():
        # proc_pid_mountinfo(5): … (4) root, (5) mount point, … " - " (9) type
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] == "cgroup2":
            root, mount = (_unescaped(text) for text in before.split(" ")[3:5])
            relative = PurePosixPath(name)
            if relative.is_relative_to(root) and ".." not in relative.parts:
                return Path(mount) / relative.relative_to(root)
    return None


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _is_marked(path: Path) -> bool:
    """Whether systemd says that it has delegated this cgroup, and that is to us."""
    for attribute in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(path, attribute) == b"1":
                return os.access(path, os.W_OK) and os.access(path / "cgroup.procs", os.W_OK)
    return False


def _is_own(path: Path) -> bool:
    """Whether a cgroup belongs to this user: older or other managers leave no mark, but give it away.

    Not to be asked of a parent: in a user's own systemd, everything belongs to the user.
    """
    user = os.geteuid()
    try:
        return user != 0 and path.stat().st_uid == user == (path / "cgroup.procs").stat().st_uid
    except OSError:
        return False


def _enable(base: Path) -> tuple[frozenset[str], str]:
    """Turn the controllers on for what is below `base`; which are, and why others aren't."""
    for name in CONTROLLERS:
        # One at a time: a controller that isn't there would keep the others off.
        with contextlib.suppress(OSError):
            (base / "cgroup.subtree_control").write_text(f"+{name}")
    enabled = frozenset((base / "cgroup.subtree_control").read_text().split()) & frozenset(CONTROLLERS)
    missing = [name for name in CONTROLLERS if name not in enabled]
    return enabled, f"{base} has no {' and no '.join(missing)} controller" if missing else ""


def _write_if_there(path: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.write_text(text)


def _name(attempt_id: str, attempts_folder: Path) -> str:
    """A name that no other state folder's attempt has: ids are unique in one store only."""
    return f"{attempt_id}-{hashlib.sha256(os.fsencode(attempts_folder)).hexdigest()[:8]}"
