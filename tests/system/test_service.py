"""The shipped units in a real systemd. The tests share one service, and each leaves it running.

What each promise looks like when it is broken was seen by breaking it; the docstrings say how.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sys

import pytest

from tests.system.conftest import CONFIG, STATE, Service

pytestmark = pytest.mark.timeout(180)


def test_start_returns_when_the_socket_answers(installed: Service) -> None:
    """READY comes when requests are answered and not before (sent when the store is opened, nobody listens yet)."""
    installed.machine.run("systemctl", "start", "boundd", check=False)
    answer = b"nobody listens"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        # From here, at once: a program of the machine would take its time to begin.
        client.connect(str(installed.machine.path("/run/boundd/boundd.sock")))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: boundd\r\nConnection: close\r\n\r\n")
        answer = client.recv(4096)
    log = installed.machine.run("journalctl", "-n", "50", check=False).stdout
    assert installed.show("ActiveState") == "active", log
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    status = installed.status()
    assert status["daemon"]["pid"] == installed.main_pid
    installed.wait_for(lambda: "1 running on 1 device" in installed.show("StatusText"), "STATUS")
    assert installed.show("StatusText").startswith("0 of 1 cell done")
    installed.let_end("first")


def test_who_may_use_the_socket(service: Service) -> None:
    """The user boundd, and who is in its group, and nobody else."""
    found = service.machine.run("stat", "-c", "%U:%G %a %n", "/run/boundd", "/run/boundd/boundd.sock").stdout
    assert found.splitlines() == ["boundd:boundd 750 /run/boundd", "boundd:boundd 660 /run/boundd/boundd.sock"]


def test_a_worker_survives_a_restart_and_its_result_arrives_once(service: Service) -> None:
    """KillMode=process (with `mixed` the worker is killed and runs a second time)."""
    worker = service.begin("restart")
    before = service.main_pid
    service.systemctl("restart", "boundd")
    assert service.main_pid != before
    assert service.is_alive(worker)
    service.let_end("restart")
    assert service.runs()["restart"] == [worker]
    assert len(service.journal("BOUNDD_ACTION=attempt-ended", "BOUNDD_CELL=restart")) == 1


def test_kill_9_is_restarted_and_adopts(service: Service) -> None:
    """Restart=on-failure (without it the service stays dead)."""
    worker, before = service.begin("killed"), service.main_pid
    service.signal(before, signal.SIGKILL)
    service.wait_for(
        lambda: service.main_pid not in (0, before) and service.show("ActiveState") == "active", "a restart"
    )
    service.wait_for(lambda: bool(service.journal("BOUNDD_ACTION=attempt-adopted", "BOUNDD_CELL=killed")), "adoption")
    assert service.is_alive(worker)
    service.let_end("killed")
    assert service.runs()["killed"] == [worker]


def test_a_frozen_daemon_is_ended_by_the_watchdog(service: Service) -> None:
    """WatchdogSec= and the pings (without the unit's line nobody notices; pings from a thread would go on)."""
    drop_in = service.machine.path("/etc/systemd/system/boundd.service.d/watchdog.conf")
    drop_in.write_text("[Service]\nWatchdogSec=3s\nTimeoutStopSec=2s\n")
    service.systemctl("daemon-reload")
    service.systemctl("restart", "boundd")
    worker, before = service.begin("frozen"), service.main_pid
    service.signal(before, signal.SIGSTOP)
    service.wait_for(lambda: service.main_pid not in (0, before), "the watchdog", timeout_s=40)
    assert service.is_alive(worker)
    drop_in.unlink()
    service.systemctl("daemon-reload")
    service.wait_for(lambda: service.show("ActiveState") == "active", "a restart")
    service.systemctl("restart", "boundd")
    service.let_end("frozen")
    assert service.runs()["frozen"] == [worker]


def test_a_bad_config_keeps_the_old_one_and_says_so(service: Service) -> None:
    """`systemctl reload` fails, the journal names the key, and the daemon goes on with the config that it has."""
    before, rejected = service.main_pid, service.said("config-rejected")
    service.write_config("[daemon]\nexprot = 'x'\n")
    assert service.machine.run("systemctl", "reload", "boundd", check=False).returncode != 0
    service.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", "boundd")
    service.wait_for(lambda: service.said("config-rejected") == rejected + 2, "both refusals in the journal")
    entry = service.journal("BOUNDD_ACTION=config-rejected")[-1]
    assert "daemon.exprot" in entry["MESSAGE"]
    assert entry["PRIORITY"] == "3"
    assert service.main_pid == before
    service.wait_for(lambda: service.show("ActiveState") == "active", "the reload to be over")
    assert service.status()["cells"]["total"] == len(service.names)
    service.write_config()
    service.systemctl("reload", "boundd")


def test_the_journal_can_be_asked(service: Service) -> None:
    """Fields of their own, and a message that is the line of docs/logs.md."""
    entries = service.journal("BOUNDD_CELL=first", "BOUNDD_ACTION=cell-succeeded")
    assert len(entries) == 1
    entry = entries[0]
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("6", "boundd")
    assert float(entry["BOUNDD_MAX_SPEEDUP"]) == 1.5
    line = json.loads(entry["MESSAGE"])
    assert (line["boundd.cell"], line["event.action"]) == ("first", "cell-succeeded")
    assert line["boundd.attempt"] == entry["BOUNDD_ATTEMPT"]
    assert entry["_SYSTEMD_UNIT"] == "boundd.service"


def test_an_attempt_has_a_cgroup_of_its_own(service: Service) -> None:
    """Below the unit's, delegated, and gone afterwards (with Delegate=no, the worker is in the unit's own)."""
    worker = service.begin("grouped")
    text = service.machine.path(f"/proc/{worker}/cgroup").read_text()
    cgroup = next(line[3:] for line in text.splitlines() if line.startswith("0::"))
    assert re.search(r"/system\.slice/boundd\.service/attempt-[0-9a-f]+\.1-[0-9a-f]{8}$", cgroup), cgroup
    folder = "/sys/fs/cgroup" + cgroup[cgroup.index("/system.slice") :]
    assert str(worker) in service.machine.run("cat", f"{folder}/cgroup.procs").stdout.split()
    service.let_end("grouped")
    service.wait_for(lambda: not service.machine.path(folder).exists(), "its cgroup to be removed")


def test_what_a_worker_inherits(service: Service) -> None:
    """Not the daemon's OOMScoreAdjust=, not its notifications; and temporary files where a restart leaves them."""
    worker = service.begin("expendable")
    # Without CAP_SYS_RESOURCE, which not every root has, systemd can't protect the daemon in the first place.
    assert service.machine.path(f"/proc/{service.main_pid}/oom_score_adj").read_text().strip() in ("-500", "0")
    assert service.machine.path(f"/proc/{worker}/oom_score_adj").read_text().strip() == "0"
    environ = service.machine.path(f"/proc/{worker}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in environ
    assert b"WATCHDOG_" not in environ
    assert b"TMPDIR=/var/cache/boundd/tmp" in environ
    service.let_end("expendable")


def test_a_full_disk_stops_nothing_for_good(service: Service) -> None:
    """Nothing new is started, what runs is supervised, questions are answered; with room again, all of it goes on."""
    worker = service.begin("full")
    before = service.main_pid
    service.fill_disk()
    service.names.append("waits")
    service.write_config()
    service.machine.run("systemctl", "reload", "boundd", check=False)
    service.wait_for(lambda: "nothing new is started" in service.show("StatusText"), "STATUS to say so")
    assert service.is_alive(worker)
    assert service.main_pid == before
    assert "waits" not in service.runs()
    # A daemon that begins while the disk is full tries again until it isn't (as exit 5, it would give up).
    service.systemctl("stop", "boundd")
    filler = service.fill_disk()
    assert service.machine.run("systemctl", "start", "--no-block", "boundd").returncode == 0
    service.wait_for(lambda: int(service.show("NRestarts")) > 1, "further tries")
    assert service.show("ActiveState") == "activating"
    filler.unlink()
    service.wait_for(lambda: service.show("ActiveState") == "active", "the daemon")
    service.systemctl("reload", "boundd")
    service.let_end("full")
    service.let_end("waits")
    assert service.runs()["full"] == [worker]


def test_a_machine_that_shuts_down_cancels_nothing(service: Service) -> None:
    """Its last TERM goes to everything, shims too: the attempt is lost, at no cost, and the cell runs again."""
    worker = service.begin("shutdown")
    status = service.machine.path(f"/proc/{worker}/status").read_text()
    service.signal(int(re.search(r"PPid:\s+(\d+)", status).group(1)), signal.SIGTERM)  # type: ignore[union-attr]
    service.wait_for(lambda: len(service.runs()["shutdown"]) == 2, "a second attempt")
    ended = service.journal("BOUNDD_ACTION=attempt-ended", "BOUNDD_CELL=shutdown")
    assert [entry["BOUNDD_OUTCOME"] for entry in ended] == ["lost"]
    service.let_end("shutdown")


def test_stop_leaves_the_worker_and_start_adopts_it(service: Service) -> None:
    """`shutdown --end-workers` ends both, its cell put back; and what a stopped daemon left can be killed."""
    worker = service.begin("stopped")
    service.systemctl("stop", "boundd")
    assert service.show("ActiveState") == "inactive"
    assert service.is_alive(worker)
    service.systemctl("start", "boundd")
    assert service.is_alive(worker)
    assert service.cell("stopped")["state"] == "running"
    service.ctl("shutdown", "--end-workers")
    service.wait_for(lambda: service.show("ActiveState") == "inactive", "the daemon to end")
    assert not service.is_alive(worker)
    assert service.show("Result") == "success", "a shutdown is no failure, and is not restarted"
    service.systemctl("start", "boundd")
    service.wait_for(lambda: len(service.runs()["stopped"]) == 2, "the cell that was put back to run again")
    # With force, when no daemon is there to ask.
    service.systemctl("stop", "boundd")
    service.systemctl("kill", "--signal=KILL", "boundd")
    service.wait_for(lambda: not service.is_alive(service.runs()["stopped"][-1]), "its worker to be dead")
    service.systemctl("start", "boundd")
    service.wait_for(lambda: len(service.runs()["stopped"]) == 3, "the lost cell to run again")
    service.let_end("stopped")


def test_what_a_restart_cannot_mend_is_not_restarted(service: Service) -> None:
    """Exit 2: the config (without RestartPreventExitStatus= it would be tried for ever)."""
    service.systemctl("stop", "boundd")
    service.machine.path(CONFIG).write_text("[matrix\n")
    assert service.machine.run("systemctl", "start", "boundd", check=False).returncode != 0
    service.wait_for(lambda: service.show("ActiveState") == "failed", "it to give up")
    assert service.show("ExecMainStatus") == "2"
    # A limit that can't be kept is refused at once, and not found out cell by cell.
    version = int(service.systemctl("--version").split()[1])
    controllers = service.machine.path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    service.write_config('[[rule]]\nmatch = {}\nmemory_max = "1GiB"\n')
    started = service.machine.run("systemctl", "start", "boundd", check=False).returncode == 0
    assert started == (version >= 254 and "memory" in controllers)
    if not started:
        assert "no limit of memory is possible here" in service.journal()[-1]["MESSAGE"]
    service.write_config()
    service.systemctl("restart", "boundd")


def test_the_sandbox_is_as_tight_as_promised(service: Service) -> None:
    """`systemd-analyze security` of the installed unit: at most 2.5 (its sandbox taken out, it is over 8)."""
    said = service.machine.run("systemd-analyze", "security", "boundd.service", "--no-pager").stdout
    score = float(re.search(r"Overall exposure level for boundd.service: ([0-9.]+)", said).group(1))  # type: ignore[union-attr]
    assert score <= 2.5, said
    print(f"systemd-analyze security: {score}")


def test_the_units_are_clean(service: Service) -> None:
    """`systemd-analyze verify` has nothing to say of what was installed."""
    said = service.machine.run("systemd-analyze", "verify", "boundd.service", "boundd-devices.service", check=False)
    lines = [line for line in said.stderr.splitlines() if "boundd" in line and "nvidia-modprobe" not in line]
    assert lines == []


def test_uninstall_undoes(service: Service) -> None:
    """Refused while it runs; afterwards no file of the service is left, and results are."""
    command = (sys.executable, "-m", "boundd", "uninstall-service")
    refused = service.machine.run(*command, check=False)
    assert refused.returncode == 1
    assert "shutdown" in refused.stderr
    service.systemctl("stop", "boundd")
    service.machine.run(*command)
    for path in ("/etc/systemd/system/boundd.service", "/etc/sysusers.d/boundd.conf", "/etc/tmpfiles.d/boundd.conf"):
        assert not service.machine.path(path).exists()
    assert service.machine.path(f"{STATE}/boundd.db").exists()
    service.machine.run(sys.executable, "-m", "boundd", "install-service")
    service.systemctl("start", "boundd")


def test_the_sandbox_hides_processes_and_does_not_blind_the_attestation(service: Service) -> None:
    """In the unit's own sandbox /proc shows nobody else, and a process of another user is seen all the same.

    With `(proc / pid).exists()` in place of the signal, systemd itself has ended.
    """
    unit = service.machine.path("/etc/systemd/system/boundd.service").read_text()
    kept = ("Protect", "Private", "Restrict", "NoNew", "Capability", "Ambient", "SystemCall", "User=", "Group=", "Lock")
    sandbox = [line for line in unit.splitlines() if line.startswith((*kept, "ProcSubset", "Device", "UMask", "Bind"))]
    assert "ProtectProc=invisible" in sandbox
    program = (
        "from pathlib import Path; from boundd.protocol.device_processes import is_alive, uses_lease; "
        "print(Path('/proc/1/stat').exists(), is_alive(1), is_alive(4194000), uses_lease(1, Path('/x')))"
    )
    lines = ["[Service]", "Type=oneshot", "StandardOutput=file:/run/seen", *sandbox]
    lines.append(f'ExecStart={sys.executable} -c "{program}"')
    service.machine.path("/etc/systemd/system/seer.service").write_text("\n".join(lines) + "\n")
    service.systemctl("daemon-reload")
    service.systemctl("start", "seer")
    assert service.machine.path("/run/seen").read_text().split() == ["False", "True", "False", "False"]
