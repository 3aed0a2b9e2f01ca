"""`boundd install-service` and `boundd uninstall-service`: what they will do, as a list that can be shown or done.

Rules: planning looks at the machine and changes nothing; `--dry-run` prints the plan and stops. Only files that hold
our mark are replaced or removed, so that what an operator wrote under the same name stays.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import boundd
from boundd import __version__

MARK = "# Installed by `boundd install-service`"
UNIT = "boundd.service"
DEVICES_UNIT = "boundd-devices.service"
SHIPPED_PROGRAMS = "/opt/boundd/bin/"
"""Where the units as they are shipped look for the programs."""
SUBGROUP_VERSION = 254
"""The systemd that began to know DelegateSubgroup=."""
HOMES = ("/home", "/root", "/run/user")
"""What ProtectHome= hides."""
PRIVATE = ("/tmp", "/var/tmp")  # noqa: S108 - folders that PrivateTmp= hides, not files


class ServiceError(Exception):
    """The operator's: the service can't be installed so; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service's files go."""

    user: bool
    units: Path
    config: Path
    sysusers: Path | None = None
    tmpfiles: Path | None = None

    @classmethod
    def of_system(cls) -> Place:
        """The operator's own folders, which packages leave alone."""
        etc = Path("/etc")
        config = etc / "boundd/config.toml"
        return cls(False, etc / "systemd/system", config, etc / "sysusers.d", etc / "tmpfiles.d")

    @classmethod
    def of_user(cls, environ: Mapping[str, str]) -> Place:
        """The folders of the user who asks."""
        home = Path(environ.get("HOME") or Path.home())
        config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
        return cls(True, config / "systemd/user", home / ".config/boundd/config.toml")

    def systemctl(self, *arguments: str) -> tuple[str, ...]:
        """A command of this service's manager."""
        return ("systemctl", *(("--user",) if self.user else ()), *arguments)


@dataclass(slots=True)
class Plan:
    """Files to write (path to text), files to remove, commands to run afterwards, and what to tell."""

    write: dict[Path, str] = field(default_factory=dict)
    remove: list[Path] = field(default_factory=list)
    run: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What it will do, a line each."""
        return [
            *(f"write   {path}" for path in self.write),
            *(f"remove  {path}" for path in self.remove),
            *(f"run     {shlex.join(command)}" for command in self.run),
        ]


@dataclass(frozen=True, slots=True)
class Installation:
    """The boundd that the service will run: its programs' folder, and every folder that its Python reads from."""

    programs: Path
    reads: tuple[Path, ...]

    @classmethod
    def of_this_process(cls) -> Installation:
        """The one that is running.

        Raises:
            ServiceError: it has no `boundd` program beside its interpreter.
        """
        programs = Path(sys.prefix) / "bin"
        missing = [name for name in ("boundd", "boundctl") if not (programs / name).is_file()]
        if missing:
            raise ServiceError(
                f"{programs} has no {' and no '.join(missing)}: install boundd in an environment of its own, such as "
                "python3 -m venv /opt/boundd && /opt/boundd/bin/pip install boundd"
            )
        package = Path(boundd.__file__).parent.parent
        interpreter = Path(sys.executable).resolve().parent.parent
        return cls(programs, tuple(dict.fromkeys((Path(sys.prefix), Path(sys.base_prefix), interpreter, package))))


def units_folder() -> Path:
    """Where the units are: inside the package in an installed wheel, beside it in a checkout.

    Raises:
        ServiceError: in neither.
    """
    package = Path(boundd.__file__).parent
    for folder in (package / "_systemd", package.parent / "systemd"):
        if (folder / UNIT).is_file():
            return folder
    raise ServiceError(f"{package}: the units are missing from this installation. Install boundd again.")


def plan_install(place: Place, installation: Installation, systemd_version: int) -> Plan:
    """What installing the service will do.

    Raises:
        ServiceError: something else is where a file would go.
    """
    folder, plan = units_folder(), Plan()
    source = folder / "user" if place.user else folder
    plan.write[place.units / UNIT] = unit_text((source / UNIT).read_text(), installation, systemd_version, place.user)
    if not place.user:
        assert place.sysusers is not None
        assert place.tmpfiles is not None
        plan.write[place.units / DEVICES_UNIT] = _marked((folder / DEVICES_UNIT).read_text())
        plan.write[place.sysusers / "boundd.conf"] = _marked((folder / "sysusers.d/boundd.conf").read_text())
        plan.write[place.tmpfiles / "boundd.conf"] = _marked((folder / "tmpfiles.d/boundd.conf").read_text())
        plan.run += [
            ("systemd-sysusers", str(place.sysusers / "boundd.conf")),
            ("systemd-tmpfiles", "--create", str(place.tmpfiles / "boundd.conf")),
        ]
    plan.run.append(place.systemctl("daemon-reload"))
    for path in plan.write:
        _check_ours(path)
    plan.notes = _next_steps(place, folder)
    return plan


