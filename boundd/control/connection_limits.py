"""How many connections there may be, and who makes room for whom.

Rules: connections in which it is the client's turn cost nobody else theirs: the oldest of them is closed where room is
wanted. No user can have all of them, and some are kept for those who may change things, so that whoever must stop the
daemon can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from boundd.control.peers import Access, AccessRules, Peer

CONNECTIONS = 512
"""In all; fewer where the process may open fewer descriptors."""
RESERVED = 128
"""Of them, for those who may change things."""
SHARE = 2
"""One user has at most one in so many."""


class Member(Protocol):
    """A connection."""

    @property
    def peer(self) -> Peer:
        """Who made it."""

    @property
    def unread_bytes(self) -> int:
        """What waits in our memory for the client to take it."""

    def waits_for_client(self, *, bodies: bool) -> bool:
        """Whether nothing happens in it until the client sends; with `bodies`, the rest of a body counts too."""

    def evict(self) -> None:
        """Close it to make room."""


class Crowd:
    """The connections there are, longest unanswered first."""

    def __init__(self, rules: AccessRules, most: int = CONNECTIONS) -> None:
        self._rules = rules
        self._most = most
        self._a_user = max(1, most // SHARE)
        self._readers = max(1, most - min(RESERVED, most // 4))
        self._members: dict[Member, None] = {}
        self._by_uid: Counter[int] = Counter()
        self._evicted = 0

    def __len__(self) -> int:
        return len(self._members)

    @property
    def evicted(self) -> int:
        """How many connections have been closed to make room."""
        return self._evicted

    def refusal(self, peer: Peer) -> str:
        """Make room for one of this peer's; or say why there is none."""
        if self._by_uid[peer.uid] >= self._a_user and not self._make_room(lambda member: member.peer.uid == peer.uid):
            return f"uid {peer.uid} has {self._by_uid[peer.uid]} connections with requests under way: end some"
        if not self._may_change(peer):
            readers = sum(not self._may_change(member.peer) for member in self._members)
            if readers >= self._readers and not self._make_room(lambda member: not self._may_change(member.peer)):
                return f"{readers} connections of readers have requests under way: try again"
        if len(self._members) >= self._most and not self._make_room(lambda _member: True):
            return f"{len(self._members)} connections have requests under way: try again"
        return ""

    def joined(self, member: Member) -> None:
        """A connection has been made."""
        self._members[member] = None
        self._by_uid[member.peer.uid] += 1

    def left(self, member: Member) -> None:
        """It has ended."""
        if member in self._members:
            del self._members[member]
            self._by_uid[member.peer.uid] -= 1
            if self._by_uid[member.peer.uid] <= 0:
                del self._by_uid[member.peer.uid]

    def answered(self, member: Member) -> None:
        """It was of use just now: others go first."""
        if member in self._members:
            del self._members[member]
            self._members[member] = None

    def unread_bytes(self) -> int:
        """What waits in memory for clients to take it."""
        return sum(member.unread_bytes for member in self._members)

    def _may_change(self, peer: Peer) -> bool:
        return self._rules.access_of(peer) is Access.CHANGE

    def _make_room(self, among: Callable[[Member], bool]) -> bool:
        for bodies in (False, True):
            for member in self._members:
                if among(member) and member.waits_for_client(bodies=bodies):
                    self.left(member)
                    self._evicted += 1
                    member.evict()
                    return True
        return False
