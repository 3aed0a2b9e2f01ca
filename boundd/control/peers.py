"""Who is at the other end of a connection, and what they may do.

Rules: the kernel says who it is (SO_PEERCRED, SO_PEERGROUPS: unix(7)), as of the connection's beginning; nothing that a
client sends is asked. Groups are the process' own, not those that the user database gives its user today: whoever has
just been added to a group logs in anew.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

SO_PEERGROUPS = 59
"""Of asm-generic/socket.h, Linux 4.13; Python has no name for it."""
_CREDENTIALS = struct.Struct("3i")
_GROUP_BYTES = 4
_PYTHON_LIMIT_BYTES = 1024
"""What `socket.getsockopt` takes at most: 256 groups."""
_GROUPS_LIMIT_BYTES = 65536 * _GROUP_BYTES
"""NGROUPS_MAX of limits.h."""

Others = Literal["nothing", "read"]


class SocketError(Exception):
    """The operator's: the API can't be served as the config says, and why."""


class Access(IntEnum):
    """What a peer may do; each includes the ones before it."""

    NOTHING = 0
    READ = 1
    CHANGE = 2


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel knew it then. `gid` is its effective group, and not in `groups`."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Who may do what: the daemon's user and root everything, members of the group too, all others `others`."""

    owner_uid: int
    group: str = ""
    group_gid: int | None = None
    others: Access = Access.NOTHING

    @classmethod
    def of(cls, group: str = "", others: Others = "nothing") -> AccessRules:
        """The rules that `[control]` asks for, for a daemon of this process' user.

        Raises:
            SocketError: there is no such group.
        """
        gid = None
        if group:
            try:
                gid = grp.getgrnam(group).gr_gid
            except KeyError:
                raise SocketError(f"control.group: there is no group {group!r}: make it, or name another") from None
        return cls(os.geteuid(), group, gid, Access.READ if others == "read" else Access.NOTHING)

    def access_of(self, peer: Peer) -> Access:
        """What this peer may do."""
        if peer.uid in (0, self.owner_uid):
            return Access.CHANGE
        if self.group_gid is not None and (peer.gid == self.group_gid or self.group_gid in peer.groups):
            return Access.CHANGE
        return self.others

    def who_may_change(self) -> str:
        """Those who may change things, for people."""
        members = f" and members of the group {self.group}" if self.group else ""
        root = "" if self.owner_uid == 0 else ", root"
        return f"{user_name(self.owner_uid)}{root}{members}"

    def unreachable(self, socket_path: Path) -> str:
        """Why those whom the rules let in can't get to the socket, as far as plain modes tell; empty where they can."""
        if self.group_gid is None and self.others is Access.NOTHING:
            return ""
        for folder in socket_path.parents:
            try:
                found = folder.stat()
            except OSError:
                continue
            theirs = 0o001 if self.others is Access.READ or found.st_gid != self.group_gid else 0o010
            if not found.st_mode & theirs:
                whom = "others" if self.others is Access.READ else f"the group {self.group}"
                return (
                    f"control: {whom} may use the socket {socket_path}, but can't enter {folder}, whose mode is "
                    f"{found.st_mode & 0o7777:04o}: set daemon.socket to a path in a folder that they can enter"
                )
        return ""


def peer_of(connection: socket.socket) -> Peer:
    """Who connected.

    Raises:
        OSError: the kernel doesn't say.
    """
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(content)
    # Unsigned in the kernel: uid_t is 32 bits.
    return Peer(pid, uid % 2**32, gid % 2**32, _groups_of(connection))


def _groups_of(connection: socket.socket) -> frozenset[int]:
    """The supplementary groups; none where the kernel is too old to say, so that nobody gets in by that."""
    try:
        content = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _PYTHON_LIMIT_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            return frozenset()
        content = _many_groups_of(connection)
    count = len(content) // _GROUP_BYTES
    return frozenset(struct.unpack(f"{count}I", content[: count * _GROUP_BYTES]))


def _many_groups_of(connection: socket.socket) -> bytes:
    """More of them than Python's own getsockopt has room for: Active Directory gives people hundreds."""
    room = ctypes.create_string_buffer(_GROUPS_LIMIT_BYTES)
    length = ctypes.c_uint32(_GROUPS_LIMIT_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(connection.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, room, ctypes.byref(length)) != 0:
        return b""
    return room.raw[: length.value]


def user_name(uid: int) -> str:
    """A user's name with the number, or the number alone where there is no name. May ask a directory service."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (KeyError, OSError):
        return f"uid {uid}"
