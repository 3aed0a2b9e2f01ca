"""What the API is handed by whoever renders exports, reads old files and knows what is stale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from boundd.core.model.attempts import CellRecord
from boundd.core.model.events import Imported


@dataclass(frozen=True, slots=True)
class ExportText:
    """A rendered export. `warnings` says what the format couldn't represent, a cell each."""

    text: str
    warnings: tuple[str, ...] = ()
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class ImportPreview:
    """What an old file would bring."""

    entries: tuple[Imported, ...] = ()
    ambiguous: tuple[str, ...] = ()
    """Entries that more than one model could be meant by."""
    unmatched: tuple[str, ...] = ()
    """Entries that no cell of the matrix answers to."""
    models: tuple[str, ...] = ()
    """The models that the ambiguous entries could mean."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the API calls and doesn't know the inside of."""

    render_export: Callable[[str], ExportText]
    """The export in a format. Raises ValueError for one that there isn't."""
    render_metrics: Callable[[], bytes]
    import_legacy: Callable[[str, str | None], ImportPreview]
    """What the text of an old file, and the model that it is of, would bring. Raises ValueError for a bad text."""
    is_stale: Callable[[CellRecord], bool]
