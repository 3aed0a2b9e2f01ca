"""install-service as a plan; that it works in a real systemd is in tests/system."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from boundd.cli import service
from boundd.cli.service import Installation, Place, Plan, ServiceError
from boundd.cli.service_commands import install_service, uninstall_service

OPT = Installation(Path("/opt/boundd/bin"), (Path("/opt/boundd"), Path("/usr")))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A system's folders, here."""
    etc = tmp_path / "etc"
    return Place(False, etc / "systemd/system", etc / "boundd/config.toml", etc / "sysusers.d", etc / "tmpfiles.d")


def directives(text: str) -> list[str]:
    """The lines of a unit that say something."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def write(plan: Plan) -> None:
    """Write the plan's files, and run nothing."""
    plan.run.clear()
    service.carry_out(plan)


def test_the_shipped_unit_is_for_opt(place: Place) -> None:
    """An installation in /opt/boundd, on a systemd of today, gets the unit as it is shipped."""
    text = service.plan_install(place, OPT, 257).write[place.units / "boundd.service"]
    assert directives(text) == directives((service.units_folder() / "boundd.service").read_text())


def test_an_older_systemd_is_spared_what_it_does_not_know(place: Place) -> None:
    """DelegateSubgroup= came with 254."""
    new, old = (
        directives(service.plan_install(place, OPT, version).write[place.units / "boundd.service"])
        for version in (254, 253)
    )
    assert set(new) - set(old) == {"DelegateSubgroup=daemon"}


@pytest.mark.parametrize("prefix", ["/home/alice/venv", "/root/venv", "/tmp/venv"])
def test_an_installation_that_the_sandbox_would_hide_is_shown(place: Place, prefix: str) -> None:
    """Its folders alone, read-only; a home's other files stay hidden."""
    installation = Installation(Path(prefix) / "bin", (Path(prefix), Path("/usr")))
    lines = directives(service.plan_install(place, installation, 257).write[place.units / "boundd.service"])
    assert f"ExecStart={prefix}/bin/boundd run --log-format json" in lines
    assert f"ExecReload={prefix}/bin/boundctl reload" in lines
    assert f"BindReadOnlyPaths={prefix}" in lines
    assert "BindReadOnlyPaths=/usr" not in lines
    assert ("ProtectHome=tmpfs" in lines) == (not prefix.startswith("/tmp"))
    assert ("ProtectHome=yes" in lines) == prefix.startswith("/tmp")


def test_a_path_that_a_unit_would_need_escaped_is_refused(place: Place) -> None:
    """A blank would split the command, a percent sign would be a specifier."""
    for prefix in ("/opt/my boundd", "/opt/100%", "/opt/a\nExecStartPre=x"):
        with pytest.raises(ServiceError, match="install boundd elsewhere"):
            service.plan_install(place, Installation(Path(prefix) / "bin", ()), 257)


def test_installing_twice_is_an_update_and_uninstalling_undoes(place: Place) -> None:
    """Every file of the installation goes, and nothing else."""
    write(service.plan_install(place, OPT, 257))
    write(service.plan_install(place, OPT, 253))
    root = place.units.parents[1]
    written = {path for path in root.rglob("*") if path.is_file()}
    assert {path.name for path in written} == {"boundd.service", "boundd-devices.service", "boundd.conf"}
    drop_in = place.units / "boundd.service.d/mine.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\n")
    plan = service.plan_uninstall(place)
    assert set(plan.remove) == written
    write(plan)
    assert [path for path in root.rglob("*") if path.is_file()] == [drop_in]
    assert service.plan_uninstall(place).remove == []


def test_somebody_elses_file_is_left_alone(place: Place) -> None:
    """A unit of the same name that we did not write is neither replaced nor removed."""
    unit = place.units / "boundd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/mine\n")
    with pytest.raises(ServiceError, match="move it away"):
        service.plan_install(place, OPT, 257)
    assert service.plan_uninstall(place).remove == []


def test_a_folder_that_cannot_be_written_to_names_the_way_out(place: Place) -> None:
    """Without root: sudo, or --user. Here the folder is a file, which not even root can write to."""
    place.units.parent.mkdir(parents=True)
    place.units.write_text("")
    plan = Plan(write={place.units / "boundd.service": ""})
    with pytest.raises(ServiceError, match="--user"):
        service.carry_out(plan)


def test_a_user_has_no_sysusers(tmp_path: Path) -> None:
    """One unit, in the user's own folder, and the user's own manager."""
    place = Place.of_user({"HOME": str(tmp_path)})
    plan = service.plan_install(place, OPT, 257)
    assert list(plan.write) == [tmp_path / ".config/systemd/user/boundd.service"]
    assert plan.run == [("systemctl", "--user", "daemon-reload")]
    assert "User=boundd" not in plan.write[tmp_path / ".config/systemd/user/boundd.service"]
    assert any("enable-linger" in note for note in plan.notes)


def test_every_relaxation_says_why() -> None:
    """A `no` or `all` in the unit's sandbox, or a gap in it, has a comment right above its group of lines."""
    lines = (service.units_folder() / "boundd.service").read_text().splitlines()
    loose = ("PrivateDevices=no", "PrivateNetwork=no", "MemoryDenyWriteExecute=no", "ProtectControlGroups=no",
             "ProcSubset=all", "PrivateUsers=no", "RemoveIPC=no")  # fmt: skip
    found = [line for line in lines if line.endswith(("=no", "=all"))]
    assert sorted(found) == sorted(loose)
    for line in loose:
        assert lines[lines.index(line) - 1].startswith("#"), line


@pytest.mark.parametrize("command", [install_service, uninstall_service])
def test_help_has_an_example(command: object) -> None:
    """As every command has."""
    said = CliRunner().invoke(command, ["--help"])  # type: ignore[arg-type]
    assert said.exit_code == 0
    assert "Example:" in said.output
    assert "--dry-run" in said.output
