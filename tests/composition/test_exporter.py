"""The export file, kept current."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from boundd.composition.exporter import Exporter
from boundd.config.settings import Settings, load
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import Now
from boundd.core.model.state import State
from boundd.service.clock import SystemClock
from boundd.store.sqlite import SqliteStore
from boundd.telemetry.export_file import ForeignExportError

CONFIG = """
[matrix.axes]
n = [1, 2]
[worker]
command = ["true", "{n}"]
result = "stdout"
"""


@pytest.fixture
def anyio_backend() -> str:
    """uvicorn runs on asyncio only."""
    return "asyncio"


class Notes:
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.actions: list[Action] = []

    def note(self, note: Note, at: Now) -> None:
        """Keep its action."""
        assert at.unix_s > 0
        self.actions.append(note.action)


@pytest.mark.anyio
async def test_exports_that_meet_don_t_trip_over_each_other(tmp_path: Path) -> None:
    """The last export of a run may be asked for while one is still being written: both are written, one after the
    other. (Without the lock they share a temporary file, and one of them fails with 'No such file'.)"""
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    settings = load(config, {"STATE_DIRECTORY": str(tmp_path / "state")})
    settings = replace(settings, export=tmp_path / "speedup_bounds.json")
    store = await SqliteStore.open(tmp_path / "boundd.db")
    notes = Notes()
    try:
        exporters = Exporter(settings, store, notes, SystemClock())
        for round_number in range(5):
            (tmp_path / "speedup_bounds.json").unlink(missing_ok=True)
            async with anyio.create_task_group() as group:
                for number in range(4):
                    safety = replace(settings, safety_factor=1.0 + round_number / 10 + number / 100)
                    exporters._settings = safety
                    group.start_soon(exporters.write, State(settings=settings))
    finally:
        await store.aclose()
    assert Action.EXPORT_FAILED not in notes.actions
    assert json.loads((tmp_path / "speedup_bounds.json").read_text())["cells"] == []


@pytest.mark.anyio
async def test_an_export_that_can_t_be_read_now_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """It is told when it is to be written, and tried again; a file of somebody else's is refused at once."""
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    (tmp_path / "file").touch()
    settings = replace(
        load(config, {"STATE_DIRECTORY": str(tmp_path / "state")}), export=tmp_path / "file" / "bounds.json"
    )
    store = await SqliteStore.open(tmp_path / "boundd.db")
    notes = Notes()
    try:
        exporter = Exporter(settings, store, notes, SystemClock())
        await exporter.check_may_write()
        assert not await exporter.write(State(settings=settings))
        (tmp_path / "theirs").write_text("theirs")
        with pytest.raises(ForeignExportError):
            await Exporter(replace(settings, export=tmp_path / "theirs"), store, notes, SystemClock()).check_may_write()
    finally:
        await store.aclose()
    assert notes.actions == [Action.EXPORT_FAILED]


@pytest.mark.parametrize("export_format", ["json", "csv", "legacy"])
@pytest.mark.anyio
async def test_two_configs_never_share_an_export(tmp_path: Path, export_format: str) -> None:
    """The second is refused, at the start and where both run; a state folder that was moved keeps its own.

    Seen to fail: with `owner_of` always "" the second replaces the first's.
    """
    config, path = tmp_path / "config.toml", tmp_path / "bounds"
    config.write_text(CONFIG)

    def settings_in(name: str) -> Settings:
        settings = load(config, {"STATE_DIRECTORY": str(tmp_path / name)})
        settings.state_dir.mkdir(exist_ok=True, parents=True)
        return replace(settings, export=path, export_format=export_format)

    async def exported(name: str, *, at_start: bool = True) -> tuple[bool, list[Action]]:
        settings, notes = settings_in(name), Notes()
        store = await SqliteStore.open(settings.state_dir / "boundd.db")
        try:
            exporter = Exporter(settings, store, notes, SystemClock())
            if at_start:
                await exporter.check_may_write()
            return await exporter.write(State(settings=settings)), notes.actions
        finally:
            await store.aclose()

    assert await exported("a") == (True, [Action.EXPORT_WRITTEN])
    content = path.read_bytes()
    with pytest.raises(ForeignExportError, match=r"bounds (holds the results of another|was not written by boundd)"):
        await exported("b")
    told = (
        [Action.EXPORT_FAILED] if export_format == "json" else []
    )  # The others say the same: nothing is to be written.
    assert await exported("b", at_start=False) == (True, told)
    assert path.read_bytes() == content
    assert (await exported("a"))[0]
    (tmp_path / "a").rename(tmp_path / "moved")
    assert (await exported("moved"))[0]
    assert str(tmp_path) not in path.read_text()
