"""Who may do what over the socket: real processes under other users and groups.

Seen to matter: with `Gate._forbidden` returning None at once, or `AccessRules.access_of` returning CHANGE, strangers
change things here; with `_groups_of` returning nothing, members of the group by a supplementary group can't.
What is here of connections fails with each of the three limits in `Crowd.refusal` taken out, with its `_make_room`
returning False, and with readers making room among all in place of among themselves; what is here of answers that go on
fails with each limit in `Followers.one_more` taken out, and with the one in all compared with the user's own number.
"""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_server import Running, connect, hung_up, running_server, wait_for

from boundd.control.peers import Access, AccessRules, Peer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as other users")

OWNER, MEMBER, STRANGER = 61001, 61002, 61003
GROUP = grp.getgrnam("games")
READ = "http://localhost/v1/status"
CHANGE = ("-X", "POST", "http://localhost/v1/pause")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def rules(others: Access, group: str = "games") -> AccessRules:
    """Of a daemon that OWNER runs."""
    return AccessRules(OWNER, group, GROUP.gr_gid if group else None, others)


def ask(running: Running, uid: int, *arguments: str, gid: int = 61999, groups: tuple[int, ...] = ()) -> tuple[str, str]:
    """What curl is answered, as this user: status and body."""
    command = ["curl", "-sS", "--max-time", "30", "-w", "\n%{http_code}", "--unix-socket", str(running.socket)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, user=uid, group=gid, extra_groups=groups
    )
    body, _, code = done.stdout.rpartition("\n")
    return code, body or done.stderr


@pytest.mark.parametrize(
    ("others", "uid", "gid", "groups", "may_read", "may_change"),
    [
        (Access.READ, 0, 0, (), True, True),
        (Access.READ, OWNER, 61999, (), True, True),
        (Access.READ, MEMBER, GROUP.gr_gid, (), True, True),
        (Access.READ, MEMBER, 61999, (61998, GROUP.gr_gid), True, True),
        (Access.READ, MEMBER, 61999, (*range(62000, 62400), GROUP.gr_gid), True, True),
        (Access.READ, STRANGER, 61999, (61998,), True, False),
        (Access.NOTHING, 0, 0, (), True, True),
        (Access.NOTHING, MEMBER, GROUP.gr_gid, (), True, True),
        (Access.NOTHING, STRANGER, 61999, (), False, False),
    ],
)
def test_who_may_what(
    folder: Path,
    others: Access,
    uid: int,
    gid: int,
    groups: tuple[int, ...],
    may_read: bool,
    may_change: bool,
) -> None:
    """The owner, root and members of the group change things; others read, or nothing."""
    with running_server(folder, rules=rules(others)) as running:
        running.socket.parent.chmod(0o755)
        # By the mode alone strangers could not even connect where they may nothing: that is not what is tested here.
        running.socket.chmod(0o666)
        assert ask(running, uid, READ, gid=gid, groups=groups)[0] == ("200" if may_read else "403")
        code, body = ask(running, uid, *CHANGE, gid=gid, groups=groups)
        assert code == ("200" if may_change else "403"), body
        assert len(running.service.submitted) == may_change


def test_a_refusal_says_who_asks_who_may_and_what_to_do(folder: Path) -> None:
    """In words, with the numbers."""
    with running_server(folder, rules=rules(Access.READ)) as running:
        code, body = ask(running, STRANGER, *CHANGE)
    error = json.loads(body)["error"]
    assert (code, error["type"]) == ("403", "forbidden")
    for part in (f"uid {STRANGER}", "process ", f"uid {OWNER}", "root", "group games", "usermod -aG"):
        assert part in error["message"]


def test_modes_are_what_the_config_lets_in(folder: Path) -> None:
    """0660 of the group, or 0666 where others may read; the folder that is made can be entered by the same."""
    with running_server(folder / "a", rules=rules(Access.NOTHING)) as running:
        found, parent = running.socket.stat(), running.socket.parent.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, GROUP.gr_gid)
        assert (stat.S_IMODE(parent.st_mode), parent.st_gid) == (0o750, GROUP.gr_gid)
        assert "ermission denied" in ask(running, STRANGER, READ)[1] or ask(running, STRANGER, READ)[0] == "000"
        (folder / "a").chmod(0o755)
        assert ask(running, MEMBER, READ, gid=GROUP.gr_gid)[0] == "200"
    with running_server(folder / "b", rules=rules(Access.READ, group="")) as running:
        assert stat.S_IMODE(running.socket.stat().st_mode) == 0o666
        assert stat.S_IMODE(running.socket.parent.stat().st_mode) == 0o755
        assert ask(running, STRANGER, READ)[0] == "200"


AS_IT_CONNECTED = """\
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
plain = socket.socket(socket.AF_UNIX)
plain.connect(path)
os.setgroups([]), os.setgid(61999), os.setuid(uid)
plain.sendall(b"POST /v1/pause HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
print(plain.recv(65536).split()[1].decode())
"""


