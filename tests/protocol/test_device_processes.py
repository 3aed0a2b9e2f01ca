"""What the kernel tells of a pid, with real processes, also where /proc hides other users'."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boundd.protocol.device_processes import INITIAL_PID_NAMESPACE, is_alive, is_in_host_pid_namespace, uses_lease

NOBODY = 65534


def test_a_process_is_here_until_it_has_ended() -> None:
    """A zombie has ended, though its pid is still taken; a pid that none can have is somebody's."""
    process = subprocess.Popen(["sleep", "60"])
    assert is_alive(process.pid)
    process.kill()
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert not is_alive(process.pid)
    process.wait()
    assert not is_alive(process.pid)
    for nobodys in (0, -1, 2**32 - 1):
        assert is_alive(nobodys)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts a /proc: needs root")
@pytest.mark.parametrize("options", ["hidepid=invisible", "hidepid=ptraceable", "hidepid=noaccess"])
def test_another_users_process_is_here_though_proc_hides_it(options: str) -> None:
    """As under the unit's own sandbox (ProtectProc=invisible), and on machines that mount /proc so."""
    program = (
        "import os, sys; from pathlib import Path; from boundd.protocol.device_processes import is_alive, uses_lease, "
        "is_in_host_pid_namespace; os.setgroups([]); os.setgid(65534); os.setuid(65534); pid = int(sys.argv[1]); "
        "print(os.path.exists(f'/proc/{pid}/stat'), is_alive(pid), is_alive(os.getpid()), is_alive(4194000), "
        "uses_lease(pid, Path('/x')), is_in_host_pid_namespace())"
    )
    root = Path(__file__).parents[2]
    command = f'mount -t proc -o {options} proc /proc && exec "$0" "$@"'
    other = subprocess.Popen(["sleep", "60"])  # root's
    try:
        answer = subprocess.run(
            ["unshare", "-m", "sh", "-c", command, sys.executable, "-c", program, str(other.pid)],
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
        )
    finally:
        other.kill()
        other.wait()
    if answer.returncode == 32:
        pytest.skip(f"a /proc with {options} can't be mounted here: {answer.stderr}")
    seen, here, me, nobody, lease, in_host_namespace = answer.stdout.split()
    assert (here, me, nobody, lease) == ("True", "True", "False", "False"), answer.stderr
    assert seen == "False", "what this is about: the rest can only be asked of the kernel"
    assert in_host_namespace == str(is_in_host_pid_namespace())


def test_the_machines_own_namespace_is_told_from_a_containers(tmp_path: Path) -> None:
    """By the number that the kernel gives it; where /proc says nothing, it isn't assumed."""
    folder = tmp_path / "self" / "ns"
    folder.mkdir(parents=True)
    assert not is_in_host_pid_namespace(tmp_path)
    (folder / "pid").symlink_to(INITIAL_PID_NAMESPACE)
    assert is_in_host_pid_namespace(tmp_path)
    (folder / "pid").unlink()
    (folder / "pid").symlink_to("pid:[4026532201]")
    assert not is_in_host_pid_namespace(tmp_path)


def test_a_lease_is_told_by_the_environment(tmp_path: Path) -> None:
    """Of the very folder; not of another one, and not where none is asked for."""
    program = "print(flush=True); import time; time.sleep(60)"
    environment = os.environ | {"BOUNDD_LEASE": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert uses_lease(process.pid, tmp_path)
        assert not uses_lease(process.pid, tmp_path / "other")
        assert not uses_lease(process.pid, None)
        process.kill()
    assert not uses_lease(process.pid, tmp_path)