def plan_uninstall(place: Place) -> Plan:
    """What uninstalling will do: undo the installation, and leave results, caches, the config and the user."""
    plan = Plan()
    files = [place.units / UNIT]
    if not place.user:
        assert place.sysusers is not None
        assert place.tmpfiles is not None
        files += [place.units / DEVICES_UNIT, place.sysusers / "boundd.conf", place.tmpfiles / "boundd.conf"]
    plan.remove = [path for path in files if _is_ours(path)]
    if plan.remove:
        plan.run = [place.systemctl("daemon-reload")]
        kept = "~/.local/state/boundd, ~/.config/boundd" if place.user else "/var/lib/boundd, /etc/boundd"
        plan.notes.append(f"kept: {kept}" + ("" if place.user else ", /var/cache/boundd, the user and group boundd"))
    return plan


def unit_text(shipped: str, installation: Installation, systemd_version: int, user: bool) -> str:
    """The unit for this installation and this systemd."""
    text = shipped.replace(SHIPPED_PROGRAMS, f"{_quoted(installation.programs)}/")
    if systemd_version < SUBGROUP_VERSION:
        text = re.sub(r"(?m)^DelegateSubgroup=.*\n", "", text)
    return _marked(text if user else _uncovered(text, installation.reads))


def _uncovered(text: str, reads: Sequence[Path]) -> str:
    """The unit with those folders of the installation shown, read-only, that its sandbox would hide."""
    hidden = [path for path in reads if _below(path, HOMES)]
    if hidden:
        text = text.replace(
            "ProtectHome=yes",
            "# The installation is in somebody's home: its folders are shown, and nothing else of it.\n"
            "ProtectHome=tmpfs",
        )
    hidden += [path for path in reads if _below(path, PRIVATE)]
    binds = "".join(f"BindReadOnlyPaths={_quoted(path)}\n" for path in hidden)
    return text.replace("PrivateTmp=yes\n", f"PrivateTmp=yes\n{binds}")


def carry_out(plan: Plan) -> None:
    """Do what the plan says.

    Raises:
        ServiceError: a file can't be written or a command failed; what was done until then stays.
    """
    try:
        for path, text in plan.write.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.write_text(text)
            draft.replace(path)
        for path in plan.remove:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ServiceError(f"{error.filename}: {error.strerror}; a system service needs root, or take --user") from None
    for command in plan.run:
        if shutil.which(command[0]) is None:
            raise ServiceError(f"there is no {command[0]} here: is this machine run by systemd?")
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ServiceError(f"`{shlex.join(command)}` failed: {(done.stderr or done.stdout).strip()}")


def systemd_version() -> int:
    """The machine's systemd.

    Raises:
        ServiceError: there is none.
    """
    try:
        said = subprocess.run(["systemctl", "--version"], check=True, capture_output=True, text=True).stdout
        return int(said.split()[1])
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        raise ServiceError("there is no systemctl here: is this machine run by systemd?") from None


def is_active(place: Place) -> bool:
    """Whether the service runs now."""
    asked = subprocess.run(place.systemctl("is-active", "--quiet", UNIT), check=False, capture_output=True)
    return asked.returncode == 0


def _next_steps(place: Place, folder: Path) -> list[str]:
    sudo = "" if place.user or os.geteuid() == 0 else "sudo "
    control = shlex.join(place.systemctl())
    steps = []
    if not place.config.exists():
        example = folder.parent / ("_config.toml" if folder.name == "_systemd" else "config.toml")
        steps.append(f"{sudo}install -D -m 644 {shlex.quote(str(example))} {shlex.quote(str(place.config))}")
    steps += [
        f"boundd check-config {shlex.quote(str(place.config))}",
        f"{sudo}{control} enable --now boundd",
        f"{control} status boundd",
        f"journalctl {'--user ' if place.user else ''}-u boundd -f",
    ]
    if place.user:
        steps.append("loginctl enable-linger    # or it ends when you log out")
    else:
        steps.append(f"{sudo}usermod -aG boundd YOU    # who may use boundctl")
    return ["next:", *(f"  {step}" for step in steps)]


def _below(path: Path, folders: Sequence[str]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _quoted(path: Path) -> str:
    """A path as a unit file takes it.

    Raises:
        ServiceError: none that systemd could be given.
    """
    text = str(path)
    if not re.fullmatch(r"[\w./+@:,=-]+", text):
        raise ServiceError(f"{text}: has characters that a unit file would need escaped; install boundd elsewhere")
    return text


def _marked(text: str) -> str:
    return f"{MARK} of boundd {__version__}; `boundd uninstall-service` removes it.\n{text}"


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text(errors="replace").startswith(MARK)
    except OSError:
        return False


def _check_ours(path: Path) -> None:
    if path.exists() and not _is_ours(path):
        raise ServiceError(f"{path} is there and was not installed by boundd: move it away first")