def test_a_peer_is_who_connected(folder: Path) -> None:
    """What a process becomes after it has connected changes nothing, in either direction."""
    with running_server(folder, rules=rules(Access.READ)) as running:
        command = [sys.executable, "-I", "-S", "-c", AS_IT_CONNECTED, str(running.socket), str(STRANGER)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "200\n"


HOLD = """\
import os, socket, sys
path, count, uid, gid = sys.argv[1], *map(int, sys.argv[2:5])
os.setgroups([]), os.setgid(gid), os.setuid(uid)
held = []
for _ in range(count):
    plain = socket.socket(socket.AF_UNIX)
    plain.connect(path)
    plain.sendall(sys.argv[5].encode())
    held.append((plain, plain.recv(65536)[9:12] if sys.argv[5].endswith("\\r\\n\\r\\n") else b""))
print(sum(code == b"200" for _, code in held), flush=True)
for line in sys.stdin:
    alive = 0
    for plain, _ in held:
        try:
            plain.setblocking(False)
            alive += plain.recv(65536) != b""
        except BlockingIOError:
            alive += 1
        except OSError:
            pass
    print(alive, flush=True)
"""
FOLLOWED = "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n"
BEGUN = "GET /v1/sta"


class Holder:
    """A process of a user that makes connections and keeps them."""

    def __init__(self, running: Running, count: int, uid: int, gid: int = 61999, sends: str = FOLLOWED) -> None:
        command = [sys.executable, "-I", "-S", "-c", HOLD, str(running.socket), str(count), str(uid), str(gid), sends]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.served = self._line()
        """How many of them got an answer that goes on."""

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def left(self) -> int:
        """How many have not been closed."""
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return self._line()


def test_users_connections_are_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving requests, a user has half of them, readers three quarters, all together all; then there is a 503."""
    monkeypatch.setattr("boundd.control.server.CONNECTIONS", 16)
    with running_server(folder, rules=rules(Access.READ)) as running:
        with Holder(running, 12, STRANGER) as one, Holder(running, 12, STRANGER + 1) as another:
            assert (one.served, another.served) == (8, 4)
            assert ask(running, OWNER, *CHANGE)[0] == "200"
            with Holder(running, 8, MEMBER, GROUP.gr_gid) as member:
                assert member.served == 4
                code, body = ask(running, OWNER, *CHANGE)
                assert (code, "16 connections have requests" in body) == ("503", True), body
            wait_for(lambda: ask(running, OWNER, *CHANGE)[0] == "200")
        assert len(running.service.submitted) == 1  # the second pause changes nothing


def test_idle_connections_of_others_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit: readers' for readers, anybody's for all, the longest unanswered first."""
    monkeypatch.setattr("boundd.control.server.CONNECTIONS", 16)
    with running_server(folder, rules=rules(Access.READ)) as running, connect(running) as oldest:
        oldest.sendall(BEGUN.encode())
        with Holder(running, 8, STRANGER, sends=BEGUN) as idle, Holder(running, 8, STRANGER + 1) as reader:
            assert reader.served == 8
            assert idle.left() == 4
            # Of whoever may change things none was closed for a reader, however old it is.
            assert not hung_up(oldest)
            with Holder(running, 6, MEMBER, GROUP.gr_gid) as member:
                assert member.served == 6
                assert hung_up(oldest)
                assert idle.left() == 2
                assert ask(running, OWNER, *CHANGE)[0] == "200"
                assert idle.left() == 1


def test_answers_that_go_on_are_limited_in_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past those that a user may have there are some for others, past those that all may have for nobody."""
    monkeypatch.setattr("boundd.control.authorization.FOLLOWERS", 3)
    monkeypatch.setattr("boundd.control.authorization.FOLLOWERS_A_USER", 2)
    wait = "http://localhost/v1/wait?timeout=0"
    with running_server(folder, rules=rules(Access.READ)) as running, Holder(running, 3, STRANGER) as one:
        assert one.served == 2
        assert ask(running, STRANGER + 1, wait)[0] == "200"
        with Holder(running, 2, STRANGER + 1) as another:
            assert another.served == 1
            code, body = ask(running, OWNER, wait)
            assert (code, "3 answers that go on" in body) == ("429", True), body
        wait_for(lambda: ask(running, OWNER, wait)[0] == "200")


def test_a_folder_that_they_can_not_enter_is_told(folder: Path) -> None:
    """The config lets them in, a mode on the way does not."""
    closed = folder / "state"
    closed.mkdir(mode=0o700)
    assert not AccessRules(OWNER).unreachable(closed / "s")
    assert f"can't enter {closed}, whose mode is 0700" in rules(Access.NOTHING).unreachable(closed / "s")
    os.chown(closed, -1, GROUP.gr_gid)
    closed.chmod(0o710)
    assert not rules(Access.NOTHING).unreachable(closed / "s")
    assert "others may use" in rules(Access.READ).unreachable(closed / "s")
    closed.chmod(0o711)
    assert not rules(Access.READ).unreachable(closed / "s")


def test_without_a_group_nobody_is_a_member() -> None:
    """Also not who has the daemon's own group, which may be everybody's."""
    alone = AccessRules(OWNER)
    assert alone.access_of(Peer(1, STRANGER, os.getgid(), frozenset({0}))) is Access.NOTHING
    assert alone.access_of(Peer(1, OWNER, 61999)) is Access.CHANGE
