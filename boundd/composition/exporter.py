"""How results leave: the export file, kept current, and exports for people."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import anyio

from boundd import __version__
from boundd.catalogue.models import pipeline_classes
from boundd.composition.config import settings_of
from boundd.composition.contents import Contents
from boundd.composition.versions import Versions, source_of, versions_of
from boundd.config import Settings
from boundd.core.model.effects import Action, Note
from boundd.core.model.state import State
from boundd.ports import Clock, Observer, Store
from boundd.results.export import CellTexts, ExportCell, Rendered, render_export
from boundd.results.staleness import Today, is_stale
from boundd.telemetry.export_file import (
    ForeignExportError,
    check_may_write,
    clear_drafts,
    digest_of,
    write_export,
    written_by_us,
)

EXPORT_DIGESTS = "export-digests"
"""The store's fact that tells which files in formats without a mark of ours are ours: digests, newest first."""
DIGESTS_KEPT = 2
STATE_FOLDERS = "state-folders"
"""The store's fact that tells where its folder was, newest first: the export of one that was moved is still its own."""
FOLDERS_KEPT = 8


def pipelines_of(settings: Settings) -> dict[str, str]:
    """Models to the classes of their pipelines: the known ones, and what the config says of others."""
    named = {name: model.pipeline for name, model in settings.models.items() if model.pipeline}
    return {**pipeline_classes(), **named}


def owner_named(state_dir: str) -> str:
    """What an export says of the state folder that it is of: enough to know it again, and nothing of the machine."""
    return hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]


def _gone(folders: list[str]) -> list[str]:
    """Of folders those that are no more: one that was copied and is still there has an export of its own."""
    return [folder for folder in folders if not Path(folder).exists()]


class Exporter:
    """Keeps the export file current, and renders exports for people."""

    def __init__(self, settings: Settings, store: Store, observer: Observer, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._observer = observer
        self._clock = clock
        self._one_at_a_time = anyio.Lock()
        self._texts = CellTexts(settings.bound_rules)
        self._written_digest = ""
        self._failure = ""
        self._here = os.path.realpath(settings.state_dir)
        self._owners = [owner_named(self._here)]
        self._installed = Versions()
        self._contents = Contents()

    def render(self, state: State, export_format: str, texts: CellTexts | None = None, *, owner: str = "") -> Rendered:
        """The matrix as of this state, in a format; `texts` are those of the export before, where there was one."""
        pipelines, today = pipelines_of(settings_of(state)), self.today(state)
        cells = [ExportCell.of(record, pipelines, stale=is_stale(record, today)) for record in state.matrix()]
        return render_export(
            export_format,  # type: ignore[arg-type]
            cells,
            rules=self._settings.bound_rules,
            now_unix_s=self._clock.now().unix_s,
            version=__version__,
            texts=texts,
            owner=owner,
        )

    def today(self, state: State) -> Today:
        """What the workers have today, by the settings in force."""
        settings = settings_of(state)
        return Today(versions_of(settings, self._installed), self._contents.is_changed, source_of(settings))

    async def check_may_write(self) -> None:
        """See at start, not after hours, that the export would overwrite nobody's file.

        What can't be read now is no reason not to start: it is looked at again, and told, when the export is written.

        Raises:
            ForeignExportError: it would.
        """
        if self._settings.export is not None:
            may = written_by_us(await self._digests(), await self._claim())
            with contextlib.suppress(OSError):
                clear_drafts(self._settings.export)
                check_may_write(self._settings.export, may)

    async def write(self, state: State) -> bool:
        """Bring the export file up to date. A failure is told once and doesn't stop the run; False, to try again."""
        if self._settings.export is None:
            return True
        # The last export of a run can meet one that is still being written.
        async with self._one_at_a_time:
            return await self._write(self._settings.export, state)

    async def _write(self, path: Path, state: State) -> bool:
        try:
            # In a thread: the state is a value, and a large matrix must not hold up the daemon's loop.
            rendered = await anyio.to_thread.run_sync(self._rendered, state)
            digests = [digest_of(rendered.text), *await self._digests()]
            if self._settings.export_format != "json":
                # Before the file: a crash in between leaves a file that is known to be ours.
                await self._store.remember(EXPORT_DIGESTS, json.dumps(list(dict.fromkeys(digests))[:DIGESTS_KEPT]))
            may = written_by_us([*digests, self._written_digest], self._owners)
            if await anyio.to_thread.run_sync(write_export, path, rendered.text, may):
                self._written_digest = digests[0]
                self._tell(Action.EXPORT_WRITTEN, f"{path} is up to date", "debug")
            self._failure = ""
        except Exception as error:
            if str(error) != self._failure:
                self._failure = str(error)
                message = f"{path} could not be written, and that is tried again: {error}"
                self._tell(Action.EXPORT_FAILED, message, "error")
            # Somebody else's file in its place doesn't pass by itself.
            return isinstance(error, ForeignExportError)
        return True

    def _rendered(self, state: State) -> Rendered:
        return self.render(state, self._settings.export_format, self._texts, owner=self._owners[0])

    async def _claim(self) -> list[str]:
        """The owners whose export is ours: this state folder, and those where it was before it was moved."""
        here = self._here
        known = json.loads(await self._store.recall(STATE_FOLDERS) or "[]")
        if known[:1] != [here]:
            await self._store.remember(STATE_FOLDERS, json.dumps(list(dict.fromkeys([here, *known]))[:FOLDERS_KEPT]))
        self._owners = [owner_named(here), *map(owner_named, _gone(known))]
        return self._owners

    async def _digests(self) -> list[str]:
        known = await self._store.recall(EXPORT_DIGESTS)
        return list(json.loads(known)) if known else []

    def _tell(self, action: Action, message: str, level: str) -> None:
        self._observer.note(Note(action, message, level), self._clock.now())
