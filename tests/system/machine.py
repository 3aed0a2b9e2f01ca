"""A throw-away machine: namespaces, an overlay of this one's root, and the real systemd as PID 1.

What is written in it is gone with it. It has no network but its loopback, processes and cgroups of its own, and the
folders of this checkout and of its Python where they are here. It needs root, util-linux and systemd.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SYSTEMD = Path("/usr/lib/systemd/systemd")
BOOT_TIMEOUT_S = 60.0
MASKED = (
    # What would reach past the namespaces: the kernel's settings, modules, devices, clocks and logins.
    *("systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service", "systemd-remount-fs.service"),
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udev-settle.service"),
    *("systemd-udevd-kernel.socket", "systemd-udevd-control.socket", "systemd-logind.service"),
    *("systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service"),
    *("systemd-random-seed.service", "systemd-update-utmp.service", "systemd-machine-id-commit.service"),
    *("proc-sys-fs-binfmt_misc.automount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
)
BOOT = """
set -eu
work=$1; shift
mount --make-rprivate /
mount -t tmpfs -o size=512m tmpfs "$work"
root=$work/root
mkdir "$work/upper" "$work/overlay" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/overlay" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind /sys "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for folder in run tmp var/tmp var/log/journal; do mkdir -p "$root/$folder"; mount -t tmpfs tmpfs "$root/$folder"; done
mkdir -p "$root/run/systemd/system" "$root/run/lock" "$root/run/was"
for folder in "$@"; do mkdir -p "$root$folder"; mount --rbind "$folder" "$root$folder"; done
for unit in $MASKED; do ln -s /dev/null "$root/run/systemd/system/$unit"; done
mkdir -p "$root/var/lib/boundd"
# Small, for it is filled up, but well above the 64 MiB (daemon.disk_reserve) below which nothing is started.
mount -t tmpfs -o size=128m tmpfs "$root/var/lib/boundd"
ip link set lo up || true
cd "$root"
pivot_root . run/was
umount -l /run/was
exec env -i container=boundd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    "$SYSTEMD" --system --unit=basic.target --log-target=console --show-status=0
"""


class NoMachineError(Exception):
    """There can be no such machine here; the message says why."""


class Machine:
    """A booted machine. A context manager: it ends with its block, whatever is in it."""

    def __init__(self) -> None:
        self._work = Path(tempfile.mkdtemp(prefix="boundd-machine-", dir="/var/tmp"))
        self._log = self._work.with_suffix(".log")
        self._cgroup: Path | None = None
        self._outer: subprocess.Popen[bytes] | None = None
        self.init_pid = 0

    def __enter__(self) -> Machine:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, as its root.

        Raises:
            AssertionError: it failed, and `check`.
        """
        done = subprocess.run(
            ["nsenter", "-t", str(self.init_pid), "-a", "--wdns=/", *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "COLUMNS": "200"},
        )
        assert not check or done.returncode == 0, (command, done.returncode, done.stdout[-3000:], done.stderr[-3000:])
        return done

    def path(self, inside: str) -> Path:
        """A file of the machine, as this one sees it."""
        return Path(f"/proc/{self.init_pid}/root") / inside.lstrip("/")

    def close(self) -> None:
        """End every process of the machine and leave nothing behind."""
        if self._outer is not None:
            with contextlib.suppress(ProcessLookupError):
                if self.init_pid:
                    # PID 1 of a namespace: the kernel ends everything in it.
                    os.kill(self.init_pid, signal.SIGKILL)
            self._outer.kill()
            self._outer.wait()
        if self._cgroup is not None:
            with contextlib.suppress(OSError):
                (self._cgroup / "cgroup.kill").write_text("1")
            self._remove_cgroup(self._cgroup)
        shutil.rmtree(self._work, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def _boot(self) -> None:
        self._cgroup = _cgroup2() / f"boundd-machine-{os.getpid()}"
        self._cgroup.mkdir()
        (self._work / "boot").write_text(BOOT)
        namespaces = ("--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--kill-child")
        enter = f'echo $$ >"{self._cgroup}/cgroup.procs"; exec unshare "$@"'
        folders = [str(path) for path in _needed()]
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                ["sh", "-c", enter, "sh", *namespaces, "sh", str(self._work / "boot"), str(self._work), *folders],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "MASKED": " ".join(MASKED), "SYSTEMD": str(SYSTEMD)},
            )
        deadline_s = time.monotonic() + BOOT_TIMEOUT_S
        while not self._is_up():
            if self._outer.poll() is not None or time.monotonic() > deadline_s:
                raise NoMachineError(f"systemd did not come up: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def _is_up(self) -> bool:
        assert self._outer is not None
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        with contextlib.suppress(OSError, ValueError):
            self.init_pid = int(children.read_text())
        if not self.init_pid or not self.path("run/systemd/private").exists():
            return False
        return self.run("systemctl", "is-active", "--quiet", "basic.target", check=False).returncode == 0

    @staticmethod
    def _remove_cgroup(cgroup: Path) -> None:
        deadline_s = time.monotonic() + 5
        while cgroup.exists() and time.monotonic() < deadline_s:
            for folder in sorted((p for p in cgroup.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                cgroup.rmdir()
            time.sleep(0.02)


def why_not() -> str:
    """Why there can be no machine here; empty where one can be tried."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists():
        return f"needs systemd ({SYSTEMD})"
    missing = [name for name in ("unshare", "nsenter", "systemctl", "journalctl") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    try:
        _cgroup2()
    except NoMachineError as error:
        return str(error)
    tried = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--net", "--cgroup", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        check=False,
        capture_output=True,
        text=True,
    )
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def _cgroup2() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(mount)
    raise NoMachineError("no cgroup v2 hierarchy is mounted, or it is read-only")


def _needed() -> Sequence[Path]:
    """The folders that the tests' Python reads from, which may be on other file systems, or below /tmp."""
    checkout = Path(__file__).parents[2]
    found = dict.fromkeys((checkout, Path(sys.prefix), Path(sys.base_prefix)))
    return [path for path in found if path != Path("/usr") and path != Path("/")]
